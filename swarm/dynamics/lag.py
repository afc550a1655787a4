"""Velocity that follows its command with a lag, as a drone under an autopilot does."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.core.rounding import rounded
from swarm.dynamics.motion import AbstractDynamics, Motion, outside
from swarm.geometry.vectors import clipped, norm
from swarm.population.entities import Entities


class VelocityLag(AbstractDynamics):
    """First-order lag with limited acceleration: x'' = (u - x') / tau, shortened to `acceleration`. The heading stays.

    Exact under a held command: the error u - x' keeps its direction; its length falls at the rate `acceleration` while
    it exceeds acceleration * tau, and exponentially from then on.

    Command: velocity [d], metres per second.

    Attributes:
        tau: time constant of a kind, seconds; > 0.
        acceleration: its limit for a kind, metres per second squared; > 0, may be infinite.
        speed: highest speed that a kind can be commanded to, metres per second; may be infinite.
    """

    tau: Float[Array, " kinds"]
    acceleration: Float[Array, " kinds"]
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
        """Follow the command."""
        tau, limit = self.tau[kind], self.acceleration[kind]
        wanted = clipped(command, self.speed[kind])
        error = wanted - motion.velocity
        size = norm(error)
        saturated = size > limit * tau
        limit, size = jnp.where(saturated, limit, 1.0), jnp.where(saturated, size, 1.0)
        # As shares of the error at the start: what the saturated phase leaves, then the exponential one.
        first = jnp.where(saturated, jnp.minimum(size / limit - tau, dt), 0.0)
        left = 1.0 - limit * first / size
        rest = (dt - first) / tau
        lost = rounded(0.5 * first * (1.0 + left)) - rounded(tau * left * jnp.expm1(-rest))
        return Motion(
            motion.position + rounded(wanted * dt) - rounded(lost[:, None] * error),
            wanted - rounded((left * jnp.exp(-rest))[:, None] * error),
            motion.heading,
            motion.inner,
        )
