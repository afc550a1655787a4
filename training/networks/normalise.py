"""Running mean and variance of value targets, so that the critic learns numbers of order one.

Both are kept as they are, and merged by the difference of the means (Chan, Golub, LeVeque 1983): the mean of the
squares less the square of the mean would leave nothing of a deviation that is small beside the mean.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_DECAY = 0.99


class ValueScale(eqx.Module):
    """Exponentially weighted moments of the value targets, for each stream (Yu et al. 2022, value normalisation).

    Attributes:
        offset: mean of the targets.
        variance: of the targets; 1 before the first update.
        weight: sum of the weights; 0 before the first update.
    """

    offset: Float[Array, " v"]
    variance: Float[Array, " v"]
    weight: Float[Array, ""]

    @classmethod
    def start(cls, n_streams: int) -> "ValueScale":
        """Nothing seen: the scale is 1."""
        return cls(jnp.zeros(n_streams), jnp.ones(n_streams), jnp.zeros(()))

    @property
    def scale(self) -> Float[Array, " v"]:
        """Standard deviation of the targets, at least 0.01."""
        return jnp.sqrt(jnp.maximum(self.variance, 1e-4))

    def restore(self, value: Float[Array, "*b g v"], valid: Bool[Array, "*b g"]) -> Float[Array, "*b g v"]:
        """From what the critic says to units of reward; 0 where not valid."""
        shape = (1,) * (value.ndim - 1) + (-1,)
        return jnp.where(valid[..., None], self.offset.reshape(shape) + self.scale.reshape(shape) * value, 0.0)

    def update(self, mean: Float[Array, " v"], variance: Float[Array, " v"]) -> "ValueScale":
        """Take in the mean and the variance of the targets of an update."""
        old, new = _DECAY * self.weight, 1.0 - _DECAY
        share = new / (old + new)
        moved = mean - self.offset
        within = self.variance + share * (variance - self.variance)
        between = share * (1.0 - share) * jnp.square(moved)
        return ValueScale(self.offset + share * moved, within + between, old + new)
