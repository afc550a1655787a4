"""Signed distances against densely sampled surfaces, and collisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.path import Path

from swarm.geometry.obstacles import Balls, Boxes, Capsules, Polygons, Union, collide

fixed = settings(deadline=None, derandomize=True, max_examples=40)
N = 6
ROUND = np.linspace(0, 2 * np.pi, 2001)
CIRCLE = np.stack([np.cos(ROUND), np.sin(ROUND)], axis=1)


def eighths(low, high, shape):
    return hnp.arrays(np.float32, shape, elements=st.integers(low, high).map(lambda i: i / 8))


def points(d):
    return eighths(-40, 40, (N, d))


def array(x):
    return jnp.asarray(x, jnp.float32)


measure = jax.jit(lambda obstacles, point: obstacles.distance_and_normal(point))


def outline(corners, n=2000):
    """Points along a closed polygon, corners included."""
    ends = np.roll(corners, -1, axis=0)
    return np.concatenate([a + (b - a) * np.linspace(0, 1, n)[:, None] for a, b in zip(corners, ends, strict=True)])


def turned(points, angle):
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.asarray([[cos, sin], [-sin, cos]])


def check(obstacles, point, surface, inside):
    """Size and sign; the samples may lie a spacing aside of the nearest point."""
    found, normal = (np.asarray(x) for x in measure(obstacles, array(point)))
    sampled = np.linalg.norm(point[:, None] - surface[None], axis=-1).min(axis=1)
    spacing = 0.01
    assert (np.abs(found) <= sampled + 1e-4).all()
    # Far from the surface, half a spacing aside makes a difference of second order.
    assert (np.abs(found) >= np.sqrt(np.maximum(sampled**2 - spacing**2, 0)) - 1e-4).all()
    clear = np.abs(found) > 1e-4
    np.testing.assert_array_equal((found < 0)[clear], inside[clear])
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1.0, atol=1e-5)


@given(points(2), eighths(-16, 16, (2,)), st.integers(1, 16).map(lambda i: i / 8))
@fixed
def test_balls(point, centre, radius):
    inside = np.linalg.norm(point - centre, axis=1) < radius
    check(Balls(array(centre[None]), array([radius])), point, centre + radius * CIRCLE, inside)


@given(points(2), eighths(-16, 16, (2,)), eighths(1, 16, (2,)), st.sampled_from([None, 0.0, 0.5, 2.5]))
@fixed
def test_boxes(point, centre, half, angle):
    corners = centre + turned(half * np.asarray([[1, 1], [-1, 1], [-1, -1], [1, -1]]), angle or 0.0)
    boxes = Boxes(array(centre[None]), array(half[None]), None if angle is None else array([angle]))
    check(boxes, point, outline(corners), Path(corners).contains_points(point))


@given(points(2), eighths(-16, 16, (2, 2)), st.integers(1, 8).map(lambda i: i / 8))
@fixed
def test_capsules(point, ends, radius):
    a, b = ends.astype(float)
    axis = a + (b - a) * np.linspace(0, 1, 4001)[:, None]
    sampled = np.linalg.norm(point[:, None] - axis[None], axis=-1).min(axis=1) - radius
    found, normal = measure(Capsules(array(a[None]), array(b[None]), array([radius])), array(point))
    np.testing.assert_allclose(found, sampled, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1.0, atol=1e-5)


@given(points(2), hnp.arrays(np.float32, (7,), elements=st.sampled_from([0.5, 1.0, 3.0])), st.booleans(), st.booleans())
@fixed
def test_polygons_convex_or_not(point, reach, backwards, shorter):
    angles = np.arange(7) * 2 * np.pi / 7
    corners = reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1) + np.asarray([0.3, -0.2])
    corners = corners[::-1] if backwards else corners
    corners = corners[:5] if shorter else corners
    padded = np.concatenate([corners, np.repeat(corners[-1:], 7 - len(corners), axis=0)])
    check(Polygons(array(padded[None])), point, outline(corners), Path(corners).contains_points(point))


def test_shapes_in_space():
    rng = np.random.default_rng(0)
    point = rng.uniform(-3, 3, (200, 3))
    centre, half = np.asarray([0.5, 0.0, -0.5]), np.asarray([1.0, 0.5, 1.5])
    # The nearest point of a box, and of a segment, by search over many.
    grid = np.stack(np.meshgrid(*[np.linspace(-h, h, 61) for h in half], indexing="ij"), axis=-1).reshape(-1, 3)
    shell = grid[(np.abs(grid) >= half - 1e-9).any(axis=1)] + centre
    sampled = np.stack([np.linalg.norm(p - shell, axis=-1).min() for p in point])
    inside = (np.abs(point - centre) < half).all(axis=1)
    found, _ = measure(Boxes(array(centre[None]), array(half[None])), array(point))
    np.testing.assert_allclose(np.abs(found), sampled, atol=2e-2)
    np.testing.assert_array_equal(np.asarray(found) < 0, inside)
    a, b = np.asarray([-1.0, 0.5, 0.0]), np.asarray([1.0, -0.5, 2.0])
    axis = a + (b - a) * np.linspace(0, 1, 2001)[:, None]
    found, _ = measure(Capsules(array(a[None]), array(b[None]), array([0.4])), array(point))
    np.testing.assert_allclose(
        found, np.stack([np.linalg.norm(p - axis, axis=-1).min() for p in point]) - 0.4, atol=1e-4
    )
    found, _ = measure(Balls(array(centre[None]), array([0.7])), array(point))
    np.testing.assert_allclose(found, np.linalg.norm(point - centre, axis=1) - 0.7, atol=1e-5)


# Several of each sort; among them a notched polygon and a capsule without length.
L_SHAPE = [[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]
TRIANGLE = [[-3, 0], [-2, 0], [-3, 1]]
SHAPES = {
    "balls": lambda: Balls(array([[0, 0], [1, 1], [-3, 2]]), array([1, 0.5, 1])),
    "boxes": lambda: Boxes(array([[0, 0], [4, 0], [-3, 2]]), array([[1, 1], [1, 2], [0.5, 1]]), array([0, 0, 0.4])),
    "capsules": lambda: Capsules(array([[0, 0], [2, 2]]), array([[1, 1], [2, 2]]), array([0.5, 0.25])),
    "polygons": lambda: Polygons(array([L_SHAPE, TRIANGLE + [TRIANGLE[-1]] * 3])),
}
SPECIAL = [[0, 0], [1, 1], [2, 0], [1, 0], [0.5, 0.5], [2, 2], [1.5, 1], [1, 1.5], [-3, 0.5], [-2.5, 0.5], [3, 0.3]]
MANY = array(np.random.default_rng(1).uniform(-4, 4, (200, 2)))


def everything():
    return Union(tuple(make() for make in SHAPES.values()))


@pytest.mark.parametrize("name", SHAPES)
def test_the_slope_is_1_and_the_normal_leads_out(name):
    obstacles = SHAPES[name]()
    slope = jax.jit(jax.vmap(jax.grad(obstacles.of_point)))(MANY)
    np.testing.assert_allclose(np.linalg.norm(slope, axis=1), 1.0, atol=1e-4)
    distance, normal = measure(obstacles, MANY)
    np.testing.assert_allclose(normal, slope, atol=1e-4)
    ahead, _ = measure(obstacles, MANY + 1e-2 * normal)
    np.testing.assert_allclose(np.median(ahead - distance), 1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", SHAPES)
def test_from_surfaces_corners_and_middles_the_normal_leads_out(name):
    # Centres, corners, edges and axes, where distances have no gradient of their own.
    special = array([*SPECIAL, *SPECIAL * 18])[:200]
    distance, normal = measure(SHAPES[name](), special)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1.0, atol=1e-5)
    ahead, _ = measure(SHAPES[name](), special + 1e-2 * normal)
    gained, solid = np.asarray(ahead - distance), np.asarray(distance) <= 0
    # From the notch the normal of one edge leads along the other.
    notch = (np.asarray(special) == 1.0).all(axis=1) & (name == "polygons")
    assert (gained[solid & ~notch] > 4e-3).all()
    assert (gained[notch] > -1e-6).all()


def test_the_nearest_of_many_counts():
    polygons = SHAPES["polygons"]()
    singles = [Polygons(polygons.vertices[i : i + 1]) for i in range(2)]
    for whole, parts in ((polygons, singles), (everything(), everything().members)):
        each = np.stack([measure(part, MANY)[0] for part in parts])
        np.testing.assert_allclose(measure(whole, MANY)[0], each.min(axis=0), atol=1e-6)


def test_without_shapes_nothing_is_near():
    for nothing in (Union(()), Balls(jnp.zeros((0, 2)), jnp.zeros(0)), Polygons(jnp.zeros((0, 3, 2)))):
        distance, normal = measure(nothing, jnp.ones((N, 2)))
        assert (np.asarray(distance) == np.inf).all()
        assert (np.asarray(normal) == 0).all()
        after = bounce(nothing, jnp.ones((N, 2)), jnp.ones((N, 2)), jnp.ones(N), jnp.float32(1.0))
        np.testing.assert_array_equal(after, np.ones((2, N, 2)))


bounce = jax.jit(lambda *given: collide(*given))
RADIUS = 0.25


@pytest.mark.parametrize("name", SHAPES)
def test_collisions_leave_nobody_inside_nor_faster(name):
    obstacles, radius = SHAPES[name](), jnp.full(N, RADIUS)

    # Centres up to a little inside the surface: what a step may do.
    @given(points(2), eighths(-16, 16, (N, 2)), st.sampled_from([0.0, 0.5, 1.0]))
    @fixed
    def run(position, velocity, restitution):
        deep = np.asarray(measure(obstacles, array(position))[0]) < -0.25
        position = np.where(deep[:, None], position + 9.0, position)
        before = np.asarray(measure(obstacles, array(position))[0])
        place, way = (np.asarray(x) for x in bounce(obstacles, position, velocity, radius, jnp.float32(restitution)))
        free = before >= RADIUS
        np.testing.assert_array_equal(place[free], position[free])
        np.testing.assert_array_equal(way[free], velocity[free])
        after, _ = measure(obstacles, array(place))
        assert (np.asarray(after) > RADIUS - 2e-2).all()
        speeds = np.linalg.norm(velocity, axis=1), np.linalg.norm(way, axis=1)
        assert (speeds[1] <= speeds[0] * (1 + 1e-5) + 1e-6).all()
        if restitution == 1.0:
            np.testing.assert_allclose(speeds[1], speeds[0], atol=1e-4)

    run()


def test_a_ball_bounces_off_a_wall_and_slides_along_it():
    wall = Boxes(array([[0, -1]]), array([[10, 1]]))
    place, way = bounce(wall, array([[0, 0.1]]), array([[3, -2]]), array([0.5]), jnp.float32(0.5))
    np.testing.assert_allclose(place, [[0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(way, [[3, 1]], atol=1e-6)
    # Who already leaves keeps its velocity.
    _, way = bounce(wall, array([[0, 0.1]]), array([[3, 2]]), array([0.5]), jnp.float32(0.5))
    np.testing.assert_array_equal(way, [[3, 2]])


def test_a_corner_between_two_walls_stops_on_both_sides():
    corner = Boxes(array([[0, -1], [-1, 0]]), array([[10, 1], [1, 10]]))
    place, way = bounce(corner, array([[0.1, 0.2]]), array([[-1, -3]]), array([0.5]), jnp.float32(0.0))
    np.testing.assert_allclose(place, [[0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(way, [[0, 0]], atol=1e-6)


def test_gradients_are_finite_and_the_dead_may_hold_anything():
    n = len(SPECIAL) + 1
    obstacles, radius, alive = everything(), jnp.full(n, RADIUS), jnp.arange(n) != n - 1
    velocity = array([[-1, 1], [0, 0], [1, 0], *[[1, -1]] * (n - 3)])

    def loss(position, velocity, radius, obstacles):
        ends = collide(obstacles, position, velocity, radius, jnp.float32(0.5))
        return sum(jnp.sum(jnp.square(jnp.where(alive[:, None], x, 0.0))) for x in ends)

    slope = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    clean, dirty = (slope(array([*SPECIAL, last]), velocity, radius, obstacles) for last in ([9, 8], [np.nan, np.nan]))
    for one, other in zip(clean, dirty, strict=True):
        assert np.isfinite(np.asarray(one)[alive]).all()
        np.testing.assert_array_equal(np.asarray(one)[alive], np.asarray(other)[alive])


def test_alone_and_in_a_batch_the_bits_are_the_same():
    rng = np.random.default_rng(3)
    position, velocity = (array(rng.uniform(-3, 3, (5, N, 2))) for _ in range(2))
    obstacles, radius, restitution = everything(), jnp.full(N, RADIUS), jnp.float32(0.5)
    together = jax.jit(jax.vmap(lambda p, v: collide(obstacles, p, v, radius, restitution)))(position, velocity)
    for b in range(5):
        alone = bounce(obstacles, position[b], velocity[b], radius, restitution)
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, many[b])
