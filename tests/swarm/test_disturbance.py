"""Air: laws of wind with height, turbulence against its closed form, downwash against its formula."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.core.errors import ConfigError
from swarm.dynamics import load_airframe
from swarm.dynamics.air import FOOT, Downwash, Dryden, Gust, Shear, Weather
from swarm.geometry.space import Open
from swarm.neighbors.search import SearchTable, neighbor_search
from swarm.population.entities import Entities

N = 20_000
HEIGHT = 30.0
SPEED = 12.0
DRYDEN = Dryden(jnp.float32(10.0), jnp.float32(0.3))


def population(n, height=HEIGHT, start=0):
    uid = start + jnp.arange(n, dtype=jnp.int32)
    place = jnp.zeros((n, 3)).at[:, 2].set(height)
    return eqx.tree_at(lambda e: (e.alive, e.uid, e.position), Entities.empty(n, 3, 0), (jnp.ones(n, bool), uid, place))


@eqx.filter_jit
def turbulence(entities, mean, key, dt, n_steps):
    """The first draw, and the last of `n_steps` more."""
    mean = jnp.broadcast_to(mean, entities.position.shape)
    first = DRYDEN.step(DRYDEN.init(entities), entities, mean, key, dt)

    def body(i, carry):
        return DRYDEN.step(carry[0], entities, mean, jax.random.fold_in(key, i), dt)

    return first, jax.lax.fori_loop(1, n_steps + 1, body, first)


def closed_form():
    """Lengths and standard deviations by MIL-F-8785C in feet, at HEIGHT and 10 m/s."""
    h = HEIGHT / FOOT
    base = 0.177 + 0.000823 * h
    level = h / base**1.2 * FOOT
    return np.asarray([level, level, HEIGHT]), np.asarray([1.0 / base**0.4, 1.0 / base**0.4, 1.0])


# One step of one time constant of a component, many small ones, and one so small that formulas would cancel.
@pytest.mark.parametrize(("share", "n_steps"), [(1.0, 1), (1.0, 16), (1e-3, 1)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turbulence_has_the_variance_and_the_correlation_in_time_of_the_closed_form(share, n_steps, axis):
    lengths, sigmas = closed_form()
    t = share * lengths[axis] / SPEED
    mean = jnp.asarray([[SPEED, 0.0, 0.0]])
    (_, before), (_, after) = turbulence(
        population(N), mean, jax.random.key(3), jnp.float32(t / n_steps), jnp.int32(n_steps)
    )
    before, after = (np.asarray(x)[:, axis] / sigmas[axis] for x in (before, after))
    np.testing.assert_allclose([np.mean(before**2), np.mean(after**2)], 1.0, atol=0.05)
    x = share
    expected = np.exp(-x) * (1.0 if axis == 0 else 1.0 - x / 2)
    # The mean square of the change tells small steps apart, too.
    np.testing.assert_allclose(np.mean((after - before) ** 2), 2 * (1 - expected), rtol=0.05)


def test_components_follow_the_wind():
    (_, along), _ = turbulence(
        population(64), jnp.asarray([[0.0, SPEED, 0.0]]), jax.random.key(1), jnp.float32(0.1), jnp.int32(0)
    )
    (_, ahead), _ = turbulence(
        population(64), jnp.asarray([[SPEED, 0.0, 0.0]]), jax.random.key(1), jnp.float32(0.1), jnp.int32(0)
    )
    np.testing.assert_allclose(along[:, 1], ahead[:, 0])
    np.testing.assert_allclose(along[:, 0], -ahead[:, 1])


def test_eddies_belong_to_identities():
    def run(entities):
        return turbulence(entities, jnp.asarray([[SPEED, 0.0, 0.0]]), jax.random.key(1), jnp.float32(0.1), jnp.int32(3))

    eddies, wind = run(population(8))[1]
    twice = run(population(16))[1][1]
    np.testing.assert_array_equal(wind, twice[:8])
    assert np.isfinite(twice).all()
    assert len(np.unique(twice[:, 0])) == 16
    # A slot that passes to another entity gets eddies drawn anew; the others go on.
    passed = eqx.tree_at(lambda e: e.uid, population(8), jnp.arange(8, dtype=jnp.int32).at[2].set(99))
    mean = jnp.broadcast_to(jnp.asarray([[SPEED, 0.0, 0.0]]), (8, 3))
    step = eqx.filter_jit(DRYDEN.step)
    kept, _ = step(eddies, population(8), mean, jax.random.key(5), jnp.float32(1e-3))
    new, _ = step(eddies, passed, mean, jax.random.key(5), jnp.float32(1e-3))
    changed = (np.asarray(kept.filters) != np.asarray(new.filters)).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed), [2])
    assert np.abs(new.filters[2] - eddies.filters[2]).max() > 0.1
    assert np.abs(kept.filters - eddies.filters).max() < 0.1


def test_wind_grows_with_height_and_gusts_pass():
    shear = Shear(jnp.asarray([6.0, -3.0, 0.0]), jnp.float32(0.15 * FOOT))
    place = jnp.asarray([[0.0, 0.0, z] for z in (20 * FOOT, 100 * FOOT, 0.15 * FOOT, 0.0)])
    share = [1.0, np.log(100 / 0.15) / np.log(20 / 0.15), 0.0, 0.0]
    np.testing.assert_allclose(shear.at(place), np.outer(share, [6.0, -3.0, 0.0]), atol=1e-5)
    gust = Gust(jnp.asarray([0.0, 4.0, 0.0]), jnp.float32(2.0), jnp.float32(3.0))
    found = [float(gust.at(jnp.float32(t))[1]) for t in (1.0, 2.0, 2.75, 3.5, 4.25, 5.0, 9.0)]
    np.testing.assert_allclose(found, [0.0, 0.0, 2.0, 4.0, 2.0, 0.0, 0.0], atol=1e-5)
    weather = Weather(shear, gust, DRYDEN)
    entities = population(4)
    eddies, air = eqx.filter_jit(weather.step)(
        weather.init(entities), entities, jnp.float32(3.5), jax.random.key(0), jnp.float32(0.1)
    )
    _, still = eqx.filter_jit(weather.step)(
        weather.init(entities), entities, jnp.float32(9.0), jax.random.key(0), jnp.float32(0.1)
    )
    np.testing.assert_allclose(air.wind - still.wind, jnp.asarray([[0.0, 4.0, 0.0]] * 4), atol=1e-5)
    assert eddies is not None
    assert Weather(shear).step(None, entities, jnp.float32(0.0), jax.random.key(0), jnp.float32(0.1))[0] is None


WEIGHT = 0.027 * 9.8


def formula(way, thrust=WEIGHT):
    """gym-pybullet-drones' numbers: of a CF2X, `way` metres above and aside; they were measured as it hovered."""
    dz = way[2]
    alpha, beta = 2267.18 * (0.0231348 / 4 / dz) ** 2, 0.16 * dz - 0.11
    return -thrust * min(alpha / WEIGHT, 1.0) * np.exp(-0.5 * (np.hypot(*way[:2]) / beta) ** 2) if dz > 0 else 0.0


