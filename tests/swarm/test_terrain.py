"""Ground from height maps against planes and dense samples; extruded shapes; who crashes; files that are no map."""

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.core.errors import ConfigError
from swarm.geometry.obstacles import Balls, Boxes, Extruded, Polygons, Union, collide, touches
from swarm.geometry.space import Open
from swarm.geometry.terrain import HeightMap
from swarm.neighbors.contacts import crashed
from swarm.neighbors.questions import AllPairs
from swarm.sensing.exact import scan_rays

measure = jax.jit(lambda obstacles, point: obstacles.distance_and_normal(point))
RNG = np.random.default_rng(0)
_height = jax.jit(lambda ground, place: ground.height(place))
SHAPE, LOWER, SPACING = (21, 17), (-5.0, 2.0), (2.0, 3.0)
ALONG = [low + step * np.arange(n) for low, step, n in zip(LOWER, SPACING, SHAPE, strict=True)]
X, Y = np.meshgrid(*ALONG, indexing="ij")
SLOPE = np.asarray([0.75, -0.4])
STEEP = float(np.sqrt(1 + SLOPE @ SLOPE))


def array(x):
    return jnp.asarray(x, jnp.float32)


def height(ground, place):
    return np.asarray(_height(ground, array(place)))


def plane():
    return HeightMap.of(SLOPE[0] * X + SLOPE[1] * Y + 3.0, LOWER, SPACING)


def over_the_map(n, low, high):
    return RNG.uniform([0, 8, low], [30, 44, high], (n, 3))


def test_a_plane_is_exact_on_both_sides():
    point = over_the_map(200, -40, 60)
    distance, normal = measure(plane(), array(point))
    np.testing.assert_allclose(distance, (point[:, 2] - point[:, :2] @ SLOPE - 3.0) / STEEP, atol=2e-4)
    np.testing.assert_allclose(normal, np.tile([*-SLOPE / STEEP, 1 / STEEP], (200, 1)), atol=1e-4)


def test_a_rough_ground_is_never_nearer_than_told():
    heights = RNG.uniform(0, 6, SHAPE)
    ground = HeightMap.of(heights, LOWER, SPACING)
    point = over_the_map(200, -5, 20)
    fine = np.meshgrid(np.linspace(-5, 35, 401), np.linspace(2, 50, 481), indexing="ij")
    fine = np.stack(fine, axis=-1).reshape(-1, 2)
    surface = np.concatenate([fine, height(ground, fine)[:, None]], axis=1)
    true = np.stack([np.linalg.norm(surface - p, axis=1).min() for p in point])
    distance = np.asarray(measure(ground, array(point))[0])
    np.testing.assert_array_equal(distance > 0, point[:, 2] > height(ground, point[:, :2]))
    assert (np.abs(distance) <= true + 1e-3).all()
    # The bound is worth something: not below what the steepest slope of all would give.
    above = point[:, 2] - height(ground, point[:, :2])
    assert (np.abs(distance) >= np.abs(above) / np.sqrt(1 + float(ground.steepest) ** 2) - 1e-4).all()


def test_heights_are_those_of_the_grid_bilinear_between_and_go_on_beyond():
    heights = RNG.uniform(0, 6, SHAPE)
    ground = HeightMap.of(heights, LOWER, SPACING)
    on_grid = np.stack([X, Y], axis=-1)
    np.testing.assert_allclose(height(ground, on_grid), heights, atol=1e-4)
    middle = height(ground, on_grid[:-1, :-1] + np.asarray(SPACING) / 2)
    np.testing.assert_allclose(
        middle, (heights[1:, 1:] + heights[1:, :-1] + heights[:-1, 1:] + heights[:-1, :-1]) / 4, atol=1e-4
    )
    np.testing.assert_allclose(
        height(ground, np.asarray([[-99, 2], [35, 99]])), [heights[0, 0], heights[-1, -1]], atol=1e-4
    )


def cliff():
    """Flat at 0, and at 40 m from x = 25 on."""
    return HeightMap.of(np.where(X >= 25, 40.0, 0.0), LOWER, SPACING)


def test_a_cliff_far_away_keeps_nobody_off_the_flat():
    place, velocity = array([[5.0, 20.0, 0.4], [5.0, 20.0, 1.6]]), array([[1.0, 0.0, -2.0]] * 2)
    place, velocity = jax.jit(collide)(cliff(), place, velocity, jnp.full(2, 0.5), jnp.float32(0.5))
    np.testing.assert_allclose(place, [[5.0, 20.0, 0.5], [5.0, 20.0, 1.6]], atol=1e-5)
    np.testing.assert_allclose(velocity, [[1.0, 0.0, 1.0], [1.0, 0.0, -2.0]], atol=1e-5)


