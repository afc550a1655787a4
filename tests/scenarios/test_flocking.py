"""Flocking: motion, order, and the sums over neighbours against loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swarm import RandomPolicy, make
from swarm.neighbors import sum_all_pairs
from swarm.space import Periodic

fixed = settings(deadline=None, derandomize=True, max_examples=40)
reset = eqx.filter_jit(lambda simulator, key: simulator.reset(key))
step = eqx.filter_jit(lambda simulator, world, action: simulator.step(world, action))


@pytest.fixture(scope="module")
def flock():
    overrides = {"world.size": [18.0, 18.0], "population.bird.capacity": 200, "population.bird.initial": 200}
    return make("flocking", overrides)


@pytest.fixture(scope="module")
def boids_history(flock):
    """300 steps of boids: polarisation at the start, and the worlds."""

    def play(key):
        world, timestep = flock.reset(key)
        _, _, (worlds, _) = flock.rollout(flock.rules.scripted_policy(), world, timestep, key, 300)
        return world, worlds.entities, jax.vmap(lambda w: flock.rules.metrics(w)["polarisation"])(worlds)

    start, entities, polarisation = jax.jit(play)(jax.random.key(0))
    return start, entities, flock.rules.metrics(start)["polarisation"], polarisation


def test_boids_bring_a_disordered_flock_into_order(boids_history):
    _, _, before, after = boids_history
    assert float(before) < 0.2
    assert float(after[-1]) > 0.8


def test_birds_fly_at_constant_speed_along_their_heading(flock, boids_history):
    start, entities, _, _ = boids_history
    position = np.concatenate([np.asarray(start.entities.position)[None], np.asarray(entities.position)])
    heading = np.asarray(entities.heading)
    size, speed, dt = np.asarray([18.0, 18.0]), float(flock.rules.speed), float(flock.rules.time_step)
    way = np.diff(position, axis=0)
    way -= size * np.round(way / size)
    np.testing.assert_allclose(np.linalg.norm(way, axis=-1), speed * dt, rtol=1e-4)
    expected = speed * dt * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    np.testing.assert_allclose(way, expected, atol=1e-5)
    assert ((position >= 0) & (position < size)).all()
    # Some crossed a side, so the wrapping was part of it.
    assert (np.abs(np.diff(position, axis=0)) > 9).any()


def test_no_bird_turns_faster_than_it_can(flock, boids_history):
    start, entities, _, _ = boids_history
    heading = np.concatenate([np.asarray(start.entities.heading)[None], np.asarray(entities.heading)])
    turn = np.diff(heading, axis=0)
    turn -= 2 * np.pi * np.round(turn / (2 * np.pi))
    full = float(flock.rules.turn_rate * flock.rules.time_step)
    assert np.abs(turn).max() == pytest.approx(full, rel=1e-4)


def test_each_action_is_its_turn(flock):
    world, _ = reset(flock, jax.random.key(1))
    action = jnp.arange(200, dtype=jnp.int32) % 9
    after, _ = step(flock, world, action)
    turn = np.array(after.entities.heading - world.entities.heading)
    turn -= 2 * np.pi * np.round(turn / (2 * np.pi))
    expected = (np.asarray(action) - 4) / 4 * float(flock.rules.turn_rate * flock.rules.time_step)
    np.testing.assert_allclose(turn, expected, atol=1e-5)


def test_random_headings_are_as_disordered_as_a_random_walk():
    # The length of the mean of N random unit vectors has mean sqrt(pi / (4 N)) (Rayleigh) for large N.
    n, n_seeds = 50, 400
    small = make("flocking", {"population.bird.capacity": n, "population.bird.initial": n})
    polarisation = jax.jit(jax.vmap(lambda key: small.rules.metrics(small.reset(key)[0])["polarisation"]))(
        jax.random.split(jax.random.key(5), n_seeds)
    )
    # The standard deviation is 0.52 of the mean: 2.6 % of it for the mean over 400 seeds; allowed are four of those.
    assert float(polarisation.mean()) == pytest.approx(np.sqrt(np.pi / (4 * n)), rel=0.105)


def test_reward_is_alignment_with_those_in_sight_less_crowding(flock):
    world, timestep = reset(flock, jax.random.key(2))
    after, timestep = step(flock, world, RandomPolicy()(world, timestep.observation, jax.random.key(3)))
    position, heading = np.asarray(after.entities.position, float), np.asarray(after.entities.heading, float)
    rules = flock.rules
    for i in range(0, 200, 20):
        way = position - position[i]
        way -= 18.0 * np.round(way / 18.0)
        distance = np.linalg.norm(way, axis=1)
        seen = (distance < float(rules.radius)) & (np.arange(200) != i)
        aligned = np.cos(heading[seen] - heading[i]).mean() if seen.any() else 0.0
        near = (seen & (distance < float(rules.crowding))).sum()
        expected = float(rules.reward["alignment"]) * aligned - float(rules.reward["crowding"]) * near
        assert float(timestep.reward[i]) == pytest.approx(expected, abs=1e-4)


# Neighbours and space

SIZE = np.asarray([5.0, 3.0], np.float32)
N = 6
# Multiples of 1/8 are exact, so that who stands exactly at the radius is no matter of rounding.
PLACES = hnp.arrays(np.float32, (N, 2), elements=st.integers(0, 23).map(lambda i: i / 8))


def _pair(way, distance, values):
    return jnp.concatenate([way, distance[..., None], jnp.broadcast_to(values, (*distance.shape, 1))], axis=-1)


summed = jax.jit(lambda *a: sum_all_pairs(_pair, Periodic(jnp.asarray(SIZE)), *a))


@given(PLACES, hnp.arrays(bool, (N,)), st.sampled_from([0.5, 1.5]))
@fixed
def test_sum_over_neighbours_is_the_loop_over_pairs(position, alive, radius):
    values = np.arange(1.0, N + 1, dtype=np.float32)[:, None]
    expected = np.zeros((N, 4))
    for i in range(N):
        for j in range(N):
            way = position[j] - position[i]
            way = way - SIZE * np.round(way / SIZE)
            distance = np.sqrt((way**2).sum())
            if i != j and alive[i] and alive[j] and distance < radius:
                expected[i] += [*way, distance, values[j, 0]]
    # The dead hold NaN: nobody may see it.
    garbled = np.where(alive[:, None], position, np.nan)
    found = summed(
        jnp.asarray(garbled),
        jnp.asarray(np.where(alive[:, None], values, np.nan)),
        jnp.asarray(alive),
        jnp.float32(radius),
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


displacement = jax.jit(lambda a, b: Periodic(jnp.asarray(SIZE)).displacement(a, b))


@given(PLACES, PLACES)
@fixed
def test_displacement_is_the_shortest_of_all_ways_round(a, b):
    images = np.stack([b - a + SIZE * np.asarray([i, j]) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    shortest = np.linalg.norm(images, axis=-1).min(axis=0)
    way = np.asarray(displacement(jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_allclose(np.linalg.norm(way, axis=-1), shortest, atol=1e-5)
    # It leads to b, up to whole turns.
    turns = (a + way - b) / SIZE
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-5)


wrap = jax.jit(lambda p: Periodic(jnp.asarray(SIZE)).wrap(p))


@given(hnp.arrays(np.float32, (N, 2), elements=st.floats(-20, 20, width=32)))
@fixed
def test_wrapped_positions_are_inside_the_box(position):
    wrapped = np.asarray(wrap(jnp.asarray(position)))
    assert ((wrapped >= 0) & (wrapped < SIZE)).all()
    turns = (wrapped.astype(float) - position) / SIZE
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-5)
