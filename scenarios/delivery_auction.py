"""The scripted policy of delivery: parcels by auction (Bertsekas 1988), then reciprocal avoidance on the way."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from scenarios.delivery import Delivery
from swarm.scenario import AbstractPolicy, Action, Observation, World
from swarm.space import rounded
from swarm.vectors import clipped, norm, unit


class Plan(eqx.Module):
    """What each drone is about.

    Attributes:
        parcel: number of the one that it is on the way to; -1: none.
        tired: whether it is on the way to charge, or charging.
    """

    parcel: Int[Array, " n"]
    tired: Bool[Array, " n"]


class Auction(AbstractPolicy):
    """In each step the drones without a parcel bid for those that wait; who gets none goes back to the depot.

    A bid is the reward of the delivery at the time when it will be made, less that of the energy, per second that it
    takes. Times and energies are those of straight flights in the mean wind, with the payload. No drone bids for what
    its battery does not suffice for, the way back to the depot and a reserve included.
    """

    rules: Delivery

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """As one that had no plan."""
        return self.act(world, observation, self.start(world.entities.n_slots), key)[0]

    def start(self, n_slots: int) -> Plan:
        """Nobody has one."""
        return Plan(jnp.full(n_slots, -1, jnp.int32), jnp.zeros(n_slots, bool))

    def act(self, world: World, observation: Observation, memory: Plan, key: Key[Array, ""]) -> tuple[Action, Plan]:
        """Bid, and fly there."""
        rules, entities, fields, numbers = self.rules, world.entities, world.fields, self.rules.auction
        alive, parcels, level = entities.alive, fields.parcels, rules.level
        place = jnp.where(alive[:, None], entities.position[:, :2], 0.0)
        charge = jnp.where(alive, entities.stores[:, 0], 0.0) / level.battery.capacity[0]
        loaded = fields.load >= 0
        end = fields.places[parcels.destination[jnp.maximum(fields.load, 0)]]
        mass = jnp.where(loaded, parcels.mass[jnp.maximum(fields.load, 0)], 0.0)
        on, home = (self._leg(*leg) for leg in ((place, end, mass), (end, fields.places[:1], jnp.zeros(()))))
        back = self._leg(place, fields.places[:1], mass)[1]
        need = jnp.where(loaded, on[1] + home[1], back) + numbers["reserve"]
        tired = alive & ((charge < need) | (memory.tired & (charge < numbers["full"])))
        bids = self._bids(world, place, charge, memory.parcel)
        bidding = alive & ~loaded & ~tired
        won = assign(jnp.where(bidding[:, None], bids, -jnp.inf), numbers["epsilon"], rules.max_rounds)
        berth = fields.places[:1] + rules.berths
        goal = jnp.where((won >= 0)[:, None], fields.places[parcels.origin[jnp.maximum(won, 0)]], berth)
        goal = jnp.where((loaded & ~tired)[:, None], end, goal)
        wanted = clipped(goal - place, jnp.broadcast_to(level.flying.speed, alive.shape))
        action = level.clear(wanted, entities, fields.near, numbers["margin"], numbers["horizon"])
        return action, Plan(won, tired)

    def _bids(
        self, world: World, place: Float[Array, "n 2"], charge: Float[Array, " n"], kept: Int[Array, " n"]
    ) -> Float[Array, "n m"]:
        """What each parcel is worth to each drone, rewards per second; minus infinity where it cannot be brought."""
        rules, fields, numbers = self.rules, world.fields, self.rules.auction
        parcels, stop = fields.parcels, numbers["stop"]
        start, end = (fields.places[x][None] for x in (parcels.origin, parcels.destination))
        to_start = self._leg(place[:, None], start, jnp.zeros(()))
        to_end = self._leg(start, end, parcels.mass[None])
        to_base = self._leg(end, fields.places[:1][None], jnp.zeros(()))
        seconds = to_start[0] + to_end[0] + 2.0 * stop
        energy = to_start[1] + to_end[1]
        value = rules.paid(parcels, rules.seconds(world.step) + seconds)
        gain = rounded(rules.reward["delivered"] * value) - rounded(rules.reward["energy"] * energy)
        same = kept[:, None] == jnp.arange(rules.n_parcels)[None]
        rate = gain / jnp.maximum(seconds, 0.1) + jnp.where(same, numbers["keep"], 0.0)
        fits = energy + to_base[1] + numbers["reserve"] < charge[:, None]
        return jnp.where(fits & rules.waiting(parcels, world.step)[None] & (value > 0.0), rate, -jnp.inf)

    def _leg(
        self, start: Float[Array, "*#v 2"], end: Float[Array, "*#v 2"], payload: Float[Array, "*#v"]
    ) -> tuple[Float[Array, "*v"], Float[Array, "*v"]]:
        """Seconds of a straight flight at full speed in the mean wind, and its share of a full battery with a stop.

        A drone that is told the velocity c in a wind w flies at c - slip (c - w), as its velocity loop has no integral.
        """
        numbers, level = self.rules.auction, self.rules.level
        height = jnp.concatenate([jnp.zeros(2), level.altitude[None]])[None]
        wind = level.flying.weather.mean.at(height)[0, :2]
        way = end - start
        course = unit(way)
        command = level.flying.speed * course
        velocity = command - rounded(numbers["slip"] * (command - wind))
        along = velocity[..., 0] * course[..., 0] + velocity[..., 1] * course[..., 1]
        seconds = norm(way) / jnp.maximum(along, 0.1 * level.flying.speed)
        watts = self._watts(velocity - wind, payload)
        return seconds, rounded((seconds + numbers["stop"]) * watts) / level.battery.capacity[0]

    def _watts(self, velocity: Float[Array, "*v 2"], payload: Float[Array, "*#v"]) -> Float[Array, "*v"]:
        shape = velocity.shape[:-1]
        flat = velocity.reshape(-1, 2)
        kind = jnp.zeros(flat.shape[0], jnp.int32)
        return self.rules.level.power.of_flight(flat, kind, jnp.broadcast_to(payload, shape).reshape(-1)).reshape(shape)


def assign(benefit: Float[Array, "n m"], epsilon: Float[Array, ""], max_rounds: int) -> Int[Array, " n"]:
    """Give each of `n` bidders at most one of `m` things, nearly at the greatest sum of benefits.

    The auction algorithm (D. Bertsekas, "The auction algorithm: a distributed relaxation method for the assignment
    problem", 1988), all who have nothing bidding at once: each for the thing of the greatest benefit less price, by as
    much as this exceeds the second best, which may be to have nothing at benefit 0, and `epsilon`. Prices start at 0
    and rise, so that what nobody wanted costs nothing: the sum is within n epsilon of the greatest.

    Args:
        benefit: minus infinity where a pair is impossible.
        epsilon: the least raise; above 0.
        max_rounds: who has nothing after so many stays without.

    Returns:
        Number of the thing of each bidder; -1: none.
    """
    n, m = benefit.shape
    bidder = jnp.arange(n)

    def wants(price: Array, owner: Array) -> tuple[Array, Array, Array]:
        has = jnp.any(owner[None] == bidder[:, None], axis=1)
        net = benefit - price[None]
        best = jnp.argmax(net, axis=1)
        return net, best, ~has & (jnp.max(net, axis=1) > 0.0)

    def bid(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        price, owner, n_rounds = carry
        net, best, bids = wants(price, owner)
        is_best = best[:, None] == jnp.arange(m)[None]
        second = jnp.maximum(jnp.max(jnp.where(is_best, -jnp.inf, net), axis=1), 0.0)
        offer = jnp.take_along_axis(benefit, best[:, None], axis=1)[:, 0] - second + epsilon
        offers = jnp.where(is_best & bids[:, None], offer[:, None], -jnp.inf)
        highest = jnp.max(offers, axis=0)
        sold = jnp.isfinite(highest)
        owner = jnp.where(sold, jnp.argmax(offers, axis=0), owner)
        return jnp.where(sold, highest, price), owner, n_rounds + 1

    def going(carry: tuple[Array, Array, Array]) -> Array:
        price, owner, n_rounds = carry
        return jnp.any(wants(price, owner)[2]) & (n_rounds < max_rounds)

    start = jnp.zeros(m), jnp.full(m, -1, jnp.int32), jnp.int32(0)
    _, owner, _ = jax.lax.while_loop(going, bid, start)
    mine = owner[None] == bidder[:, None]
    return jnp.where(jnp.any(mine, axis=1), jnp.argmax(mine, axis=1).astype(jnp.int32), -1)
