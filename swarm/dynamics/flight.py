"""What all models of drones share: the air they fly in, how forces move them, and the extension point."""

import abc
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from swarm.dynamics import quaternion
from swarm.dynamics.motion import AbstractDynamics, Motion
from swarm.dynamics.quaternion import Components, components
from swarm.space import rounded

T = TypeVar("T")


class Air(eqx.Module):
    """What pushes `n` entities from outside, held for a step (`swarm.disturbance` makes it).

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
    """

    mass: Float[Array, " n"]
    gravity: Float[Array, " n"]
    drag: Float[Array, "n 3"]


class AbstractFlight(AbstractDynamics):
    """Dynamics of a drone in three dimensions, z upward. Its heading is the direction of its forward axis."""

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
        pull: gravity and outer force over mass, in the world; metres per second squared.
        wind: metres per second.
    """

    lift: Array
    drag: Components
    pull: Components
    wind: Components

    def acceleration(self, attitude: Components, velocity: Components) -> Components:
        """Metres per second squared."""
        drag = self._drag(attitude, velocity)
        return tuple(a + b for a, b in zip(self.pull, quaternion.turn(attitude, drag), strict=True))

    def kick(self, attitude: Components, velocity: Components, h: Array) -> Components:
        """Velocity after `h` seconds at one attitude: the implicit midpoint rule, stable for any drag and `h`.

        With u the velocity against the air in axes of the body, u' = lift - drag u + pull.
        """
        middle = quaternion.scaled_sum(velocity, 0.5 * h, self.pull)
        drag = self._drag(attitude, middle)
        change = tuple(h * a / (1.0 + rounded(0.5 * h * c)) for a, c in zip(drag, self.drag, strict=True))
        free = quaternion.scaled_sum(velocity, h, self.pull)
        return tuple(a + b for a, b in zip(free, quaternion.turn(attitude, change), strict=True))

    def _drag(self, attitude: Components, velocity: Components) -> Components:
        """Lift and drag in axes of the body."""
        against = tuple(v - w for v, w in zip(velocity, self.wind, strict=True))
        x, y, z = (-rounded(c * u) for c, u in zip(self.drag, quaternion.turn_back(attitude, against), strict=True))
        return x, y, z + self.lift


def pull_of(gravity: Array, mass: Array, force: Float[Array, "*n 3"]) -> Components:
    """Gravity and outer force over mass."""
    x, y, z = (part / mass for part in components(force))
    return x, y, z - gravity


def repeated(n: int, step: Callable[[T], T], start: T) -> T:
    """Apply a step n times, as a loop that is compiled once."""
    if n == 1:
        return step(start)
    return jax.lax.scan(lambda state, _: (step(state), None), start, length=n)[0]
