"""Solid shapes given by signed distances, and what happens to entities that run into them.

A module holds `m` shapes of one sort as arrays: a hundred discs are one `Balls`. Shapes do not reach over the edge of a
periodic space.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from swarm.core.rounding import rounded
from swarm.geometry import rays
from swarm.geometry.space import length
from swarm.geometry.vectors import dot, known, norm, unit


class AbstractObstacles(eqx.Module):
    """Solid shapes.

    Where shapes overlap, the distance inside is that of the shape whose surface is farthest: a lower bound in size.
    """

    @abc.abstractmethod
    def of_point(self, point: Float[Array, " d"]) -> Float[Array, ""]:
        """Signed distance of one point; metres. Infinite where there are no shapes."""

    def ray(
        self, start: Float[Array, " d"], way: Float[Array, " d"], reach: Float[Array, ""], n_steps: int = 64
    ) -> Float[Array, ""]:
        """Metres along a unit vector to the first place within a solid; 0 from within one.

        In closed form for the shapes of this project; for those that only tell their distance by a march
        (`swarm.geometry.rays`), which has a bound of what it may miss, and takes nothing that it passes for a hit.

        Args:
            start: metres.
            way: unit vector; 0 asks about the start alone.
            reach: as far as is looked, metres.
            n_steps: of a march.

        Returns:
            Infinite, or beyond the reach, where there is none within it.
        """
        return rays.march(self.of_point, start, way, reach, n_steps)

    def distance(self, point: Float[Array, "*p d"]) -> Float[Array, "*p"]:
        """Signed distance to the nearest surface, negative inside; metres. Infinite where there are no shapes."""
        rows = point.reshape(-1, point.shape[-1])
        return jax.vmap(self.of_point)(rows).reshape(point.shape[:-1])

    def distance_and_normal(self, point: Float[Array, "*p d"]) -> tuple[Float[Array, "*p"], Float[Array, "*p d"]]:
        """Signed distance, and its gradient as a unit vector, which points out of the nearest surface.

        Where the gradient is not unique (the centre of a ball, a corner) it is one of the choices; 0 without shapes.
        """
        distance, pull = jax.vjp(self.distance, point)
        (slope,) = pull(jnp.ones_like(distance))
        size = norm(slope)
        return distance, slope / jnp.where(size > 0, size, 1.0)[..., None]


def collide(
    obstacles: AbstractObstacles,
    position: Float[Array, "n d"],
    velocity: Float[Array, "n d"],
    radius: Float[Array, " n"],
    restitution: Float[Array, ""],
    n_iterations: int = 4,
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """Push entities out of obstacles along the normal, and turn round the part of the velocity that leads inward.

    Each iteration treats the nearest surface, so that corners between several converge. An entity that crosses a whole
    obstacle within a step is not noticed: a step must be shorter than the obstacle is thick. A centre inside one of two
    touching shapes may be pushed to and fro between them: draw a solid as one polygon.

    Args:
        obstacles: what is solid.
        position: metres, after the step.
        velocity: metres per second.
        radius: of each entity, metres.
        restitution: share of the inward speed given back: 1 reflects, 0 slides along.
        n_iterations: surfaces treated one after another.

    Returns:
        Positions and velocities.
    """

    def push(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        position, velocity = carry
        # NaN in a dead slot is not inside, and must not reach the gradients of the obstacles.
        there, moves = known(position), known(velocity)
        distance, normal = obstacles.distance_and_normal(jnp.where(there[:, None], position, 0.0))
        inside = there & (distance < radius)
        inward = dot(jnp.where(moves[:, None], velocity, 0.0), normal)
        depth = jnp.where(inside, radius - jnp.where(inside, distance, 0.0), 0.0)
        stopped = jnp.where(inside & (inward < 0), (1.0 + restitution) * inward, 0.0)
        moved = jnp.where(inside[:, None], position + depth[:, None] * normal, position)
        turned = jnp.where(inside[:, None], velocity - stopped[:, None] * normal, velocity)
        return (moved, turned), None

    (position, velocity), _ = jax.lax.scan(push, (position, velocity), None, length=n_iterations)
    return position, velocity


def blocked(
    obstacles: AbstractObstacles, start: Float[Array, "*p d"], way: Float[Array, "*p d"], n_samples: int = 32
) -> Bool[Array, "*p"]:
    """Whether the straight line from `start` to `start + way` (metres) passes through an obstacle.

    By `AbstractObstacles.ray`, so that a free line is never blocked; a line that touches a surface is free. In a
    periodic space a line that leaves the box does not enter it again. `n_samples` is for shapes of your own, whose rays
    are marched: of those, a solid may be missed that takes less than that share of a line which grazes another one.
    """
    d, size = way.shape[-1], norm(way)
    direction = way / jnp.where(size > 0, size, 1.0)[..., None]
    rows = start.reshape(-1, d), direction.reshape(-1, d), size.reshape(-1)
    gone = jax.vmap(lambda s, w, reach: obstacles.ray(s, w, reach, n_samples))(*rows).reshape(size.shape)
    return (gone < size) | ((size == 0) & (gone == 0))


def touches(
    obstacles: AbstractObstacles, position: Float[Array, "n d"], radius: Float[Array, " n"]
) -> Bool[Array, " n"]:
    """Whose ball (radius in metres) reaches into an obstacle: a surface, or a volume that nobody may fly in."""
    return obstacles.distance(position) <= radius


class Balls(AbstractObstacles):
    """Discs in the plane, balls in space.

    Attributes:
        centre: metres.
        radius: metres.
    """

    centre: Float[Array, "m d"]
    radius: Float[Array, " m"]

    def of_point(self, point: Float[Array, " d"]) -> Float[Array, ""]:
        """Distance to the centre less the radius."""
        way = point[None] - self.centre
        return _least(_reach(way, _first_axis(way), jnp.zeros_like(self.radius)) - self.radius)

    def ray(
        self, start: Float[Array, " d"], way: Float[Array, " d"], reach: Float[Array, ""], n_steps: int = 64
    ) -> Float[Array, ""]:
        """Closed form."""
        return _least(rays.to_balls(start, way, self.centre, self.radius))


class Boxes(AbstractObstacles):
    """Boxes along the axes, in the plane turned by an angle if there is one.

    Attributes:
        centre: metres.
        half: half of the side lengths, metres.
        angle: radians, counter-clockwise; None: not turned.
    """

    centre: Float[Array, "m d"]
    half: Float[Array, "m d"]
    angle: Float[Array, " m"] | None = None

    def of_point(self, point: Float[Array, " d"]) -> Float[Array, ""]:
        """Outside the distance to the nearest point of the box, inside to the nearest face (Quilez, 2D SDFs)."""
        way = self._turned(point[None] - self.centre)
        # Not jnp.abs, whose gradient at 0 is 0: the middle of a box needs a way out.
        beyond = jnp.where(way < 0, -way, way) - self.half
        inside = jnp.max(beyond, axis=1)
        outside = norm(jnp.maximum(beyond, 0.0))
        return _least(jnp.where(inside > 0, outside, inside))

    def ray(
        self, start: Float[Array, " d"], way: Float[Array, " d"], reach: Float[Array, ""], n_steps: int = 64
    ) -> Float[Array, ""]:
        """Closed form."""
        ways = jnp.broadcast_to(way[None], self.centre.shape)
        return _least(rays.to_boxes(self._turned(start[None] - self.centre), self._turned(ways), self.half))

    def _turned(self, vector: Float[Array, "m d"]) -> Float[Array, "m d"]:
        """Parts of a vector along the sides of each."""
        if self.angle is None:
            return vector
        cos, sin = jnp.cos(self.angle), jnp.sin(self.angle)
        x, y = vector[:, 0], vector[:, 1]
        return jnp.stack([rounded(cos * x) + rounded(sin * y), rounded(cos * y) - rounded(sin * x)], axis=1)


class Capsules(AbstractObstacles):
    """All points within a radius of a segment, in the plane or in space.

    Attributes:
        start: of the segment, metres.
        end: of the segment, metres.
        radius: metres.
    """

    start: Float[Array, "m d"]
    end: Float[Array, "m d"]
    radius: Float[Array, " m"]

    def of_point(self, point: Float[Array, " d"]) -> Float[Array, ""]:
        """Distance to the segment less the radius."""
        along = self.end - self.start
        # Any direction across the segment will do for a point on it.
        return _least(_from_segment(point, self.start, along, _perpendicular(along)) - self.radius)

    def ray(
        self, start: Float[Array, " d"], way: Float[Array, " d"], reach: Float[Array, ""], n_steps: int = 64
    ) -> Float[Array, ""]:
        """Closed form."""
        return _least(rays.to_capsules(start, way, self.start, self.end, self.radius))


class Polygons(AbstractObstacles):
    """Simple polygons in the plane, convex or not, in either sense of rotation.

    Attributes:
        vertices: `v` corners of each, metres; a polygon with fewer repeats its last one.
    """

    vertices: Float[Array, "m v 2"]

    def of_point(self, point: Float[Array, " d"]) -> Float[Array, ""]:
        """Distance to the nearest edge; inside where a ray crosses the edges an odd number of times."""
        start, end = self.vertices, jnp.roll(self.vertices, -1, axis=1)
        along = end - start
        inside = self._inside(point, start, end)
        area = jnp.sum(start[..., 0] * end[..., 1] - start[..., 1] * end[..., 0], axis=1)
        right = jnp.stack([along[..., 1], -along[..., 0]], axis=-1)
        size = norm(right)
        right = right / jnp.where(size > 0, size, 1.0)[..., None]
        # For a point on the edge itself: after the sign below, its gradient points out.
        outward = jnp.where((area > 0) != inside, 1.0, -1.0)[:, None, None] * right
        distance = _least(_from_segment(point, start, along, outward))
        return _least(jnp.where(inside, -distance, distance))

    def ray(
        self, start: Float[Array, " d"], way: Float[Array, " d"], reach: Float[Array, ""], n_steps: int = 64
    ) -> Float[Array, ""]:
        """Closed form."""
        within = self._inside(start, self.vertices, jnp.roll(self.vertices, -1, axis=1))
        return _least(rays.to_polygons(start, way, self.vertices, within))

    @staticmethod
    def _inside(
        point: Float[Array, " d"], start: Float[Array, "m v 2"], end: Float[Array, "m v 2"]
    ) -> Bool[Array, " m"]:
        x, y = point[0], point[1]
        straddles = (start[..., 1] > y) != (end[..., 1] > y)
        rise = jnp.where(straddles, end[..., 1] - start[..., 1], 1.0)
        crossing = start[..., 0] + (y - start[..., 1]) / rise * (end[..., 0] - start[..., 0])
        return jnp.sum(straddles & (x < crossing), axis=1) % 2 == 1


class Extruded(AbstractObstacles):
    """Shapes of the plane, as far as from one height to another: buildings, zones closed to flight up to a height.

    Attributes:
        base: seen from above.
        bottom: metres.
        top: metres; may be infinite, as the bottom may.
    """

    base: AbstractObstacles
    bottom: Float[Array, ""]
    top: Float[Array, ""]

    def of_point(self, point: Float[Array, " d"]) -> Float[Array, ""]:
        """Outside the distance to the nearest point, inside to the nearest face (Quilez, 3D SDFs)."""
        beside, height = self.base.of_point(point[:2]), point[2]
        over = jnp.where(height - self.bottom < self.top - height, self.bottom - height, height - self.top)
        # Also where there are no shapes, and at an infinite height, whose gradients are not to be NaN.
        away = (beside > 0) & (over > 0) & jnp.isfinite(beside) & jnp.isfinite(over)
        corner = length([jnp.where(away, beside, 1.0), jnp.where(away, over, 1.0)])
        return jnp.where(away, corner, jnp.maximum(beside, over))

    def ray(
        self, start: Float[Array, " d"], way: Float[Array, " d"], reach: Float[Array, ""], n_steps: int = 64
    ) -> Float[Array, ""]:
        """Seen from above, that of the base between the heights: a ray that is over it there enters by the roof."""
        z, level = start[2], norm(way[:2])
        # Heights out of reach are as good as infinite ones, which have no gradient.
        low, high = jnp.maximum(self.bottom - z, -2.0 * reach), jnp.minimum(self.top - z, 2.0 * reach)
        enter, leave = rays.between(way[2], low, high)
        there = (enter < leave) & (leave > 0) & (enter <= reach)
        enter = jnp.where(there, jnp.maximum(enter, 0.0), 0.0)
        room = jnp.where(there, jnp.minimum(leave, reach) - enter, 0.0)
        level = jnp.where(level > 0, level, 1.0)
        begin = start[:2] + rounded(enter * way[:2])
        beside = self.base.ray(begin, unit(way[:2]), room * level, n_steps)
        met = there & ((beside < room * level) | (beside == 0))
        return jnp.where(met, enter + jnp.where(met, beside, 0.0) / level, jnp.inf)


class Union(AbstractObstacles):
    """Obstacles of several sorts.

    Attributes:
        members: any obstacles of the same dimension.
    """

    members: tuple[AbstractObstacles, ...]

    def of_point(self, point: Float[Array, " d"]) -> Float[Array, ""]:
        """The nearest of all."""
        if not self.members:
            return _least(jnp.zeros(0))
        return _least(jnp.stack([member.of_point(point) for member in self.members]))

    def ray(
        self, start: Float[Array, " d"], way: Float[Array, " d"], reach: Float[Array, ""], n_steps: int = 64
    ) -> Float[Array, ""]:
        """The first of all."""
        if not self.members:
            return _least(jnp.zeros(0))
        return _least(jnp.stack([member.ray(start, way, reach, n_steps) for member in self.members]))


def _least(values: Float[Array, "*p m"]) -> Float[Array, "*p"]:
    """Minimum over the last axis, whose gradient is that of the first least value, not a mean over equal ones."""
    m = values.shape[-1]
    if m == 0:
        return jnp.full(values.shape[:-1], jnp.inf)
    first = jnp.argmin(values, axis=-1, keepdims=True) == jnp.arange(m).reshape((1,) * (values.ndim - 1) + (m,))
    return jnp.sum(jnp.where(first, values, 0.0), axis=-1)


def _reach(way: Float[Array, "*m d"], direction: Float[Array, "*m d"], least: Float[Array, "*m"]) -> Float[Array, "*m"]:
    """Length of a vector; up to a least one, where rounding rules the direction, the part along a given direction."""
    size = norm(way)
    return jnp.where(size > least, size, dot(way, jax.lax.stop_gradient(direction)))


def _from_segment(
    point: Float[Array, " d"], start: Float[Array, "*m d"], along: Float[Array, "*m d"], normal: Float[Array, "*m d"]
) -> Float[Array, "*m"]:
    """Distance to segments, which may have no length; for a point on one, its gradient is the given normal."""
    way = point.reshape((1,) * (start.ndim - 1) + point.shape) - start
    square = dot(along, along)
    share = jnp.clip(dot(way, along) / jnp.where(square > 0, square, 1.0), 0.0, 1.0)
    return _reach(way - share[..., None] * along, normal, 1e-6 * norm(along))


def _first_axis(like: Float[Array, "m d"]) -> Float[Array, "m d"]:
    return jnp.zeros_like(like).at[:, 0].set(1.0)


def _perpendicular(along: Float[Array, "m d"]) -> Float[Array, "m d"]:
    """A unit vector at a right angle to each; the first axis where a vector has no length."""
    x, y = along[:, 0], along[:, 1]
    flat = jnp.stack([y, -x, *[jnp.zeros_like(x)] * (along.shape[1] - 2)], axis=1)
    size = norm(flat)[:, None]
    return jnp.where(size > 0, flat / jnp.where(size > 0, size, 1.0), _first_axis(along))
