"""The rules of crossing."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from scenarios.common.alike import AbstractAlike, numbers
from scenarios.common.flying import Craft, Flying
from scenarios.crossing.config import CrossingConfig
from swarm.core.rounding import rounded
from swarm.geometry.obstacles import Balls
from swarm.geometry.space import Open
from swarm.geometry.vectors import norm
from swarm.neighbors.questions import AbstractNeighborSearch, Nearest
from swarm.neighbors.search import neighbor_search
from swarm.population.entities import Entities, Spawn, spawn
from swarm.simulation.rules import rows_of
from swarm.simulation.types import Action, Observation, Outcome, Start, World

N_FEATURES = 8


class Fields(eqx.Module):
    """What a world of crossing holds besides its drones.

    Attributes:
        craft: what they carry.
        start: where each started, metres.
        goal: where each is to go, metres.
        pillars: discs on the ground, as high as the box.
        near: the nearest others that each sees.
        arrived: the step in which each first arrived; -1: not yet. It stays when a drone is lost.
        least: the smallest gap between two drones so far, metres; negative where bodies touched.
    """

    craft: Craft
    start: Float[Array, "n 3"]
    goal: Float[Array, "n 3"]
    pillars: Balls
    near: Nearest
    arrived: Int[Array, " n"]
    least: Float[Array, ""]


class AbstractCrossing(AbstractAlike):
    """Drones swap places.

    Who: `drone`; one team. Drones start hovering on a circle, at any height, each with another one's start on the far
        side as its goal. None is born; who crashes is lost.
    Actions: three commands in [-1, 1]: velocity east, north and up, as shares of the highest speed, together at most 1.
        The drone's own controller follows it.
    World: a box; pillars inside the circle. Wind, turbulence and downwash push.
    Crash: whose ball (`radius`) touches another drone's, a pillar, the ground, the ceiling or a side of the box. Both
        drones are lost.
    Observation, for each drone: way to the goal (its direction, and how far), own velocity, place in the box, way to
        the nearest pillar, whether it has arrived, time left; and of the nearest others in sight: way, relative
        velocity, nearness, whether there is one. No maps.
    Reward: `progress` times the share of the way to the goal that a step covers; `arrived` when first nearer to the
        goal than `arrive`; minus `time` for each step not there; minus `near` for nearness to others and to surfaces
        within `margin`; minus `crash`.
    End: terminated when all drones left have arrived, or none is left; truncated after `steps`. Success is the share of
        drones that have arrived and were not lost.
    """

    Config = CrossingConfig
    kinds = ("drone",)
    actions: ClassVar[dict[str, tuple[str, ...]]] = {"drone": ("east", "north", "up")}
    success = "crossed"
    headline = "promptness"

    capacity: int = eqx.field(static=True)
    initial: int = eqx.field(static=True)
    n_pillars: int = eqx.field(static=True)
    n_seen: int = eqx.field(static=True)
    search: AbstractNeighborSearch
    flying: Flying
    size: Float[Array, " 3"]
    radius: Float[Array, ""]
    circle: Float[Array, ""]
    jitter: Float[Array, ""]
    pillar_radius: Float[Array, ""]
    arrive: Float[Array, ""]
    steps: Float[Array, ""]
    reward: dict[str, Float[Array, ""]]
    orca: dict[str, Float[Array, ""]]

    @classmethod
    def from_config(cls, config: CrossingConfig) -> "AbstractCrossing":
        """Build the rules from the validated scenario file."""
        world, drone = config.world, config.population.drone
        size = jnp.asarray(world.size, jnp.float32)
        return cls(
            capacity=drone.capacity,
            initial=drone.initial,
            n_pillars=world.pillars,
            n_seen=config.observation.others,
            search=neighbor_search(Open(jnp.zeros(3), size), config.observation.sight, drone.capacity, config.search),
            flying=Flying.of(drone, config.control, config.air, world.time_step),
            size=size,
            radius=jnp.float32(drone.radius),
            circle=jnp.float32(world.circle),
            jitter=jnp.float32(world.jitter),
            pillar_radius=jnp.float32(world.pillar_radius),
            arrive=jnp.float32(world.arrive),
            steps=jnp.float32(world.steps),
            reward=numbers(config.reward),
            orca=numbers(config.orca),
        )

    @property
    def n_controls(self) -> int:
        """A velocity."""
        return 3

    @property
    def centre(self) -> tuple[float, ...]:
        """Middle of the box."""
        return tuple((0.5 * self.size).tolist())

    @property
    def tables(self) -> PyTree:
        """What drones differ in."""
        return self.flying.tables

    @property
    def sets(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Others in sight."""
        return {"others": rows_of(16, self.n_seen, N_FEATURES)}

    # How an episode starts

    def reset(self, key: Key[Array, ""]) -> Start:
        """Place drones on the circle, and pillars inside it."""
        n, (drone_key, turn_key, pillar_key) = self.initial, jax.random.split(key, 3)
        number = jnp.arange(n)
        draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(drone_key, i), (3,)))(number)
        angle = 2 * jnp.pi * (number / n + jax.random.uniform(turn_key))
        around = self.circle * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        level = 0.5 * self.size[None, :2] + around + rounded(self.jitter * (2.0 * draw[:, :2] - 1.0)) / jnp.sqrt(2.0)
        height = self.size[2] * (0.2 + rounded(0.6 * draw[:, 2]))
        start = jnp.concatenate([level, height[:, None]], axis=1)
        none, zero = jnp.zeros(n, jnp.int32), jnp.zeros(n)
        births = Spawn(jnp.ones(n, bool), none, none, start, zero, jnp.zeros((n, 0)))
        entities, _ = spawn(Entities.empty(self.n_slots, 3, 0, variants=self.variants), births)
        goal = start[(number + n // 2) % n]
        start, goal = (jnp.zeros((self.n_slots, 3)).at[:n].set(x) for x in (start, goal))
        near, _, status = self._look(entities)
        never = jnp.full(self.n_slots, -1, jnp.int32)
        pillars = self._pillars(pillar_key)
        fields = Fields(self.flying.launch(entities), start, goal, pillars, near, never, jnp.float32(jnp.inf))
        return Start(entities, fields, status)

    def _pillars(self, key: Key[Array, ""]) -> Balls:
        """Draw places evenly from a disc, clear of where drones start."""
        draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (2,)))(jnp.arange(self.n_pillars))
        reach = self.circle - self.jitter - 2.0 * self.pillar_radius - self.radius
        distance, angle = reach * jnp.sqrt(draw[:, 0]), 2 * jnp.pi * draw[:, 1]
        way = distance[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        return Balls(0.5 * self.size[None, :2] + way, jnp.broadcast_to(self.pillar_radius, (self.n_pillars,)))

    # How a step goes

    def act(self, world: World, action: Action, key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Fly, crash, arrive."""
        before, fields = world.entities, world.fields
        found = self.search.find(before.position, before.alive)
        time = world.step * self.flying.time_step
        entities, craft, _ = self.flying.fly(before, fields.craft, self.flying.velocity(action), found, time, key)
        near, gap, status = self._look(entities)
        clearance, _ = self.surfaces(entities, fields.pillars)
        room = jnp.minimum(gap, jnp.min(clearance, axis=1))
        crashed = entities.alive & (room <= 0.0)
        there = entities.alive & ~crashed & (norm(fields.goal - entities.position) < self.arrive)
        first = there & (fields.arrived < 0)
        arrived = jnp.where(first, world.step + 1, fields.arrived)
        reward = self._reward(before, entities, fields, gap, clearance, there)
        reward = reward + jnp.where(first, self.reward["arrived"], 0.0) - jnp.where(crashed, self.reward["crash"], 0.0)
        least = jnp.minimum(fields.least, jnp.min(gap))
        fields = Fields(craft, fields.start, fields.goal, fields.pillars, near, arrived, least)
        return entities, fields, Outcome(reward, crashed, None, status=found.status | status)

    def _reward(
        self,
        before: Entities,
        after: Entities,
        fields: Fields,
        gap: Float[Array, " n"],
        clearance: Float[Array, "n 4"],
        there: Bool[Array, " n"],
    ) -> Float[Array, " n"]:
        """Progress, time and nearness."""
        reward = self.reward
        was, now = (norm(fields.goal - e.position) for e in (before, after))
        whole = jnp.maximum(norm(fields.goal - fields.start), 1e-3)
        near = [jnp.clip(1.0 - x / reward["margin"], 0.0, 1.0) for x in (gap, jnp.min(clearance, axis=1))]
        paid = rounded(reward["near"] * (near[0] + near[1])) + jnp.where(there, 0.0, reward["time"])
        return rounded(reward["progress"] * ((was - now) / whole)) - paid

    def _look(self, entities: Entities) -> tuple[Nearest, Float[Array, " n"], Int[Array, ""]]:
        """The nearest others, the gap to the very nearest (infinite: none in sight), and status bits."""
        found = self.search.find(entities.position, entities.alive)
        near = found.nearest(self.n_seen)
        gap = jnp.where(near.valid[:, 0], near.distance[:, 0] - 2.0 * self.radius, jnp.inf)
        return near, gap, found.status

    def surfaces(self, entities: Entities, pillars: Balls) -> tuple[Float[Array, "n 4"], Float[Array, "n 4 3"]]:
        """Room to what is solid (metres) and ways out: the nearest pillar, and along each axis the nearer side."""
        place = jnp.where(entities.alive[:, None], entities.position, 0.5 * self.size[None])
        distance, level = pillars.distance_and_normal(place[:, :2])
        normals = [jnp.concatenate([level, jnp.zeros_like(level[:, :1])], axis=1)]
        rooms = [distance - self.radius]
        for axis in range(3):
            below, above = place[:, axis], self.size[axis] - place[:, axis]
            normals.append(jnp.zeros_like(place).at[:, axis].set(jnp.where(below < above, 1.0, -1.0)))
            rooms.append(jnp.minimum(below, above) - self.radius)
        return jnp.stack(rooms, axis=1), jnp.stack(normals, axis=1)

    def ended(self, world: World) -> Bool[Array, ""]:
        """Nobody is left who has not arrived."""
        return ~jnp.any(world.entities.alive & (world.fields.arrived < 0))

    # What is seen

    def observe(self, world: World) -> Observation:
        """A row for each drone."""
        return self.seen(world.entities, self._own(world))

    def _own(self, world: World) -> Float[Array, "n o"]:
        entities, fields, speed = world.entities, world.fields, self.flying.speed
        alive, near = entities.alive[:, None], fields.near
        velocity = jnp.where(alive, entities.velocity, 0.0)
        place = jnp.where(alive, entities.position, 0.5 * self.size[None])
        way = fields.goal - place
        far = norm(way)[:, None]
        clearance, normal = self.surfaces(entities, fields.pillars)
        near_pillar = jnp.clip(1.0 - clearance[:, :1] / self.search.radius, 0.0, 1.0)
        numbers = [fields.arrived[:, None] >= 0, jnp.broadcast_to(1.0 - world.step / self.steps, far.shape)]
        own = [way / jnp.maximum(far, 1.0), far / self.circle, velocity / speed, 2.0 * place / self.size[None] - 1.0]
        own += [near_pillar, near_pillar * normal[:, 0, :2], *(x.astype(jnp.float32) for x in numbers), near_pillar > 0]
        moves = jnp.where(near.valid[:, :, None], near.gather(velocity) - velocity[:, None], 0.0)
        nearness = jnp.where(near.valid, 1.0 - near.distance / self.search.radius, 0.0)[:, :, None]
        valid = near.valid[:, :, None].astype(jnp.float32)
        others = jnp.concatenate([near.displacement / self.search.radius, moves / speed, nearness, valid], axis=2)
        return jnp.concatenate([*(x.astype(jnp.float32) for x in own), others.reshape(self.n_slots, -1)], axis=1)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """How the crossing goes; shares are of the drones at the start.

        crossed: share that has arrived and is not lost.
        promptness: mean of 1 less the share of the time that a drone took to arrive; 0 for the lost and late ones.
        seconds: mean time to arrive, all the time for those who have not.
        lost: share that crashed.
        gap: smallest between two drones so far, metres; at most the sight.
        """
        entities, fields = world.entities, world.fields
        crossed = entities.alive & (fields.arrived >= 0)
        share = jnp.where(fields.arrived >= 0, fields.arrived / self.steps, 1.0)
        first = jnp.arange(self.n_slots) < self.initial
        n = self.initial
        return {
            "crossed": jnp.sum(crossed) / n,
            "promptness": jnp.sum(jnp.where(crossed, 1.0 - share, 0.0)) / n,
            "seconds": jnp.sum(jnp.where(first, share, 0.0)) / n * self.steps * self.flying.time_step,
            "lost": 1.0 - jnp.sum(entities.alive) / n,
            "gap": jnp.minimum(fields.least, self.search.radius),
        }
