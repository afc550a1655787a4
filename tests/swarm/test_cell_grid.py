"""The cell grid against all pairs and scipy's cKDTree, over random spaces, crowds and populations."""

import dataclasses
import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from swarm.core.errors import ConfigError
from swarm.geometry.space import Open, Periodic, Walled
from swarm.neighbors import cell_grid
from swarm.neighbors.cell_grid import CellGrid
from swarm.neighbors.questions import AllPairs, Among
from swarm.neighbors.search import SearchTable, neighbor_search

fixed = settings(deadline=None, derandomize=True, max_examples=20)

N = 60
SPACES = {
    "open, 2D": Open(jnp.zeros(2), jnp.asarray([7.0, 5.0])),
    "walled, 2D": Walled(jnp.full(2, -2.0), jnp.asarray([4.5, 9.0]), jnp.float32(1.0)),
    "periodic, 2D": Periodic(jnp.full(2, 1.0), jnp.asarray([6.0, 4.0])),
    "narrow, 2D": Periodic(jnp.zeros(2), jnp.asarray([12.0, 2.0])),
    "periodic, 3D": Periodic(jnp.zeros(3), jnp.asarray([4.0, 3.5, 5.0])),
    "open, 3D": Open(jnp.zeros(3), jnp.asarray([5.0, 2.0, 3.0])),
}


def pair(way, distance, mine, theirs):
    return jnp.stack([jnp.ones(()), way[0], distance, mine[0] * theirs[1]])


@eqx.filter_jit
def both(grid, radius, position, alive, values, label):
    """All answers of both backends, and the ways to those found, measured anew."""
    answers = []
    for search in (AllPairs(grid.space, radius), eqx.tree_at(lambda g: g.radius, grid, radius)):
        found = search.find(position, alive)
        mates, others = (Among(label, same, n_labels=3) for same in (True, False))
        # Restricted from the start, with lists of their own.
        apart = search.find(position, alive, others)
        sums = [found.sum(pair, values, mates), found.min(pair, values), apart.sum(pair, values)]
        nearest, overflow = [found.nearest(5, others), apart.nearest(5)], found.overflow | apart.overflow
        ways = [grid.space.displacement(position[:, None, :], n.gather(position)) for n in nearest]
        answers.append((sums, nearest, ways, overflow))
    return answers


def grid_of(space, windows=(64,)):
    """A grid that always has room, since lists are not longer than there are entities."""
    grid = neighbor_search(space, 1.0, N, SearchTable(backend="cell_grid"))
    assert isinstance(grid, CellGrid)
    return CellGrid(grid.space, grid.radius, grid.cells, windows)


def population(space, seed, crowded):
    """Positions spread over the box, crowded into a corner, or (where space is open) far outside too."""
    rng = np.random.default_rng(seed)
    n_dimensions = space.n_dimensions
    lower, size = np.asarray(space.lower), np.asarray(space.size)
    position = lower + size * rng.uniform(size=(N, n_dimensions)) * (0.25 if crowded else 1.0)
    if isinstance(space, Open):
        position[:9] += 3.7 * size
    position[9] = position[10]  # two in the same place are neighbours
    alive = rng.uniform(size=N) < rng.choice([0.0, 0.3, 0.9, 1.0])
    position = np.where(alive[:, None], position, rng.choice([np.nan, 1e30, 0.0]))
    values = np.where(alive[:, None], rng.normal(size=(N, 2)), np.nan)
    label = np.where(rng.uniform(size=N) < 0.1, -1, rng.integers(0, 3, N))
    return [jnp.asarray(x) for x in (position.astype(np.float32), alive, values.astype(np.float32), label)]


