"""The ground as a map of heights: solid for collisions, rays and lines of sight like any other obstacle."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from swarm.core.errors import ConfigError
from swarm.core.files import check_regular
from swarm.core.rounding import root, rounded
from swarm.geometry import rays
from swarm.geometry.obstacles import AbstractObstacles

_FORMATS = (".npy", ".png", ".tif", ".tiff")


class HeightMap(AbstractObstacles):
    """Ground whose height is given on a regular grid, bilinear between; solid below. Beyond its edge the edge goes on.

    The distance is a lower bound in size, as sphere tracing needs it: with c the height above the ground,

        max(|c| / sqrt(1 + steepest^2), min(spacing, |c| / sqrt(1 + steepness^2)))

    with the sign of c. `steepness` bounds the slope up to a cell farther, where the nearest point is unless it is more
    than the spacing away. So it is exact on a plane, and within a spacing of ground that is plane thereabouts, whatever
    cliffs there are elsewhere. The normal is that of the ground straight below; the gradient is that of c, its
    factor taken as a constant. Build it by `of` or `read`.

    Attributes:
        heights: of the point lower + (i, j) * spacing, metres.
        lower: where the first one is, metres.
        spacing: of the grid along x and y, metres.
        steepness: largest slope within a cell and those around it.
        steepest: largest of all.
    """

    heights: Float[Array, "rows columns"]
    lower: Float[Array, " 2"]
    spacing: Float[Array, " 2"]
    steepness: Float[Array, "rows-1 columns-1"]
    steepest: Float[Array, ""]

    @classmethod
    def of(
        cls, heights: np.ndarray, lower: Sequence[float | int], spacing: Sequence[float | int], name: str = "HeightMap"
    ) -> "HeightMap":
        """Build it from numbers: heights[i, j] at lower + (i, j) * spacing; metres. Errors begin with the name.

        Raises:
            ConfigError: the heights are no finite map of two dimensions, or the spacing is not above 0.
        """
        heights = np.asarray(heights)
        if heights.ndim != 2 or min(heights.shape) < 2:
            hint = "; save it as one grey channel" if heights.ndim == 3 else ""
            raise ConfigError(f"{name}: heights of shape {heights.shape}: expected a map of at least 2 x 2{hint}")
        if not np.issubdtype(heights.dtype, np.number) or not np.all(np.isfinite(heights)):
            raise ConfigError(f"{name}: some heights are no finite numbers; fill the gaps of the map")
        if len(lower) != 2 or len(spacing) != 2 or not min(spacing) > 0:
            raise ConfigError(
                f"{name}: lower = {list(lower)}, spacing = {list(spacing)}: expected x and y of each, and a spacing "
                "above 0 m"
            )
        steepness = _steepness(heights.astype(float), np.asarray(spacing, float))
        numbers = (heights, lower, spacing, steepness, np.max(steepness))
        return cls(*(jnp.asarray(x, jnp.float32) for x in numbers))

    @classmethod
    def read(
        cls,
        path: str | Path,
        lower: Sequence[float | int],
        spacing: Sequence[float | int],
        heights: tuple[float | int, float | int] | None = None,
    ) -> "HeightMap":
        """Read it from a file.

        Args:
            path: `.npy`: an array as for `of`. `.png`, `.tif`: a grey image seen from above, x to the right, y upward.
            lower: place of the first height, of an image its lower left pixel; metres.
            spacing: metres along x and y from number to number.
            heights: what 0 and the largest number of the type stand for, metres; None: the numbers are metres.

        Raises:
            ConfigError: as for `of`, or the file cannot be read.
        """
        path = Path(path)
        if path.suffix.lower() not in _FORMATS:
            raise ConfigError(f"{path}: unknown kind of height map; expected {', '.join(_FORMATS)}")
        try:
            check_regular(path)
            if path.suffix.lower() == ".npy":
                # Mapped, so that a file cannot claim numbers that it does not hold.
                values = np.load(path, allow_pickle=False, mmap_mode="r")
            else:
                import imageio.v3 as iio

                values = np.swapaxes(iio.imread(path, plugin="pillow")[::-1], 0, 1)
        except Exception as error:  # whatever the readers of damaged files come upon
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"{path}: cannot be read as a height map: {reason}") from None
        if heights is not None:
            if not np.issubdtype(values.dtype, np.unsignedinteger):
                raise ConfigError(
                    f"{path}: holds numbers of type {values.dtype}, of which there is no largest to stand for "
                    f"{heights[1]:g} m; leave out heights, or save 8 or 16 bits without sign"
                )
            low, high = heights
            values = low + (high - low) * (values / np.iinfo(values.dtype).max)
        return cls.of(values, lower, spacing, str(path))

    def height(self, place: Float[Array, "*p 2"]) -> Float[Array, "*p"]:
        """Of the ground at places, metres."""
        rows = place.reshape(-1, 2)
        return jax.vmap(lambda p: self._ground(p)[0])(rows).reshape(place.shape[:-1])

    def of_point(self, point: Float[Array, " d"]) -> Float[Array, ""]:
        """Height above the ground, as a share that makes it a lower bound of the distance."""
        ground, steepness = self._ground(point[:2])
        above = point[2] - ground
        size = jnp.abs(above)
        everywhere, here = (1.0 / jnp.sqrt(1.0 + jnp.square(s)) for s in (self.steepest, steepness))
        nearby = jnp.min(self.spacing) / jnp.where(size > 0, size, jnp.inf)
        share = jnp.maximum(everywhere, jnp.minimum(jnp.where(size > 0, nearby, jnp.inf), here))
        # As a constant: the gradient is to lead out, wherever the bound comes from.
        return above * jax.lax.stop_gradient(share)

    def ray(
        self, start: Float[Array, " d"], way: Float[Array, " d"], reach: Float[Array, ""], n_steps: int = 64
    ) -> Float[Array, ""]:
        """From cell to cell, in each by a quadratic equation: exact, and ends where the cells do."""
        held = jax.lax.stop_gradient((self, start, way, reach))
        gone = _first_ground(*held)
        met = jnp.isfinite(gone)
        # What there is to meet changes with all of these, while the cell stays.
        above = rays.at_surface(lambda p: p[2] - self._ground(p[:2])[0], start, way, jnp.where(met, gone, 0.0))
        return jnp.where(met, above, jnp.inf)

    def _ground(self, place: Float[Array, " 2"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Height, and the slope that bounds it nearby."""
        cells = np.asarray(self.steepness.shape)
        grid = jnp.clip((place - self.lower) / self.spacing, 0.0, cells.astype(np.float32))
        i, j = jnp.clip(jax.lax.stop_gradient(grid).astype(jnp.int32), 0, cells - 1)
        x, y = grid[0] - i, grid[1] - j
        corner = jax.lax.dynamic_slice(self.heights, (i, j), (2, 2))
        along = corner[:, 0] + rounded(y * (corner[:, 1] - corner[:, 0]))
        return along[0] + rounded(x * (along[1] - along[0])), self.steepness[i, j]


