"""A number for each array that changes with any of its bits, however the array is laid out over devices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_PART = 1 << 20  # elements at once, since each takes eight bytes on the way
# Odd, so that multiplying by them loses nothing (Steele, Lea, Flood 2014).
_PLACE, _FIRST, _SECOND = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return 64 bits for each array, in hexadecimal.

    Over all elements the sum, modulo 2^64, of a hash of place and bits: sums do not depend on the order, so that an
    array has the same one on one device and on many. A single changed element always changes it.

    Args:
        arrays: of numpy or jax; those may be sharded along their first axis, and each process adds its part.
    """
    several = any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in arrays.values())
    sums = np.asarray([_sum(x, several) for x in arrays.values()], np.uint64)
    if several:
        parts = multihost_utils.process_allgather(sums.view(np.uint32))
        sums = np.sum(np.ascontiguousarray(parts).view(np.uint64), axis=0)
    return {name: f"{int(one):016x}" for name, one in zip(arrays, sums, strict=True)}


def _sum(x: Any, several: bool) -> np.uint64:
    """This process's part; what each of several holds whole is the first one's."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return np.uint64(0) if several and jax.process_index() else _sum_rows(np.asarray(x), 0)
    total = np.uint64(0)
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            row = (shard.index[0].start or 0) if x.ndim else 0
            with np.errstate(over="ignore"):
                total += _sum_rows(np.asarray(shard.data), row * (x.size // x.shape[0]) if x.ndim else 0)
    return total


def _sum_rows(x: np.ndarray, place: int) -> np.uint64:
    """Of elements from a place on."""
    total = np.uint64(0)
    bits = np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}")
    with np.errstate(over="ignore"):
        for i in range(0, bits.size, _PART):
            part = bits[i : i + _PART].astype(np.uint64)
            part ^= (np.arange(part.size, dtype=np.uint64) + np.uint64(place + i + 1)) * _PLACE
            part *= _FIRST
            part ^= part >> np.uint64(31)
            part *= _SECOND
            total += np.sum(part, dtype=np.uint64)
    return total
