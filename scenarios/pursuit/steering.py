"""How scripted predators and prey of pursuit steer: directions in the plane, as long as the share of the speed."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from swarm.geometry.vectors import dot, norm, unit
from swarm.neighbors.questions import Nearest
from swarm.population.entities import Entities

# Surfaces nearer than this are steered clear of; metres.
MARGIN = 1.5
# So far ahead predators foresee where prey goes, at most; seconds.
FORESIGHT = 1.5
# Predators keep so far apart: close in while they chase, wide while they search; metres.
APART, APART_SEARCHING = 2.5, 8.0
CALM = 0.35
GOLDEN_ANGLE = 2.399963


class Sight(eqx.Module):
    """What entities see of each other.

    Attributes:
        foes: nearest ones of the other team.
        mates: nearest ones of the own team.
        watched: whether a foe sees the entity.
    """

    foes: Nearest
    mates: Nearest
    watched: Bool[Array, " n"]


class Surface(eqx.Module):
    """The nearest point of something solid.

    Attributes:
        distance: to it, metres; negative inside.
        normal: unit vector away from it.
    """

    distance: Float[Array, " n"]
    normal: Float[Array, "n 2"]


def flee(
    entities: Entities, foes: Nearest, surfaces: tuple[Surface, ...], panic: Float[Array, ""], time: Float[Array, ""]
) -> Float[Array, "n 2"]:
    """Run from foes nearer than `panic`, the nearer the more; stroll where there are none."""
    near = foes.valid & (foes.distance < panic)
    way = unit(foes.displacement)
    fear = jnp.where(near, jnp.square(1.0 - foes.distance / panic) + 1e-3, 0.0)
    away = -_sum(fear[:, :, None] * way)
    wanted = jnp.where(jnp.any(near, axis=1)[:, None], unit(away), CALM * _stroll(entities, time))
    return clear_of(wanted, surfaces, jnp.any(near, axis=1))


def chase(
    entities: Entities,
    sight: Sight,
    surfaces: tuple[Surface, ...],
    speed: Float[Array, " n"],
    time: Float[Array, ""],
) -> Float[Array, "n 2"]:
    """Cut off the nearest foe, or the one that a mate sees; search where there is none.

    A predator aims at where the foe will be when it could be there, and keeps apart from its mates, so that several
    come from several sides.
    """
    goal, follows = _goal(entities, sight, speed)
    apart = jnp.where(follows, APART, APART_SEARCHING)
    crowd = jnp.maximum(1.0 - sight.mates.distance / apart[:, None], 0.0)
    away = -_sum(jnp.where(sight.mates.valid, crowd, 0.0)[:, :, None] * unit(sight.mates.displacement))
    ahead = jnp.where(follows[:, None], unit(goal), 0.7 * _stroll(entities, time))
    return clear_of(unit(ahead + 0.6 * away), surfaces, follows)


def _goal(entities: Entities, sight: Sight, speed: Array) -> tuple[Float[Array, "n 2"], Bool[Array, " n"]]:
    """Way to the point where the chosen foe is met, and whether there is one."""
    sees = sight.foes.valid[:, 0]
    velocity = sight.foes.gather(jnp.where(entities.alive[:, None], entities.velocity, 0.0))[:, 0]
    seconds = jnp.minimum(sight.foes.distance[:, 0] / speed, FORESIGHT)
    met = jnp.where(sees[:, None], sight.foes.displacement[:, 0] + velocity * seconds[:, None], 0.0)
    # Mates tell where they go.
    tells = sight.mates.gather(sees)
    first = jnp.argmax(tells, axis=1)
    told = jnp.take_along_axis(sight.mates.displacement + sight.mates.gather(met), first[:, None, None], axis=1)[:, 0]
    hears = jnp.any(tells, axis=1)
    return jnp.where(sees[:, None], met, jnp.where(hears[:, None], told, 0.0)), sees | hears


def clear_of(
    wanted: Float[Array, "n 2"], surfaces: tuple[Surface, ...], along: Bool[Array, " n"]
) -> Float[Array, "n 2"]:
    """Turn away from near surfaces.

    The part of a direction that leads into a surface is taken from it, the more the nearer; `along`: and given to the
    way along it, to the side it leans to. Otherwise it is given to the way back, as by a mirror.
    """
    size = norm(wanted)
    for surface in surfaces:
        near = jnp.clip(1.0 - surface.distance / MARGIN, 0.0, 1.0)
        into = near * jnp.maximum(-dot(wanted, surface.normal), 0.0)
        left = jnp.stack([-surface.normal[:, 1], surface.normal[:, 0]], axis=1)
        side = jnp.where(dot(wanted, left) >= 0, 1.0, -1.0)
        turn = jnp.where(along[:, None], surface.normal + side[:, None] * left, 3.0 * surface.normal)
        wanted = wanted + into[:, None] * turn
    return unit(wanted) * size[:, None]


def _stroll(entities: Entities, time: Float[Array, ""]) -> Float[Array, "n 2"]:
    """On along the own velocity, in gentle bends that differ between entities."""
    phase = GOLDEN_ANGLE * entities.uid.astype(jnp.float32)
    rest = norm(entities.velocity) < 0.05
    start = jnp.stack([jnp.cos(phase), jnp.sin(phase)], axis=1)
    x, y = jnp.where(rest[:, None], start, unit(entities.velocity)).T
    bend = 0.3 * jnp.sin(0.5 * time + phase)
    return jnp.stack([x * jnp.cos(bend) - y * jnp.sin(bend), y * jnp.cos(bend) + x * jnp.sin(bend)], axis=1)


def _sum(vectors: Float[Array, "n k 2"]) -> Float[Array, "n 2"]:
    """Sum over neighbours, one by one: a reduction may round differently alone and in a batch."""
    total = vectors[:, 0]
    for j in range(1, vectors.shape[1]):
        total = total + vectors[:, j]
    return total
