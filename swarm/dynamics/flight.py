"""What all models of drones share: the air they fly in, how forces move them, and the extension point."""

import abc
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.core.rounding import rounded
from swarm.core.status import Status
from swarm.dynamics import quaternion
from swarm.dynamics.motion import AbstractDynamics, Motion
from swarm.dynamics.quaternion import Components, components
from swarm.geometry.space import length

T = TypeVar("T")


class Air(eqx.Module):
    """What pushes `n` entities from outside, held for a step (`swarm.dynamics.air` makes it).

    Attributes:
        wind: velocity of the air where the entity is, metres per second.
        force: on the entity, newtons.
    """

    wind: Float[Array, "*n 3"]
    force: Float[Array, "*n 3"]

    @classmethod
    def still(cls, position: Float[Array, "*n 3"]) -> "Air":
        """Neither wind nor force."""
        return cls(jnp.zeros_like(position), jnp.zeros_like(position))

    def __add__(self, other: "Air") -> "Air":
        return Air(self.wind + other.wind, self.force + other.force)


class Plant(eqx.Module):
    """What a controller knows of `n` vehicles.

    Attributes:
        mass: kilograms.
        gravity: metres per second squared.
        drag: near hover along the axes of the body, newton seconds per metre.
        body_drag: the part that grows with the square of the speed, kilograms per metre; None: none.
    """

    mass: Float[Array, " n"]
    gravity: Float[Array, " n"]
    drag: Float[Array, "n 3"]
    body_drag: Float[Array, "n 3"] | None = None


class AbstractFlight(AbstractDynamics):
    """Dynamics of a drone in three dimensions, z upward, ground at z = 0. Its heading is that of its forward axis."""

    @abc.abstractmethod
    def plant(self, kind: Int[Array, " n"]) -> "Plant":
        """What a controller needs to know of the vehicle."""

    @abc.abstractmethod
    def fly(
        self, motion: Motion, command: Float[Array, "n c"], kind: Int[Array, " n"], dt: Float[Array, ""], air: Air
    ) -> Motion:
        """Advance by `dt` seconds in moving air."""

    @abc.abstractmethod
    def attitude(self, motion: Motion) -> Float[Array, "n 4"]:
        """Unit quaternions (x, y, z, w) from the body (forward, left, up) to the world."""

    @abc.abstractmethod
    def lift(self, motion: Motion, kind: Int[Array, " n"]) -> Float[Array, " n"]:
        """Upward part of the thrust as it is now, newtons; what the air is pushed down by. At least 0."""

    def status(
        self, motion: Motion, command: Float[Array, "n c"], kind: Int[Array, " n"], alive: Bool[Array, " n"]
    ) -> Int[Array, ""]:
        """Status bits of a step, for `Outcome.status`: limited commands, and living drones that are below the ground.

        Args:
            motion: after the step.
            command: of the step.
            kind: of the entities.
            alive: whose motion and command count.
        """
        limited, below = jnp.any(alive & self.limited(command, kind)), jnp.any(alive & (motion.position[:, 2] < 0))
        return jnp.where(limited, jnp.int32(Status.COMMAND_LIMITED), 0) | jnp.where(
            below, jnp.int32(Status.BELOW_GROUND), 0
        )

    def step(
        self, motion: Motion, command: Float[Array, "n c"], kind: Int[Array, " n"], dt: Float[Array, ""]
    ) -> Motion:
        """Advance by `dt` seconds in still air."""
        return self.fly(motion, command, kind, dt, Air.still(motion.position))


class AbstractAttitudeFlight(AbstractFlight):
    """A drone that holds an attitude.

    Command: roll, pitch, yaw (radians) and thrust (newtons).
    """

    @abc.abstractmethod
    def aim(
        self, angles: Float[Array, "n 3"], thrust: Float[Array, " n"], kind: Int[Array, " n"]
    ) -> Float[Array, "n 4"]:
        """The command under which these angles and this thrust are held."""


