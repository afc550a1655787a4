"""Flocking: motion, order, and the sums over neighbours against loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm import RandomPolicy, make

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
