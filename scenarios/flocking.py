"""Flocking: birds of constant speed that steer by what they see of their neighbours."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float, Int, Key

from swarm.config import Population, ScenarioConfig, Table
from swarm.entities import Entities, Spawn, spawn
from swarm.neighbors import AllPairs
from swarm.scenario import AbstractPolicy, AbstractRules, Observation, Outcome, World
from swarm.sensing import Raster
from swarm.space import Periodic

Positive = pydantic.Field(gt=0.0)
N_TURNS = 9


class WorldTable(Table):
    """Table `world`."""

    size: tuple[float, float]
    steps: int = pydantic.Field(ge=1)
    time_step: float = Positive
    raster: tuple[int, int]

    @pydantic.model_validator(mode="after")
    def _positive(self) -> "WorldTable":
        if min(self.size) <= 0:
            raise ValueError(f"size = {list(self.size)}: both sides must be longer than 0")
        if not all(4 <= cells <= 128 for cells in self.raster):
            raise ValueError(f"raster = {list(self.raster)}: from 4 to 128 cells a side")
        return self


class BirdTable(Population):
    """Table `population.bird`."""

    initial: int = pydantic.Field(ge=1)
    speed: float = Positive
    turn_rate: float = Positive
    radius: float = Positive
    crowding: float = pydantic.Field(ge=0.0)


class PopulationTable(Table):
    """Table `population`."""

    bird: BirdTable


class RewardTable(Table):
    """Table `reward`."""

    alignment: float
    crowding: float


class FlockingConfig(ScenarioConfig):
    """A scenario file for flocking."""

    world: WorldTable
    population: PopulationTable
    reward: RewardTable

    @pydantic.model_validator(mode="after")
    def _sight_fits(self) -> "FlockingConfig":
        radius, side = self.population.bird.radius, min(self.world.size)
        if radius > side / 2:
            raise ValueError(
                f"population.bird.radius = {radius:g} exceeds half of the shorter side of world.size ({side:g}), "
                "beyond which a neighbour would be seen on two sides; lower it or enlarge the world"
            )
        return self


class Fields(eqx.Module):
    """What the birds saw when they last looked, so that a step looks once.

    Attributes:
        seen: per bird, sums over those in sight: number, their headings' cosine and sine, displacement to them (x, y),
            number too near, and the way from those (x, y), each weighted by 1 / distance.
    """

    seen: Float[Array, "n 8"]


class Flocking(AbstractRules):
    """Reynolds' birds (1987) with constant speed: they steer only.

    Who: `bird`; one team; none is born or dies.
    Actions: one of 9 turns, from full left to full right: turn rates -1, -3/4, ..., 1 of `turn_rate`.
    Motion: heading += turn * time_step, then position += speed * (cos, sin) * time_step, in a periodic box.
    Observation: maps (density and mean velocity on a raster), and for each bird, in its own frame: mean heading of
        those within `radius`, way to their centre, way from those within `crowding`, and how many they are.
    Reward per step: `alignment` times the mean cosine between own heading and those in sight (0 when alone), minus
        `crowding` for each bird that is too near.
    End: never terminated, truncated after `steps`. Success is an end with polarisation above 0.9.
    """

    Config = FlockingConfig
    kinds = ("bird",)
    actions: ClassVar[dict[str, tuple[str, ...]]] = {"bird": tuple(f"turn {i - 4:+d}/4" for i in range(N_TURNS))}
    success = "aligned"
    headline = "polarisation"

    raster: tuple[int, int] = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    initial: int = eqx.field(static=True)
    space: Periodic
    time_step: Float[Array, ""]
    speed: Float[Array, ""]
    turn_rate: Float[Array, ""]
    radius: Float[Array, ""]
    crowding: Float[Array, ""]
    reward: dict[str, Float[Array, ""]]

    @classmethod
    def from_config(cls, config: FlockingConfig) -> "Flocking":
        """Build the rules from the validated scenario file."""
        bird, world = config.population.bird, config.world
        return cls(
            raster=world.raster,
            capacity=bird.capacity,
            initial=bird.initial,
            space=Periodic(jnp.zeros(2), jnp.asarray(world.size, jnp.float32)),
            time_step=jnp.float32(world.time_step),
            speed=jnp.float32(bird.speed),
            turn_rate=jnp.float32(bird.turn_rate),
            radius=jnp.float32(bird.radius),
            crowding=jnp.float32(bird.crowding),
            reward={k: jnp.float32(v) for k, v in config.reward},
        )

    @property
    def n_slots(self) -> int:
        """One for each bird."""
        return self.capacity

    @property
    def n_teams(self) -> int:
        """One."""
        return 1

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box."""
        x, y = (0.5 * self.space.size).tolist()
        return x, y

    def reset(self, key: Key[Array, ""]) -> tuple[Entities, Fields]:
        """Place birds uniformly, with uniform headings."""
        n = self.initial
        # One key per bird, by number: the draw does not depend on how many there are.
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
        draw = jax.vmap(lambda k: jax.random.uniform(k, (3,)))(keys)
        none, nothing = jnp.zeros(n, jnp.int32), jnp.zeros((n, 0))
        births = Spawn(
            jnp.ones(n, bool), none, none, draw[:, :2] * self.space.size[None], 2 * jnp.pi * draw[:, 2], nothing
        )
        entities, _ = spawn(Entities.empty(self.capacity, 2, 0), births)
        entities = eqx.tree_at(lambda e: e.velocity, entities, self._velocity(entities.heading))
        return entities, Fields(self._look(entities))

    def _velocity(self, heading: Float[Array, " n"]) -> Float[Array, "n 2"]:
        return self.speed * jnp.stack([jnp.cos(heading), jnp.sin(heading)], axis=1)

    def _look(self, entities: Entities) -> Float[Array, "n 8"]:
        headings = jnp.stack([jnp.cos(entities.heading), jnp.sin(entities.heading)], axis=1)

        def pair(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
            close = jnp.where(distance < self.crowding, 1.0, 0.0)
            away = -way / jnp.maximum(distance, 1e-6) ** 2
            return jnp.stack([jnp.ones_like(close), *theirs, *way, close, *(close * away)])

        search = AllPairs(self.space, self.radius)
        return search.find(entities.position, entities.alive).sum(pair, headings)

    def act(self, world: World, action: Int[Array, " n"], key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Turn, fly, look."""
        entities = world.entities
        turn = (jnp.clip(action, 0, N_TURNS - 1) - N_TURNS // 2) / (N_TURNS // 2)
        heading = entities.heading + turn * self.turn_rate * self.time_step
        heading = jnp.mod(heading + jnp.pi, 2 * jnp.pi) - jnp.pi
        velocity = self._velocity(heading)
        position, velocity = self.space.confine(entities.position + velocity * self.time_step, velocity)
        entities = eqx.tree_at(lambda e: (e.position, e.heading, e.velocity), entities, (position, heading, velocity))
        seen = self._look(entities)
        count = jnp.maximum(seen[:, 0], 1.0)
        aligned = (seen[:, 1] * jnp.cos(heading) + seen[:, 2] * jnp.sin(heading)) / count
        reward = self.reward["alignment"] * aligned - self.reward["crowding"] * seen[:, 5]
        nobody = jnp.zeros_like(entities.alive)
        return entities, Fields(seen), Outcome(reward, nobody, None)

    def _bearings(self, world: World) -> Float[Array, "n 6"]:
        """Mean heading of those in sight, mean way to them and way from those too near, in each bird's own frame."""
        heading, seen = world.entities.heading, world.fields.seen
        count = jnp.maximum(seen[:, :1], 1.0)
        forward, left = jnp.cos(heading), jnp.sin(heading)

        def turned(x: Array, y: Array) -> list[Array]:
            return [x * forward + y * left, y * forward - x * left]

        mean, to_centre, away = seen[:, 1:3] / count, seen[:, 3:5] / count / self.radius, seen[:, 6:8] * self.crowding
        parts = [turned(part[:, 0], part[:, 1]) for part in (mean, to_centre, away)]
        return jnp.stack([column for part in parts for column in part], axis=1)

    def observe(self, world: World) -> Observation:
        """Raster and bearings."""
        entities, seen = world.entities, world.fields.seen
        alive, (h, w) = entities.alive, self.raster
        raster = Raster(self.space.lower, self.space.size, self.raster)
        rows = jnp.concatenate([jnp.ones((self.n_slots, 1)), entities.velocity / self.speed], axis=1)
        sums = raster.sum(entities.position, alive, rows)
        density = sums[..., :1] * (h * w / max(self.initial, 1))
        maps = jnp.concatenate([jnp.tanh(density / 4.0), sums[..., 1:] / jnp.maximum(sums[..., :1], 1.0)], axis=-1)
        numbers = jnp.tanh(jnp.stack([seen[:, 0] / 8.0, seen[:, 5]], axis=1))
        heading = jnp.stack([jnp.cos(entities.heading), jnp.sin(entities.heading)], axis=1)
        own = jnp.concatenate([self._bearings(world), numbers, heading], axis=1)
        return Observation(
            maps=maps[None],
            view=jnp.zeros(self.n_slots, jnp.int32),
            cell=raster.cell(entities.position, alive),
            own=jnp.where(alive[:, None], own, 0.0),
            kind=jnp.zeros(self.n_slots, jnp.int32),
            alive=alive,
            action_mask=jnp.broadcast_to(alive[:, None], (self.n_slots, N_TURNS)),
        )

    def ended(self, world: World) -> Bool[Array, ""]:
        """Never."""
        return jnp.zeros((), bool)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """Order parameters.

        polarisation: length of the mean unit velocity (Vicsek et al. 1995); 1 when all fly the same way.
        neighbours: mean number in sight.
        too_near: share of birds with another one nearer than `crowding`.
        """
        entities, seen = world.entities, world.fields.seen
        n = jnp.maximum(jnp.sum(entities.alive), 1)

        def mean(x: Array) -> Array:
            return jnp.sum(jnp.where(entities.alive, x, 0.0)) / n

        polarisation = jnp.hypot(mean(jnp.cos(entities.heading)), mean(jnp.sin(entities.heading)))
        return {
            "polarisation": polarisation,
            "aligned": (polarisation > 0.9).astype(jnp.float32),
            "neighbours": mean(seen[:, 0]),
            "too_near": mean((seen[:, 5] > 0).astype(jnp.float32)),
        }

    def scripted_policy(self) -> AbstractPolicy:
        """Boids."""
        return Boids(self, separation=jnp.float32(1.5), alignment=jnp.float32(1.0), cohesion=jnp.float32(0.3))

    def draw(self, axes: Any, world: World) -> None:
        """Draw an arrow for each bird, coloured by heading."""
        import numpy as np

        entities = world.entities
        alive = np.asarray(entities.alive)
        place, way = entities.position[alive], entities.velocity[alive]
        axes.quiver(*place.T, *way.T, entities.heading[alive], cmap="hsv", clim=(-np.pi, np.pi), pivot="mid", scale=90)
        width, height = np.asarray(self.space.size)
        axes.set(xlim=(0, width), ylim=(0, height), xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"step {int(world.step)}", fontsize=9)


class Boids(AbstractPolicy):
    """Steers toward a weighted sum of separation, alignment and cohesion (Reynolds 1987)."""

    rules: Flocking
    separation: Float[Array, ""]
    alignment: Float[Array, ""]
    cohesion: Float[Array, ""]

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Int[Array, " n"]:
        """Take the turn that comes nearest to the wanted heading within a step; fly on when alone."""
        mean_x, mean_y, centre_x, centre_y, away_x, away_y = self.rules._bearings(world).T
        x = self.alignment * mean_x + self.cohesion * centre_x + self.separation * away_x
        y = self.alignment * mean_y + self.cohesion * centre_y + self.separation * away_y
        wanted = jnp.where((x == 0) & (y == 0), 0.0, jnp.arctan2(y, x))
        full = self.rules.turn_rate * self.rules.time_step
        half = N_TURNS // 2
        return jnp.clip(jnp.round(wanted / full * half), -half, half).astype(jnp.int32) + half