def test_rays_meet_the_ground_where_the_closed_form_says():
    start = array([[10.0, 25.0, 40.0]])
    # Down, level uphill, downhill along x (which rises away from the ray: never), and the shortest way.
    ways = np.asarray([[0, 0, -1], [1, 0, 0], [-1, 0, 0], [*SLOPE / STEEP, -1 / STEEP]])
    above = 40.0 - (7.5 - 10.0 + 3.0)
    with np.errstate(divide="ignore"):
        expected = above / (ways[:, :2] @ SLOPE - ways[:, 2])
    expected = np.where((expected > 0) & (expected < 48.0), expected, 48.0)
    scan = jax.jit(lambda ground: scan_rays(ground, start, array(ways)[None], jnp.ones(1, bool), jnp.float32(48.0), 24))
    found = np.asarray(scan(plane())[0]) * 48.0
    assert (found <= expected + 1e-3).all()
    # Level rays get nearer by a factor in each step, and are short of it where the map ends.
    np.testing.assert_allclose(found[[0, 2, 3]], expected[[0, 2, 3]], rtol=2e-3)


def test_extruded_squares_are_boxes():
    square = Polygons(array([[[-1, -2], [3, -2], [3, 2], [-1, 2]]]))
    point = array(RNG.uniform(-6, 6, (200, 3)))
    box = Boxes(array([[1, 0, 1.5]]), array([[2, 2, 2.5]]))
    block = Extruded(square, jnp.float32(-1.0), jnp.float32(4.0))
    for one, other in zip(measure(block, point), measure(box, point), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    endless = Extruded(Balls(array([[0, 0]]), array([1.0])), jnp.float32(-jnp.inf), jnp.float32(jnp.inf))
    distance, normal = measure(endless, point)
    np.testing.assert_allclose(distance, np.hypot(*point[:, :2].T) - 1.0, atol=1e-5)
    assert np.isfinite(np.asarray(normal)).all()
    nothing = Extruded(Polygons(jnp.zeros((0, 3, 2))), jnp.float32(0.0), jnp.float32(1.0))
    assert (np.asarray(measure(nothing, point)[0]) == np.inf).all()


def test_who_crashes_and_who_enters_a_closed_zone():
    city = Union((cliff(), Boxes(array([[10, 20, 10]]), array([[2, 2, 10]]))))
    zone = Extruded(Balls(array([[0, 40]]), array([3.0])), jnp.float32(0.0), jnp.float32(20.0))
    position = array(
        [[0, 20, 9], [0.7, 20, 9], [0, 40, 9], [5, 20, 0.4], [5, 25, 0.6], [12.3, 20, 9], [10, 20, 21], [0, 20, 9]]
    )
    alive, radius = jnp.arange(8) < 7, jnp.asarray([0.3, 0.5, *[0.5] * 6])
    found = AllPairs(Open(jnp.zeros(3), jnp.ones(3)), jnp.float32(2.0)).find(position, alive)
    lost = jax.jit(crashed)(found, city, position, radius, alive)
    # Each other, the ground, a building.
    np.testing.assert_array_equal(lost, [True, True, False, True, False, True, False, False])
    np.testing.assert_array_equal(np.flatnonzero(touches(zone, position, radius)), [2])


def test_maps_are_read_as_they_are_seen_from_above(tmp_path):
    pixels = np.asarray([[0, 65535], [13107, 0], [0, 0]], np.uint16)
    iio.imwrite(tmp_path / "map.png", pixels)
    ground = HeightMap.read(tmp_path / "map.png", (0.0, 0.0), (1.0, 1.0), heights=(100.0, 200.0))
    # x to the right, y upward: the top right pixel is at (1, 2).
    np.testing.assert_allclose(ground.heights, [[100, 120, 100], [100, 100, 200]], atol=1e-3)
    for name in ("map.npy", "map.tif"):
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.save(tmp_path / name, values) if name == "map.npy" else iio.imwrite(
            tmp_path / name, values.T[::-1], plugin="pillow"
        )
        np.testing.assert_array_equal(HeightMap.read(tmp_path / name, (0, 0), (1, 1)).heights, values)


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("map.txt", b"1 2 3", {}, "unknown kind"),
        ("gone.npy", None, {}, r"gone\.npy: cannot be read"),
        ("gone.png", None, {}, r"gone\.png: cannot be read"),
        ("map.npy", b"no array", {}, "cannot be read"),
        ("map.png", b"no image", {}, "cannot be read"),
        ("map.npy", np.zeros(5), {}, r"shape \(5,\): expected a map"),
        ("map.png", np.zeros((4, 4, 3), np.uint8), {}, "one grey channel"),
        ("map.npy", np.full((3, 3), np.nan), {}, "no finite numbers"),
        ("map.npy", np.full((3, 3), "a"), {}, "no finite numbers"),
        ("map.npy", np.zeros((3, 3)), {"heights": (0.0, 9.0)}, "leave out heights"),
        ("map.npy", np.zeros((3, 3)), {"spacing": (1.0, 0.0)}, "above 0 m"),
        ("map.npy", np.zeros((3, 3)), {"spacing": (1.0,)}, "x and y"),
    ],
)
def test_what_is_no_map_is_one_line(tmp_path, name, content, settings, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content) if path.suffix == ".npy" else iio.imwrite(path, content)
    with pytest.raises(ConfigError, match=message) as error:
        HeightMap.read(path, (0.0, 0.0), **{"spacing": (1.0, 1.0), **settings})
    assert "\n" not in str(error.value)