class Forces(eqx.Module):
    """What moves a body, held for a sub-step: components [n].

    Attributes:
        lift: thrust along the body's upward axis, over mass; metres per second squared.
        drag: of linear drag along the axes of the body, over mass; 1/s.
        body: of drag that grows with the square of the speed, likewise; 1/m. None: none.
        pull: gravity and outer force over mass, in the world; metres per second squared.
        wind: metres per second.
    """

    lift: Array
    drag: Components
    body: Components | None
    pull: Components
    wind: Components

    def acceleration(self, attitude: Components, velocity: Components) -> Components:
        """Metres per second squared."""
        drag = self.at(velocity)._drag(attitude, velocity)
        return tuple(a + b for a, b in zip(self.pull, quaternion.turn(attitude, drag), strict=True))

    def kick(self, attitude: Components, velocity: Components, h: Array) -> Components:
        """Velocity after `h` seconds at one attitude: the implicit midpoint rule, stable for any drag and `h`.

        With u the velocity against the air in axes of the body, u' = lift - (drag + body |u|) u + pull; |u| is that in
        the middle, found by half a step of the implicit Euler method.
        """
        if self.body is not None:
            return self.at(self.at(velocity)._halfway(attitude, velocity, h)).kick(attitude, velocity, h)
        middle = quaternion.scaled_sum(velocity, 0.5 * h, self.pull)
        drag = self._drag(attitude, middle)
        change = tuple(h * a / (1.0 + rounded(0.5 * h * c)) for a, c in zip(drag, self.drag, strict=True))
        free = quaternion.scaled_sum(velocity, h, self.pull)
        return tuple(a + b for a, b in zip(free, quaternion.turn(attitude, change), strict=True))

    def at(self, velocity: Components) -> "Forces":
        """With the drag of the body made linear at a velocity."""
        if self.body is None:
            return self
        speed = length([v - w for v, w in zip(velocity, self.wind, strict=True)])
        drag = tuple(c + rounded(b * speed) for c, b in zip(self.drag, self.body, strict=True))
        return Forces(self.lift, drag, None, self.pull, self.wind)

    def _halfway(self, attitude: Components, velocity: Components, h: Array) -> Components:
        """Velocity after half of the time, to the second order in it and of a size that drag bounds."""
        free = quaternion.scaled_sum(velocity, 0.5 * h, self.pull)
        change = tuple(
            0.5 * h * a / (1.0 + rounded(0.5 * h * c))
            for a, c in zip(self._drag(attitude, free), self.drag, strict=True)
        )
        return tuple(a + b for a, b in zip(free, quaternion.turn(attitude, change), strict=True))

    def _drag(self, attitude: Components, velocity: Components) -> Components:
        """Lift and drag in axes of the body."""
        against = tuple(v - w for v, w in zip(velocity, self.wind, strict=True))
        x, y, z = (-rounded(c * u) for c, u in zip(self.drag, quaternion.turn_back(attitude, against), strict=True))
        return x, y, z + self.lift


# The ground raises the thrust of a rotor by at most this share, where the fitted formula ends (gym-pybullet-drones).
_MOST_GROUND_EFFECT = 4 / 15


def ground_share(effect: Array, height: Array, upright: Array) -> Array:
    """Share by which the ground raises a thrust at a height: effect / height^2, at most 4/15; 0 upside down.

    Args:
        effect: (radius / 4)^2 times the factor of `RotorTable.ground_effect`, square metres.
        height: of the rotor, metres.
        upright: whether it pushes the air down.
    """
    # Below the height at which the formula ends it is the same; where the height is squared, it is not 0.
    low = jnp.sqrt(effect / _MOST_GROUND_EFFECT)
    near = jnp.where(height > low, height, jnp.where(low > 0, low, 1.0))
    return jnp.where(upright, effect / jnp.square(near), 0.0)


def pull_of(gravity: Array, mass: Array, force: Float[Array, "*n 3"]) -> Components:
    """Gravity and outer force over mass."""
    x, y, z = (part / mass for part in components(force))
    return x, y, z - gravity


def repeated(n: int, step: Callable[[T], T], start: T) -> T:
    """Apply a step n times, as a loop that is compiled once."""
    if n == 1:
        return step(start)
    return jax.lax.scan(lambda state, _: (step(state), None), start, length=n)[0]
