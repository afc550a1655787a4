"""Drones that fly by velocity commands through wind and each other's downwash: what scenarios with drones share."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from scenarios.common.tables import AirTable, DroneTable
from swarm.dynamics import AbstractFlight, Air, Motion, drone_dynamics, load_airframe
from swarm.dynamics.air import Downwash, Dryden, Eddies, Shear, Weather
from swarm.dynamics.drones import ControlTable
from swarm.geometry.vectors import clipped
from swarm.neighbors.questions import Neighbors
from swarm.population.entities import Entities

# Eddies pass a hovering drone at least that fast; metres per second.
_DRIFT = 0.3


class Craft(eqx.Module):
    """What drones carry from step to step besides place and velocity.

    Attributes:
        inner: attitude and the like.
        eddies: state of the turbulence around each; None: there is none.
    """

    inner: PyTree
    eddies: Eddies | None


class Flying(eqx.Module):
    """Dynamics of drones, and the air they fly in.

    Attributes:
        dynamics: under commands of velocity and yaw.
        weather: wind.
        downwash: of drones on those below; None: none.
        speed: highest, metres per second.
        time_step: seconds.
    """

    dynamics: AbstractFlight
    weather: Weather
    downwash: Downwash | None
    speed: Float[Array, ""]
    time_step: Float[Array, ""]

    @classmethod
    def of(cls, drone: DroneTable, control: ControlTable, air: AirTable, time_step: float) -> "Flying":
        """Build it from a scenario file's tables.

        Raises:
            ConfigError: there is no such airframe, or its loops are unstable at this step.
        """
        wind, strength = jnp.asarray([*air.wind, 0.0], jnp.float32), math.hypot(*air.wind)
        mean = Shear(wind, jnp.float32(air.roughness) if air.roughness else None)
        eddies = Dryden(jnp.float32(strength), jnp.float32(_DRIFT)) if air.turbulence else None
        return cls(
            dynamics=drone_dynamics([drone.body], time_step, drone.model, "velocity", control),
            weather=Weather(mean, None, eddies),
            downwash=Downwash.of([load_airframe(air.downwash)]) if air.downwash else None,
            speed=jnp.float32(control.action_speed),
            time_step=jnp.float32(time_step),
        )

    @property
    def tables(self) -> PyTree:
        """What drones of a kind can differ in (`AbstractRules.tables`)."""
        return [self.dynamics] if self.downwash is None else [self.dynamics, self.downwash]

    def launch(self, entities: Entities) -> Craft:
        """As everybody hovers."""
        return Craft(self.dynamics.init(entities).inner, self.weather.init(entities))

    def velocity(self, action: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
        """Commanded velocity of actions, which span a ball as large as the speed; metres per second."""
        return clipped(action * self.speed, jnp.broadcast_to(self.speed, action.shape[:1]))

    def fly(
        self,
        entities: Entities,
        craft: Craft,
        velocity: Float[Array, "n 3"],
        found: Neighbors,
        time: Float[Array, ""],
        key: Key[Array, ""],
    ) -> tuple[Entities, Craft, Air]:
        """Advance by a step; returns the air that pushed, too.

        Args:
            entities: the population.
            craft: what it carries.
            velocity: commanded, metres per second.
            found: who is near whom, in three dimensions.
            time: since the start, seconds.
            key: of the step.
        """
        eddies, air = self.weather.step(craft.eddies, entities, time, key, self.time_step)
        if self.downwash is not None:
            lift = self.dynamics.lift(Motion.of(entities, craft.inner), entities.row)
            air = air + self.downwash.air(found, entities.row, lift)
        alive = entities.alive[:, None]
        air = Air(jnp.where(alive, air.wind, 0.0), jnp.where(alive, air.force, 0.0))
        if eddies is not None:
            eddies = Eddies(jnp.where(alive, eddies.filters, 0.0), jnp.where(entities.alive, eddies.uid, -2))
        command = jnp.where(alive, jnp.concatenate([velocity, jnp.zeros_like(velocity[:, :1])], axis=1), 0.0)
        motion = Motion.of(entities, craft.inner)
        motion = self.dynamics.fly(motion, command, entities.row, self.time_step, air)
        return motion.into(entities), Craft(motion.inner, eddies), air
