"""Sums over neighbours within a radius."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from swarm.space import Periodic


def sum_all_pairs(
    pair: Callable[[Float[Array, "n n d"], Float[Array, "n n"], Float[Array, "1 n v"]], Float[Array, "n n o"]],
    space: Periodic,
    position: Float[Array, "n d"],
    values: Float[Array, "n v"],
    alive: Bool[Array, " n"],
    radius: Float[Array, ""] | float,
) -> Float[Array, "n o"]:
    """Sum a pair function over the living others within the radius, by looking at all pairs: O(n^2).

    Args:
        pair: `pair(displacement to the other, distance, values of the other) -> o` values for each pair.
        space: measures displacements.
        position: of all slots.
        values: what an entity shows to its neighbours.
        alive: who counts.
        radius: neighbours are nearer than this; metres.

    Returns:
        Sums for each slot; 0 for dead ones.
    """
    here = jnp.where(alive[:, None], position, 0.0)
    shown = jnp.where(alive[:, None], values, 0.0)
    displacement = space.displacement(here[:, None, :], here[None, :, :])
    # Summed by name, not by a reduction, which XLA may round differently alone and in a batch.
    distance = jnp.sqrt(sum(jnp.square(displacement[..., axis]) for axis in range(position.shape[1])))
    n = alive.shape[0]
    near = (distance < radius) & alive[:, None] & alive[None, :] & ~jnp.eye(n, dtype=bool)
    return jnp.sum(jnp.where(near[..., None], pair(displacement, distance, shown[None]), 0.0), axis=1)
