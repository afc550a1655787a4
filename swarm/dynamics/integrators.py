"""Point masses: velocity or acceleration is commanded."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.core.rounding import rounded
from swarm.dynamics.motion import AbstractDynamics, Motion, outside
from swarm.geometry.vectors import clipped, dot, norm
from swarm.population.entities import Entities


class SingleIntegrator(AbstractDynamics):
    """Goes at the commanded velocity: x' = u with |u| <= speed. The heading stays.

    Command: velocity [d], metres per second.

    Attributes:
        speed: highest speed of a kind, metres per second; may be infinite.
    """

    speed: Float[Array, " kinds"]

    def n_commands(self, n_dimensions: int) -> int:
        """One for each axis."""
        return n_dimensions

    def command(self, action: Float[Array, "n c"], kind: Int[Array, " n"]) -> Float[Array, "n c"]:
        """Velocities up to the highest speed along each axis."""
        return action * self.speed[kind][:, None]

    def limited(self, command: Float[Array, "n c"], kind: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Who is to go faster than it can."""
        return outside(norm(command), jnp.zeros(()), self.speed[kind])

    def init(self, entities: Entities) -> Motion:
        """Nothing inner."""
        return Motion.of(entities)

    def step(
        self, motion: Motion, command: Float[Array, "n c"], kind: Int[Array, " n"], dt: Float[Array, ""]
    ) -> Motion:
        """Go straight."""
        velocity = clipped(command, self.speed[kind])
        return Motion(motion.position + velocity * dt, velocity, motion.heading, motion.inner)


class DoubleIntegrator(AbstractDynamics):
    """Accelerates as commanded: x'' = a with |a| <= acceleration and |x'| <= speed. The heading stays.

    Exact under a held command. Where the speed is at its limit, the part of the acceleration that would raise it is
    without effect, x'' = a - (a.w) w with w = x'/|x'|: the velocity turns toward the acceleration with angle
    tan(angle/2) = tan(angle_0/2) exp(-|a| t / speed), and once there it stays on the limit while the command is held.

    Command: acceleration [d], metres per second squared.

    Attributes:
        acceleration: its limit for a kind, metres per second squared; may be infinite.
        speed: highest speed of a kind, metres per second; may be infinite. Who is faster is slowed to it at once.
    """

    acceleration: Float[Array, " kinds"]
    speed: Float[Array, " kinds"]

    def n_commands(self, n_dimensions: int) -> int:
        """One for each axis."""
        return n_dimensions

    def command(self, action: Float[Array, "n c"], kind: Int[Array, " n"]) -> Float[Array, "n c"]:
        """Accelerations up to the limit along each axis."""
        return action * self.acceleration[kind][:, None]

    def limited(self, command: Float[Array, "n c"], kind: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Who is to accelerate more than it can."""
        return outside(norm(command), jnp.zeros(()), self.acceleration[kind])

    def init(self, entities: Entities) -> Motion:
        """Nothing inner."""
        return Motion.of(entities)

    def step(
        self, motion: Motion, command: Float[Array, "n c"], kind: Int[Array, " n"], dt: Float[Array, ""]
    ) -> Motion:
        """Fly a parabola; from the moment when the highest speed is reached, turn at that speed."""
        speed = self.speed[kind]
        push = clipped(command, self.acceleration[kind])
        start = clipped(motion.velocity, speed)
        # The square of the speed is convex in time: beyond the limit at the end, or never.
        capped = (norm(start + rounded(push * dt)) > speed) & (dot(push, push) > 0)
        speed = jnp.where(capped, speed, 1.0)
        free = jnp.where(capped, jnp.clip(_time_to(speed, start, push), 0.0, dt), dt)[:, None]
        gain = rounded(push * free)
        velocity = start + gain
        position = motion.position + rounded((start + 0.5 * gain) * free)
        turned, way = _turn(velocity, push, speed, dt - free[:, 0])
        return Motion(
            position + jnp.where(capped[:, None], way, 0.0),
            jnp.where(capped[:, None], turned, velocity),
            motion.heading,
            motion.inner,
        )


def _time_to(speed: Float[Array, " n"], velocity: Float[Array, "n d"], push: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Seconds until |velocity + push t| = speed, the larger root, in the form without cancellation."""
    square, along, size = dot(push, push), dot(velocity, push), norm(velocity)
    missing = jnp.maximum((speed - size) * (speed + size), 0.0)
    disc = rounded(along * along) + rounded(square * missing)
    root = jnp.where(disc > 0, jnp.sqrt(jnp.where(disc > 0, disc, 1.0)), 0.0)
    ahead = along > 0
    late = (root - along) / jnp.where(square > 0, square, 1.0)
    return jnp.where(ahead, missing / jnp.where(ahead, along + root, 1.0), late)


def _turn(
    velocity: Float[Array, "n d"], push: Float[Array, "n d"], speed: Float[Array, " n"], t: Float[Array, " n"]
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """Velocity after turning toward `push` at constant speed for `t` seconds, and the way gone.

    With x = |a| t / speed, c = cos(angle_0), h = tan(angle_0 / 2): integrals over time of the cosine and of
    sin(angle) / sin(angle_0), both written so that x = 0 and angle_0 = 0 are no exceptions.
    """
    size = norm(push)
    size = jnp.where(size > 0, size, 1.0)
    unit = push / size[:, None]
    # The bounds of x are where its limits hold to rounding; a highest speed of 0 would divide by 0.
    x = jnp.clip(size * t / jnp.maximum(speed, 1e-30), 1e-7, 1e7)
    c = jnp.clip(dot(velocity, unit) / jnp.maximum(speed, 1e-30), 0.0, 1.0)
    hh, e, gone = (1.0 - c) / (1.0 + c), jnp.exp(-x), -jnp.expm1(-x)
    he = rounded(hh * e)
    above, below = 1.0 + he, 1.0 + rounded(he * e)
    kept, gained = e * (1.0 + hh) / below, gone * above / below
    # log1p of a negative number would differ in bits alone and in a batch, too.
    past = -0.5 * (1.0 - c) * jnp.expm1(-2.0 * x)
    cosine = 1.0 - jnp.log1p(past / (1.0 - past)) / x
    sine = _arctan_ratio(hh * jnp.square(gone / above)) * (1.0 + hh) * (gone / x) / above
    turned = rounded(kept[:, None] * velocity) + rounded((gained * speed)[:, None] * unit)
    way = rounded(sine[:, None] * velocity) + rounded(((cosine - rounded(c * sine)) * speed)[:, None] * unit)
    return turned, rounded(way * t[:, None])


def _arctan_ratio(square: Float[Array, " n"]) -> Float[Array, " n"]:
    """arctan(z) / z of z^2, smooth at 0."""
    small = square < 1e-3
    z = jnp.sqrt(jnp.where(small, 1.0, square))
    return jnp.where(
        small, 1.0 - square * (1 / 3 - square * (1 / 5 - square / 7)), jnp.arctan2(z, jnp.ones_like(z)) / z
    )
