"""The scripted policy of drones that flock in an arena: the model of Vasarhelyi et al. 2018.

Source: G. Vasarhelyi, C. Viragh, G. Somorjai, T. Nepusz, A. Eiben, T. Vicsek, "Optimized flocking of autonomous drones
in confined environments" (2018), Science Robotics 3, eaat3536; of its details the authors' simulator robotsim, which
limits the repulsion by each other drone, too.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from scenarios.vasarhelyi.rules import AbstractVasarhelyi
from swarm.core.rounding import root, rounded
from swarm.geometry.vectors import clipped, norm
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import Action, Observation, World


def braking_curve(
    distance: Float[Array, "*v"], acceleration: Float[Array, ""], gain: Float[Array, ""]
) -> Float[Array, "*v"]:
    """Highest speed D(r, a, p) at a distance r from where to stop, metres per second.

    0 behind it, r p near it, and sqrt(2 a r - a^2 / p^2) from r = a / p^2 on: constant deceleration a. Both parts meet
    with the same slope.

    Args:
        distance: metres.
        acceleration: metres per second squared.
        gain: 1/s.
    """
    reach = jnp.maximum(distance, 0.0)
    linear = rounded(reach * gain)
    far = linear > acceleration / gain
    root_part = rounded(2.0 * acceleration * reach) - rounded(jnp.square(acceleration / gain))
    return jnp.where(far, root(jnp.where(far, root_part, 0.0)), linear)


def repulsion(
    way: Float[Array, "n k 2"], known: Bool[Array, "n k"], reach: Float[Array, ""], gain: Float[Array, ""]
) -> Float[Array, "n 2"]:
    """Sum of p (r0 - r_ij) away from each other nearer than r0, metres per second."""
    distance = norm(way)
    push = jnp.where(known & (distance > 0), gain * jnp.maximum(reach - distance, 0.0), 0.0)
    return -jnp.sum((push / jnp.where(distance > 0, distance, 1.0))[..., None] * way, axis=1)


def damped(relative: Float[Array, "n k 2"], allowed: Float[Array, "n k"]) -> Float[Array, "n k 2"]:
    """What each relative velocity has beyond the speed allowed, along it; metres per second."""
    speed = norm(relative)
    share = jnp.maximum(speed - allowed, 0.0) / jnp.where(speed > 0, speed, 1.0)
    return share[..., None] * relative


class Flock(AbstractPolicy):
    """Own direction at v_flock, repulsion, alignment and walls, at most v_max.

    Alignment ("friction") takes c_frict of what the velocity relative to another one has beyond max(v_frict, D(r_ij -
    r0_frict, a_frict, p_frict)). At each wall and pillar a "shill" agent flies inward (out of the pillar) at v_shill,
    and all of the relative velocity beyond D(r - r0_shill, a_shill, p_shill) is taken away. Reads what the drone's GPS
    says and the letters that it has got, as they are: late, and where one was lost without the sender.
    """

    rules: AbstractVasarhelyi

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Command a velocity."""
        rules, fields, flock = self.rules, world.fields, self.rules.flock
        place, velocity = fields.own[:, :2], fields.own[:, 2:]
        known, (way, relative) = fields.letters.sender >= 0, rules.of_others(fields)
        speed = norm(velocity)[:, None]
        ahead = flock["v_flock"] * velocity / jnp.where(speed > 0, speed, 1.0)
        apart = repulsion(way, known, flock["r0_rep"], flock["p_rep"])
        slack = braking_curve(norm(way) - flock["r0_frict"], flock["a_frict"], flock["p_frict"])
        beyond = damped(relative, jnp.maximum(slack, flock["v_frict"]))
        aligned = flock["c_frict"] * jnp.sum(jnp.where(known[..., None], beyond, 0.0), axis=1)
        distance, inward = rules.walls(place)
        allowed = braking_curve(distance - flock["r0_shill"], flock["a_shill"], flock["p_shill"])
        stopped = jnp.sum(damped(flock["v_shill"] * inward - velocity[:, None], allowed), axis=1)
        wanted = ahead + apart + aligned + stopped
        return clipped(wanted / rules.speed, jnp.ones(wanted.shape[0]))
