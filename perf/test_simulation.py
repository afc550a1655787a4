"""Agent-steps per second of simulation: random actions, many worlds, one compiled chunk of 64 steps."""

import equinox as eqx
import jax
import numpy as np
import pytest

import swarm
from swarm.scenario import RandomPolicy

STEPS = 64
CASES = {
    "outpost-1": ("outpost", 1, {}),
    "outpost-32": ("outpost", 32, {}),
    "outpost-256": ("outpost", 256, {}),
    "flocking-1": ("flocking", 1, {}),
    "flocking-8": ("flocking", 8, {}),
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