@pytest.mark.parametrize("name", SPACES)
@given(st.integers(0, 2**20), st.booleans(), st.sampled_from([0.3, 0.8, 1.0]))
@fixed
def test_the_cell_grid_is_all_pairs(name, seed, crowded, radius):
    arguments = population(SPACES[name], seed, crowded)
    (sums, nearest, *_), (grid_sums, grid_nearest, ways, overflow) = both(
        grid_of(SPACES[name]), jnp.float32(radius), *arguments
    )
    assert not overflow
    for expected, found in zip(sums, grid_sums, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    alive = np.asarray(arguments[1])
    for expected, found, way in zip(nearest, grid_nearest, ways, strict=True):
        np.testing.assert_array_equal(found.valid, expected.valid)
        # Equally near ones may come in another order, so distances are compared, and that the slots are those.
        np.testing.assert_allclose(found.distance, expected.distance, atol=2e-6)
        for i, row in enumerate(np.asarray(found.index)):
            who = row[row >= 0]
            assert len(set(who)) == len(who)
            assert alive[who].all()
            assert i not in who
        np.testing.assert_allclose(found.displacement, np.where(found.valid[..., None], way, 0.0), atol=1e-6)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("periodic", "n_dimensions"),
    [(False, 2), (True, 3), *(pytest.param(*rare, marks=pytest.mark.slow) for rare in ((False, 3), (True, 2)))],
)
def test_the_cell_grid_is_scipys_tree(periodic, n_dimensions):
    n, side, radius, k = 3000, {2: 40.0, 3: 14.0}[n_dimensions], 1.0, 4
    position = np.random.default_rng(1).uniform(0, side, (n, n_dimensions)).astype(np.float32)
    box = jnp.zeros(n_dimensions), jnp.full(n_dimensions, side)
    space = Periodic(*box) if periodic else Open(*box)
    search = neighbor_search(space, radius, n)
    assert isinstance(search, CellGrid)

    @jax.jit
    def look(position):
        found = search.find(position, jnp.ones(n, bool))
        count = found.sum(lambda way, distance, mine, theirs: jnp.ones(1), position[:, :0])
        return count[:, 0], found.nearest(k), found.overflow

    count, nearest, overflow = look(jnp.asarray(position))
    assert not overflow
    tree = cKDTree(position, boxsize=side if periodic else None)
    near = tree.query_ball_point(position, radius)
    # A pair at the very radius may fall on either side of it.
    assert np.abs(np.asarray([len(x) - 1 for x in near]) - count).sum() <= 2
    distance, _ = tree.query(position, k + 1)
    expected = np.where(distance[:, 1:] < radius, distance[:, 1:], 0.0)
    assert (np.abs(nearest.distance - expected) > 1e-5).sum() <= 2


def questions(k, among):
    """Asks for the nearest of all, of those with another label, or of these by lists of their own."""

    def ask(grid, position, alive, values, label):
        others = Among(label, same=False, n_labels=3)
        found = grid.find(position, alive, others if among == "apart" else None)
        return found.nearest(k, others if among == "restricted" else None)

    return ask


# Each space, number and question by default, all their combinations where there is time.
ASKED = [(k, among) for k in (1, 8) for among in ("all", "restricted", "apart")]
SOME = dict(zip(SPACES, ASKED, strict=True))
ALL = [
    pytest.param(name, *asked, marks=[] if SOME[name] == asked else pytest.mark.slow)
    for name in SPACES
    for asked in ASKED
]


@pytest.mark.parametrize(("name", "k", "among"), ALL)
def test_the_nearest_are_the_same_bits_in_parts_in_rounds_and_with_more_room(monkeypatch, name, k, among):
    """All blocks at once, as on an accelerator, or three at a time; 9 bits for a candidate's number, or 5."""
    whole = dataclasses.replace(grid_of(SPACES[name]), part=10**6)
    arguments, ask = population(SPACES[name], 5, crowded=False), questions(k, among)
    expected = jax.jit(functools.partial(ask, whole))(*arguments)
    assert (expected.index >= 0).sum() > 10
    monkeypatch.setattr(cell_grid, "_NUMBER_BITS", 5)
    monkeypatch.setattr(cell_grid, "_CHUNK", 8)
    cut = dataclasses.replace(whole, part=3, windows=(64, 64))
    found = jax.jit(functools.partial(ask, cut))(*arguments)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_crowd_of_which_numbers_take_many_bits_has_the_nearest_of_all_pairs():
    """Numbers in its lists take 13 bits; the 19 bits beside these would not tell distances apart as finely."""
    n, k = 500, 8
    position = jnp.asarray(np.random.default_rng(0).uniform(0, 1.6, (n, 2)), jnp.float32)
    space = Open(jnp.zeros(2), jnp.full(2, 4.0))
    grid = CellGrid(space, jnp.float32(2.5), (2, 1), (n, 8 * n))
    alive = jnp.ones(n, bool)
    found = jax.jit(lambda p: grid.find(p, alive).nearest(k))(position)
    expected = jax.jit(lambda p: AllPairs(space, jnp.float32(2.5)).find(p, alive).nearest(k))(position)
    finest = 2.0**-22 * 2.5**2
    np.testing.assert_allclose(found.distance**2, expected.distance**2, rtol=0, atol=finest)


