"""The scripted policy of delivery: parcels by auction (Bertsekas 1988)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from scenarios.delivery.rules import AbstractDelivery
from swarm.core.rounding import rounded
from swarm.geometry.vectors import clipped, dot, norm, unit
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import Action, Observation, World


class Auction(AbstractPolicy):
    """In each step the drones without a parcel bid for those that wait; who gets none charges at the depot.

    A bid is the reward of the delivery at the time when it will be made, less that of the energy, per second that it
    takes. Times and energies are those of straight flights in the mean wind, with the payload. No drone bids for what
    its battery does not suffice for, the way back to the depot and a reserve included; who runs short with a parcel
    charges first.
    """

    rules: AbstractDelivery

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Bid, and fly there."""
        rules, entities, fields, numbers = self.rules, world.entities, world.fields, self.rules.auction
        alive, parcels, level = entities.alive, fields.parcels, rules.level
        place = jnp.where(alive[:, None], entities.position[:, :2], 0.0)
        charge = jnp.where(alive, entities.stores[:, 0], 0.0) / level.battery.capacity[entities.row]
        loaded, some, depot = fields.load >= 0, jnp.maximum(fields.load, 0), fields.places[:1]
        end = fields.places[parcels.destination[some]]
        _, need = self._leg(place, end, parcels.mass[some])
        _, back = self._leg(end, depot, jnp.zeros(()))
        # Under way half of the reserve may be used up, or drones would turn round for a breath of wind.
        kept = numbers["reserve"] * jnp.where(norm(place - depot) < level.pad, 1.0, 0.5)
        brings = loaded & (charge > need + back + kept)
        bids = jnp.where((alive & ~loaded)[:, None], self._bids(world, place, charge), -jnp.inf)
        won = assign(bids, numbers["epsilon"], rules.max_rounds)
        goal = jnp.where(
            (won >= 0)[:, None], fields.places[parcels.origin[jnp.maximum(won, 0)]], depot + rules.own_berths(entities)
        )
        goal = jnp.where(brings[:, None], end, goal)
        wanted = clipped(goal - place, jnp.broadcast_to(level.flying.speed, alive.shape))
        return wanted / level.flying.speed

    def _bids(self, world: World, place: Float[Array, "n 2"], charge: Float[Array, " n"]) -> Float[Array, "n m"]:
        """What each parcel is worth to each drone, rewards per second; minus infinity where it cannot be brought."""
        rules, fields, numbers = self.rules, world.fields, self.rules.auction
        parcels, depot, now = fields.parcels, fields.places[:1], rules.seconds(world.step)
        start, end = (fields.places[x] for x in (parcels.origin, parcels.destination))
        (first, second, third) = (
            self._leg(place[:, None], start[None], jnp.zeros(())),
            self._leg(start, end, parcels.mass),
            self._leg(end, depot, jnp.zeros(())),
        )
        seconds, energy = (first[i] + second[i][None] for i in (0, 1))
        age = (now - parcels.seconds)[None] + seconds
        value = rules.orders.paid(parcels.value[None], age)
        gain = rounded(rules.reward["delivered"] * value) - rounded(rules.reward["energy"] * energy)
        fits = energy + third[1][None] + numbers["reserve"] < charge[:, None]
        return jnp.where(fits & parcels.waiting(now)[None], gain / seconds, -jnp.inf)

    def _leg(
        self, start: Float[Array, "*#v 2"], end: Float[Array, "*#v 2"], payload: Float[Array, "*#v"]
    ) -> tuple[Float[Array, "*v"], Float[Array, "*v"]]:
        """Seconds of a straight flight at full speed with a stop, and the share of a full battery that it takes.

        A drone that is told a velocity flies at that and `slip` times the wind, as its velocity loop has no integral.
        """
        numbers, level = self.rules.auction, self.rules.level
        height = jnp.concatenate([jnp.zeros(2), level.altitude[None]])[None]
        way = end - start
        wind = jnp.broadcast_to(level.flying.weather.mean.at(height)[0, :2], way.shape)
        course = unit(way)
        velocity = rounded(level.flying.speed * course) + rounded(numbers["slip"] * wind)
        seconds = norm(way) / jnp.maximum(dot(velocity, course), 0.1 * level.flying.speed) + numbers["stop"]
        return seconds, seconds * self._watts(velocity - wind, payload) / level.battery.capacity[0]

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