@pytest.mark.parametrize("backend", ["all_pairs", "cell_grid"])
def test_downwash_is_the_sum_of_the_formula_over_those_above(backend):
    downwash = Downwash.of([load_airframe("cf2x")])
    rng = np.random.default_rng(0)
    n = 24
    place = np.concatenate([[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.05, 0.02, 0.3]], rng.uniform(0, 3, (n - 3, 3))])
    alive = np.arange(n) != 7
    place[7] = np.nan
    space = Open(jnp.zeros(3), jnp.full(3, 4.0))
    search = neighbor_search(space, 2.0, n, SearchTable(backend=backend, room=8))

    @jax.jit
    def force(place):
        found = search.find(place, jnp.asarray(alive))
        return downwash.air(found, jnp.zeros(n, jnp.int32)).force, found.overflow

    found, overflow = force(jnp.asarray(place, jnp.float32))
    assert not overflow
    for i in range(n):
        others = [j for j in range(n) if j != i and alive[j] and np.linalg.norm(place[j] - place[i]) < 2.0]
        expected = sum(formula(place[j] - place[i]) for j in others) if alive[i] else 0.0
        np.testing.assert_allclose(found[i], [0.0, 0.0, expected], rtol=2e-4, atol=1e-6)
    # One metre below: 0.0758 N, a third of the weight.
    assert formula(np.asarray([0.0, 0.0, 1.0])) == pytest.approx(-0.07584, abs=1e-5)


def test_downwash_grows_with_the_thrust_above_and_is_at_most_that():
    downwash, n = Downwash.of([load_airframe("cf2x")]), 2
    search = neighbor_search(Open(jnp.zeros(3), jnp.full(3, 4.0)), 3.0, n, SearchTable(backend="all_pairs", room=8))

    @jax.jit
    @jax.vmap
    def push(way, thrust):
        found = search.find(jnp.stack([jnp.zeros(3), way]), jnp.ones(n, bool))
        both = downwash.air(found, jnp.zeros(n, jnp.int32), jnp.stack([jnp.zeros(()), thrust])).force[:, 2]
        return both

    rng = np.random.default_rng(0)
    way = np.abs(rng.normal(size=(300, 3)) * [0.1, 0.1, 0.5])
    way[:4] = [[0.0, 0.0, 1e-20], [0.0, 0.0, 1e-3], [0.0, 0.0, 0.3], [0.0, 0.0, 1.0]]
    for thrust in (0.0, 0.1, WEIGHT, 0.6):
        found = np.asarray(push(jnp.float32(way), jnp.full(300, thrust)))
        assert (found[:, 0] >= -thrust * (1 + 1e-6)).all()
        np.testing.assert_array_equal(found[:, 1], 0.0)
        np.testing.assert_allclose(found[1:, 0], [formula(x, thrust) for x in way[1:]], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(found[:3, 0], -0.6, rtol=1e-6)
    slope = jax.grad(lambda way: jnp.sum(push(way, jnp.full(300, 0.3))))(jnp.float32(way))
    assert np.isfinite(slope).all()


def test_downwash_of_airframes_without_it_is_refused():
    with pytest.raises(ConfigError, match='"downwash" missing'):
        Downwash.of([load_airframe("cf2x_l250")])
