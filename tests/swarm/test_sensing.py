"""What entities sense, against loops over pairs and closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.core.errors import ConfigError
from swarm.dynamics.quaternion import components, from_angles, joined
from swarm.geometry.obstacles import Balls, Boxes, Capsules, Union, blocked
from swarm.geometry.space import Open, Periodic
from swarm.neighbors.questions import AllPairs
from swarm.neighbors.search import SearchTable, neighbor_search
from swarm.sensing.exact import (
    Raster,
    camera_rays,
    into_world,
    lidar_rays,
    neighbor_rows,
    scan_obstacles,
    scan_rays,
    scan_sectors,
    visible,
)

fixed = settings(deadline=None, derandomize=True, max_examples=25)
N, K, N_SECTORS, N_LABELS = 12, 3, 5, 2
SIZE = np.asarray([6.0, 5.0], np.float32)
RADIUS = np.float32(2.0)
BOX = Periodic(jnp.zeros(2), jnp.asarray(SIZE))


def population(seed, n=N, capacity=N):
    """Places, headings, velocities, labels of n slots, some dead ones that hold NaN, and empty slots after them."""
    rng = np.random.default_rng(seed)
    alive = np.zeros(capacity, bool)
    alive[:n] = rng.random(n) < 0.8
    rows = np.full((capacity, 5), np.nan, np.float32)
    rows[:n] = rng.random((n, 5)) * [*SIZE, 2 * np.pi, 2, 2]
    rows[~alive] = np.nan
    label = np.full(capacity, 7)
    label[:n] = rng.integers(0, N_LABELS + 1, n)
    return tuple(jnp.asarray(x) for x in (alive, rows[:, :2], rows[:, 2], rows[:, 3:], label.astype(np.int32)))


def way_to(position, i, j):
    way = position[j] - position[i]
    return way - SIZE * np.round(way / SIZE)


def turned(vector, heading):
    cos, sin = np.cos(heading), np.sin(heading)
    return np.asarray([vector[0] * cos + vector[1] * sin, vector[1] * cos - vector[0] * sin])


def sense(alive, position, heading, velocity, label, backend="all_pairs"):
    search = neighbor_search(BOX, float(RADIUS), alive.shape[0], SearchTable(backend=backend, room=8))
    found = search.find(position, alive)
    values = label.astype(jnp.float32)[:, None]
    rows, mask = neighbor_rows(found.nearest(K), search.radius, velocity, values, heading)
    sectors = scan_sectors(found, search.radius, heading, label, N_SECTORS, N_LABELS)
    return rows, mask, sectors


sense_all_pairs = jax.jit(sense)
sense_cell_grid = jax.jit(lambda *p: sense(*p, backend="cell_grid"))


def expected_of(alive, position, heading, velocity, label):
    """The loop over pairs."""
    rows, mask = np.zeros((N, K, 6)), np.zeros((N, K), bool)
    sectors = np.ones((N, N_SECTORS, N_LABELS))
    for i in np.flatnonzero(alive):
        near = [(np.hypot(*way_to(position, i, j)), j) for j in np.flatnonzero(alive) if j != i]
        near = sorted((distance, j) for distance, j in near if distance < RADIUS)
        for place, (distance, j) in enumerate(near):
            way = turned(way_to(position, i, j), heading[i])
            if place < K:
                relative = turned(velocity[j] - velocity[i], heading[i])
                rows[i, place] = [*way / RADIUS, distance / RADIUS, *relative, label[j]]
                mask[i, place] = True
            s = round(np.arctan2(way[1], way[0]) / (2 * np.pi / N_SECTORS)) % N_SECTORS
            if label[j] < N_LABELS:
                sectors[i, s, label[j]] = min(sectors[i, s, label[j]], distance / RADIUS)
    return rows, mask, sectors


@given(st.integers(0, 10_000))
@fixed
def test_rows_and_sectors_are_those_of_a_loop_over_pairs(seed):
    p = population(seed)
    rows, mask, by_label = expected_of(*(np.asarray(x) for x in p))
    for function in (sense_all_pairs, sense_cell_grid):
        found_rows, found_mask, sectors = function(*p)
        np.testing.assert_array_equal(found_mask, mask)
        np.testing.assert_allclose(found_rows, rows, atol=1e-5)
        np.testing.assert_allclose(sectors.by_label, by_label, atol=1e-5)
        np.testing.assert_allclose(sectors.distance, by_label.min(axis=2), atol=1e-5)
        np.testing.assert_array_equal(sectors.label, np.where(by_label.min(2) < 1, by_label.argmin(2), -1))


def test_a_larger_capacity_and_a_batch_give_the_same_bits():
    for seed in range(3):
        alone = sense_all_pairs(*population(seed))
        double = sense_all_pairs(*population(seed, capacity=2 * N))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:N]), alone, double)
        others = [population(other) for other in (seed, 7, 8)]
        batch = jax.jit(jax.vmap(sense))(*jax.tree.map(lambda *x: jnp.stack(x), *others))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), alone, batch)


def test_rows_without_a_heading_stay_in_the_axes_of_the_world():
    found = AllPairs(BOX, jnp.float32(2.0)).find(jnp.asarray([[0.5, 1.0], [5.5, 2.0]]), jnp.ones(2, bool))
    velocity = jnp.asarray([[1.0, 0.0], [0.0, 3.0]])
    rows, mask = neighbor_rows(found.nearest(2), jnp.float32(2.0), velocity, jnp.zeros((2, 0)))
    np.testing.assert_allclose(rows[0, 0], [-0.5, 0.5, np.sqrt(0.5), -1.0, 3.0], rtol=1e-6)
    np.testing.assert_array_equal(mask, [[True, False], [True, False]])
    np.testing.assert_array_equal(rows[:, 1], 0.0)


def test_one_at_the_same_place_is_straight_ahead():
    found = AllPairs(BOX, jnp.float32(2.0)).find(jnp.ones((2, 2)), jnp.ones(2, bool))
    sectors = scan_sectors(found, jnp.float32(2.0), jnp.asarray([0.3, 2.0]), jnp.zeros(2, jnp.int32), 4)
    np.testing.assert_array_equal(sectors.distance, [[0, 1, 1, 1]] * 2)
    np.testing.assert_array_equal(sectors.label, [[0, -1, -1, -1]] * 2)


@pytest.mark.parametrize("n_sectors", [3, 4, 8])
def test_who_stands_on_an_edge_is_in_one_sector(n_sectors):
    # Whole multiples of half a sector around the first, from places that no float holds exactly.
    angle = np.arange(4 * n_sectors) * np.pi / n_sectors / 2
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)

    @jax.jit
    @jax.vmap
    def n_seen(there):
        found = AllPairs(BOX, jnp.float32(2.0)).find(jnp.stack([jnp.zeros(2), there]) + 0.1, jnp.ones(2, bool))
        sectors = scan_sectors(found, jnp.float32(2.0), jnp.zeros(2), jnp.zeros(2, jnp.int32), n_sectors)
        return jnp.sum(sectors.label >= 0, axis=1)

    np.testing.assert_array_equal(n_seen(jnp.asarray(ring, jnp.float32)), 1)


def test_too_few_sectors_are_refused():
    found = AllPairs(BOX, jnp.float32(2.0)).find(jnp.ones((2, 2)), jnp.ones(2, bool))
    with pytest.raises(ConfigError, match="at least 3"):
        scan_sectors(found, jnp.float32(2.0), jnp.zeros(2), jnp.zeros(2, jnp.int32), 2)


def test_gradients_are_finite_beside_the_dead_and_at_the_same_place():
    alive, position, heading, velocity, label = population(0)
    position = position.at[:2].set(1.0)
    alive, heading = alive.at[:2].set(True), heading.at[:2].set(0.0)
    velocity = velocity.at[:2].set(0.0)

    @jax.jit
    @jax.grad
    def slope(parts):
        rows, _, sectors = sense(alive, *parts, label)
        return jnp.sum(rows**2) + jnp.sum(sectors.by_label**2)

    for gradient in slope((position, heading, velocity)):
        assert bool(jnp.all(jnp.isfinite(gradient)))
    np.testing.assert_array_equal(slope((position, heading, velocity))[2][~alive], 0.0)


def test_rays_meet_a_ball_and_a_wall():
    # From the origin, facing along y: a ball ahead, a wall to the left (negative x), nothing elsewhere.
    ball = Balls(jnp.asarray([[0.0, 5.0]]), jnp.asarray([1.0]))
    wall = Boxes(jnp.asarray([[-4.0, 0.0]]), jnp.asarray([[1.0, 50.0]]))
    position, heading = jnp.asarray([[0.0, 0.0], [0.0, 5.0]]), jnp.asarray([np.pi / 2, 0.0])
    alive = jnp.ones(2, bool)
    ahead = scan_obstacles(ball, position, heading, alive, jnp.float32(8.0), 4)
    np.testing.assert_allclose(ahead[0], [4 / 8, 1, 1, 1], atol=1e-5)
    np.testing.assert_array_equal(ahead[1], 0.0)
    aside = scan_obstacles(wall, position[:1], heading[:1], alive[:1], jnp.float32(8.0), 8, n_iterations=64)
    np.testing.assert_allclose(aside[0, 1:4], [3 * np.sqrt(2) / 8, 3 / 8, 3 * np.sqrt(2) / 8], atol=1e-4)
    np.testing.assert_allclose(aside[0, 5:8], 1.0)


@given(st.integers(0, 10_000))
@fixed
def test_a_ray_is_never_longer_than_the_way_to_the_obstacle(seed):
    rng = np.random.default_rng(seed)
    centre, size = rng.normal(size=(4, 2)) * 4, rng.random(4) + 0.2
    ranges = scan(jnp.asarray(centre, jnp.float32), jnp.asarray(size, jnp.float32))
    for s, angle in enumerate(2 * np.pi * np.arange(6) / 6):
        along = centre @ [np.cos(angle), np.sin(angle)]
        beside = (centre**2).sum(1) - along**2
        if np.any((centre**2).sum(1) <= size**2):
            exact = 0.0
        else:
            hit = (beside <= size**2) & (along > 0)
            exact = np.where(hit, along - np.sqrt(np.maximum(size**2 - beside, 0)), 8.0).min()
        assert ranges[0, s] * 8 <= exact + 1e-3


def test_ranges_have_the_slope_of_the_surface_that_they_meet():
    # A ball ahead: the range grows with its distance and shrinks with its radius, whatever a dead slot holds.
    position, heading = jnp.asarray([[0.0, 0.0], [np.nan, 0.0]]), jnp.asarray([0.0, np.nan])

    def ahead(distance, size):
        ball = Balls(jnp.stack([distance, jnp.zeros(())])[None], size[None])
        found = scan_obstacles(ball, position, heading, jnp.asarray([True, False]), jnp.float32(8.0), 3)
        return jnp.sum(found) * 8.0

    value, slope = jax.jit(jax.value_and_grad(ahead, argnums=(0, 1)))(jnp.float32(5.0), jnp.float32(1.0))
    np.testing.assert_allclose(value, 5 * 8.0 + 4.0, rtol=1e-6)
    np.testing.assert_allclose(slope, [1.0, -1.0], rtol=1e-6)


CAVE = Union(
    (Balls(jnp.asarray([[4.0, 0.0, 0.0]]), jnp.ones(1)), Boxes(jnp.asarray([[0.0, 0, -6]]), jnp.full((1, 3), 4.0)))
)


@jax.jit
def scan_cave(rays, attitude):
    ways = into_world(rays, attitude)
    return 10.0 * scan_rays(CAVE, jnp.zeros((2, 3)), ways, jnp.asarray([True, False]), jnp.float32(10.0), 48)


def test_a_lidar_and_a_depth_camera_see_a_ball_and_the_ground():
    # A ball 3 m ahead, the ground 2 m below as far as 4 m aside; the second looks at nothing, being dead.
    level = jnp.asarray([[0.0, 0, 0, 1], [np.nan] * 4])
    tilt = np.pi / 4
    found = scan_cave(lidar_rays(4, [0.0, -tilt]), level)
    np.testing.assert_allclose(found[0], [3.0, 10, 10, 10, 2 / np.sin(tilt), *[2 / np.sin(tilt)] * 3], atol=1e-2)
    np.testing.assert_array_equal(found[1], 10.0)
    # Turned to the left by a right angle, the ball is on the right; pitched down, the ground is ahead.
    turned = joined(from_angles(components(jnp.asarray([[0.0, 0.0, np.pi / 2], [0.0, 0.0, 0.0]]))))
    np.testing.assert_allclose(scan_cave(lidar_rays(4, [0.0, -tilt]), turned)[0, :4], [10, 10, 10, 3], atol=1e-2)
    down = joined(from_angles(components(jnp.asarray([[0.0, np.pi / 2, 0.0], [0.0, 0.0, 0.0]]))))
    rays = camera_rays(3, 5, np.pi / 2)
    depth = scan_cave(rays, down)[0] * rays[:, 0]
    np.testing.assert_allclose(depth, 2.0, atol=1e-2)
    # Square pixels: the edges of the outer ones are 45 degrees aside; the top left one looks up and left.
    np.testing.assert_allclose(rays[0] / rays[0, 0], [1.0, 0.8, 0.4], rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(rays, axis=1), 1.0, rtol=1e-6)
    with pytest.raises(ConfigError, match="width_angle = 4"):
        camera_rays(3, 5, 4.0)


def chord(start, way, centre, radius):
    """Length of a segment's part within a ball, and its length."""
    size = np.linalg.norm(way)
    along = (centre - start) @ way / size
    half = np.sqrt(max(radius**2 - np.sum((start + along * way / size - centre) ** 2), 0.0))
    return min(along + half, size) - max(along - half, 0.0), size


