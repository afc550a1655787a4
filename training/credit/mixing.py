"""Learning how much of its own reward a group should follow, and how much of the reward of all together.

Own reward says precisely what a group's own acts did, but nothing of what they do to others; the shared reward says
both, under the noise of everybody's acts. So the weight is learned from what each is good for: the gradient of the
policy by the mixture, on some data, should point along the gradient by the shared reward, on other data. The weight
climbs the cosine between the two. Noise that the data do not share cannot help, and a bias of the own reward shows.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

_RATE = 0.1


class OwnWeight(eqx.Module):
    """The weight of the own reward, and its optimiser.

    Attributes:
        logit: of the weight.
        optimizer: state.
    """

    logit: Float[Array, ""]
    optimizer: PyTree

    @classmethod
    def start(cls, weight: float) -> "OwnWeight":
        """Start at a weight."""
        logit = jnp.log(jnp.float32(weight) / (1.0 - jnp.float32(weight)))
        return cls(logit, _optimizer().init(logit))

    @property
    def weight(self) -> Float[Array, ""]:
        """Between 0 and 1."""
        return jax.nn.sigmoid(self.logit)

    def climb(self, gradient_by: Callable[[int, int], PyTree]) -> "OwnWeight":
        """Take one step up the cosine.

        Args:
            gradient_by: policy gradient by a stream of advantages (0 own, 1 shared) on a part of the data (0 or 1).
        """
        own, shared, goal = (_flat(gradient_by(*which)) for which in ((0, 0), (1, 0), (1, 1)))

        def misfit(logit: Array) -> Array:
            weight = jax.nn.sigmoid(logit)
            mixed = weight * own + (1.0 - weight) * shared
            return -jnp.vdot(mixed, goal) / jnp.maximum(jnp.linalg.norm(mixed) * jnp.linalg.norm(goal), 1e-12)

        change, optimizer = _optimizer().update(jax.grad(misfit)(self.logit), self.optimizer)
        return OwnWeight(self.logit + jnp.asarray(change), optimizer)


def _optimizer() -> optax.GradientTransformation:
    # The scale of a cosine's slope says little; Adam takes steps of one size.
    return optax.adam(_RATE, b1=0.5)


def _flat(tree: PyTree) -> Float[Array, " p"]:
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])
