"""The scripted policy of pursuit, for both sides."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from scenarios.pursuit import PREY, Pursuit
from scenarios.pursuit_steering import chase
from swarm.scenario import AbstractPolicy, Action, Observation, World
from swarm.vectors import norm


class Scripted(AbstractPolicy):
    """Predators cut prey off and tell each other of it; prey flee (where they act)."""

    rules: Pursuit

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Steer."""
        rules, entities = self.rules, world.entities
        time = world.step * rules.time_step
        speed = rules.table["speed"][entities.kind]
        wanted = chase(entities, rules.look(entities), rules.surfaces(world), speed, time)
        if rules.prey_acts:
            wanted = jnp.where((entities.kind == PREY)[:, None], rules.flee(world), wanted)
        return wanted if rules.n_controls else nearest_direction(wanted)


def nearest_direction(wanted: Float[Array, "n 2"]) -> Int[Array, " n"]:
    """The action that comes nearest to a direction; stay where it is shorter than a quarter."""
    eighth = jnp.round(jnp.arctan2(wanted[:, 1], wanted[:, 0]) / (0.25 * jnp.pi)).astype(jnp.int32)
    return jnp.where(norm(wanted) < 0.25, 0, 1 + eighth % 8)
