"""Seconds to trace and compile a step, at any size, and a whole training update; memory of a step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import swarm
from swarm.build.scenario_files import load
from training.config import load_training
from training.runs.build import build_learner

LARGE_OUTPOST = {
    "world.size": [64, 64],
    "world.teams": 2,
    "population.depot.capacity": 6,
    "population.depot.initial": 6,
    "population.light.capacity": 800,
    "population.light.initial": 800,
    "population.heavy.capacity": 200,
    "population.heavy.initial": 200,
}
CASES = {
    "outpost": ("outpost", {}),
    "outpost, 2 x 1,000": ("outpost", LARGE_OUTPOST),
    "flocking": ("flocking", {}),
    "flocking, 100k": (
        "flocking",
        {"world.size": [400.0, 400.0], "population.bird.capacity": 100_000, "population.bird.initial": 100_000},
    ),
    "pursuit": ("pursuit", {}),
    "pursuit, 1,000 prey": (
        "pursuit",
        {"world.size": [300.0, 300.0], "population.prey.capacity": 1_000, "population.prey.initial": 1_000},
    ),
    "spread": ("spread", {}),
    "spread, 200": (
        "spread",
        {
            "world.size": [16.0, 16.0],
            "world.landmarks": 200,
            "population.agent.capacity": 200,
            "population.agent.initial": 200,
        },
    ),
    "battle": ("battle", {}),
    "battle, 10k": ("battle", {"world.size": [700.0, 560.0], "population.infantry.capacity": 5_000}),
}


@pytest.mark.parametrize("case", CASES)
def test_step(benchmark, case):
    name, overrides = CASES[case]
    simulator = swarm.make(name, overrides)
    world, _ = eqx.filter_jit(lambda key: simulator.reset(key))(jax.random.key(0))
    action = jnp.zeros(simulator.rules.n_slots, jnp.int32)

    # A new function each time, so that nothing is found in a cache.
    def compile_step():
        return eqx.filter_jit(lambda s, w, a: s.step(w, a)).lower(simulator, world, action).compile()

    compiled = benchmark.pedantic(compile_step, rounds=2)
    memory = compiled.compiled.memory_analysis()
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert peak > 0
    benchmark.extra_info["bytes_per_entity"] = round(peak / simulator.rules.n_slots)
    if benchmark.stats:
        assert benchmark.stats.stats.min < 10.0


@pytest.mark.parametrize("name", ["outpost", "flocking"])
def test_update(benchmark, name):
    scenario = load(name)
    learner = build_learner(scenario, load_training(scenario))
    learned, actors = learner.init(0)

    def compile_update():
        return eqx.filter_jit(lambda m, x, y: type(m).update(m, x, y)).lower(learner, learned, actors).compile()

    compiled = benchmark.pedantic(compile_update, rounds=1)
    assert compiled.compiled.cost_analysis() is not None
