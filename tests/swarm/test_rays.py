"""Ranges along rays against dense samples of signed distances; their slopes; what grazes; others as targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.core.errors import ConfigError
from swarm.geometry.obstacles import AbstractObstacles, Balls, Boxes, Capsules, Extruded, Polygons, Union, blocked
from swarm.geometry.space import Open, Periodic
from swarm.geometry.terrain import HeightMap
from swarm.neighbors.questions import AllPairs
from swarm.sensing.exact import into_world, lidar_rays, scan_obstacles, scan_rays

REACH, N = 8.0, 120
L_SHAPE = [[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]
TRIANGLE = [[-3, 0], [-2, 0], [-3, 1]]


def array(x):
    return jnp.asarray(x, jnp.float32)


def flat():
    return {
        "balls": Balls(array([[0, 0], [1, 1], [-3, 2]]), array([1, 0.5, 1])),
        "boxes": Boxes(array([[0, 0], [4, 0]]), array([[1, 1], [1, 2]])),
        "turned": Boxes(array([[0, 0], [-3, 2]]), array([[1, 1], [0.5, 1]]), array([0.3, 2.5])),
        "capsules": Capsules(
            array([[0, 0], [2, 2], [-2, -2]]), array([[1, 1], [2, 2], [-2, 1]]), array([0.5, 0.3, 0.3])
        ),
        "polygons": Polygons(array([L_SHAPE, TRIANGLE + [TRIANGLE[-1]] * 3])),
    }


def solid():
    rng = np.random.default_rng(0)

    def places(n):
        return array(rng.uniform(-2, 2, (n, 3)))

    columns = Union((flat()["polygons"], flat()["balls"]))
    return {
        "balls in space": Balls(places(4), array([0.5, 1, 0.7, 0.3])),
        "boxes in space": Boxes(places(3), array(rng.uniform(0.3, 1, (3, 3)))),
        "capsules in space": Capsules(places(3), places(3), array([0.8, 0.6, 0.5])),
        "extruded": Extruded(columns, jnp.float32(-1.0), jnp.float32(1.5)),
        "endless": Extruded(columns, jnp.float32(-jnp.inf), jnp.float32(0.5)),
        "ground": HeightMap.of(rng.uniform(-2, 1, (5, 6)), (-3, -2), (1.5, 1.0)),
    }


class Own(AbstractObstacles):
    """Shapes of a user who only tells their distance."""

    inner: AbstractObstacles

    def of_point(self, point):
        return self.inner.of_point(point)


SHAPES = flat() | solid()
ALL = SHAPES | {f"march to {name}": Own(SHAPES[name]) for name in ("turned", "boxes in space", "extruded")}


def rays_of(obstacles, name):
    """Places, and directions towards the middle or so; among these the axes, and no direction at all."""
    d = 2 if name.removeprefix("march to ") in flat() else 3
    rng = np.random.default_rng(1)
    start, goal = rng.uniform(-4, 4, (N, d)), rng.uniform(-2, 2, (N, d))
    way = goal - start
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    way[: 2 * d] = np.concatenate([np.eye(d), -np.eye(d)])
    way[2 * d : 20] = 0.0
    return array(start), array(way)


@jax.jit
def ranges(obstacles, start, way):
    return jax.vmap(lambda s, w: obstacles.ray(s, w, jnp.float32(REACH)))(start, way)


@jax.jit
def sampled(obstacles, start, way):
    """The first of dense samples that is within a solid."""
    gone = jnp.linspace(0.0, REACH, 4001)
    inside = obstacles.distance(start[:, None] + gone[None, :, None] * way[:, None]) < 0
    return jnp.where(jnp.any(inside, axis=1), gone[jnp.argmax(inside, axis=1)], jnp.inf)


@pytest.mark.parametrize("name", ALL)
def test_a_ray_ends_at_the_first_solid_and_nowhere_else(name):
    start, way = rays_of(ALL[name], name)
    found = np.asarray(ranges(ALL[name], start, way))
    exact = np.asarray(sampled(SHAPES[name.removeprefix("march to ")], start, way))
    found = np.where(found <= REACH, found, np.inf)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(exact))
    np.testing.assert_array_equal(found == 0, exact == 0)
    met = np.isfinite(exact)
    assert (exact == 0).sum() < met.sum() < N
    np.testing.assert_allclose(found[met], exact[met], atol=REACH / 4000 + 1e-5)


@pytest.mark.parametrize("name", [*SHAPES, "march to turned"])
def test_the_slope_of_a_range_is_that_of_finite_differences(name):
    """By where the ray begins, where it leads, and by all numbers of the shapes."""
    start, way = rays_of(ALL[name], name)
    with jax.enable_x64(True):
        given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (ALL[name], start[20:], way[20:]))
        rng, step = np.random.default_rng(2), 1e-7
        leads = jax.tree.map(lambda x: jnp.asarray(np.where(np.isfinite(x), rng.normal(size=x.shape), 0.0)), given)

        def found(obstacles, start, way):
            gone = jax.vmap(lambda s, w: obstacles.ray(s, w, jnp.float64(REACH)))(start, way)
            return jnp.where(gone < REACH, gone, 0.0)

        @jax.jit
        def slopes(given):
            _, pull = jax.vjp(found, *given)
            # A march is as exact as it is told to be; its slope is that of the shape that it marches to.
            exact, way = ((x[0] if name in SHAPES else x[0].inner, *x[1:]) for x in (given, leads))
            ends = [found(*jax.tree.map(lambda a, b, s=s: a + s * step * b, exact, way)) for s in (1, -1)]
            slope = (ends[0] - ends[1]) / (2 * step)
            # Without rays that all but graze, where second differences are large.
            smooth = jnp.abs(slope) < 20
            return jnp.where(smooth, slope, 0.0), pull(smooth.astype(slope.dtype))

        by_ray, gradient = slopes(given)
        along = sum(float(jnp.sum(a * b)) for a, b in zip(*map(jax.tree.leaves, (gradient, leads)), strict=True))
        assert along == pytest.approx(float(by_ray.sum()), rel=1e-5, abs=1e-4)
        assert np.count_nonzero(by_ray) > 4


@pytest.mark.parametrize("march", [False, True])
def test_what_a_ray_only_passes_is_no_hit(march):
    """A free wall of 40 m, 1 cm, 1 mm and 0.1 mm aside, beside a box that it leads to; and 1 mm within."""
    wall, end = Boxes(array([[20.0, -1, 0]]), array([[20.0, 1, 5]])), Boxes(array([[39.0, 3, 0]]), array([[1.0, 2, 5]]))
    start = array([[0.0, y, 0] for y in (0.01, 1e-3, 1e-4)] + [[0.0, 1.5, 0], [-1, -1e-3, 0]])
    ways = jnp.broadcast_to(array([1.0, 0, 0]), (5, 1, 3))
    free = scan(Own(wall) if march else wall, start, ways)
    np.testing.assert_allclose(free[:, 0], [60.0, 60, 60, 60, 1.0], atol=1e-3)
    both = Union((wall, end))
    np.testing.assert_allclose(scan(Own(both) if march else both, start, ways)[:4, 0], [60, 60, 60, 38], atol=1e-3)
    line = jnp.broadcast_to(array([40.0, 0, 0]), (5, 3))
    np.testing.assert_array_equal(hidden(Own(wall) if march else wall, start, line), [False] * 4 + [True])


@jax.jit
def scan(obstacles, start, ways):
    return 60.0 * scan_rays(obstacles, start, ways, jnp.ones(start.shape[0], bool), jnp.float32(60.0))


@jax.jit
def hidden(obstacles, start, line):
    return blocked(obstacles, start, line)


def test_flat_ground_hides_nobody_above_it_and_a_ridge_does():
    x = np.linspace(0, 400, 101)
    ridge = HeightMap.of(np.tile(np.where(np.abs(x - 200) < 1, 9.0, 0.0)[:, None], (1, 3)), (0, -10), (4, 10))
    start = array([[0.0, 0, 1e-3], [0, 0, 1e-3], [210, 0, 1e-3], [0, 0, 9.5], [200, 1, 12]])
    line = array([[190.0, 0, 0], [210, 0, 0], [900, 3, 0], [400, 0, 0], [0, 0, -8.0]])
    np.testing.assert_array_equal(hidden(ridge, start, line), [False, True, False, False, True])
    down = jnp.broadcast_to(array([0.0, 0, -1]), (5, 1, 3))
    np.testing.assert_allclose(scan(ridge, start, down)[:, 0], [1e-3, 1e-3, 1e-3, 9.5, 3.0], atol=1e-4)


def test_other_entities_are_seen_as_balls_across_the_edge_and_the_dead_are_not():
    size, alive = array([0.5, 0.5, 1.0, 9.0]), jnp.asarray([True, True, True, False])
    place = array([[1.0, 5.0], [9.0, 5.0], [1.0, 8.0], [2.0, 5.0]]).at[3, 1].set(jnp.nan)
    search = AllPairs(Periodic(jnp.zeros(2), jnp.full(2, 10.0)), jnp.float32(7.0))
    wall = Boxes(array([[1.0, 2.0]]), array([[1.0, 1.0]]))

    @jax.jit
    def look(place, size):
        near = search.find(place, alive).nearest(3)
        return 6.0 * scan_obstacles(wall, place, jnp.zeros(4), alive, jnp.float32(6.0), 4, others=near, size=size)

    found = look(place, size)
    # Ahead nobody, to the left the third, behind the second through the edge, to the right the wall.
    np.testing.assert_allclose(found[0], [6.0, 2.0, 1.5, 2.0], atol=1e-5)
    np.testing.assert_allclose(found[1], [1.5, 6.0, 6.0, 6.0], atol=1e-5)
    np.testing.assert_allclose(found[3], 6.0)
    slope = jax.grad(lambda p, s: look(p, s)[0, 1], (0, 1))(place, size)
    np.testing.assert_allclose(slope[0][:3, 1], [-1.0, 0.0, 1.0], atol=1e-5)
    np.testing.assert_allclose(slope[1][:3], [0.0, 0.0, -1.0], atol=1e-5)
    with pytest.raises(ConfigError, match="others and size"):
        scan_rays(wall, place, jnp.ones((4, 1, 2)), alive, jnp.float32(6.0), size=size)


def test_a_lidar_sees_another_drone_before_the_wall_behind_it():
    wall = Boxes(array([[6.0, 0, 2]]), array([[1.0, 5, 2]]))
    place, level = array([[0.0, 0, 2], [3.0, 0, 2]]), jnp.tile(array([0.0, 0, 0, 1]), (2, 1))
    near = AllPairs(Open(jnp.zeros(3), jnp.ones(3)), jnp.float32(10.0)).find(place, jnp.ones(2, bool)).nearest(1)
    ways = into_world(lidar_rays(2, [0.0]), level)
    found = scan_rays(wall, place, ways, jnp.ones(2, bool), jnp.float32(10.0), others=near, size=array([0.2, 0.3]))
    np.testing.assert_allclose(10 * found, [[2.7, 10.0], [2.0, 2.8]], atol=1e-5)
