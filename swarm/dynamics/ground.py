"""Drones that the ground holds up: contact as an impulse at the end of a step."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.core.rounding import rounded
from swarm.core.tables import Table
from swarm.dynamics.airframe import Amount, Positive, Share
from swarm.dynamics.flight import AbstractFlight, Air, Plant
from swarm.dynamics.motion import Motion
from swarm.geometry.vectors import norm
from swarm.population.entities import Entities


class GroundTable(Table):
    """Level ground at z = 0 that drones stand on, and that raises their thrust (`RotorTable.ground_effect`).

    Attributes:
        height: of the middle of a drone that stands, metres.
        friction: coefficient of Coulomb's friction.
        restitution: share of the speed of touching down that is given back: 0 stays, 1 bounces.
    """

    height: Positive = 0.02
    friction: Amount = 0.6
    restitution: Share = 0.0


class Grounded(AbstractFlight):
    """A drone, and the ground as a contact that pushes and rubs but does not turn it.

    Who is lower than `height` at the end of a step is put there, and gets the impulses of a contact with Newton's
    restitution and Coulomb's friction, in the form that needs no small steps (time stepping: Moreau 1988; Stewart and
    Trinkle 1996): v_z' = max(v_z, -restitution v_z), and the level velocity is shortened by at most
    friction (v_z' - v_z). Left out: the torque of legs, so that who lands tilted stays so.

    Attributes:
        vehicle: what flies.
        height: of the middle of a drone that stands, metres.
        friction: coefficient.
        restitution: from 0 to 1.
    """

    vehicle: AbstractFlight
    height: Float[Array, " kinds"]
    friction: Float[Array, " kinds"]
    restitution: Float[Array, " kinds"]

    @classmethod
    def of(cls, vehicle: AbstractFlight, table: GroundTable, n_kinds: int) -> "Grounded":
        """The same ground for all kinds."""
        numbers = (table.height, table.friction, table.restitution)
        return cls(vehicle, *(jnp.full(n_kinds, x, jnp.result_type(float)) for x in numbers))

    def plant(self, kind: Int[Array, " n"]) -> Plant:
        """Of the vehicle."""
        return self.vehicle.plant(kind)

    def n_commands(self, n_dimensions: int) -> int:
        """Of the vehicle."""
        return self.vehicle.n_commands(n_dimensions)

    def command(self, action: Float[Array, "n c"], kind: Int[Array, " n"]) -> Float[Array, "n c"]:
        """Of the vehicle."""
        return self.vehicle.command(action, kind)

    def limited(self, command: Float[Array, "n c"], kind: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Of the vehicle."""
        return self.vehicle.limited(command, kind)

    def init(self, entities: Entities) -> Motion:
        """As the vehicle does."""
        return self.vehicle.init(entities)

    def attitude(self, motion: Motion) -> Float[Array, "n 4"]:
        """Of the vehicle."""
        return self.vehicle.attitude(motion)

    def lift(self, motion: Motion, kind: Int[Array, " n"]) -> Float[Array, " n"]:
        """Of the vehicle."""
        return self.vehicle.lift(motion, kind)

    def fly(
        self, motion: Motion, command: Float[Array, "n c"], kind: Int[Array, " n"], dt: Float[Array, ""], air: Air
    ) -> Motion:
        """Fly as if there were no ground, then touch it."""
        return self.touch(self.vehicle.fly(motion, command, kind, dt, air), kind)

    def touch(self, motion: Motion, kind: Int[Array, " n"]) -> Motion:
        """What contact makes of a motion at the end of a step."""
        height, velocity = self.height[kind], motion.velocity
        low = motion.position[:, 2] < height
        down = jnp.where(low, jnp.minimum(velocity[:, 2], 0.0), 0.0)
        push = -rounded((1.0 + self.restitution[kind]) * down)
        slip = norm(velocity[:, :2])
        rubbed = jnp.minimum(rounded(self.friction[kind] * push), slip) / jnp.where(slip > 0, slip, 1.0)
        level = velocity[:, :2] - rounded(rubbed[:, None] * velocity[:, :2])
        place = motion.position.at[:, 2].set(jnp.where(low, height, motion.position[:, 2]))
        velocity = jnp.concatenate([level, (velocity[:, 2] + push)[:, None]], axis=1)
        return Motion(place, velocity, motion.heading, motion.inner)