@pytest.mark.parametrize("d", [2, 3])
def test_a_line_is_blocked_where_a_ball_is_in_its_way(d):
    rng = np.random.default_rng(d)
    start, way = rng.normal(size=(2, 400, d)).astype(np.float32) * 2
    centre, radius = rng.normal(size=(3, d)), np.asarray([0.3, 0.7, 1.2])
    balls = Balls(jnp.asarray(centre, jnp.float32), jnp.asarray(radius, jnp.float32))
    found = np.asarray(jax.jit(lambda s, w: blocked(balls, s, w, 16))(start, way))
    inside = [[chord(s, w, c, r) for c, r in zip(centre, radius, strict=True)] for s, w in zip(start, way, strict=True)]
    share = np.asarray([max(part / size for part, size in row) for row in inside])
    assert found[share > 1e-4].all()
    assert not found[share <= 0].any()
    assert (share > 1e-4).sum() > 25 < (share <= 0).sum()
    # No length: whether the place is within.
    assert blocked(balls, balls.centre, jnp.zeros((3, d))).all()


def test_who_is_seen_is_in_the_cone_near_and_in_sight():
    place = jnp.asarray([[0.0, 0, 0], [3, 0, 0], [2, 1.9, 0], [2, 0, 2.1], [-1, 0, 0], [5, 0, 0], [np.nan] * 3])
    alive = jnp.arange(7) < 6
    forward = jnp.tile(jnp.asarray([[1.0, 0.0, 0.0]]), (7, 1))
    pole = Capsules(jnp.asarray([[1.5, 0.0, -9]]), jnp.asarray([[1.5, 0.0, 9.0]]), jnp.asarray([0.1]))

    @jax.jit
    def look(obstacles, half_angle, radius):
        found = AllPairs(Open(jnp.zeros(3), jnp.ones(3)), jnp.float32(9.0)).find(place, alive).nearest(6)
        return found.index, visible(found, place, forward, half_angle, radius, obstacles)

    def seen(obstacles, half_angle=np.pi / 4, radius=4.0):
        index, mask = look(obstacles, jnp.float32(half_angle), jnp.float32(radius))
        assert not mask[6].any()
        return {int(i) for i in index[0][mask[0]]}

    assert seen(None) == {1, 2}
    assert seen(None, np.pi) == {1, 2, 3, 4}
    assert seen(None, np.pi / 4, 9.0) == {1, 2, 5}
    assert seen(pole) == {2}


