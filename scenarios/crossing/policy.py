"""The scripted policy of crossing: optimal reciprocal collision avoidance (van den Berg et al. 2011)."""

import jax.numpy as jnp
from jaxtyping import Array, Key

from scenarios.crossing.rules import AbstractCrossing
from swarm.dynamics.avoidance import avoid, reciprocal, walls
from swarm.geometry.vectors import clipped
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import Action, Observation, World


class Orca(AbstractPolicy):
    """Straight to the goal, slower near it, as far as the nearest others and surfaces allow."""

    rules: AbstractCrossing

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Steer."""
        rules, entities, fields = self.rules, world.entities, world.fields
        flying, margin = rules.flying, rules.orca["margin"]
        alive, top = entities.alive[:, None], jnp.broadcast_to(flying.speed, entities.alive.shape)
        velocity = jnp.where(alive, entities.velocity, 0.0)
        # The whole way in a second, which is slower near the goal: the velocity follows with lag.
        wanted = clipped(jnp.where(alive, fields.goal - entities.position, 0.0), top)
        room, normal = rules.surfaces(entities, fields.pillars)
        hard = walls(room - margin, normal, rules.orca["wall_horizon"], flying.time_step)
        near = fields.near
        reach = jnp.full(near.distance.shape, 2.0 * (rules.radius + margin))
        soft = reciprocal(
            velocity,
            near.displacement,
            near.gather(velocity),
            near.valid,
            reach,
            rules.orca["horizon"],
            flying.time_step,
        )
        return jnp.clip(avoid(wanted, top, hard, soft) / flying.speed, -1.0, 1.0)
