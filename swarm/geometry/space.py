"""Continuous space in two or three dimensions: displacements, and what happens at its edge."""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from swarm.core.rounding import root, rounded


class AbstractSpace(eqx.Module):
    """A box from `lower` to `lower + size`; what its edge does is up to the subclass.

    Attributes:
        lower: lowest corner, metres.
        size: side lengths, metres.
    """

    lower: eqx.AbstractVar[Float[Array, " d"]]
    size: eqx.AbstractVar[Float[Array, " d"]]

    @property
    def n_dimensions(self) -> int:
        """Number of axes."""
        return self.size.shape[0]

    @property
    def upper(self) -> Float[Array, " d"]:
        """Highest corner, metres."""
        return self.lower + self.size

    @abc.abstractmethod
    def shortest(self, difference: Float[Array, "*v"], axis: int) -> Float[Array, "*v"]:
        """Shortest way along an axis, from a plain difference of coordinates; metres."""

    @abc.abstractmethod
    def confine(
        self, position: Float[Array, "n d"], velocity: Float[Array, "n d"]
    ) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """Apply the edge to positions that a step may have carried beyond it, and to their velocities."""

    def displacement(self, a: Float[Array, "*#v d"], b: Float[Array, "*#v d"]) -> Float[Array, "*_v d"]:
        """Shortest way from a to b; metres."""
        difference = b - a
        axes = [self.shortest(difference[..., axis], axis) for axis in range(self.n_dimensions)]
        return jnp.stack(axes, axis=-1)

    def distance(self, a: Float[Array, "*#v d"], b: Float[Array, "*#v d"]) -> Float[Array, "*_v"]:
        """Length of the shortest way; metres. Its gradient is 0, not NaN, where a and b coincide."""
        return length([self.displacement(a, b)[..., axis] for axis in range(self.n_dimensions)])


def length(components: list[Float[Array, "*v"]]) -> Float[Array, "*v"]:
    """Euclidean length of a vector given by components, with gradient 0 at 0."""
    return root(square_length(components))


def square_length(components: Sequence[Float[Array, "*v"]]) -> Float[Array, "*v"]:
    """Squared length of a vector given by components.

    Summed by name, not by a reduction, which XLA may round differently alone and in a batch.
    """
    return sum((rounded(jnp.square(c)) for c in components[1:]), start=rounded(jnp.square(components[0])))


class Open(AbstractSpace):
    """Unbounded: the box only says where entities usually are, for pictures and for the cells of a neighbour search."""

    lower: Float[Array, " d"]
    size: Float[Array, " d"]

    def shortest(self, difference: Float[Array, "*v"], axis: int) -> Float[Array, "*v"]:
        """Straight."""
        return difference

    def confine(
        self, position: Float[Array, "n d"], velocity: Float[Array, "n d"]
    ) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """Nothing is in the way."""
        return position, velocity


class Walled(AbstractSpace):
    """A box with walls that reflect: position mirrored at the wall, velocity reversed there times `restitution`.

    Attributes:
        restitution: share of the speed kept across the wall: 1 reflects, 0 stops.
    """

    lower: Float[Array, " d"]
    size: Float[Array, " d"]
    restitution: Float[Array, ""]

    def shortest(self, difference: Float[Array, "*v"], axis: int) -> Float[Array, "*v"]:
        """Straight."""
        return difference

    def confine(
        self, position: Float[Array, "n d"], velocity: Float[Array, "n d"]
    ) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """Mirror once at the wall that was crossed; whoever is farther out than the box is wide stops at a wall."""
        lower, upper = self.lower[None], self.upper[None]
        below, above = position < lower, position > upper
        bounced = lower + self.restitution * (lower - position)
        mirrored = jnp.where(below, bounced, position)
        mirrored = jnp.where(above, upper - self.restitution * (position - upper), mirrored)
        # Only what moves outward is turned round, so that nobody is caught in a wall.
        outward = (below & (velocity < 0)) | (above & (velocity > 0))
        return jnp.clip(mirrored, lower, upper), jnp.where(outward, -self.restitution * velocity, velocity)


class Periodic(AbstractSpace):
    """A box whose opposite sides are joined."""

    lower: Float[Array, " d"]
    size: Float[Array, " d"]

    def shortest(self, difference: Float[Array, "*v"], axis: int) -> Float[Array, "*v"]:
        """The nearest image."""
        return difference - self.size[axis] * jnp.round(difference / self.size[axis])

    def confine(
        self, position: Float[Array, "n d"], velocity: Float[Array, "n d"]
    ) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """Bring positions into the box."""
        inside = jnp.mod(position - self.lower[None], self.size[None])
        # mod rounds tiny negative numbers up to the size itself, which is outside, and lets negative subnormal ones be.
        outside = (inside <= 0) | (inside >= self.size[None])
        return self.lower[None] + jnp.where(outside, 0.0, inside), velocity