def test_the_parts_of_an_accelerator_are_compiled_for_it_and_those_of_a_cpu_for_a_cpu():
    """The loop over parts, by the program that each would run."""
    n, side = 4000, 40.0
    grid = neighbor_search(Periodic(jnp.zeros(2), jnp.full(2, side)), 1.0, n)
    look = jax.jit(lambda p: grid.find(p, jnp.ones(n, bool)).nearest(2).index)
    traced = look.trace(jnp.zeros((n, 2)))

    def largest(platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return max(int(size) for size in re.findall(r"tensor<32x(\d+)x8xui32>", text))

    assert largest("cpu") <= 192
    assert largest("cuda") >= n // 8
    assert n // 8 > 192


def test_a_crowd_overflows_the_window_and_says_so():
    space = SPACES["periodic, 2D"]
    crowd = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (N, 2)), jnp.float32)
    look = eqx.filter_jit(lambda grid, p: grid.find(p, jnp.ones(N, bool)).overflow)
    small, large = grid_of(space, (24, 24)), grid_of(space)
    assert look(grid_of(space, (24, 40)), crowd)  # more than a quarter of the blocks
    assert look(small, crowd)
    assert not look(large, crowd)
    # A radius beyond what the cells were made for.
    assert look(eqx.tree_at(lambda g: g.radius, large, jnp.float32(2.5)), crowd)


def test_the_choice_of_backend_follows_the_number_of_entities():
    space = SPACES["periodic, 2D"]
    assert isinstance(neighbor_search(space, 1.0, 50), AllPairs)
    assert isinstance(neighbor_search(space, 1.0, 5000), CellGrid)
    assert isinstance(neighbor_search(space, float("inf"), 5000), AllPairs)
    assert isinstance(neighbor_search(space, 1.0, 5000, SearchTable(backend="all_pairs")), AllPairs)


def test_cells_are_not_many_more_than_entities():
    wide = neighbor_search(Open(jnp.zeros(2), jnp.full(2, 1e5)), 1.0, 1000)
    assert isinstance(wide, CellGrid)
    assert wide.n_cells <= 4 * 1000


# Narrow spaces, of which one axis cannot give up cells; far too many cells along an axis to count; a tiny radius.
SHAPES = [(1e5, 1e5), (1e9, 1.0), (1e18, 1.0), (1.0, 1e12), (1e30, 3.0, 1e3), (0.5, 7e8, 0.5), (1e38, 1e38, 1e38)]


@pytest.mark.parametrize("size", SHAPES)
def test_cells_are_about_as_many_as_entities_whatever_the_shape_of_the_space(size):
    n = 1000
    grid = neighbor_search(Open(jnp.zeros(len(size)), jnp.asarray(size, jnp.float32)), 1.0, n)
    assert isinstance(grid, CellGrid)
    assert n / 16 <= grid.n_cells <= 2 * n
    across = np.asarray([grid.cells[0] / 2, *grid.cells[1:]])
    assert ((np.asarray(size) / across >= 1.0) | (across == 1)).all()


def test_pairs_at_nearly_the_radius_are_neighbours_in_a_long_space_too():
    """200,000 cells along a side: a place along it in single precision is right to some hundredths of a cell."""
    n, apart = 100_000, 0.75
    # Coordinates hold these exactly; the radius is just beyond the distance to the next.
    along = apart * np.arange(n)
    position = jnp.asarray(np.stack([along, np.zeros(n)], axis=1), jnp.float32)
    space = Open(jnp.zeros(2), jnp.asarray([apart * n + 0.3, 1.0]))
    search = neighbor_search(space, apart * 1.00001, n, SearchTable(room=4))
    assert isinstance(search, CellGrid)
    assert search.cells[0] > n

    @jax.jit
    def count(position):
        found = search.find(position, jnp.ones(n, bool))
        return found.sum(lambda way, distance, mine, theirs: jnp.ones(1), position[:, :0])[:, 0], found.overflow

    seen, overflow = count(position)
    assert not overflow
    np.testing.assert_array_equal(seen, np.where((along == 0) | (along == along[-1]), 1, 2))


