"""Seconds to trace and compile: a step, and a whole training update."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import swarm
from swarm.config import load
from training.build import build_learner
from training.config import load_training


@pytest.mark.parametrize("name", ["outpost", "flocking"])
def test_step(benchmark, name):
    simulator = swarm.make(name)
    world, _ = eqx.filter_jit(lambda key: simulator.reset(key))(jax.random.key(0))
    action = jnp.zeros(simulator.rules.n_slots, jnp.int32)

    # A new function each time, so that nothing is found in a cache.
    def compile_step():
        return eqx.filter_jit(lambda s, w, a: s.step(w, a)).lower(simulator, world, action).compile()

    compiled = benchmark.pedantic(compile_step, rounds=3)
    assert compiled.compiled.cost_analysis() is not None


@pytest.mark.parametrize("name", ["outpost", "flocking"])
def test_update(benchmark, name):
    scenario = load(name)
    learner = build_learner(scenario, load_training(scenario))
    learned, actors = learner.init(0)

    def compile_update():
        return eqx.filter_jit(lambda m, x, y: type(m).update(m, x, y)).lower(learner, learned, actors).compile()

    compiled = benchmark.pedantic(compile_update, rounds=1)
    assert compiled.compiled.cost_analysis() is not None
