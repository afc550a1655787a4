"""The rules of delivery."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from scenarios.common.alike import AbstractAlike, numbers
from scenarios.common.flying import Craft
from scenarios.common.level import Level, polar
from scenarios.delivery.config import DeliveryConfig
from scenarios.delivery.parcels import Orders, Parcels, picked
from swarm.core.rounding import rounded
from swarm.geometry.vectors import norm
from swarm.neighbors.questions import AbstractNeighborSearch, Nearest
from swarm.neighbors.search import neighbor_search
from swarm.population.entities import Entities, Spawn, spawn
from swarm.simulation.rules import rows_of
from swarm.simulation.types import Action, Observation, Outcome, Start, World

N_BLOCKS = 4
N_OWN = 17 + 2 * N_BLOCKS**2
N_OF_PARCEL, N_OF_OTHER = 9, 9


class Fields(eqx.Module):
    """What a world of delivery holds besides its drones.

    Attributes:
        craft: what they carry to fly.
        places: middles of the depot and of the pads, metres.
        parcels: of the episode.
        load: number of the parcel that each carries; -1: none.
        near: the nearest others in sight.
        spent: joules that all have drawn so far, or lost with their batteries.
    """

    craft: Craft
    places: Float[Array, "p 2"]
    parcels: Parcels
    load: Int[Array, " n"]
    near: Nearest
    spent: Float[Array, ""]


class AbstractDelivery(AbstractAlike):
    """Drones bring parcels.

    Who: `drone`; one team. They start around the depot, with batteries more or less full. None is born.
    Actions: two commands in [-1, 1]: velocity east and north, as shares of the highest speed, together at most 1. The
        drone's own controller follows it, as far as that keeps clear of others and of the edge (reciprocal avoidance,
        van den Berg et al. 2011), and holds the altitude.
    World: a depot and pads, anywhere in the field. Parcels appear there during the episode, each with a destination, a
        mass and a value, which is paid in full up to a deadline, and falls to 0 from there on. Wind, turbulence and
        downwash push. Flight draws on the battery, the more the heavier the parcel, which does not change how a drone
        flies otherwise; around the depot it is charged.
    Picking up: a drone without a parcel that is slower than `slow` within `reach` of a place gets the oldest that waits
        there; of several drones the one of the lowest slot. It brings it by being slow within reach of the destination.
    Crash: whose battery is empty, who touches another drone, or leaves the field. Who crashes is lost with its parcel.
    Observation, for each drone: own velocity, place, battery, way to its berth at the depot, what the way back would
        leave of the battery, time left; its parcel's mass, value, age and way; the parcels that wait, and the drones,
        in each of 4 x 4 blocks of the field; of the nearest waiting parcels: way there, way on from there, mass, value,
        age; of the nearest others in sight: way, closeness, relative velocity, and what they carry. No maps.
    Reward: `delivered` times the value paid; `picked` and `carried` times the full value, when it is picked up and for
        the way that it is carried; minus `energy` per full battery drawn, and as much again when it is charged; minus
        `crash`.
    End: terminated when no parcel is left to bring or to come, or no drone; truncated after `steps`. Success is the
        share of the value of all parcels that is paid.
    """

    Config = DeliveryConfig
    kinds = ("drone",)
    actions: ClassVar[dict[str, tuple[str, ...]]] = {"drone": ("east", "north")}
    success = "value"
    headline = "delivered"
    stores = ("energy",)

    capacity: int = eqx.field(static=True)
    initial: int = eqx.field(static=True)
    side: int = eqx.field(static=True)
    n_pads: int = eqx.field(static=True)
    n_waiting: int = eqx.field(static=True)
    n_seen: int = eqx.field(static=True)
    max_rounds: int = eqx.field(static=True)
    search: AbstractNeighborSearch
    level: Level
    orders: Orders
    reach: Float[Array, ""]
    slow: Float[Array, ""]
    steps: Float[Array, ""]
    reward: dict[str, Float[Array, ""]]
    auction: dict[str, Float[Array, ""]]

    @classmethod
    def from_config(cls, config: DeliveryConfig) -> "AbstractDelivery":
        """Build the rules from the validated scenario file."""
        world, drone = config.world, config.population.drone
        level = Level.of(world, drone, config.control, config.avoidance, config.air, config.energy)
        return cls(
            capacity=drone.capacity,
            initial=drone.initial,
            side=world.side,
            n_pads=world.pads,
            n_waiting=config.observation.parcels,
            n_seen=config.observation.others,
            max_rounds=config.auction.rounds,
            search=neighbor_search(level.volume, config.observation.sight, drone.capacity, config.search),
            level=level,
            orders=Orders.of(config.parcels),
            reach=jnp.float32(world.reach),
            slow=jnp.float32(world.slow),
            steps=jnp.float32(world.steps),
            reward=numbers(config.reward),
            auction=numbers(config.auction, but=("rounds",)),
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
    def tables(self) -> PyTree:
        """What drones differ in."""
        return self.level.tables

    @property
    def sets(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Waiting parcels, and others in sight."""
        after = N_OWN + self.n_waiting * N_OF_PARCEL
        return {
            "parcels": rows_of(N_OWN, self.n_waiting, N_OF_PARCEL),
            "others": rows_of(after, self.n_seen, N_OF_OTHER),
        }

    @property
    def berths(self) -> Float[Array, "n 2"]:
        """A place to charge for each identity, from the depot's middle: a ring beyond the reach of parcels; metres."""
        angle = 2 * np.pi * np.arange(self.n_slots) / self.initial
        ring = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)
        return rounded(0.5 * (self.reach + self.level.pad) * ring)

    def own_berths(self, entities: Entities) -> Float[Array, "n 2"]:
        """That of each drone. Nobody is born later, so identities are below the number of slots."""
        return self.berths[jnp.where(entities.alive, entities.uid, 0)]

    # How an episode starts

    def reset(self, key: Key[Array, ""]) -> Start:
        """Put the depot and the pads somewhere, and the drones around the depot."""
        n, (place_key, parcel_key, charge_key) = self.initial, jax.random.split(key, 3)
        places = self._places(place_key)
        level = places[:1] + self.berths[:n]
        position = jnp.concatenate([level, jnp.broadcast_to(self.level.altitude, (n, 1))], axis=1)
        none, energy = jnp.zeros(n, jnp.int32), self.level.charges(charge_key, n)
        births = Spawn(jnp.ones(n, bool), none, none, position, jnp.zeros(n), energy[:, None])
        entities, _ = spawn(Entities.empty(self.n_slots, 3, 1, variants=self.variants), births)
        found = self.search.find(entities.position, entities.alive)
        fields = Fields(
            craft=self.level.flying.launch(entities),
            places=places,
            parcels=self.orders.draw(parcel_key, self.n_pads + 1),
            load=jnp.full(self.n_slots, -1, jnp.int32),
            near=found.nearest(self.n_seen),
            spent=jnp.zeros(()),
        )
        return Start(entities, fields, found.status)

    def _places(self, key: Key[Array, ""]) -> Float[Array, "p 2"]:
        """Each in a cell of its own, as far from the cell's edges as the depot's pad is wide."""
        n, (cell_key, key) = self.n_pads + 1, jax.random.split(key)
        cell = jax.random.permutation(cell_key, self.side**2)[:n]
        corner = jnp.stack([cell % self.side, cell // self.side], axis=1).astype(jnp.float32)
        draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (2,)))(jnp.arange(n))
        width = (self.level.size / self.side)[None]
        return rounded(corner * width) + self.level.pad + rounded(draw * (width - 2.0 * self.level.pad))

    # How a step goes

    def act(self, world: World, action: Action, key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Fly, bring, pick up."""
        before, fields, level = world.entities, world.fields, self.level
        found = self.search.find(before.position, before.alive)
        entities, craft, air = level.fly(before, fields.craft, action, found, fields.near, world.step, key)
        payload = picked(fields.parcels.mass, fields.load)
        energy, drawn = level.drain(entities, fields.places[0], air.wind, payload)
        entities = eqx.tree_at(lambda e: e.stores, entities, energy[:, None])
        found = self.search.find(entities.position, entities.alive)
        near = found.nearest(self.n_seen)
        crashed = entities.alive & (level.battery.flat(energy) | level.touches(entities, near))
        working = entities.alive & ~crashed
        parcels, load, paid = self._hand_over(fields, entities, working, world.step + 1)
        gained = energy - jnp.where(before.alive, before.stores[:, 0], 0.0)
        reward = paid + rounded(self.reward["energy"] * (gained / level.battery.capacity[before.row]))
        reward = reward + self._carried(before, entities, fields)
        reward = reward - jnp.where(crashed, self.reward["crash"], 0.0)
        spent = fields.spent + jnp.sum(drawn + jnp.where(crashed, energy, 0.0))
        new = Fields(craft, fields.places, parcels, load, near, spent)
        return entities, new, Outcome(reward, crashed, None, status=found.status)

    def _hand_over(
        self, fields: Fields, entities: Entities, working: Bool[Array, " n"], step: Int[Array, ""]
    ) -> tuple[Parcels, Int[Array, " n"], Float[Array, " n"]]:
        """Parcels and loads after drops and pick-ups, and what these pay to each drone."""
        parcels, load, m = fields.parcels, fields.load, self.orders.n
        place, velocity = (jnp.where(working[:, None], x[:, :2], 0.0) for x in (entities.position, entities.velocity))
        distance = norm(fields.places[None] - place[:, None])
        at = jnp.argmin(distance, axis=1)
        there = working & (jnp.min(distance, axis=1) < self.reach) & (norm(velocity) < self.slow)
        drops = there & (load >= 0) & (parcels.destination[jnp.maximum(load, 0)] == at)
        delivered = parcels.delivered.at[jnp.where(drops, load, m)].set(step, mode="drop")
        paid = jnp.where(
            drops, picked(self.orders.paid(parcels.value, self.seconds(step) - parcels.seconds), load), 0.0
        )
        # At each place the drones without a parcel, by identity, get those that wait there, by age, one each.
        free, waiting = there & (load < 0), parcels.waiting(self.seconds(step))
        turn = _rank(free, at, entities.uid)[:, None] == _rank(waiting, parcels.origin, jnp.arange(m))[None]
        gets = turn & free[:, None] & waiting[None] & (at[:, None] == parcels.origin[None])
        picks = jnp.any(gets, axis=1)
        new = jnp.where(picks, jnp.argmax(gets, axis=1).astype(jnp.int32), jnp.where(drops, -1, load))
        bonus = jnp.where(picks, picked(parcels.value, new), 0.0)
        reward = rounded(self.reward["delivered"] * paid) + rounded(self.reward["picked"] * bonus)
        parcels = eqx.tree_at(
            lambda p: (p.taken, p.delivered), parcels, (parcels.taken | jnp.any(gets, axis=0), delivered)
        )
        return parcels, jnp.where(working, new, -1), reward

    def _carried(self, before: Entities, after: Entities, fields: Fields) -> Float[Array, " n"]:
        """Pay for the way that a step brings parcels nearer to their destinations."""
        parcels, some = fields.parcels, jnp.maximum(fields.load, 0)
        end, start = (fields.places[x[some]] for x in (parcels.destination, parcels.origin))
        was, now = (norm(end - jnp.where(before.alive[:, None], e.position[:, :2], 0.0)) for e in (before, after))
        share = (was - now) / jnp.maximum(norm(end - start), 1e-3)
        return rounded(self.reward["carried"] * picked(parcels.value, fields.load) * share)

    def seconds(self, step: Int[Array, "*v"]) -> Float[Array, "*v"]:
        """Since the start."""
        return rounded(step * self.level.flying.time_step)

    def ended(self, world: World) -> Bool[Array, ""]:
        """Nothing is left to bring, or nobody."""
        fields = world.fields
        nobody = ~jnp.any(world.entities.alive)
        return nobody | (jnp.all(fields.parcels.taken) & ~jnp.any(world.entities.alive & (fields.load >= 0)))

    # What is seen

    def observe(self, world: World) -> Observation:
        """A row for each drone."""
        rows = [self._own(world), self._blocks(world), self._waiting_rows(world), self._other_rows(world)]
        return self.seen(world.entities, jnp.concatenate(rows, axis=1))

    def _own(self, world: World) -> Float[Array, "n o"]:
        """Of the drone and its parcel."""
        entities, fields, level = world.entities, world.fields, self.level
        alive, side, parcels = entities.alive[:, None], jnp.max(level.size), fields.parcels
        place, velocity = (jnp.where(alive, x[:, :2], 0.0) for x in (entities.position, entities.velocity))
        age = (self.seconds(world.step) - parcels.seconds) / self.orders.deadline
        end = fields.places[parcels.destination[jnp.maximum(fields.load, 0)]]
        loaded = (fields.load >= 0)[:, None]
        way = jnp.where(loaded, end - place, 0.0)
        load = jnp.stack([parcels.mass / self.orders.mass[1], parcels.value / self.orders.value[1], age], axis=1)
        own = [
            velocity / level.flying.speed,
            2.0 * place / level.size[None] - 1.0,
            jnp.where(alive, entities.stores, 0.0) / level.battery.capacity[entities.row][:, None],
            polar(fields.places[:1] + self.own_berths(entities) - place, side),
            level.spare(entities, fields.places[0])[:, None],
            jnp.broadcast_to(1.0 - world.step / self.steps, (self.n_slots, 1)),
            loaded,
            picked(load, fields.load),
            polar(way, side),
        ]
        return jnp.concatenate([x.astype(jnp.float32) for x in own], axis=1)

    def _blocks(self, world: World) -> Float[Array, "n b"]:
        """Waiting parcels and drones in each of 4 x 4 blocks of the field; what all know."""
        entities, fields = world.entities, world.fields
        place = jnp.where(entities.alive[:, None], entities.position[:, :2], 0.0)
        waiting = fields.parcels.waiting(self.seconds(world.step))
        things = (fields.places[fields.parcels.origin], waiting), (place, entities.alive)
        counts = jnp.concatenate([self._count(where, mask) for where, mask in things])
        return jnp.broadcast_to(0.25 * counts.astype(jnp.float32)[None], (self.n_slots, counts.shape[0]))

    def _count(self, place: Float[Array, "x 2"], mask: Bool[Array, " x"]) -> Int[Array, " b"]:
        column, row = jnp.clip((N_BLOCKS * place / self.level.size[None]).astype(jnp.int32), 0, N_BLOCKS - 1).T
        block = N_BLOCKS * row + column
        return jnp.sum((block[:, None] == jnp.arange(N_BLOCKS**2)[None]) & mask[:, None], axis=0, dtype=jnp.int32)

    def _waiting_rows(self, world: World) -> Float[Array, "n w"]:
        """The parcels that wait nearest to each."""
        entities, fields, side = world.entities, world.fields, jnp.max(self.level.size)
        parcels, n = fields.parcels, self.n_slots
        place = jnp.where(entities.alive[:, None], entities.position[:, :2], 0.0)
        start, end = (fields.places[x] for x in (parcels.origin, parcels.destination))
        far = jnp.where(parcels.waiting(self.seconds(world.step))[None], norm(start[None] - place[:, None]), jnp.inf)
        nearest, index = jax.lax.top_k(-far, self.n_waiting)
        valid = jnp.isfinite(nearest)[:, :, None]
        age = (self.seconds(world.step) - parcels.seconds) / self.orders.deadline
        of_parcel = [(end - start) / side, (parcels.mass / self.orders.mass[1])[:, None]]
        of_parcel += [(parcels.value / self.orders.value[1])[:, None], age[:, None]]
        rows = [polar(start[index] - place[:, None], side), jnp.concatenate(of_parcel, axis=1)[index], valid]
        rows = jnp.concatenate([x.astype(jnp.float32) for x in rows], axis=2)
        return jnp.where(valid, rows, 0.0).reshape(n, -1)

    def _other_rows(self, world: World) -> Float[Array, "n w"]:
        """The nearest others."""
        entities, fields = world.entities, world.fields
        near, valid = fields.near, fields.near.valid[:, :, None]
        velocity = jnp.where(entities.alive[:, None], entities.velocity[:, :2], 0.0)
        moves = jnp.where(valid, near.gather(velocity) - velocity[:, None], 0.0) / self.level.flying.speed
        loaded = (fields.load >= 0).astype(jnp.float32)
        load = jnp.stack([loaded, picked(fields.parcels.mass, fields.load) / self.orders.mass[1]], axis=1)
        ways = [near.displacement[..., :2] / self.search.radius, self.level.closeness(near)]
        rows = [*ways, moves, near.gather(load), valid.astype(jnp.float32)]
        return jnp.concatenate(rows, axis=2).reshape(self.n_slots, -1)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """How the deliveries go.

        value: share of the value of the parcels of the episode that was paid; later parcels count from the start.
        delivered: number of parcels that arrived.
        late: share of these that arrived after their deadline.
        seconds: mean from appearance to arrival; 0 if none did.
        joules_per_delivery: spent by all, lost batteries included; the whole if there is none.
        lost: share of the drones that crashed.
        """
        fields, parcels = world.fields, world.fields.parcels
        there = parcels.delivered >= 0
        took = jnp.where(there, self.seconds(parcels.delivered) - parcels.seconds, 0.0)
        paid = jnp.where(there, self.orders.paid(parcels.value, took), 0.0)
        n = jnp.sum(there, dtype=jnp.int32)
        some = jnp.maximum(n, 1)
        return {
            "value": jnp.sum(paid) / jnp.sum(parcels.value),
            "delivered": n.astype(jnp.float32),
            "late": jnp.sum(there & (took > self.orders.deadline), dtype=jnp.int32) / some,
            "seconds": jnp.sum(took) / some,
            "joules_per_delivery": fields.spent / some,
            "lost": (self.initial - jnp.sum(world.entities.alive, dtype=jnp.int32)) / self.initial,
        }


def _rank(mask: Bool[Array, " x"], label: Int[Array, " x"], number: Int[Array, " x"]) -> Int[Array, " x"]:
    """How many of the mask with the same label and a lower number there are."""
    same = mask[None] & (label[:, None] == label[None]) & (number[None] < number[:, None])
    return jnp.sum(same, axis=1, dtype=jnp.int32)
