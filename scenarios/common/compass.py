"""Moves in the plane for discrete control: stay, or go in one of the 8 directions of the compass."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from swarm.geometry.vectors import norm

MOVES = ("stay", "east", "north-east", "north", "north-west", "west", "south-west", "south", "south-east")


def move_towards(way: Float[Array, "n 2"], nearer_than: Float[Array, " n"] | float) -> Int[Array, " n"]:
    """The move that comes nearest to a way; stay where the way is not longer than a distance."""
    short = norm(way) <= nearer_than
    angle = jnp.arctan2(jnp.where(short, 0.0, way[:, 1]), jnp.where(short, 1.0, way[:, 0]))
    octant = jnp.round(angle / (jnp.pi / 4)).astype(jnp.int32) % 8
    return jnp.where(short, 0, octant + 1)
