"""A colony that outgrows whatever room it is given, by whole numbers, so that sums are exact in any order."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float, Int, Key

from swarm.core.status import Status
from swarm.core.tables import Population, ScenarioConfig, Table
from swarm.geometry.space import Open
from swarm.neighbors.questions import AllPairs
from swarm.population.entities import Entities, Spawn, spawn
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.rules import AbstractRules
from swarm.simulation.types import Observation, Outcome, Start, World

QUEEN, WORKER = range(2)
N_TEAMS = 2


class WorldTable(Table):
    steps: int = pydantic.Field(ge=1)
    room: int = pydantic.Field(ge=1)
    sick: int
    onset: int


class PopulationTable(Table):
    queen: Population
    worker: Population


class ColonyConfig(ScenarioConfig):
    world: WorldTable
    population: PopulationTable


class Fields(eqx.Module):
    """Who is near (slots, -1: none), and how long each slot has lived: arrays that grow along either axis."""

    near: Int[Array, "n k"]
    age: Int[Array, " n"]


class Colony(AbstractRules):
    """Ants walk as told and toward those near them; some bear workers, some die; a sick one's heading is lost."""

    Config = ColonyConfig
    kinds = ("queen", "worker")
    actions: ClassVar[dict[str, tuple[str, ...]]] = {"queen": ("x", "y"), "worker": ("x", "y")}
    success = headline = "alive"
    stores = ("food",)
    room = AbstractRules.room | {Status.NEIGHBORS_FULL: ("world.room",)}

    capacity: tuple[int, int] = eqx.field(static=True)
    initial: tuple[int, int] = eqx.field(static=True)
    n_near: int = eqx.field(static=True)
    sick: Int[Array, ""]
    onset: Int[Array, ""]

    @classmethod
    def from_config(cls, config: ColonyConfig) -> "Colony":
        kinds, world = (config.population.queen, config.population.worker), config.world
        capacity, initial = tuple(k.capacity for k in kinds), tuple(k.initial for k in kinds)
        return cls(capacity, initial, world.room, jnp.int32(world.sick), jnp.int32(world.onset))

    @property
    def n_slots(self) -> int:
        return N_TEAMS * sum(self.capacity)

    @property
    def n_teams(self) -> int:
        return N_TEAMS

    @property
    def n_controls(self) -> int:
        return 2

    @property
    def centre(self) -> tuple[float, float]:
        return (0.0, 0.0)

    def reset(self, key: Key[Array, ""]) -> Start:
        kind = jnp.asarray([k for k in (QUEEN, WORKER) for _ in range(N_TEAMS * self.initial[k])])
        m = kind.shape[0]
        place = jnp.round(8 * jax.random.uniform(key, (m, 2)))
        births = Spawn(jnp.ones(m, bool), kind, jnp.arange(m) % N_TEAMS, place, jnp.zeros(m), jnp.ones((m, 1)))
        entities, _ = spawn(Entities.empty(self.n_slots, 2, 1), births)
        return Start(entities, Fields(self._look(entities)[0], jnp.zeros(self.n_slots, jnp.int32)))

    def _look(self, entities: Entities) -> tuple[Int[Array, "n k"], Bool[Array, ""]]:
        search = AllPairs(Open(jnp.zeros(2), jnp.ones(2)), jnp.float32(1.5))
        found = search.find(entities.position, entities.alive).nearest(self.n_near + 1).index
        return found[:, :-1], jnp.any(found[:, -1] >= 0)

    def act(self, world: World, action: Float[Array, "n 2"], key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        entities, near = world.entities, world.fields.near
        draw = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(entities.keys(key))
        here = jnp.where(entities.alive[:, None], entities.position, 0.0)
        way = jnp.where((near >= 0)[:, :, None], here[near] - here[:, None], 0.0)
        position = here + jnp.round(2 * action) + jnp.sign(jnp.sum(way, axis=1))
        is_sick = (entities.uid == self.sick) & (world.step + 1 >= self.onset)
        heading = jnp.where(is_sick, jnp.nan, entities.heading)
        entities = eqx.tree_at(lambda e: (e.position, e.heading), entities, (position, heading))
        bearing = entities.alive & (draw[:, 0] < jnp.where(entities.kind == QUEEN, 0.2, 0.1))
        births = Spawn(
            bearing,
            jnp.full_like(entities.kind, WORKER),
            entities.team,
            position,
            jnp.zeros_like(heading),
            entities.stores + 1,
        )
        dying = entities.alive & (entities.kind == WORKER) & (draw[:, 1] < 0.03)
        near, full = self._look(entities)
        fields = Fields(near, world.fields.age + 1)
        return entities, fields, Outcome(position[:, 0], dying, births, 0, jnp.where(full, Status.NEIGHBORS_FULL, 0))

    def observe(self, world: World) -> Observation:
        e = world.entities
        own = jnp.where(e.alive[:, None], e.position, 0.0)
        cell = jnp.zeros((self.n_slots, 2), jnp.int32)
        mask = jnp.broadcast_to(e.alive[:, None], (self.n_slots, 2))
        return Observation(jnp.zeros((1, 1, 4, 4)), jnp.zeros_like(e.kind), cell, own, e.kind, e.alive, mask)

    def ended(self, world: World) -> Bool[Array, ""]:
        return jnp.zeros((), bool)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        return {"alive": jnp.sum(world.entities.alive, dtype=jnp.float32)}

    def scripted_policy(self) -> AbstractPolicy:
        return Wander(self, jnp.int32(-1), jnp.float32(0.0))

    def draw(self, axes: Any, world: World) -> None:
        axes.scatter(*world.entities.position[world.entities.alive].T)


class Wander(AbstractPolicy):
    """Walks at random; keeps the rules, whose size it needs. What it says for dead slots is not to be heard."""

    rules: Colony
    mad: Int[Array, ""]
    word: Float[Array, ""]

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Float[Array, "n 2"]:
        e = world.entities
        draw = jax.vmap(lambda k: jax.random.uniform(k, (2,), minval=-1.0))(e.keys(key))
        said = jnp.full((self.rules.n_slots, 1), jnp.nan)
        mad = (e.uid == self.mad) & (world.step >= 6)
        draw = jnp.where(mad[:, None], jnp.stack([self.word, jnp.zeros(())])[None], draw)
        return jnp.where(e.alive[:, None], draw, said)
