"""What there is to sense: nearest neighbours and who is in sight, sectors, rays to obstacles, maps of the population.

All is exact; errors, rates and delays of instruments are in `swarm.sensing.instruments`.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from swarm.core.errors import ConfigError
from swarm.core.rounding import rounded
from swarm.dynamics.quaternion import components, joined, turn
from swarm.geometry.obstacles import AbstractObstacles, blocked
from swarm.geometry.rays import to_balls
from swarm.geometry.vectors import dot
from swarm.neighbors.questions import Nearest, Neighbors


def neighbor_rows(
    nearest: Nearest,
    radius: Float[Array, ""],
    velocity: Float[Array, "n d"],
    values: Float[Array, "n v"],
    heading: Float[Array, " n"] | None = None,
) -> tuple[Float[Array, "n k f"], Bool[Array, "n k"]]:
    """A row of features for each of the k nearest neighbours, and which of them there are.

    Args:
        nearest: what a search found.
        radius: of that search, finite; metres.
        velocity: in whatever unit the difference is wanted in.
        values: what else entities show (kind as one-hot, stores, team).
        heading: turns displacement and velocity into the entity's own frame, forward and left; only in the plane.
            None: axes of the world.

    Returns:
        Rows of f = 2 d + 1 + v: displacement / radius, distance / radius, velocity less the own one, values. 0 where
        there is no neighbour.
    """
    valid = nearest.valid
    relative = nearest.gather(velocity) - jnp.where(jnp.any(valid, axis=1)[:, None], velocity, 0.0)[:, None]
    displacement = nearest.displacement / radius
    if heading is not None:
        # Nobody reads the frame of one that has no neighbour, as the dead: their NaN must not reach gradients.
        own = jnp.where(jnp.any(valid, axis=1), heading, 0.0)[:, None]
        displacement, relative = into_frame(displacement, own), into_frame(relative, own)
    distance = (nearest.distance / radius)[:, :, None]
    rows = jnp.concatenate([displacement, distance, relative, nearest.gather(values)], axis=2)
    return jnp.where(valid[:, :, None], rows, 0.0), valid


def into_frame(vector: Float[Array, "*#v 2"], heading: Float[Array, "*#v"]) -> Float[Array, "*_v 2"]:
    """Parts of a vector along a heading (radians) and to the left of it."""
    cos, sin = jnp.cos(heading), jnp.sin(heading)
    x, y = vector[..., 0], vector[..., 1]
    return jnp.stack([rounded(x * cos) + rounded(y * sin), rounded(y * cos) - rounded(x * sin)], axis=-1)


class Sectors(eqx.Module):
    """What a scan of `s` sectors found.

    Attributes:
        by_label: distance to the nearest of each of `c` labels, as a share of the radius; 1 where there is none.
    """

    by_label: Float[Array, "n s c"]

    @property
    def distance(self) -> Float[Array, "n s"]:
        """Distance to the nearest of all, as a share of the radius; 1: the sector is empty."""
        return jnp.min(self.by_label, axis=2)

    @property
    def label(self) -> Int[Array, "n s"]:
        """Label of the nearest, of equally near ones the lowest; -1: the sector is empty."""
        return jnp.where(self.distance < 1.0, jnp.argmin(self.by_label, axis=2), -1).astype(jnp.int32)


def scan_sectors(
    neighbors: Neighbors,
    radius: Float[Array, ""],
    heading: Float[Array, " n"],
    label: Int[Array, " n"],
    n_sectors: int,
    n_labels: int = 1,
) -> Sectors:
    """Find the nearest neighbour of each label in each sector of the plane, in the entity's own frame.

    Sector s spans 2 pi / n_sectors around the angle 2 pi s / n_sectors, counter-clockwise from the heading; who stands
    at the very same place is in sector 0. One `Neighbors.min` of n_sectors * n_labels outputs: each pair costs 2
    multiplications for a sector and a minimum for each output, so that 8 sectors of 3 labels cost several times a
    plain sum.

    Args:
        neighbors: what a search found.
        radius: of that search, finite; metres.
        heading: radians; zeros for the axes of the world.
        label: of each slot, from 0 to n_labels - 1 (a kind, a team); who has another one is not seen.
        n_sectors: at least 3.
        n_labels: how many labels there are.

    Raises:
        ConfigError: fewer than 3 sectors, or no label.
    """
    if n_sectors < 3 or n_labels < 1:
        raise ConfigError(f"scan_sectors: {n_sectors} sectors of {n_labels} labels: expected at least 3 and 1")
    edges = [2.0 * math.pi * (s - 0.5) / n_sectors for s in range(n_sectors)]
    heading = jnp.where(jnp.isfinite(heading), heading, 0.0)
    shown = jnp.stack([jnp.cos(heading), jnp.sin(heading), label.astype(jnp.float32)], axis=1)

    def pair(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
        forward = rounded(way[0] * mine[0]) + rounded(way[1] * mine[1])
        left = rounded(way[1] * mine[0]) - rounded(way[0] * mine[1])
        # Half-planes, not an angle: whatever way an edge is rounded, a neighbour is on one side of it only.
        beyond = [
            rounded(left * np.float32(math.cos(e))) - rounded(forward * np.float32(math.sin(e))) >= 0 for e in edges
        ]
        inside = [beyond[s] & ~beyond[(s + 1) % n_sectors] for s in range(n_sectors)]
        inside[0] = inside[0] | (distance == 0)
        return jnp.stack([jnp.where(i & (theirs[2] == c), distance, jnp.inf) for i in inside for c in range(n_labels)])

    found = neighbors.min(pair, shown).reshape(-1, n_sectors, n_labels)
    return Sectors(jnp.where(jnp.isfinite(found), found, radius) / radius)


def scan_obstacles(
    obstacles: AbstractObstacles,
    position: Float[Array, "n 2"],
    heading: Float[Array, " n"],
    alive: Bool[Array, " n"],
    radius: Float[Array, ""],
    n_rays: int,
    n_iterations: int = 64,
    others: Nearest | None = None,
    size: Float[Array, " n"] | None = None,
) -> Float[Array, "n r"]:
    """Range along rays in the plane to the nearest obstacle, as a share of the radius.

    Ray s points 2 pi s / n_rays counter-clockwise from the heading: the middle of sector s of `scan_sectors`.

    Args:
        obstacles: what is solid.
        position: metres.
        heading: radians; zeros for the axes of the world.
        alive: who looks.
        radius: as far as is looked; metres.
        n_rays: rays of each entity.
        n_iterations: as for `scan_rays`; `others` and `size`, too.
        others: who else is seen.
        size: radius of each entity, metres.

    Returns:
        1 where nothing is within the radius, and for the dead; 0 inside an obstacle.
    """
    angle = (
        jnp.where(alive, heading, 0.0)[:, None] + np.asarray(2 * np.pi * np.arange(n_rays) / n_rays, np.float32)[None]
    )
    ways = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return scan_rays(obstacles, position, ways, alive, radius, n_iterations, others, size)


def scan_rays(
    obstacles: AbstractObstacles,
    position: Float[Array, "n d"],
    ways: Float[Array, "n r d"],
    alive: Bool[Array, " n"],
    radius: Float[Array, ""],
    n_iterations: int = 64,
    others: Nearest | None = None,
    size: Float[Array, " n"] | None = None,
) -> Float[Array, "n r"]:
    """Range along any rays, in the plane or in space, as a share of the radius: a lidar, a depth camera.

    Exact for the obstacles of this project (`AbstractObstacles.ray`), at the cost of one distance or so for each ray
    and shape. Nothing that a ray only passes is a hit, however near and long.

    Args:
        obstacles: what is solid.
        position: metres.
        ways: unit vectors in axes of the world (`into_world` turns those of `lidar_rays` and `camera_rays`).
        alive: who looks.
        radius: as far as is looked; metres.
        n_iterations: steps of the march where a shape of your own only tells its distance (`rays.march`).
        others: entities that are seen, too, as balls: the k nearest by a search of the radius and the largest `size`
            together. Who is not among them is not seen, and hides nothing.
        size: radius of each entity, metres; needed with `others`.

    Returns:
        1 where nothing is within the radius, and for the dead; 0 inside an obstacle.

    Raises:
        ConfigError: `others` without `size`, or the other way round.
    """
    if (others is None) != (size is None):
        raise ConfigError("scan_rays: expected others and size, or neither: other entities are seen as balls of a size")
    # The NaN of the dead would reach the gradients of the obstacles.
    position = jnp.where(alive[:, None], position, 0.0)
    ways = jnp.where(alive[:, None, None], ways, 0.0)

    def along(start: Float[Array, " d"], way: Float[Array, " d"]) -> Float[Array, ""]:
        return obstacles.ray(start, way, radius, n_iterations)

    gone = jax.vmap(jax.vmap(along, in_axes=(None, 0)))(position, ways)
    if others is not None and size is not None:
        # Who is nobody has no size, and is nowhere near.
        centre = jnp.where(others.valid[:, :, None], others.displacement, 2.0 * radius)
        bodies = jax.vmap(jax.vmap(to_balls, in_axes=(None, 0, None, None)), in_axes=(None, 0, 0, 0))
        met = bodies(jnp.zeros(position.shape[1]), ways, centre, others.gather(size))
        gone = jnp.minimum(gone, jnp.min(met, axis=2))
    return jnp.where(alive[:, None], jnp.minimum(gone, radius) / radius, 1.0)


def lidar_rays(n_azimuth: int, elevations: Sequence[float]) -> Float[Array, "r 3"]:
    """Rays of a spinning lidar in axes of the body (forward, left, up).

    Args:
        n_azimuth: rays in a turn, counter-clockwise, the first one ahead.
        elevations: of its layers, radians above the horizon.

    Returns:
        Unit vectors, the n_azimuth of the first layer first.
    """
    azimuth = 2 * np.pi * np.arange(n_azimuth) / n_azimuth
    up = np.repeat(np.asarray(elevations, float), n_azimuth)
    azimuth = np.tile(azimuth, len(elevations))
    ways = np.stack([np.cos(up) * np.cos(azimuth), np.cos(up) * np.sin(azimuth), np.sin(up)], axis=1)
    return jnp.asarray(ways, jnp.float32)


def camera_rays(n_rows: int, n_columns: int, width_angle: float) -> Float[Array, "r 3"]:
    """Rays through the pixels of a pinhole camera that looks forward, in axes of the body (forward, left, up).

    Args:
        n_rows: pixels from top to bottom.
        n_columns: pixels from left to right.
        width_angle: between the left and the right edge of the picture, radians below pi; pixels are square.

    Returns:
        Unit vectors, the top row first, in it the leftmost first. A range times the first component is the depth.

    Raises:
        ConfigError: there is no pixel, or the angle is out of range.
    """
    if n_rows < 1 or n_columns < 1 or not 0 < width_angle < math.pi:
        raise ConfigError(
            f"camera_rays: {n_rows} rows, {n_columns} columns, width_angle = {width_angle:g}: expected at least 1 of "
            "each, and radians between 0 and pi"
        )
    pixel = 2 * math.tan(width_angle / 2) / n_columns
    left = pixel * ((n_columns - 1) / 2 - np.arange(n_columns))
    up = pixel * ((n_rows - 1) / 2 - np.arange(n_rows))
    ways = np.stack([np.ones((n_rows, n_columns)), *np.meshgrid(left, up)], axis=-1).reshape(-1, 3)
    return jnp.asarray(ways / np.linalg.norm(ways, axis=1, keepdims=True), jnp.float32)


def into_world(rays: Float[Array, "r 3"], attitude: Float[Array, "n 4"]) -> Float[Array, "n r 3"]:
    """Rays of the body in axes of the world; attitudes as `AbstractFlight.attitude` has them."""
    body = tuple(part[:, None] for part in components(attitude))
    return joined(turn(body, tuple(part[None] for part in components(rays))))


def visible(
    nearest: Nearest,
    position: Float[Array, "n d"],
    forward: Float[Array, "n d"],
    half_angle: float | Float[Array, ""],
    radius: Float[Array, ""],
    obstacles: AbstractObstacles | None = None,
    n_samples: int = 32,
) -> Bool[Array, "n k"]:
    """Which of the k nearest are within a cone, a range, and in sight.

    Args:
        nearest: what a search found.
        position: of all slots, metres.
        forward: unit vector along the axis of each one's cone, in axes of the world.
        half_angle: between the axis and the edge of the cone, radians from 0 to pi; pi: all around.
        radius: metres.
        obstacles: what hides (`swarm.geometry.obstacles.blocked`); neighbours hide nobody.
        n_samples: of each line of sight, as for `blocked`.
    """
    axis = jnp.broadcast_to(forward[:, None], nearest.displacement.shape)
    ahead = dot(nearest.displacement, axis) >= nearest.distance * jnp.cos(half_angle)
    seen = nearest.valid & (ahead | (nearest.distance == 0)) & (nearest.distance < radius)
    if obstacles is None:
        return seen
    start = jnp.where(seen[:, :, None], position[:, None], 0.0)
    return seen & ~blocked(obstacles, start, nearest.displacement, n_samples)


class Raster(eqx.Module):
    """Cells over a box of the plane, or over the first two axes of space, with bands of equal height along the third.

    Attributes:
        lower: lowest corner of the box, metres.
        size: its sides, metres.
        shape: rows (along the second axis) and columns (along the first).
        n_bands: bands of altitude; 1 in the plane.
    """

    lower: Float[Array, " d"]
    size: Float[Array, " d"]
    shape: tuple[int, int] = eqx.field(static=True)
    n_bands: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if min(*self.shape, self.n_bands) < 1:
            raise ConfigError(f"Raster: shape {self.shape}, {self.n_bands} bands: expected at least 1 of each")
        if self.n_bands > 1 and self.size.shape[-1] < 3:
            raise ConfigError(f"Raster: {self.n_bands} bands in the plane: altitude is the third axis of space")

    def cell(self, position: Float[Array, "n d"], mask: Bool[Array, " n"]) -> Int[Array, "n 2"]:
        """Row and column of each entity, as `Observation.cell`; who is outside counts at the edge, 0 off the mask."""
        return jnp.stack([self._along(position, mask, 1), self._along(position, mask, 0)], axis=1)

    def sum(
        self, position: Float[Array, "n d"], mask: Bool[Array, " n"], values: Float[Array, "n c"]
    ) -> Float[Array, "h w x"]:
        """Sum values over the entities of the mask in each cell; ones count them.

        Returns:
            x = n_bands * c channels, the c of the lowest band first.
        """
        cell = self.cell(position, mask)
        band = self._along(position, mask, 2) if self.n_bands > 1 else jnp.zeros_like(cell[:, 0])
        empty = jnp.zeros((*self.shape, self.n_bands, values.shape[1]))
        sums = empty.at[cell[:, 0], cell[:, 1], band].add(jnp.where(mask[:, None], values, 0.0))
        return sums.reshape(*self.shape, -1)

    def _along(self, position: Float[Array, "n d"], mask: Bool[Array, " n"], axis: int) -> Int[Array, " n"]:
        n = (self.shape[1], self.shape[0], self.n_bands)[axis]
        place = jnp.where(mask, position[:, axis] - self.lower[axis], 0.0) / self.size[axis]
        # Limited before the conversion, which is undefined for what no integer can hold.
        return jnp.clip(place * n, 0, n - 1).astype(jnp.int32)
