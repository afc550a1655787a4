"""A trained network as a policy, and the masked categorical distribution it acts by."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from swarm.entities import Entities
from swarm.scenario import AbstractPolicy, Observation, World
from training.networks import Network


class NetworkPolicy(AbstractPolicy):
    """Acts by a network: samples, or takes the likeliest action of each entity."""

    network: Network
    deterministic: bool = eqx.field(static=True, default=False)

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Int[Array, " n"]:
        """Choose for all slots."""
        logits, _ = self.network(observation)
        return (
            jnp.argmax(logits, axis=-1).astype(jnp.int32) if self.deterministic else sample(logits, world.entities, key)
        )


def sample(logits: Float[Array, "n a"], entities: Entities, key: Key[Array, ""]) -> Int[Array, " n"]:
    """Draw an action per slot (Gumbel-max); draws follow identity, so capacity and batch do not change them."""
    noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:]))(entities.keys(key))
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)


def log_prob_and_entropy(
    logits: Float[Array, "n a"], action: Int[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Log-probability of the actions and entropy of the masked categorical distributions (nats)."""
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, action[:, None], axis=1)[:, 0]
    return chosen, -jnp.sum(jnp.where(logits > -1e8, jnp.exp(log_p) * log_p, 0.0), axis=-1)
