"""Agent-steps per second of training: one whole update (rollout, credit, epochs) of the shipped settings."""

import pytest

from swarm.config import load
from training.build import build_learner
from training.config import load_training


@pytest.mark.parametrize("name", ["outpost", "flocking"])
def test_update(benchmark, ready, name):
    scenario = load(name)
    learner = build_learner(scenario, load_training(scenario))
    learned, actors = learner.init(0)
    ready(learner.update(learned, actors))
    result = benchmark.pedantic(lambda: ready(learner.update(learned, actors)), rounds=3)
    new, _, metrics = result
    assert int(new.n_updates) == 1
    assert float(metrics["grad_norm"]) > 0
    agent_steps = float(metrics["agent_steps"])
    assert agent_steps > learner.config.steps_per_update
    if benchmark.stats:
        benchmark.extra_info["agent_steps_per_second"] = round(agent_steps / benchmark.stats.stats.median)
