"""The policy that draws every action at random."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from swarm.simulation.policy import AbstractPolicy, best
from swarm.simulation.rules import AbstractRules
from swarm.simulation.types import Action, Observation, World


class RandomPolicy(AbstractPolicy):
    """Each entity draws uniformly: among its legal actions, or commands from [-1, 1] where there are `n_controls`.

    Attributes:
        n_controls: of the rules.
        choices: of the rules; empty: one, as wide as the action mask.
    """

    n_controls: int = eqx.field(static=True, default=0)
    choices: tuple[int, ...] = eqx.field(static=True, default=())

    @classmethod
    def of(cls, rules: AbstractRules) -> "RandomPolicy":
        """Return the one that suits some rules."""
        return cls(rules.n_controls, rules.choices)

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Draw by identity; Gumbel-max over the legal actions."""
        keys = world.entities.keys(key)
        if self.n_controls:
            return jax.vmap(lambda k: jax.random.uniform(k, (self.n_controls,), minval=-1.0, maxval=1.0))(keys)
        n_actions = observation.action_mask.shape[1]
        noise = jax.vmap(lambda k: jax.random.gumbel(k, (n_actions,)))(keys)
        return best(jnp.where(observation.action_mask, noise, -jnp.inf), self.choices or (n_actions,))