def test_more_entities_than_can_be_numbered_are_refused_before_anything_is_made():
    wide = Open(jnp.zeros(2), jnp.full(2, 1e6))
    with pytest.raises(ConfigError, match=r"neighbours of 2147483647 entities.*at most 2147483647.*capacity"):
        neighbor_search(wide, 1.0, 2**31 - 1)
    assert isinstance(neighbor_search(wide, 1.0, 2**30), CellGrid)


def test_labels_that_are_too_many_for_cells_of_their_own_are_told_apart_in_shared_ones():
    space, many = SPACES["periodic, 2D"], 2**28
    position, alive, _, label = population(space, 3, crowded=False)
    grid = grid_of(space)
    assert many * grid.n_cells >= 2**31

    def count(n_labels):
        found = jax.jit(lambda *x: grid.find(*x, Among(label, same=True, n_labels=n_labels)))(position, alive)
        return found.sum(lambda way, distance, mine, theirs: jnp.ones(1), position[:, :0])

    np.testing.assert_array_equal(count(many), count(3))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("millions", [1, 2, 4])
def test_millions_of_entities_see_as_many_neighbours_as_the_circle_holds(millions):
    """Sorting 4 million takes more than 32 bits for a slot and half of a cell."""
    n, area, radius = millions * 10**6, 1.6, 2.0
    side = (area * n) ** 0.5
    search = neighbor_search(Periodic(jnp.zeros(2), jnp.full(2, side)), radius, n)

    @jax.jit
    def look(key):
        position = jax.random.uniform(key, (n, 2), maxval=side)
        found = search.find(position, jnp.ones(n, bool))
        count = found.sum(lambda way, distance, mine, theirs: jnp.ones(1), position[:, :0])
        return jnp.mean(count), jnp.mean(jnp.sum(found.nearest(1).valid, axis=1)), found.overflow

    mean, some, overflow = look(jax.random.key(0))
    assert not overflow
    expected = np.pi * radius**2 / area
    assert mean == pytest.approx(expected, abs=0.01)
    assert some == pytest.approx(1 - np.exp(-expected), abs=1e-3)


@pytest.mark.parametrize("name", ["periodic, 2D", "open, 3D"])
def test_gradients_are_those_of_all_pairs_and_finite(name):
    space = SPACES[name]
    rng = np.random.default_rng(0)
    position = space.lower[None] + space.size[None] * jnp.asarray(
        rng.uniform(size=(N, space.n_dimensions)), jnp.float32
    )
    values, alive = jnp.asarray(rng.normal(size=(N, 2)), jnp.float32), jnp.arange(N) % 3 > 0
    grid = grid_of(space)

    def smooth(way, distance, mine, theirs):
        return jnp.stack([(1.0 - distance**2) ** 2 * theirs[0], jnp.exp(-distance) * mine[1]])

    def energy(search):
        return jax.jit(jax.grad(lambda p, v: jnp.sum(search.find(p, alive).sum(smooth, v) ** 2), argnums=(0, 1)))

    expected = energy(AllPairs(space, jnp.float32(1.0)))(position, values)
    found = energy(grid)(position, values)
    for a, b in zip(found, expected, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    nearest = jax.jit(jax.grad(lambda p: grid.find(p, alive).nearest(3).distance.sum()))(position)
    assert np.isfinite(nearest).all()


@pytest.mark.usefixtures("optimised")
def test_a_world_alone_is_the_world_in_a_batch():
    space = SPACES["periodic, 2D"]
    grid = grid_of(space)

    def look(position, alive, values, label):
        found = grid.find(position, alive)
        return found.sum(pair, values, Among(label, same=True)), found.nearest(4)

    worlds = [population(space, seed, crowded=False) for seed in (1, 2, 3)]
    worlds = [jax.tree.map(np.nan_to_num, world) for world in worlds]
    batch, look = jax.jit(jax.vmap(look))(*(np.stack(x) for x in zip(*worlds, strict=True))), jax.jit(look)
    for i, world in enumerate(worlds):
        for alone, together in zip(jax.tree.leaves(look(*world)), jax.tree.leaves(batch), strict=True):
            np.testing.assert_array_equal(alone, together[i])
