"""The scripted policy of patrol: to the nearest frontier (Yamauchi 1997), not where others go (Burgard et al. 2005)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from scenarios.patrol.rules import AbstractPatrol
from swarm.core.rounding import rounded
from swarm.geometry.vectors import clipped, norm
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import Action, Observation, World


class Homing(eqx.Module):
    """Who is on the way to the pad, or on it."""

    home: Bool[Array, " n"]


class Frontier(AbstractPolicy):
    """Each flies to the nearest cell that it does not know; those near the goals of drones before it count as farther.

    It turns back when the battery holds what the way to the pad needs and a reserve, or when it knows all, and leaves
    the pad when it is full.
    """

    rules: AbstractPatrol

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """As one that never was on the pad."""
        return self.act(world, observation, self.start(world.entities.n_slots), key)[0]

    def start(self, n_slots: int) -> Homing:
        """Everybody leaves."""
        return Homing(jnp.zeros(n_slots, bool))

    def act(self, world: World, observation: Observation, memory: Homing, key: Key[Array, ""]) -> tuple[Action, Homing]:
        """Choose a cell or the pad, and fly there."""
        rules, entities, fields, level = self.rules, world.entities, world.fields, self.rules.level
        alive, speed, numbers = entities.alive, level.flying.speed, rules.frontier
        place = jnp.where(alive[:, None], entities.position[:, :2], 0.0)
        back = fields.base[None, :2] + rules.own_berths(entities) - place
        charge = jnp.where(alive, entities.stores[:, 0], 0.0) / level.battery.capacity[entities.row]
        need = level.way_back(entities, fields.base[:2]) + numbers["reserve"]
        knows_all = jnp.all(fields.known, axis=(1, 2))
        home = alive & ((charge < need) | knows_all | (memory.home & (charge < numbers["full"])))
        frontier = self._goals(place, fields.known, alive & ~home) - place
        wanted = clipped(jnp.where(home[:, None], back, frontier), jnp.broadcast_to(speed, alive.shape))
        return wanted / speed, Homing(home)

    def _goals(
        self, place: Float[Array, "n 2"], known: Bool[Array, "n h w"], searching: Bool[Array, " n"]
    ) -> Float[Array, "n 2"]:
        """A cell for each, one drone after the other; its own place where it knows all."""
        numbers, middles = self.rules.frontier, self.rules.middles

        def choose(taken: Float[Array, "h w"], drone: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            place, known, searches = drone
            far = norm(middles - place[None, None])
            cost = jnp.where(known, jnp.inf, far + taken)
            best = jnp.argmin(cost.reshape(-1))
            goal = jnp.where(jnp.all(known), place, middles.reshape(-1, 2)[best])
            near = jnp.maximum(numbers["spread"] - norm(middles - goal[None, None]), 0.0)
            return taken + jnp.where(searches, rounded(numbers["crowd"] * near), 0.0), goal

        rows = place, known, searching
        return jax.lax.scan(choose, jnp.zeros(self.rules.cells), rows)[1]
