"""Lengths, products and limits of vectors given by their last axis.

Components are summed by name, not by a reduction, which XLA may round differently alone and in a batch; gradients at
the zero vector are finite.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from swarm.core.rounding import rounded
from swarm.geometry.space import length


def known(vector: Float[Array, "*v d"]) -> Bool[Array, "*v"]:
    """Whether no component is NaN, as what the dead hold may be."""
    return jnp.all(vector == vector, axis=-1)


def norm(vector: Float[Array, "*v d"]) -> Float[Array, "*v"]:
    """Euclidean length, with gradient 0 at 0."""
    return length([vector[..., axis] for axis in range(vector.shape[-1])])


def dot(a: Float[Array, "*#v d"], b: Float[Array, "*#v d"]) -> Float[Array, "*_v"]:
    """Inner product."""
    total = rounded(a[..., 0] * b[..., 0])
    for axis in range(1, a.shape[-1]):
        total = total + rounded(a[..., axis] * b[..., axis])
    return total


def unit(vector: Float[Array, "*v d"]) -> Float[Array, "*v d"]:
    """Direction of a vector; 0 of 0."""
    size = norm(vector)
    return vector / jnp.where(size > 0, size, 1.0)[..., None]


def clipped(vector: Float[Array, "*v d"], limit: Float[Array, "*v"]) -> Float[Array, "*v d"]:
    """Shorten a vector to a length, which may be infinite; the direction stays."""
    size = norm(vector)
    over = size > limit
    share = jnp.where(over, jnp.where(over, limit, 1.0) / jnp.where(over, size, 1.0), 1.0)
    return rounded(vector * share[..., None])
