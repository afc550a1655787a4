"""Whether what is to be compiled can fit into memory at all: where it cannot, XLA aborts or the system kills."""

import os
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from swarm.core.errors import ConfigError


def check_memory(reset: Callable[..., PyTree], n_worlds: int, where: str) -> None:
    """Refuse worlds whose states and observations alone take more than all of the memory; nothing is compiled.

    Args:
        reset: makes a world from a key.
        n_worlds: at a time, over all processes.
        where: what says how many there are, for the message.

    Raises:
        ConfigError: they do.
    """
    check_bytes(n_worlds * n_bytes(jax.eval_shape(reset, jax.random.key(0))), where)


def check_bytes(needed: int, where: str) -> None:
    """Refuse what takes more bytes than all of the memory; arguments and errors as for `check_memory`."""
    there = memory()
    if needed > there:
        raise ConfigError(
            f"{where}: takes more than {needed / 2**30:,.1f} GiB of memory, and there are {there / 2**30:,.1f}; lower "
            "the capacities, or take fewer worlds"
        )


def n_bytes(tree: PyTree) -> int:
    """Bytes of arrays, or of the shapes of arrays."""
    return sum(_bytes(x) for x in jax.tree.leaves(tree))


def _bytes(x: Any) -> int:
    if not hasattr(x, "dtype"):
        return 0
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, x)
    return x.size * x.dtype.itemsize


def memory() -> int:
    """Bytes of memory of all processes together: of the machines, and where those are more, of their devices."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    of_devices = sum((device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices())
    return jax.process_count() * max(machine, of_devices)
