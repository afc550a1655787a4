"""Running mean and variance of value targets, so that the critic learns numbers of order one."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_DECAY = 0.99


class ValueScale(eqx.Module):
    """Exponential moving moments of the value targets, for each stream (Yu et al. 2022, value normalisation).

    Attributes:
        mean: moving sum of means; divide by `weight`.
        square: moving sum of mean squares; likewise.
        weight: sum of the weights; 0 before the first update.
    """

    mean: Float[Array, " v"]
    square: Float[Array, " v"]
    weight: Float[Array, ""]

    @classmethod
    def start(cls, n_streams: int) -> "ValueScale":
        """Nothing seen: the scale is 1."""
        return cls(jnp.zeros(n_streams), jnp.zeros(n_streams), jnp.zeros(()))

    @property
    def offset(self) -> Float[Array, " v"]:
        """Mean of the targets."""
        return self.mean / jnp.maximum(self.weight, 1e-8)

    @property
    def scale(self) -> Float[Array, " v"]:
        """Standard deviation of the targets, at least 0.01."""
        variance = self.square / jnp.maximum(self.weight, 1e-8) - jnp.square(self.offset)
        return jnp.where(self.weight > 0, jnp.sqrt(jnp.maximum(variance, 1e-4)), 1.0)

    def restore(self, value: Float[Array, "*b g v"], valid: Bool[Array, "*b g"]) -> Float[Array, "*b g v"]:
        """From what the critic says to units of reward; 0 where not valid."""
        shape = (1,) * (value.ndim - 1) + (-1,)
        return jnp.where(valid[..., None], self.offset.reshape(shape) + self.scale.reshape(shape) * value, 0.0)

    def update(self, mean: Float[Array, " v"], square: Float[Array, " v"]) -> "ValueScale":
        """Take in the mean and mean square of the targets of an update."""
        old = self.mean, self.square, self.weight
        new = [_DECAY * x + (1.0 - _DECAY) * y for x, y in zip(old, (mean, square, jnp.ones(())), strict=True)]
        return ValueScale(new[0], new[1], new[2])
