"""Whole steps of flocking at 1.6 m^2 a bird, from 1,000 to 1,000,000 birds; the largest is for accelerators."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swarm

AREA = 1.6


def flock(n, **overrides):
    side = float(np.sqrt(AREA * n))
    bird = {"population.bird.capacity": n, "population.bird.initial": n}
    # Uniform, as at the start: then one window of candidates is room enough.
    return swarm.make("flocking", bird | {"world.size": [side, side], "search.room": 1} | overrides)


def timed(benchmark, ready, n, simulator, n_steps):
    @eqx.filter_jit
    def chunk(simulator, world, timestep, key):
        def body(carry, key):
            world, timestep = carry
            action = simulator.rules.scripted_policy()(world, timestep.observation, key)
            return simulator.step(world, action), None

        return jax.lax.scan(body, (world, timestep), jax.random.split(key, n_steps))[0]

    start = ready(eqx.filter_jit(lambda s, key: s.reset(key))(simulator, jax.random.key(0)))
    ready(chunk(simulator, *start, jax.random.key(1)))
    world, _ = benchmark.pedantic(lambda: ready(chunk(simulator, *start, jax.random.key(1))), rounds=3)
    # All neighbours were found: none is missing, and evenly spread birds see pi r^2 / AREA others.
    assert int(world.status) == 0
    assert int(world.step) == n_steps
    if benchmark.stats:
        benchmark.extra_info["agent_steps_per_second"] = round(n * n_steps / benchmark.stats.stats.median)
    return start[0], world


def expected(rules):
    return np.pi * float(rules.radius) ** 2 / AREA


@pytest.mark.parametrize("n", [1_000, 10_000, 100_000, 1_000_000])
def test_boids_step(benchmark, ready, n):
    simulator = flock(n)
    start, _ = timed(benchmark, ready, n, simulator, n_steps=max(1, 8_000 // n))
    seen = float(jnp.mean(start.fields.count))
    assert seen == pytest.approx(expected(simulator.rules), rel=0.1 if n == 1_000 else 0.03)


@pytest.mark.parametrize("n", [10_000, 100_000])
def test_vicsek_step(benchmark, ready, n):
    overrides = {"world.control": "continuous", "world.scripted": "vicsek"}
    simulator = flock(n, **overrides)
    start, _ = timed(benchmark, ready, n, simulator, n_steps=max(1, 8_000 // n))
    assert float(jnp.mean(start.fields.count)) == pytest.approx(expected(simulator.rules), rel=0.03)


@pytest.mark.parametrize("n", [10_000])
def test_order_parameters(benchmark, ready, n):
    simulator = flock(n)
    world, _ = ready(eqx.filter_jit(lambda s, key: s.reset(key))(simulator, jax.random.key(0)))
    measure = eqx.filter_jit(lambda s, world: s.rules.metrics(world))
    ready(measure(simulator, world))
    found = benchmark.pedantic(lambda: ready(measure(simulator, world)), rounds=3)
    # The mean distance to the nearest of a Poisson process is 1 / (2 sqrt(density)) (Clark, Evans 1954).
    assert float(found["nearest"]) == pytest.approx(0.5 * np.sqrt(AREA), rel=0.05)
