"""Where a ray enters a solid: in closed form for simple shapes, by a march for any signed distance.

A ray is a start and a unit vector. Ranges are metres to the first place within the solid: 0 from within it, infinite
where there is none. A ray that only touches a surface does not enter; one without direction is a question about its
start.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from swarm.core.rounding import root, rounded
from swarm.geometry.vectors import dot, norm

# Along an axis whose part of a unit vector is smaller, a ray stands still: it would not get a millimetre far in 1e6 m.
_STILL = 1e-9
# Nearer than this share of the range, a march has arrived.
_ARRIVED = 1e-6
# The steepest slope of a range by anything that is told, where a ray grazes a surface.
_GRAZING = 1e-3


def to_balls(
    start: Float[Array, " d"], way: Float[Array, " d"], centre: Float[Array, "m d"], radius: Float[Array, " m"]
) -> Float[Array, " m"]:
    """Ranges to discs or balls."""
    across = centre - start[None]
    along = dot(across, way[None])
    beside = across - rounded(along[:, None] * way[None])
    room = rounded(jnp.square(radius)) - dot(beside, beside)
    half = root(jnp.maximum(room, 0.0))
    return jnp.where((room > 0) & (along + half > 0), jnp.maximum(along - half, 0.0), jnp.inf)


def to_boxes(start: Float[Array, "m d"], way: Float[Array, "m d"], half: Float[Array, "m d"]) -> Float[Array, " m"]:
    """Ranges to boxes, in coordinates along their sides about their centres (Kay and Kajiya 1986)."""
    enter, leave = between(way, -half - start, half - start)
    enter, leave = jnp.max(enter, axis=1), jnp.min(leave, axis=1)
    return jnp.where((enter < leave) & (leave > 0), jnp.maximum(enter, 0.0), jnp.inf)


def between(
    way: Float[Array, "*v"], low: Float[Array, "*v"], high: Float[Array, "*v"]
) -> tuple[Float[Array, "*v"], Float[Array, "*v"]]:
    """Ranges at which a ray enters and leaves what lies between two planes across an axis.

    Args:
        way: part of the unit vector along the axis.
        low: from the start to the lower plane, metres.
        high: likewise to the upper one.
    """
    still, within = jnp.abs(way) < _STILL, (low < 0) & (high > 0)
    speed = jnp.where(still, 1.0, way)
    one, other = low / speed, high / speed
    enter = jnp.where(still, jnp.where(within, -jnp.inf, jnp.inf), jnp.minimum(one, other))
    leave = jnp.where(still, jnp.where(within, jnp.inf, -jnp.inf), jnp.maximum(one, other))
    return enter, leave


def to_capsules(
    start: Float[Array, " d"],
    way: Float[Array, " d"],
    begin: Float[Array, "m d"],
    end: Float[Array, "m d"],
    radius: Float[Array, " m"],
) -> Float[Array, " m"]:
    """Ranges to all within a radius of segments: the side of a cylinder (in the plane a strip) and its round ends."""
    axis, from_begin = end - begin, start[None] - begin
    size = norm(axis)
    axis = axis / jnp.where(size > 0, size, 1.0)[:, None]
    height, climb = dot(from_begin, axis), dot(way[None], axis)
    aside, drift = from_begin - rounded(height[:, None] * axis), way[None] - rounded(climb[:, None] * axis)
    square = dot(drift, drift)
    crosses = square > _STILL
    square = jnp.where(crosses, square, 1.0)
    nearest = -dot(aside, drift) / square
    beside = aside + rounded(nearest[:, None] * drift)
    room = rounded(jnp.square(radius)) - dot(beside, beside)
    enter = nearest - root(jnp.maximum(room, 0.0) / square)
    there = height + rounded(enter * climb)
    side = crosses & (room > 0) & (enter > 0) & (there > 0) & (there < size)
    inside = (dot(aside, aside) < jnp.square(radius)) & (height > 0) & (height < size)
    ends = jnp.minimum(to_balls(start, way, begin, radius), to_balls(start, way, end, radius))
    return jnp.where(inside, 0.0, jnp.minimum(jnp.where(side, enter, jnp.inf), ends))


def to_polygons(
    start: Float[Array, " 2"], way: Float[Array, " 2"], vertices: Float[Array, "m v 2"], inside: Bool[Array, " m"]
) -> Float[Array, " m"]:
    """Ranges to polygons. Who crosses an odd number of edges ahead is within; who has no direction is told."""
    corner = vertices - start[None, None]
    # On which side of the ray: both edges at a corner see the same sign, so that no ray slips between them.
    side = rounded(way[0] * corner[..., 1]) - rounded(way[1] * corner[..., 0])
    after, side_after = jnp.roll(corner, -1, axis=1), jnp.roll(side, -1, axis=1)
    crosses = (side > 0) != (side_after > 0)
    share = side / jnp.where(crosses, side - side_after, 1.0)
    ahead = dot(corner + rounded(share[..., None] * (after - corner)), way[None, None])
    crosses = crosses & (ahead > 0)
    within = jnp.where(jnp.any(way != 0), jnp.sum(crosses, axis=1) % 2 == 1, inside)
    return jnp.where(within, 0.0, jnp.min(jnp.where(crosses, ahead, jnp.inf), axis=1))


def march(
    distance: Callable[[Float[Array, " d"]], Float[Array, ""]],
    start: Float[Array, " d"],
    way: Float[Array, " d"],
    reach: Float[Array, ""],
    n_steps: int,
) -> Float[Array, ""]:
    """Range by a signed distance: sphere tracing (Hart 1996) that always gets to its end.

    Each of the first `n_steps` steps is as long as the distance, which passes over nothing. Who has not arrived by then
    grazes a surface for long, and goes on in steps of at least reach / n_steps: a solid that takes less of the rest of
    its way may be missed, but no surface that it only passes is taken for a hit. A step into a solid is bisected.

    Args:
        distance: of a point; at most the true one, negative inside.
        start: metres.
        way: unit vector.
        reach: as far as is looked, metres.
        n_steps: see above; the distance is asked at most 2 n_steps + 30 times.
    """
    held_start, held_way, held_reach = jax.lax.stop_gradient((start, way, reach))

    def free(gone: Float[Array, ""]) -> Float[Array, ""]:
        return jax.lax.stop_gradient(distance(held_start + rounded(gone * held_way)))

    def advance(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        i, _, gone, room = carry
        step = jnp.maximum(room, jnp.where(i < n_steps, 0.0, held_reach / n_steps))
        ahead = jnp.minimum(gone + step, held_reach)
        return i + 1, gone, ahead, free(ahead)

    def under_way(carry: tuple[Array, Array, Array, Array]) -> Bool[Array, ""]:
        i, _, gone, room = carry
        return (room > _ARRIVED * held_reach) & (gone < held_reach) & (i < 2 * n_steps + 1)

    zero = jnp.zeros_like(held_reach)
    _, clear, gone, room = jax.lax.while_loop(under_way, advance, (jnp.int32(0), zero, zero, free(zero)))
    hit = room <= _ARRIVED * held_reach

    def halve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, clear, gone = carry
        middle = 0.5 * (clear + gone)
        inside = free(middle) < 0
        return i + 1, jnp.where(inside, clear, middle), jnp.where(inside, middle, gone)

    def apart(carry: tuple[Array, Array, Array]) -> Bool[Array, ""]:
        i, clear, gone = carry
        return (gone - clear > _ARRIVED * held_reach) & (i < 24)

    clear = jnp.where(hit & (room < 0), clear, gone)
    gone = jax.lax.while_loop(apart, halve, (jnp.int32(0), clear, gone))[2]
    return jnp.where(hit, at_surface(distance, start, way, gone), jnp.inf)


def at_surface(
    distance: Callable[[Float[Array, " d"]], Float[Array, ""]],
    start: Float[Array, " d"],
    way: Float[Array, " d"],
    gone: Float[Array, ""],
) -> Float[Array, ""]:
    """The same range, with the slope that the surface gives it (implicit function theorem); 0 from within."""
    gone = jax.lax.stop_gradient(gone)
    level, slope = jax.jvp(lambda t: distance(start + rounded(t * way)), (gone,), (jnp.ones_like(gone),))
    change = (level - jax.lax.stop_gradient(level)) / jax.lax.stop_gradient(jnp.minimum(slope, -_GRAZING))
    return jnp.where(gone > 0, gone - change, gone)
