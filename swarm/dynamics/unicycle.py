"""Vehicles that go where they point, in the plane."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.dynamics.motion import AbstractDynamics, Motion, outside
from swarm.geometry.angles import wrapped
from swarm.population.entities import Entities


class Unicycle(AbstractDynamics):
    """x' = v (cos h, sin h), h' = w, with limited v and w: an arc of a circle, exact under a held command.

    With `min_speed` above 0 a bird or a fixed-wing aircraft, below 0 a robot that can reverse.

    Command: speed v, metres per second, and turn rate w, radians per second, positive to the left.

    Attributes:
        min_speed: lowest speed of a kind, metres per second.
        max_speed: highest speed of a kind, metres per second.
        turn_rate: highest turn rate of a kind, either way, radians per second.
    """

    min_speed: Float[Array, " kinds"]
    max_speed: Float[Array, " kinds"]
    turn_rate: Float[Array, " kinds"]

    def n_commands(self, n_dimensions: int) -> int:
        """Speed and turn rate."""
        return 2

    def command(self, action: Float[Array, "n c"], kind: Int[Array, " n"]) -> Float[Array, "n c"]:
        """-1 is the lowest speed and the sharpest turn to the right."""
        low, high = self.min_speed[kind], self.max_speed[kind]
        speed = low + 0.5 * (action[:, 0] + 1.0) * (high - low)
        return jnp.stack([speed, action[:, 1] * self.turn_rate[kind]], axis=1)

    def limited(self, command: Float[Array, "n c"], kind: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Who is to go slower or faster, or to turn faster, than it can."""
        low, high, limit = self.min_speed[kind], self.max_speed[kind], self.turn_rate[kind]
        return outside(command[:, 0], low, high) | outside(command[:, 1], -limit, limit)

    def init(self, entities: Entities) -> Motion:
        """Nothing inner."""
        return Motion.of(entities)

    def step(
        self, motion: Motion, command: Float[Array, "n c"], kind: Int[Array, " n"], dt: Float[Array, ""]
    ) -> Motion:
        """Go along the chord of the arc, which points to the mean heading."""
        speed = jnp.clip(command[:, 0], self.min_speed[kind], self.max_speed[kind])
        limit = self.turn_rate[kind]
        half = 0.5 * jnp.clip(command[:, 1], -limit, limit) * dt
        chord = (speed * dt * jnp.sinc(half / jnp.pi))[:, None] * _unit(motion.heading + half)
        heading = wrapped(motion.heading + 2.0 * half)
        return Motion(motion.position + chord, speed[:, None] * _unit(heading), heading, motion.inner)


def _unit(angle: Float[Array, " n"]) -> Float[Array, "n 2"]:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