def _first_ground(
    ground: HeightMap, start: Float[Array, " d"], way: Float[Array, " d"], reach: Float[Array, ""]
) -> Float[Array, ""]:
    """Range to the ground; infinite where there is none within reach (Amanatides and Woo 1987).

    Cells are numbered from 0; those of numbers -1 and beyond the last one go on to infinity, level across the edge.
    """
    cells = jnp.asarray(ground.steepness.shape)
    grid, speed = (start[:2] - ground.lower) / ground.spacing, way[:2] / ground.spacing
    moves = jnp.where(speed > 0, 1, jnp.where(speed < 0, -1, 0))

    def look(cell: Int[Array, " 2"], gone: Float[Array, ""]) -> tuple[Array, Array, Array]:
        """Range to the ground in a cell that the ray has come to, how far it goes there, and to which cell next."""
        line = jnp.where(moves > 0, cell + 1, cell)
        ahead = (moves != 0) & (line >= 0) & (line <= cells)
        until = jnp.where(ahead, (line - grid) / jnp.where(moves == 0, 1.0, speed), jnp.inf)
        leaves = jnp.minimum(jnp.min(until), reach)
        inner = (cell >= 0) & (cell < cells)
        drift = jnp.where(inner, speed, 0.0)
        i, j = corner = jnp.clip(cell, 0, cells - 1)
        x, y = jnp.clip(grid + rounded(gone * speed) - corner, 0.0, 1.0)
        low, right, up, both = _corners(ground, i, j)
        along, aside = right + rounded(y * both), up + rounded(x * both)
        above = start[2] + rounded(gone * way[2]) - (low + rounded(x * right) + rounded(y * aside))
        climb = way[2] - (rounded(drift[0] * along) + rounded(drift[1] * aside))
        bend = -rounded(drift[0] * drift[1]) * both
        met = gone + _first_descent(above, climb, bend)
        first = jnp.argmin(until) == jnp.arange(2)
        return jnp.where(met <= leaves, met, jnp.inf), leaves, cell + jnp.where(first, moves, 0)

    def going(carry: tuple[Array, Array, Array, Array]) -> Array:
        n_looks, _, gone, met = carry
        return jnp.isinf(met) & (gone < reach) & (n_looks < np.sum(ground.steepness.shape) + 4)

    def go_on(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        n_looks, cell, gone, _ = carry
        met, leaves, cell = look(cell, gone)
        return n_looks + 1, cell, leaves, met

    first = jnp.clip(jnp.floor(grid), -1, cells).astype(jnp.int32)
    zero = jnp.zeros_like(reach)
    # Before the first cell, for a ray without length.
    below = start[2] < ground._ground(start[:2])[0]
    return jax.lax.while_loop(going, go_on, (jnp.int32(0), first, zero, jnp.where(below, 0.0, jnp.inf)))[3]


def _corners(ground: HeightMap, i: Array, j: Array) -> tuple[Array, Array, Array, Array]:
    """Height of a cell's lower corner, its rise along either axis, and what both together add."""
    (a, c), (b, d) = jax.lax.dynamic_slice(ground.heights, (i, j), (2, 2))
    return a, b - a, c - a, (d - c) - (b - a)


def _first_descent(above: Array, climb: Array, bend: Array) -> Array:
    """When above + climb t + bend t^2 falls below 0; 0 where it is, infinite where it never does."""
    square = rounded(climb * climb) - 4.0 * rounded(bend * above)
    size = root(jnp.maximum(square, 0.0))
    falls = climb <= 0
    # Of the two forms of the root the one without cancellation.
    early = 2.0 * above / jnp.where(size - climb > 0, size - climb, 1.0)
    late = -0.5 * (climb + size) / jnp.where(bend == 0, 1.0, bend)
    down = jnp.where(falls, size - climb > 0, bend < 0) & (square >= 0)
    return jnp.where(above < 0, 0.0, jnp.where(down, jnp.where(falls, early, late), jnp.inf))


def _steepness(heights: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Largest slope of the bilinear ground within each cell and those around it."""
    x, y = (np.abs(np.diff(heights, axis=axis)) / spacing[axis] for axis in (0, 1))
    # Along an axis the slope of a bilinear cell lies between those of its two edges.
    slope = np.hypot(np.maximum(x[:, 1:], x[:, :-1]), np.maximum(y[1:], y[:-1]))
    padded = np.pad(slope, 1, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).max(axis=(2, 3))
