"""The scripted policy of pursuit, for both sides."""

import jax.numpy as jnp
from jaxtyping import Array, Key

from scenarios.common.compass import move_towards
from scenarios.pursuit.rules import PREY, AbstractPursuit
from scenarios.pursuit.steering import chase
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import Action, Observation, World


class Scripted(AbstractPolicy):
    """Predators cut prey off and tell each other of it; prey flee (where they act)."""

    rules: AbstractPursuit

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Steer."""
        rules, entities = self.rules, world.entities
        time = world.step * rules.time_step
        speed = rules.table["speed"][entities.row]
        wanted = chase(entities, world.fields.sight, rules.surfaces(world), speed, time)
        if rules.prey_acts:
            wanted = jnp.where((entities.kind == PREY)[:, None], rules.flee(world), wanted)
        return wanted if rules.n_controls else move_towards(wanted, nearer_than=0.25)
