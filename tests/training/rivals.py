"""A probe game of known answer: two rivals who each may take from the other.

Taking pays the taker 1 and costs the other 2. Each rival's own reward says take; the sum of both says leave. An episode
lasts four steps, and rivals see nothing but themselves. Each is a team of its own, unless `world.teams` is 1.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import pydantic

from swarm.core.tables import ScenarioConfig, Table
from swarm.population.entities import Entities, Spawn, spawn
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.random_policy import RandomPolicy
from swarm.simulation.rules import AbstractRules
from swarm.simulation.types import Observation, Outcome, Start

TAKE = 1


class WorldTable(Table):
    steps: int = pydantic.Field(ge=1)
    teams: int = pydantic.Field(default=2, ge=1, le=2)


class RivalsConfig(ScenarioConfig):
    world: WorldTable


class Rivals(AbstractRules):
    Config = RivalsConfig
    kinds = ("rival",)
    actions: ClassVar[dict[str, tuple[str, ...]]] = {"rival": ("leave", "take")}
    success = "taking"
    headline = "taking"
    n_slots = 2
    centre = (0.0, 0.0)
    teams: int = eqx.field(static=True, default=2)

    @property
    def n_teams(self):
        return self.teams

    @classmethod
    def from_config(cls, config) -> "Rivals":
        return cls(config.world.teams)

    def reset(self, key):
        both, place = jnp.arange(2) % self.teams, jnp.zeros((2, 2))
        births = Spawn(jnp.ones(2, bool), jnp.zeros(2, jnp.int32), both, place, jnp.zeros(2), jnp.zeros((2, 0)))
        return Start(spawn(Entities.empty(2, 2, 0), births)[0], jnp.zeros(()))

    def act(self, world, action, key):
        take = (action == TAKE).astype(jnp.float32)
        outcome = Outcome(take - 2.0 * take[::-1], jnp.zeros(2, bool), None, jnp.int32(0))
        return world.entities, jnp.mean(take), outcome

    def observe(self, world):
        return Observation(
            maps=jnp.zeros((1, 4, 4, 1)),
            view=jnp.zeros(2, jnp.int32),
            cell=jnp.zeros((2, 2), jnp.int32),
            own=jnp.eye(2),
            kind=jnp.zeros(2, jnp.int32),
            alive=world.entities.alive,
            action_mask=jnp.ones((2, 2), bool),
        )

    def ended(self, world):
        return jnp.zeros((), bool)

    def metrics(self, world):
        return {"taking": world.fields}

    def scripted_policy(self) -> AbstractPolicy:
        return RandomPolicy()

    def draw(self, axes, world):
        axes.plot(world.entities.team)


class Absent(Rivals):
    """Metrics that are not defined in every episode, as a mean over nobody is not."""

    success = "takers"
    headline = "takers"

    def metrics(self, world):
        taking = world.fields
        return {"taking": taking, "takers": jnp.where(taking > 0.5, taking, jnp.nan), "nobody": taking / 0.0 * 0.0}
