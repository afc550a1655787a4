"""Angles in radians: the same one within half a turn, and the nearest turn from one to another.

Angles that are whole turns apart are one angle. Whatever compares, follows or reports angles does it by these.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from swarm.core.rounding import rounded

# 2 pi in two parts: any number of turns (below 65,536) times the first is exact in float32.
_TURN = 6.28125, 2 * math.pi - 6.28125
# Who is opposite but for less than this turns left: rounding must not choose the way. Radians.
OPPOSITE = 1e-4


def wrapped(angle: Float[Array, "*v"]) -> Float[Array, "*v"]:
    """The same angle in [-pi, pi]; one that lies there is left as it is."""
    # Twice, because the first quotient is rounded and may be a turn off next to half a turn.
    for _ in range(2):
        turns = jax.lax.stop_gradient(jnp.round(angle / (2 * jnp.pi)))
        angle = angle - rounded(turns * _TURN[0]) - rounded(turns * _TURN[1])
    return angle


def nearest_turn(start: Float[Array, "*v"], goal: Float[Array, "*v"]) -> Float[Array, "*v"]:
    """What to turn by, the shorter way, so as to look from `start` to `goal`; positive to the left.

    In (-pi, pi] but for `OPPOSITE`: from the opposite it is half a turn to the left, however many turns either angle
    counts.
    """
    way = wrapped(wrapped(goal) - wrapped(start))
    return jnp.where(way < OPPOSITE - jnp.pi, way + 2 * jnp.pi, way)
