"""Unit quaternions (x, y, z, w) that turn vectors of the body (forward, left, up) into vectors of the world.

Everything here works on components, tuples of arrays of one shape: loops over many entities then run over contiguous
numbers, and each product is rounded before it is added (`swarm.core.rounding`), so that alone and in a batch the bits
are the same.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from swarm.core.rounding import root, rounded
from swarm.geometry.space import square_length

Components = tuple[Array, ...]


def components(vector: Float[Array, "*v d"]) -> Components:
    """Take the last axis apart."""
    return tuple(vector[..., axis] for axis in range(vector.shape[-1]))


@jax.custom_jvp
def joined(parts: Components) -> Float[Array, "*v d"]:
    """Put components together as the last axis.

    By selection, which runs over contiguous numbers; XLA interleaves by a branch for each number, five times slower.
    """
    axis = jax.lax.broadcasted_iota(jnp.int32, (*parts[0].shape, len(parts)), parts[0].ndim)
    whole = parts[-1][..., None]
    for i in range(len(parts) - 1):
        whole = jnp.where(axis == i, parts[i][..., None], whole)
    return whole


@joined.defjvp
def _(primals: tuple[Components], tangents: tuple[Components]) -> tuple[Array, Array]:
    return joined(*primals), jnp.stack(*tangents, axis=-1)


def inner(a: Iterable[Array], b: Iterable[Array]) -> Array:
    """Inner product of tuples, or along first axes."""
    first, *others = (rounded(x * y) for x, y in zip(a, b, strict=True))
    return sum(others, start=first)


def cross(a: Components, b: Components) -> Components:
    """Vector product."""
    return tuple(rounded(a[j] * b[k]) - rounded(a[k] * b[j]) for j, k in ((1, 2), (2, 0), (0, 1)))


def scaled_sum(a: Components, factor: Array, b: Components) -> Components:
    """A + factor * b."""
    return tuple(x + rounded(factor * y) for x, y in zip(a, b, strict=True))


def plane(a: Array, b: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """Components of a vector in a plane whose axes turn by an angle."""
    return rounded(cos * a) + rounded(sin * b), rounded(cos * b) - rounded(sin * a)


def product(p: Components, q: Components) -> Components:
    """The turn q, then p: p * q of Hamilton."""
    *u, a = p
    *v, b = q
    turn = cross(tuple(u), tuple(v))
    vector = tuple(rounded(a * y) + rounded(b * x) + z for x, y, z in zip(u, v, turn, strict=True))
    return (*vector, rounded(a * b) - inner(tuple(u), tuple(v)))


def conjugate(q: Components) -> Components:
    """The opposite turn."""
    x, y, z, w = q
    return -x, -y, -z, w


def turn(q: Components, vector: Components) -> Components:
    """A vector of the body in the world."""
    *u, w = q
    twice = tuple(2.0 * c for c in cross(tuple(u), vector))
    return tuple(a + rounded(w * b) + c for a, b, c in zip(vector, twice, cross(tuple(u), twice), strict=True))


def turn_back(q: Components, vector: Components) -> Components:
    """A vector of the world in the body."""
    return turn(conjugate(q), vector)


def unit(q: Components) -> Components:
    """Divided by its length; a quaternion of length 0 stays."""
    size = root(square_length(q))
    size = jnp.where(size > 0, size, 1.0)
    return tuple(c / size for c in q)


def from_angles(angles: Components) -> Components:
    """Of roll, pitch and yaw: turned about z by yaw, then about the new y by pitch, then about the new x by roll."""
    (sr, sp, sy), (cr, cp, cy) = (tuple(f(0.5 * a) for a in angles) for f in (jnp.sin, jnp.cos))
    zero = jnp.zeros_like(sr)
    level = product((zero, zero, sy, cy), (zero, sp, zero, cp))
    return product(level, (sr, zero, zero, cr))


def to_angles(q: Components) -> Components:
    """Roll, pitch and yaw; radians. At a pitch of 90 degrees roll and yaw are one turn, which roll gets."""
    x, y, z, w = q
    roll = jnp.arctan2(2.0 * (rounded(w * x) + rounded(y * z)), 1.0 - 2.0 * (rounded(x * x) + rounded(y * y)))
    pitch = jnp.arcsin(jnp.clip(2.0 * (rounded(w * y) - rounded(z * x)), -1.0, 1.0))
    return roll, pitch, yaw_of(q)


def yaw_of(q: Components) -> Array:
    """Direction of the body's forward axis, seen from above; radians. 0 where it points straight up or down."""
    x, y, z, w = q
    ahead, aside = 1.0 - 2.0 * (rounded(y * y) + rounded(z * z)), 2.0 * (rounded(w * z) + rounded(x * y))
    level = (ahead != 0) | (aside != 0)
    return jnp.arctan2(jnp.where(level, aside, 0.0), jnp.where(level, ahead, 1.0))


def up_of(q: Components) -> Components:
    """The body's upward axis in the world."""
    x, y, z, w = q
    across = 2.0 * (rounded(x * z) + rounded(w * y)), 2.0 * (rounded(y * z) - rounded(w * x))
    return (*across, 1.0 - 2.0 * (rounded(x * x) + rounded(y * y)))
