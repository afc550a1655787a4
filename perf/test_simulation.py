"""Agent-steps per second of simulation: random actions, one large world or many small, one compiled chunk of steps."""

import equinox as eqx
import jax
import numpy as np
import pytest

import swarm
from swarm.simulation.random_policy import RandomPolicy

STEPS = 16
SMALL_FLOCK = {"world.size": [6.0, 6.0], "population.bird.capacity": 16, "population.bird.initial": 16}
PREY = {
    "world.size": [150.0, 150.0],
    "population.scout.capacity": 120,
    "population.scout.initial": 120,
    "population.hunter.capacity": 80,
    "population.hunter.initial": 80,
    "population.prey.capacity": 800,
    "population.prey.initial": 800,
}
CASES = {
    "outpost-1": ("outpost", 1, {}),
    "outpost-32": ("outpost", 32, {}),
    "outpost-256": ("outpost", 256, {}),
    "flocking-1": ("flocking", 1, {}),
    "flocking-8": ("flocking", 8, {}),
    "pursuit-1": ("pursuit", 1, PREY),
    "pursuit-64": ("pursuit", 64, {}),
    "spread-256": ("spread", 256, {}),
    "flocking-16x4096": ("flocking", 4096, SMALL_FLOCK),
}


@pytest.mark.parametrize("case", CASES)
def test_rollout(benchmark, ready, case):
    name, n_worlds, overrides = CASES[case]
    simulator, policy = swarm.make(name, overrides), RandomPolicy()

    @eqx.filter_jit
    def chunk(simulator, worlds, timesteps, keys):
        def one(world, timestep, key):
            world, timestep, (_, history) = simulator.rollout(policy, world, timestep, key, STEPS)
            return world, timestep, history.valid.sum()

        return jax.vmap(one)(worlds, timesteps, keys)

    keys = jax.random.split(jax.random.key(0), n_worlds)
    worlds, timesteps = eqx.filter_jit(lambda keys: jax.vmap(simulator.reset)(keys))(keys)
    ready(chunk(simulator, worlds, timesteps, keys))
    result = benchmark(lambda: ready(chunk(simulator, worlds, timesteps, keys)))
    world, _, agent_steps = result
    assert np.all(np.asarray(world.step) == STEPS)
    n_initial = int(worlds.entities.alive.sum())
    # Some die, some are born: the work timed is that of a living population.
    assert 0.3 * n_initial * STEPS < int(agent_steps.sum()) < 3 * n_initial * STEPS
    if benchmark.stats:
        benchmark.extra_info["agent_steps_per_second"] = round(int(agent_steps.sum()) / benchmark.stats.stats.median)