@jax.jit
def scan(centre, size):
    return scan_obstacles(Balls(centre, size), jnp.zeros((1, 2)), jnp.zeros(1), jnp.ones(1, bool), jnp.float32(8.0), 6)


@given(st.integers(0, 10_000), st.sampled_from([(2, 1), (3, 1), (3, 4)]))
@fixed
def test_a_raster_sums_what_a_loop_sums(seed, dimensions):
    (d, n_bands), rng = dimensions, np.random.default_rng(seed)
    lower, size = np.asarray([-1.0, 2.0, 0.5])[:d], np.asarray([4.0, 2.0, 8.0])[:d]
    # A little beyond the box on either side; whole numbers sum exactly in any order.
    position = (lower + size * (1.2 * rng.random((20, d)) - 0.1)).astype(np.float32)
    alive, values = rng.random(20) < 0.7, rng.integers(-9, 9, (20, 2)).astype(np.float32)
    raster = Raster(jnp.asarray(lower, jnp.float32), jnp.asarray(size, jnp.float32), (3, 5), n_bands)
    expected = np.zeros((3, 5, n_bands, 2))
    cells = np.zeros((20, 2), int)
    for i in np.flatnonzero(alive):
        turns = (position[i].astype(np.float64) - lower) / size
        column, row = np.clip(np.floor(turns[:2] * [5, 3]), 0, [4, 2]).astype(int)
        band = int(np.clip(np.floor(turns[2] * n_bands), 0, n_bands - 1)) if d == 3 else 0
        expected[row, column, band] += values[i]
        cells[i] = row, column
    place = jnp.asarray(np.where(alive[:, None], position, np.nan))
    shown = jnp.asarray(np.where(alive[:, None], values, np.nan))
    np.testing.assert_array_equal(cell_of(raster, place, jnp.asarray(alive)), cells)
    np.testing.assert_array_equal(sum_of(raster, place, jnp.asarray(alive), shown), expected.reshape(3, 5, -1))


cell_of = eqx.filter_jit(Raster.cell)
sum_of = eqx.filter_jit(Raster.sum)


def test_bands_need_an_altitude():
    with pytest.raises(ConfigError, match="third axis"):
        Raster(jnp.zeros(2), jnp.ones(2), (4, 4), 2)


def test_an_open_space_is_sensed_too():
    space = Open(jnp.zeros(3), jnp.ones(3))
    found = AllPairs(space, jnp.float32(2.0)).find(jnp.asarray([[0.0, 0, 0], [0, 0, 1]]), jnp.ones(2, bool))
    rows, _ = neighbor_rows(found.nearest(1), jnp.float32(2.0), jnp.zeros((2, 3)), jnp.ones((2, 1)))
    np.testing.assert_allclose(rows[:, 0], [[0, 0, 0.5, 0.5, 0, 0, 0, 1], [0, 0, -0.5, 0.5, 0, 0, 0, 1]])
