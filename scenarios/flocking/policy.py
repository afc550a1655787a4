"""The scripted policies of flocking."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from scenarios.flocking.rules import AbstractFlocking
from swarm.core.rounding import rounded
from swarm.geometry.vectors import norm
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import Action, Observation, World


def toward(rules: AbstractFlocking, way: Float[Array, "n d"]) -> Action:
    """What brings a bird nearest to flying a way, given in its own frame; straight on where the way is 0."""
    forward, sideways = way[:, 0], way[:, 1:]
    if way.shape[1] == 2:
        angle = _angle(sideways[:, 0], forward)[:, None]
    else:
        across = norm(sideways)
        angle = sideways * (_angle(across, forward) / jnp.where(across > 0, across, 1.0))[:, None]
    return rules.action_of(angle / (rules.turn_rate * rules.time_step))


def _angle(y: Float[Array, " n"], x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Angle of a vector, 0 at the zero vector; so is its gradient."""
    zero = (x == 0) & (y == 0)
    return jnp.where(zero, 0.0, jnp.arctan2(jnp.where(zero, 0.0, y), jnp.where(zero, 1.0, x)))


class Boids(AbstractPolicy):
    """Steers toward a weighted sum of separation, alignment and cohesion (Reynolds 1987).

    Separation is the way from those nearer than the preferred spacing; its weight falls to 0 there, so that birds who
    keep their distance feel none.
    """

    rules: AbstractFlocking
    separation: Float[Array, ""]
    alignment: Float[Array, ""]
    cohesion: Float[Array, ""]

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Steer to the wanted direction; fly on when alone."""
        mean, centre, away = self.rules.bearings(world)
        urges = ((self.alignment, mean), (self.cohesion, centre), (self.separation, away))
        ahead, together, apart = (rounded(weight * way) for weight, way in urges)
        return toward(self.rules, ahead + together + apart)


class Vicsek(AbstractPolicy):
    """Takes the mean direction of all within the radius, itself included, with noise (Vicsek et al. 1995, eq. 2).

    The position advances with the new velocity, where eq. 1 has the old one; birds that move much less than a radius in
    a step order alike. Needs continuous commands, and turn_rate * time_step = pi, so that any direction is a step away.
    In two dimensions the noise is an angle from U(-noise / 2, noise / 2); in three the direction is drawn evenly from
    the cap of that half-angle around the mean. Noise 2 pi is all directions in both.
    """

    rules: AbstractFlocking
    noise: Float[Array, ""]

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Draw by identity."""
        mean, _, _ = self.rules.bearings(world)
        count = world.fields.count[:, None]
        # The mean is over the others; a bird itself flies along its first axis.
        way = rounded(mean * count) + jnp.eye(1, mean.shape[1])
        draw = jax.vmap(lambda k: jax.random.uniform(k, (mean.shape[1] - 1,)))(world.entities.keys(key))
        if mean.shape[1] == 2:
            angle = _angle(way[:, 1], way[:, 0]) + rounded(self.noise * (draw[:, 0] - 0.5))
            return toward(self.rules, jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1))
        return toward(self.rules, _on_cap(way, 0.5 * self.noise, draw))


def _on_cap(way: Float[Array, "n 3"], half_angle: Float[Array, ""], draw: Float[Array, "n 2"]) -> Float[Array, "n 3"]:
    """A unit vector drawn evenly from those within an angle of a way."""
    size = norm(way)
    pole = jnp.where(size[:, None] > 0, way / jnp.where(size > 0, size, 1.0)[:, None], jnp.eye(1, 3))
    # Two axes across the pole (Duff et al. 2017).
    x, y, z = pole.T
    sign = jnp.where(z >= 0, 1.0, -1.0)
    a = -1.0 / (sign + z)
    b = x * y * a
    first = jnp.stack([1.0 + rounded(sign * x * x * a), sign * b, -sign * x], axis=1)
    second = jnp.stack([b, sign + rounded(y * y * a), -y], axis=1)
    height = 1.0 - rounded(draw[:, :1] * (1.0 - jnp.cos(half_angle)))
    across = jnp.sqrt(jnp.maximum(1.0 - rounded(height**2), 1e-12))
    turn = rounded(2 * jnp.pi * draw[:, 1:])
    level = rounded(jnp.cos(turn) * first) + rounded(jnp.sin(turn) * second)
    return rounded(height * pole) + rounded(across * level)
