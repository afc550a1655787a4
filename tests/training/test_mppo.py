"""The learner as a whole: a game of known answer, devices, and what an update reports."""

import equinox as eqx
import jax
import numpy as np
import pytest

from swarm.build.scenario_files import load
from training.config import load_training
from training.runs.build import build_learner


def learner_of(source, overrides, n_devices=1):
    scenario = load(source, overrides)
    return build_learner(scenario, load_training(scenario), n_devices)


def run(learner, n_updates, seed=0):
    learned, actors = learner.init(seed)
    rows = []
    for _ in range(n_updates):
        learned, actors, metrics = learner.update(learned, actors)
        rows.append(metrics)
    return learned, rows


def taking(rows):
    """Share of takers in the last step of the episodes of the last updates."""
    done = [m["episode"] for m in rows[-3:]]
    return sum(float(e.metrics["taking"]) for e in done) / sum(float(e.count) for e in done)


@pytest.mark.parametrize(
    ("credit", "teams", "low", "high"),
    [
        ({"grouping": "entity"}, 1, 0.95, 1.0),
        pytest.param({"grouping": "team"}, 2, 0.95, 1.0, marks=pytest.mark.slow),
        pytest.param({"grouping": "team"}, 1, 0.0, 0.05, marks=pytest.mark.slow),
        pytest.param({"grouping": "global"}, 1, 0.0, 0.05, marks=pytest.mark.slow),
        ({"grouping": "global"}, 2, 0.95, 1.0),
        ({"reward": "global"}, 1, 0.0, 0.05),
        pytest.param({"reward": "global"}, 2, 0.95, 1.0, marks=pytest.mark.slow),
        pytest.param({"own_weight": 0.0}, 1, 0.0, 0.05, marks=pytest.mark.slow),
    ],
)
def test_rivals_take_by_their_own_reward_and_leave_by_the_sum(rivals, credit, teams, low, high):
    # Nothing is shared with another team.
    learner = learner_of(rivals, {f"training.credit.{k}": v for k, v in credit.items()} | {"world.teams": teams})
    _, rows = run(learner, 20)
    assert low <= taking(rows) <= high


def test_value_learns_the_known_return(rivals):
    # All leave under the global reward, so the return is 0 at every step; all take under their own: -1 a step,
    # truncated after 4 steps and bootstrapped, so the value tends to -1 / (1 - discount) (here scaled by 0.1).
    learner = learner_of(
        rivals,
        {"training.discount": 0.5, "training.reward_scale": 1.0, "training.value_clip": 10.0, "training.epochs": 8},
    )
    _, rows = run(learner, 20)
    assert float(rows[-1]["value"]) == pytest.approx(-2.0, abs=0.3)


SMALL_OUTPOST = {
    "world.size": [8, 8],
    "world.steps": 12,
    "population.depot.initial": 1,
    "population.depot.capacity": 1,
    "population.light.initial": 1,
    "population.light.capacity": 3,
    "population.heavy.initial": 1,
    "population.heavy.capacity": 2,
    "training.rollout": 8,
    "training.network.channels": 4,
    "training.network.dilations": [1],
    "training.network.hidden": 8,
}


# The whole outpost compiles for a minute; the probe game runs the same learner.
@pytest.mark.parametrize("scenario", ["rivals", pytest.param("outpost", marks=pytest.mark.slow)])
def test_one_and_eight_devices_learn_the_same_parameters(scenario, rivals):
    small = {} if scenario == "rivals" else SMALL_OUTPOST
    small = small | {"training.worlds": 8, "training.minibatches": 2, "training.epochs": 1}
    path = rivals if scenario == "rivals" else scenario
    results = [run(learner_of(path, small, n), 10) for n in (1, 8)]
    one, eight = (jax.tree.leaves(eqx.filter(learned.network, eqx.is_array)) for learned, _ in results)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5, rtol=0)
    (_, rows_1), (_, rows_8) = results
    # Episodes ended on every device, so resets and bootstraps were part of it.
    assert sum(float(m["episode"].count) for m in rows_1) == sum(float(m["episode"].count) for m in rows_8) > 8
    assert float(rows_1[-1]["agent_steps"]) == float(rows_8[-1]["agent_steps"])
