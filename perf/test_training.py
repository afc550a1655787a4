"""Agent-steps per second of training, whole and in parts, and how they grow with the population."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.build.scenario_files import load
from training.acting.rollout import collect
from training.config import load_training
from training.runs.build import build_learner


def learner_of(name, overrides):
    scenario = load(name, overrides)
    return build_learner(scenario, load_training(scenario))


@pytest.mark.parametrize("case", ["outpost", "flocking", "spread", "pursuit", "battle"])
def test_update(benchmark, ready, case):
    """One whole update (rollout, credit, epochs) of the shipped settings."""
    learner = learner_of(case, {})
    learned, actors = learner.init(0)
    ready(learner.update(learned, actors))
    new, _, metrics = benchmark.pedantic(lambda: ready(learner.update(learned, actors)), rounds=3)
    assert int(new.n_updates) == 1
    assert float(metrics["grad_norm"]) > 0
    agent_steps = float(metrics["agent_steps"])
    assert agent_steps > learner.config.steps_per_update
    if benchmark.stats:
        benchmark.extra_info["agent_steps_per_second"] = round(agent_steps / benchmark.stats.stats.median)


# A flock on the same map, raster and number of worlds, whatever its size: how the cost grows with the population alone.
BIRDS = {
    "world.raster": [32, 32],
    "world.steps": 64,
    "training.worlds": 8,
    "training.rollout": 16,
    "training.epochs": 1,
    "training.minibatches": 4,
}


def flock(n, encoders):
    birds = {"population.bird.capacity": n, "population.bird.initial": n, "training.network.encoders": encoders}
    return learner_of("flocking", BIRDS | birds)


@pytest.mark.parametrize("encoders", [["map"], ["entity"]], ids=["map", "entity"])
@pytest.mark.parametrize("n", [64, 256, 1024, 4096])
@pytest.mark.parametrize("part", ["simulation", "inference", "update"])
def test_parts_by_population(benchmark, ready, n, encoders, part):
    """Simulation alone, the networks acting alone, and whole updates, for a growing flock."""
    learner = flock(n, encoders)
    learned, actors = learner.init(0)
    n_steps, worlds = learner.config.rollout, learner.config.worlds
    run = {"simulation": _simulate, "inference": _infer, "update": _update}[part](learner, learned, actors, n_steps)
    ready(run())
    checked = benchmark.pedantic(lambda: ready(run()), rounds=3)
    assert int(checked) == n_steps * worlds * n
    if benchmark.stats:
        benchmark.extra_info["agent_steps_per_second"] = round(n_steps * worlds * n / benchmark.stats.stats.median)
        benchmark.extra_info["bytes_per_agent_step"] = rollout_bytes(learner, learned, actors) / (n_steps * worlds * n)


def _simulate(learner, learned, actors, n_steps):
    @eqx.filter_jit
    def steps(simulator, world):
        def step(world, t):
            action = jnp.broadcast_to(t % simulator.rules.n_actions, world.entities.alive.shape)
            world, timestep = jax.vmap(simulator.step)(world, action)
            seen = jnp.sum(timestep.observation.own) + jnp.sum(timestep.observation.maps)
            return world, (jnp.sum(timestep.valid), seen + jnp.sum(timestep.reward))

        return jax.lax.scan(step, world, jnp.arange(n_steps))[1]

    return lambda: _all_of_it(*steps(learner.simulator, actors.world))


def _infer(learner, learned, actors, n_steps):
    @eqx.filter_jit
    def steps(minds, actors):
        observation, entities = actors.timestep.observation, actors.world.entities
        mind = minds.mind(entities.team, observation.alive)

        def step(drift, _):
            # What is seen depends on what was said before, so that no step can be left out or done beforehand.
            seen = eqx.tree_at(
                lambda o: (o.own, o.maps), observation, (observation.own + drift, observation.maps + drift)
            )
            fresh = jnp.zeros_like(entities.alive)
            parameters, value, _ = minds.step(seen, mind, mind, 1, actors.memory.state, fresh)
            return 1e-6 * (jnp.mean(parameters) + jnp.mean(value)), jnp.sum(mind >= 0)

        drift, n_agent_steps = jax.lax.scan(step, jnp.float32(0), length=n_steps)
        return n_agent_steps, drift

    return lambda: _all_of_it(*steps(learned.network, actors))


def _all_of_it(n_agent_steps, *results):
    """The number of agent-steps; everything else must have been computed, and be finite."""
    assert all(np.isfinite(x).all() for x in results)
    return n_agent_steps.sum()


def _update(learner, learned, actors, n_steps):
    def run():
        new, _, metrics = learner.update(learned, actors)
        assert int(new.n_updates) == 1
        return metrics["agent_steps"]

    return run


def rollout_bytes(learner, learned, actors):
    """Size of what a rollout keeps."""
    stage, c = learner.stage(learned.network), learner.config
    key = jax.random.key(0)
    rows = jax.eval_shape(lambda: collect(stage, actors, key, key, c.rollout, c.minibatches)[1])
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(rows))
