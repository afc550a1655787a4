"""Continuous space: displacements and wrapping, in any number of dimensions."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Periodic(eqx.Module):
    """A box whose opposite sides are joined.

    Attributes:
        size: side lengths, metres.
    """

    size: Float[Array, " d"]

    def displacement(self, a: Float[Array, "*#v d"], b: Float[Array, "*#v d"]) -> Float[Array, "*_v d"]:
        """Shortest way from a to b."""
        size = self.size.reshape((1,) * (a.ndim - 1) + (-1,))
        way = b - a
        return way - size * jnp.round(way / size)

    def wrap(self, position: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Bring positions into the box [0, size)."""
        wrapped = jnp.mod(position, self.size[None])
        # mod rounds tiny negative numbers up to the size itself, which is outside.
        return jnp.where(wrapped >= self.size[None], 0.0, wrapped)
