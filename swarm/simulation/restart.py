"""Rare events of a batch, such as the end of an episode: work for the marked worlds alone, some of them at a time.

A masked `vmap` would pay for all worlds at every step. A loop over the marked ones, one by one, pays for starting each
operation once a world, which is most of the cost of a small world on a CPU and all of it on an accelerator. So they are
taken in chunks, of as many worlds as share that cost without doing much more where only one is marked.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

Carry = TypeVar("Carry")

# At most so many worlds at once, and so many numbers of theirs (perf/README.md).
_LIMITS = {"cpu": (64, 2**14)}
_OF_ACCELERATORS = 1024, 2**24


def chunk_size(worlds: PyTree, platform: str) -> int:
    """How many worlds of a batch are taken at once.

    Args:
        worlds: the batch; each leaf has the leading axis b.
        platform: of the device that does the work: `cpu`, or any other.
    """
    leaves = jax.tree.leaves(worlds)
    n_worlds = leaves[0].shape[0]
    most_worlds, most_numbers = _LIMITS.get(platform, _OF_ACCELERATORS)
    n_numbers = max(1, sum(x.size for x in leaves) // max(n_worlds, 1))
    return max(1, min(n_worlds, most_worlds, most_numbers // n_numbers))


def for_each_marked(
    function: Callable[[Int[Array, " c"], Carry], Carry], marked: Bool[Array, " b"], carry: Carry, chunk: int
) -> Carry:
    """Apply `function(indices, carry) -> carry` to the marked indices in ascending order, `chunk` of them at a time.

    The last chunk is filled up with b, beyond all worlds: `rows` then reads the last world, `with_rows` drops it.
    """
    n_worlds = marked.shape[0]
    order = jnp.nonzero(marked, size=-(-n_worlds // chunk) * chunk, fill_value=n_worlds)[0].astype(jnp.int32)
    n_chunks = (jnp.sum(marked, dtype=jnp.int32) + chunk - 1) // chunk

    def body(i: Array, carry: Carry) -> Carry:
        return function(jax.lax.dynamic_slice(order, (i * chunk,), (chunk,)), carry)

    return jax.lax.fori_loop(0, n_chunks, body, carry)


def rows(batch: PyTree, index: Int[Array, " c"]) -> PyTree:
    """The worlds at some indices of a batch."""
    return jax.tree.map(lambda x: x.at[index].get(mode="clip"), batch)


def with_rows(batch: PyTree, index: Int[Array, " c"], new: PyTree) -> PyTree:
    """The batch with other worlds at some indices."""
    return jax.tree.map(lambda old, x: old.at[index].set(x, mode="drop"), batch, new)
