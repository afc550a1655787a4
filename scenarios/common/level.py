"""Drones at one altitude above a field, on batteries that the pad of their base fills; for scenarios to share."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from scenarios.common.flying import Craft, Flying
from scenarios.common.tables import AirTable, AvoidanceTable, DroneTable, EnergyTable, FieldTable
from swarm.core.rounding import rounded
from swarm.dynamics import Air
from swarm.dynamics.airframe import load_airframes
from swarm.dynamics.avoidance import avoid, reciprocal, walls
from swarm.dynamics.drones import ControlTable
from swarm.dynamics.energy import Battery, Pads, PowerTable, RotorPower
from swarm.geometry.space import Open
from swarm.geometry.vectors import clipped, norm, unit
from swarm.neighbors.questions import Nearest, Neighbors
from swarm.population.entities import Entities

_of_flight = eqx.filter_jit(RotorPower.of_flight)


class Level(eqx.Module):
    """How they fly, what that draws, and what is too near.

    Attributes:
        flying: dynamics and air.
        power: of flight.
        battery: joules.
        hover: power of hovering without payload, watts.
        charge: power of the pad, in powers of hovering.
        pad: its radius, metres.
        first: share of the battery at the start, least and greatest.
        size: of the field, metres.
        altitude: that all keep, metres.
        radius: of the ball that nobody else may enter, metres.
        horizon: for which the drones' own controllers keep clear of others, seconds.
        margin: that they add to the radius, metres.
    """

    flying: Flying
    power: RotorPower
    battery: Battery
    hover: Float[Array, " kinds"]
    charge: Float[Array, ""]
    pad: Float[Array, ""]
    first: Float[Array, " 2"]
    size: Float[Array, " 2"]
    altitude: Float[Array, ""]
    radius: Float[Array, ""]
    horizon: Float[Array, ""]
    margin: Float[Array, ""]

    @classmethod
    def of(
        cls,
        world: FieldTable,
        drone: DroneTable,
        control: ControlTable,
        avoidance: AvoidanceTable,
        air: AirTable,
        energy: EnergyTable,
    ) -> "Level":
        """Build it from a scenario file's tables.

        Raises:
            ConfigError: there is no such airframe, its loops are unstable at this step, or its power is impossible.
        """
        rest = {name: getattr(energy, name) for name in ("solidity", "body_drag", "efficiency", "avionics")}
        power = RotorPower.of([PowerTable.of_airframe(load_airframes([drone.body])[0], rest)])
        hover = _of_flight(power, jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32), jnp.zeros(1))
        return cls(
            flying=Flying.of(drone, control, air, world.time_step),
            power=power,
            battery=Battery.of([energy.endurance * float(hover[0])]),
            hover=hover,
            charge=jnp.float32(energy.charge),
            pad=jnp.float32(energy.pad),
            first=jnp.asarray(energy.first, jnp.float32),
            size=jnp.asarray(world.size, jnp.float32),
            altitude=jnp.float32(world.altitude),
            radius=jnp.float32(drone.radius),
            horizon=jnp.float32(avoidance.horizon),
            margin=jnp.float32(avoidance.margin),
        )

    @property
    def tables(self) -> PyTree:
        """What drones of a kind can differ in (`AbstractRules.tables`)."""
        return [*self.flying.tables, self.power, self.battery, self.hover]

    @property
    def volume(self) -> Open:
        """Where they are."""
        return Open(jnp.zeros(3), jnp.concatenate([self.size, 2.0 * self.altitude[None]]))

    def charges(self, key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        """Joules at the start, drawn evenly for each."""
        draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(jnp.arange(n))
        # Who starts has the identities from 0 on.
        capacity = self.battery.capacity[jnp.arange(n) % self.battery.capacity.shape[0]]
        return capacity * (self.first[0] + rounded(draw * (self.first[1] - self.first[0])))

    def fly(
        self,
        entities: Entities,
        craft: Craft,
        action: Float[Array, "n 2"],
        found: Neighbors,
        near: Nearest,
        step: Int[Array, ""],
        key: Key[Array, ""],
    ) -> tuple[Entities, Craft, Air]:
        """Level commands, as shares of the highest speed and together at most 1; and what brings the altitude back.

        The drones' own controllers turn them into the nearest velocities that keep clear of the nearest others.
        """
        speed = self.flying.speed
        wanted = clipped(action * speed, jnp.broadcast_to(speed, action.shape[:1]))
        level = self._clear(wanted, entities, near)
        height = jnp.where(entities.alive, entities.position[:, 2], self.altitude)
        climb = jnp.clip(2.0 * (self.altitude - height), -0.5, 0.5)
        velocity = jnp.concatenate([level, climb[:, None]], axis=1)
        return self.flying.fly(entities, craft, velocity, found, step * self.flying.time_step, key)

    def drain(
        self, entities: Entities, base: Float[Array, " 2"], wind: Float[Array, "n 3"], payload: Float[Array, " n"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """Joules that each holds after a step, and joules that it has drawn in it.

        Args:
            entities: after the step, with the joules before it as their first store.
            base: middle of the pad, metres.
            wind: metres per second.
            payload: kilograms.
        """
        alive, dt = entities.alive, self.flying.time_step
        velocity = jnp.where(alive[:, None], entities.velocity - wind, 0.0)
        watts = jnp.where(alive, self.power.of_flight(velocity, entities.row, payload), 0.0)
        # A column as high as anybody flies: charging is by contact or from near above.
        watts_of_pad = self.charge * jnp.mean(self.hover)
        pads = Pads(jnp.concatenate([base, self.altitude[None]])[None], self.pad, watts_of_pad, jnp.float32(1.0))
        supplied = pads.supply(self.volume, entities.position.at[:, 2].set(self.altitude), alive)
        energy = jnp.where(alive, entities.stores[:, 0], 0.0)
        return self.battery.step(energy, entities.row, watts, supplied, dt), watts * dt

    def touches(self, entities: Entities, near: Nearest) -> Bool[Array, " n"]:
        """Who touches another one or the ground, or has left the field."""
        place = jnp.where(entities.alive[:, None], entities.position, self.radius)
        level = place[:, :2]
        outside = jnp.any((level < self.radius) | (level > self.size[None] - self.radius), axis=1)
        return outside | (place[:, 2] < self.radius) | (near.valid[:, 0] & (near.distance[:, 0] < 2.0 * self.radius))

    def closeness(self, near: Nearest) -> Float[Array, "n k 2"]:
        """Towards each of the nearest others, as long as it is close: 1 where bodies touch, 0 with a metre of room."""
        close = jnp.clip(1.0 - (near.distance - 2.0 * self.radius), 0.0, 1.0)[:, :, None]
        return jnp.where(near.valid[:, :, None], rounded(close * unit(near.displacement[..., :2])), 0.0)

    def way_back(self, entities: Entities, base: Float[Array, " 2"]) -> Float[Array, " n"]:
        """Share of a full battery that the way to the middle of the pad needs, with a third for head winds."""
        way = jnp.where(entities.alive[:, None], entities.position[:, :2] - base[None], 0.0)
        return norm(way) / self.flying.speed * self.hover[entities.row] / self.battery.capacity[entities.row] * 1.3

    def spare(self, entities: Entities, base: Float[Array, " 2"]) -> Float[Array, " n"]:
        """Share of a full battery that the way back would leave."""
        charge = jnp.where(entities.alive, entities.stores[:, 0], 0.0) / self.battery.capacity[entities.row]
        return rounded(charge - self.way_back(entities, base))

    def _clear(self, wanted: Float[Array, "n 2"], entities: Entities, near: Nearest) -> Float[Array, "n 2"]:
        """Velocities nearest to wanted ones that meet neither another drone nor the edge (van den Berg et al. 2011)."""
        alive, dt, speed = entities.alive[:, None], self.flying.time_step, self.flying.speed
        place, velocity = (jnp.where(alive, x[:, :2], 0.0) for x in (entities.position, entities.velocity))
        room = jnp.concatenate([place, self.size[None] - place], axis=1) - self.radius - self.margin
        inward = jnp.concatenate([jnp.eye(2), -jnp.eye(2)])
        hard = walls(room, jnp.broadcast_to(inward[None], (*room.shape, 2)), self.horizon, dt)
        reach = jnp.full(near.distance.shape, 2.0 * (self.radius + self.margin))
        way, others = near.displacement[..., :2], near.gather(velocity)
        soft = reciprocal(velocity, way, others, near.valid, reach, self.horizon, dt)
        return avoid(wanted, jnp.broadcast_to(speed, alive.shape[:1]), hard, soft)


def polar(way: Float[Array, "*v 2"], side: Float[Array, ""]) -> Float[Array, "*v 3"]:
    """Direction, and distance in sides of the field."""
    return jnp.concatenate([unit(way), norm(way)[..., None] / side], axis=-1)
