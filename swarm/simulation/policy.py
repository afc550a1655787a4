"""The extension point for policies: what chooses the actions of a world."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from swarm.simulation.types import Action, Observation, World


class AbstractPolicy(eqx.Module):
    """Chooses an action per slot. Scripted policies may read the whole world, learned ones read the observation.

    A policy that remembers overrides `start` and `act`, which hand its memory on; whoever plays an episode calls those.
    """

    @abc.abstractmethod
    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Return the actions of all slots; those of dead slots are ignored."""

    def start(self, n_slots: int) -> PyTree:
        """Return the memory at the start of an episode; None for a policy without."""
        return None

    def act(self, world: World, observation: Observation, memory: PyTree, key: Key[Array, ""]) -> tuple[Action, PyTree]:
        """Return the actions of all slots, and what to remember."""
        return self(world, observation, key), memory


def best(scores: Float[Array, "*n a"], choices: tuple[int, ...]) -> Int[Array, "*n"] | Int[Array, "*n f"]:
    """Return the action of the highest score, of each of the choices where there are several."""
    parts = jnp.split(scores, np.cumsum(choices)[:-1], axis=-1)
    indices = [jnp.argmax(part, axis=-1).astype(jnp.int32) for part in parts]
    return indices[0] if len(indices) == 1 else jnp.stack(indices, axis=-1)
