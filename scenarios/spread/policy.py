"""Scripted policies for spread: each agent goes to a landmark, chosen alone or for all together."""

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from scenarios.spread.rules import AbstractSpread
from swarm.geometry.vectors import norm
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import Action, Observation, World


class Cover(AbstractPolicy):
    """Goes to a landmark and stops there.

    A move acts on the velocity only, which acts on the next position, so the policy steers for `lead` seconds ahead:
    it takes the force that comes nearest to x + v dt + lead * v' = landmark, v' being the velocity after the force.

    Attributes:
        rules: the scenario.
        assign: True: no landmark is taken twice, and the sum of distances is the least (optimal assignment, computed
            anew at each step in O(n^3)). False: each agent goes to the landmark nearest to it.
        lead: seconds; between the time step (fast, overshoots) and time_step / damping (coasts in).
    """

    rules: AbstractSpread
    assign: bool = eqx.field(static=True)
    lead: Float[Array, ""]

    @classmethod
    def of(cls, rules: AbstractSpread, *, assign: bool = True) -> "Cover":
        """Return the policy with the lead that suits the rules' control."""
        return cls(rules, assign, (1.35 if rules.continuous else 1.5) * rules.time_step)

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Steer."""
        ways = self.rules.to_landmarks(world)
        goal = jnp.take_along_axis(ways, self.goals(world)[:, None, None], axis=1)[:, 0]
        velocity, rules = world.entities.velocity, self.rules
        wanted = (goal - velocity * rules.time_step) / self.lead
        gain = rules.agent["acceleration"] * rules.time_step
        lacking = (wanted - (1.0 - rules.agent["damping"]) * velocity) / gain
        if rules.continuous:
            return jnp.clip(lacking, -1.0, 1.0)
        return _nearest_move(lacking)

    def goals(self, world: World) -> Int[Array, " n"]:
        """Landmark of each agent; with `assign` and more agents than landmarks, the rest go to their nearest."""
        ways = self.rules.to_landmarks(world)
        distance = norm(ways)
        nearest = jnp.argmin(distance, axis=1).astype(jnp.int32)
        if not self.assign:
            return nearest
        # Dead slots are dearer than any tour of the living.
        cost = jnp.where(world.entities.alive[:, None], distance, 1e6)
        agent, landmark = optax.assignment.hungarian_algorithm(cost)
        return nearest.at[agent].set(landmark.astype(jnp.int32))


def _nearest_move(lacking: Float[Array, "n 2"]) -> Int[Array, " n"]:
    """The action whose direction comes nearest to a force: the larger component, if it is more than half."""
    x, y = lacking[:, 0], lacking[:, 1]
    along_x = jnp.where(x > 0, 2, 1)
    along_y = jnp.where(y > 0, 4, 3)
    move: Array = jnp.where(jnp.abs(x) >= jnp.abs(y), along_x, along_y)
    return jnp.where(jnp.maximum(jnp.abs(x), jnp.abs(y)) > 0.5, move, 0).astype(jnp.int32)
