"""The rules of patrol."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from scenarios.common.alike import AbstractAlike, numbers
from scenarios.common.flying import Craft
from scenarios.common.level import Level, polar
from scenarios.patrol.config import PatrolConfig
from swarm.comms.links import Loss
from swarm.comms.radios import Mail, SumRadio
from swarm.comms.reception import Reception
from swarm.core.rounding import rounded
from swarm.geometry.vectors import norm
from swarm.neighbors.questions import AbstractNeighborSearch, Nearest, Neighbors
from swarm.neighbors.search import neighbor_search
from swarm.population.entities import Entities, Spawn, spawn
from swarm.simulation.rules import rows_of
from swarm.simulation.types import Action, Observation, Outcome, Start, World

N_FEATURES = 7
N_BLOCKS = 4


class Fields(eqx.Module):
    """What a world of patrol holds besides its drones.

    Attributes:
        craft: what they carry.
        base: middle of the pad, metres.
        known: which cells each drone knows to be seen.
        told: which the base knows.
        seen: which somebody has seen.
        linked: who heard the base in the last step.
        near: the nearest others in radio range.
        mail: messages under way.
        reception: statistics of the radio.
        spent: joules that all have drawn so far, or lost with their batteries.
    """

    craft: Craft
    base: Float[Array, " 3"]
    known: Bool[Array, "n h w"]
    told: Bool[Array, "h w"]
    seen: Bool[Array, "h w"]
    linked: Bool[Array, " n"]
    near: Nearest
    mail: Mail
    reception: Reception
    spent: Float[Array, ""]


class AbstractPatrol(AbstractAlike):
    """Drones cover a field.

    Who: `drone`; one team. They start above the pad of their base, which stands anywhere in the field, with batteries
        more or less full. None is born.
    Actions: two commands in [-1, 1]: velocity east and north, as shares of the highest speed, together at most 1. The
        drone's own controller follows it, as far as that keeps clear of others and of the edge (reciprocal avoidance,
        van den Berg et al. 2011), and holds the altitude.
    World: a field of cells. A drone sees the cells within its `footprint`. Wind and turbulence push. Flight draws on
        the battery; above the pad it is charged.
    Radio: in each step a drone tells all that it knows to be seen to those within `range`, and to the base, which
        answers likewise; links fail, the farther the more often.
    Crash: whose battery is empty, who touches another drone, or leaves the field. Who crashes is lost, with all that it
        has not told.
    Observation, for each drone: own velocity, place, battery, way to its berth on the pad, what the way back would
        leave of the battery, whether it heard the base, time left, way to the nearest cell that it does not know; what
        it knows around itself, and in each of 4 x 4 blocks; of the nearest others in range: way, closeness, relative
        velocity, whether there is one. No maps.
    Reward: `seen` times the share of the field that a drone sees before anybody, `told` times the share that the base
        comes to know, in equal parts to all; minus `energy` per full battery drawn, and as much again when it is
        charged; minus `crash`.
    End: terminated when the base knows all, or no drone is left; truncated after `steps`. Success is the share of the
        field that the base knows.
    """

    Config = PatrolConfig
    kinds = ("drone",)
    actions: ClassVar[dict[str, tuple[str, ...]]] = {"drone": ("east", "north")}
    success = "told"
    headline = "area_per_energy"
    stores = ("energy",)

    capacity: int = eqx.field(static=True)
    initial: int = eqx.field(static=True)
    cells: tuple[int, int] = eqx.field(static=True)
    n_seen: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    search: AbstractNeighborSearch
    level: Level
    radio: SumRadio
    footprint: Float[Array, ""]
    spacing: Float[Array, ""]
    steps: Float[Array, ""]
    reward: dict[str, Float[Array, ""]]
    frontier: dict[str, Float[Array, ""]]

    @classmethod
    def from_config(cls, config: PatrolConfig) -> "AbstractPatrol":
        """Build the rules from the validated scenario file."""
        world, drone = config.world, config.population.drone
        level = Level.of(world, drone, config.control, config.avoidance, config.air, config.energy)
        return cls(
            capacity=drone.capacity,
            initial=drone.initial,
            cells=(world.cells[1], world.cells[0]),
            n_seen=config.observation.others,
            window=config.observation.window,
            search=neighbor_search(level.volume, config.radio.range, drone.capacity, config.search),
            level=level,
            radio=SumRadio(Loss.of(ratio=config.radio.loss, reference=config.radio.range), delay=0),
            footprint=jnp.float32(drone.footprint),
            spacing=jnp.float32(config.observation.spacing),
            steps=jnp.float32(world.steps),
            reward=numbers(config.reward),
            frontier=numbers(config.frontier),
        )

    @property
    def n_controls(self) -> int:
        """A level velocity."""
        return 2

    @property
    def centre(self) -> tuple[float, ...]:
        """Middle of the field, at the altitude of flight."""
        return (*(0.5 * self.level.size).tolist(), float(self.level.altitude))

    @property
    def n_cells(self) -> int:
        """Of the field."""
        return self.cells[0] * self.cells[1]

    @property
    def tables(self) -> PyTree:
        """What drones differ in."""
        return self.level.tables

    @property
    def sets(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Others in range."""
        return {"others": rows_of(14 + self.window**2 + N_BLOCKS**2, self.n_seen, N_FEATURES)}

    @property
    def middles(self) -> Float[Array, "h w 2"]:
        """Of the cells; metres."""
        h, w = self.cells
        row, column = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
        share = (jnp.stack([column, row], axis=-1) + 0.5) / jnp.asarray([w, h])[None, None]
        return share * self.level.size[None, None]

    @property
    def berths(self) -> Float[Array, "n 2"]:
        """A place above the pad for each identity, from its middle: spread over the disc (Vogel 1979); metres."""
        number = np.arange(self.n_slots)
        distance, angle = np.minimum(np.sqrt((number + 0.5) / self.initial), 1.0), 2.399963 * number
        unit = 0.8 * distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return rounded(self.level.pad * jnp.asarray(unit, jnp.float32))

    def own_berths(self, entities: Entities) -> Float[Array, "n 2"]:
        """That of each drone. Nobody is born later, so identities are below the number of slots."""
        return self.berths[jnp.where(entities.alive, entities.uid, 0)]

    # How an episode starts

    def reset(self, key: Key[Array, ""]) -> Start:
        """Put the base somewhere, and the drones on a spiral above its pad."""
        n, h, w = self.initial, *self.cells
        base_key, charge_key = jax.random.split(key)
        inner = self.level.size - 2.0 * self.level.pad
        middle = self.level.pad + rounded(jax.random.uniform(base_key, (2,)) * inner)
        base = jnp.concatenate([middle, self.level.altitude[None]])
        way = jnp.concatenate([self.berths[:n], jnp.zeros((n, 1))], axis=1)
        none = jnp.zeros(n, jnp.int32)
        energy = self.level.charges(charge_key, n)
        births = Spawn(jnp.ones(n, bool), none, none, base[None] + way, jnp.zeros(n), energy[:, None])
        entities, _ = spawn(Entities.empty(self.n_slots, 3, 1, variants=self.variants), births)
        found = self.search.find(entities.position, entities.alive)
        fields = Fields(
            craft=self.level.flying.launch(entities),
            base=base,
            known=jnp.zeros((self.n_slots, h, w), bool),
            told=jnp.zeros((h, w), bool),
            seen=jnp.zeros((h, w), bool),
            linked=entities.alive,
            near=found.nearest(self.n_seen),
            mail=self.radio.init(self.n_slots, h * w),
            reception=Reception.init(self.n_slots),
            spent=jnp.zeros(()),
        )
        return Start(entities, fields, found.status)

    # How a step goes

    def act(self, world: World, action: Action, key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Fly, look, tell."""
        before, fields = world.entities, world.fields
        air_key, link_key, base_key = jax.random.split(key, 3)
        found = self.search.find(before.position, before.alive)
        entities, craft, air = self.level.fly(before, fields.craft, action, found, fields.near, world.step, air_key)
        energy, drawn = self.level.drain(entities, fields.base[:2], air.wind, jnp.zeros(self.n_slots))
        entities = eqx.tree_at(lambda e: e.stores, entities, energy[:, None])
        found = self.search.find(entities.position, entities.alive)
        near = found.nearest(self.n_seen)
        crashed = entities.alive & (self.level.battery.flat(energy) | self.level.touches(entities, near))
        eyes = self._footprints(entities) & (entities.alive & ~crashed)[:, None, None]
        first = eyes & ~fields.seen[None]
        known = fields.known | eyes
        mail, heard = self._broadcast(fields.mail, found, entities, known, link_key)
        known = known | (heard.total.reshape(known.shape) > 0)
        linked = self._linked(entities, fields.base, base_key) & ~crashed
        told = fields.told | jnp.any(known & linked[:, None, None], axis=0)
        known = known | (told[None] & linked[:, None, None])
        gained = energy - jnp.where(before.alive, before.stores[:, 0], 0.0)
        reward = self._reward(before, first, told & ~fields.told, gained)
        reward = reward - jnp.where(crashed, self.reward["crash"], 0.0)
        spent = drawn + jnp.where(crashed, energy, 0.0)
        new = Fields(
            craft=craft,
            base=fields.base,
            known=known & entities.alive[:, None, None],
            told=told,
            seen=fields.seen | jnp.any(eyes, axis=0),
            linked=linked,
            near=near,
            mail=mail,
            reception=fields.reception.step(mail, heard, entities),
            spent=fields.spent + jnp.sum(spent),
        )
        return entities, new, Outcome(reward, crashed, None, status=found.status)

    def _footprints(self, entities: Entities) -> Bool[Array, "n h w"]:
        """Which cells each sees."""
        place = jnp.where(entities.alive[:, None], entities.position[:, :2], -1e6)
        way = self.middles[None] - place[:, None, None]
        return norm(way) < self.footprint

    def _broadcast(
        self, mail: Mail, found: Neighbors, entities: Entities, known: Bool[Array, "n h w"], key: Key[Array, ""]
    ) -> Any:
        message = known.astype(jnp.float32).reshape(self.n_slots, -1)
        return self.radio.step(mail, found, entities, message, key)

    def _linked(self, entities: Entities, base: Float[Array, " 3"], key: Key[Array, ""]) -> Bool[Array, " n"]:
        """Whose link with the base works in this step."""
        distance = norm(jnp.where(entities.alive[:, None], entities.position, 0.0) - base[None])
        draw = jax.vmap(jax.random.uniform)(entities.keys(key))
        works = draw >= self.radio.loss.probability(distance)
        return entities.alive & works & (distance < self.search.radius)

    def _reward(
        self, before: Entities, first: Bool[Array, "n h w"], news: Bool[Array, "h w"], gained: Float[Array, " n"]
    ) -> Float[Array, " n"]:
        n_eyes = jnp.sum(first, axis=0, dtype=jnp.int32)
        shares = jnp.where(first, 1.0 / jnp.maximum(n_eyes, 1)[None], 0.0)
        seen = self.reward["seen"] * jnp.sum(shares, axis=(1, 2)) / self.n_cells
        n_alive = jnp.maximum(jnp.sum(before.alive, dtype=jnp.int32), 1)
        told = self.reward["told"] * jnp.sum(news, dtype=jnp.int32) / (self.n_cells * n_alive)
        energy = rounded(self.reward["energy"] * (gained / self.level.battery.capacity[before.row]))
        return jnp.where(before.alive, rounded(seen) + rounded(told) + energy, 0.0)

    def ended(self, world: World) -> Bool[Array, ""]:
        """The base knows all, or nobody is left."""
        return jnp.all(world.fields.told) | ~jnp.any(world.entities.alive)

    # What is seen

    def observe(self, world: World) -> Observation:
        """A row for each drone."""
        return self.seen(world.entities, self._own(world))

    def _own(self, world: World) -> Float[Array, "n o"]:
        entities, fields, n, speed = world.entities, world.fields, self.n_slots, self.level.flying.speed
        alive, near, side = entities.alive[:, None], fields.near, jnp.max(self.level.size)
        velocity = jnp.where(alive, entities.velocity, 0.0)[:, :2]
        place = jnp.where(alive, entities.position, 0.0)[:, :2]
        way, far = self.nearest_unknown(entities, fields)
        own = [
            velocity / speed,
            2.0 * place / self.level.size[None] - 1.0,
            jnp.where(alive, entities.stores, 0.0) / self.level.battery.capacity[entities.row][:, None],
            polar(fields.base[None, :2] + self.own_berths(entities) - place, side),
            self.level.spare(entities, fields.base[:2])[:, None],
            fields.linked[:, None],
            jnp.broadcast_to(1.0 - world.step / self.steps, (n, 1)),
            way / jnp.maximum(far, 1.0)[:, None],
            far[:, None] / side,
            self._around(place, fields.known),
            self._blocks(fields.known),
        ]
        moves = jnp.where(near.valid[:, :, None], near.gather(velocity) - velocity[:, None], 0.0)
        valid = near.valid[:, :, None].astype(jnp.float32)
        ways = near.displacement[..., :2] / self.search.radius
        others = jnp.concatenate([ways, self.level.closeness(near), moves / speed, valid], axis=2)
        return jnp.concatenate([*(x.astype(jnp.float32) for x in own), others.reshape(n, -1)], axis=1)

    def nearest_unknown(self, entities: Entities, fields: Fields) -> tuple[Float[Array, "n 2"], Float[Array, " n"]]:
        """Way and distance to the nearest cell that each does not know; 0 where it knows all."""
        place = jnp.where(entities.alive[:, None], entities.position[:, :2], 0.0)
        ways = (self.middles[None] - place[:, None, None]).reshape(self.n_slots, -1, 2)
        far = jnp.where(fields.known.reshape(self.n_slots, -1), jnp.inf, norm(ways))
        best = jnp.argmin(far, axis=1)[:, None]
        there = jnp.isfinite(jnp.take_along_axis(far, best, axis=1))
        way = jnp.where(there, jnp.take_along_axis(ways, best[:, :, None], axis=1)[:, 0], 0.0)
        return way, norm(way)

    def _around(self, place: Float[Array, "n 2"], known: Bool[Array, "n h w"]) -> Float[Array, "n s"]:
        """1 where a drone does not know the field about itself, on a grid of samples; 0 outside the field."""
        half, (h, w) = self.window // 2, self.cells
        steps = (jnp.arange(self.window) - half) * self.spacing
        x, y = (place[:, axis : axis + 1] + steps[None] for axis in (0, 1))
        column, row = (
            jnp.floor(v / self.level.size[i] * m).astype(jnp.int32) for i, (v, m) in enumerate(((x, w), (y, h)))
        )
        within = ((row >= 0) & (row < h))[:, :, None] & ((column >= 0) & (column < w))[:, None]
        picked = jax.vmap(lambda k, r, c: k[r[:, None], c[None]])(
            known, jnp.clip(row, 0, h - 1), jnp.clip(column, 0, w - 1)
        )
        return (within & ~picked).astype(jnp.float32).reshape(self.n_slots, -1)

    def _blocks(self, known: Bool[Array, "n h w"]) -> Float[Array, "n b"]:
        """Share that a drone does not know of each of 4 x 4 blocks of the field."""
        h, w = (cells // N_BLOCKS for cells in self.cells)
        unknown = jnp.where(known, 0.0, 1.0).reshape(self.n_slots, N_BLOCKS, h, N_BLOCKS, w)
        return jnp.sum(unknown, axis=(2, 4)).reshape(self.n_slots, -1) / (h * w)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """How the patrol goes; shares of the field.

        told: share that the base knows.
        area_per_energy: square metres that the base knows per joule spent.
        seen: share that somebody has seen.
        joules: that all drones have drawn, or lost with their batteries.
        lost: share of the drones that crashed.
        delivery: share of the messages between drones that arrived.
        """
        fields, n_cells = world.fields, self.n_cells
        told = jnp.sum(fields.told, dtype=jnp.int32) / n_cells
        area = told * self.level.size[0] * self.level.size[1]
        return {
            "told": told,
            "area_per_energy": area / jnp.maximum(fields.spent, 1e-6),
            "seen": jnp.sum(fields.seen, dtype=jnp.int32) / n_cells,
            "joules": fields.spent,
            "lost": 1.0 - jnp.sum(world.entities.alive) / self.initial,
            "delivery": fields.reception.delivery_rate,
        }
