"""One meaning of returns: those that learn, in training and in evaluation, by kind and team; nothing mixes teams."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from probes import Duel

from swarm import make
from swarm.build.scenario_files import load
from swarm.simulation.policy import AbstractPolicy
from training.algorithms.reductions import AXIS
from training.config import load_training
from training.runs.build import build_learner, build_teams
from training.runs.evaluation import evaluate

# Each of three teams of one takes 1 from the next where it says yes, in four steps.
LEVELS = 'levels = ["player", "pair", "all"]\npair = "modulo:2"\nall = "global"\n'
SETTINGS = {
    "training.worlds": 4,
    "training.rollout": 8,
    "training.epochs": 1,
    "training.minibatches": 1,
    "training.network.encoders": ["entity"],
    "training.network.hidden": 4,
}


class Says(AbstractPolicy):
    """Always the same."""

    word: int = eqx.field(static=True)

    def __call__(self, world, observation, key):
        return jnp.full_like(world.entities.kind, self.word)


@pytest.fixture(scope="module")
def duel(tmp_path_factory):
    path = tmp_path_factory.mktemp("duel") / "duel.toml"
    path.write_text(f'rules = "probes:Duel"\n[world]\nsteps = 4\n[groups]\n{LEVELS}')
    return path


def played(duel, learns, monkeypatch):
    """Means over the episodes of who says yes, against random ones who say no."""
    monkeypatch.setattr("training.acting.teams.RandomPolicy.of", lambda rules: Says(0))
    scenario = load(duel, {"training.teams": ["learn" if learn else "random" for learn in learns]})
    teams = build_teams(scenario, load_training(scenario), simulator := make(scenario))
    found = evaluate(simulator, teams.with_opponents(Says(1)), seed=0, n_episodes=2)
    return {name: float(np.mean(values)) for name, values in found.items()}


def earned(learns):
    yes = np.asarray(learns, float)
    return 4 * (yes - np.roll(yes, 1))


@pytest.mark.parametrize("learns", [(True, False, False), (False, True, True)])
def test_evaluation_counts_the_teams_that_learn(duel, learns, monkeypatch):
    found, each = played(duel, learns, monkeypatch), earned(learns)
    judged = [team for team, learn in enumerate(learns) if learn]
    assert found["return"] == each[judged].sum() == found["kind/player/return"]
    assert {name for name in found if name.startswith("team/")} == {
        f"team/{team}/{what}" for team in judged for what in ("return", "deaths", "population")
    }
    for team in judged:
        assert found[f"team/{team}/return"] == each[team]
        assert found[f"team/{team}/population"] == 1.0
    assert found["kind/player/population"] == len(judged)
    # The pair of even identities holds teams 0 and 2, and the level above all: each team is told of by itself.
    for level in ("pair", "all"):
        names = {name for name in found if name.startswith(f"level/{level}/")}
        if len(judged) == 1:
            assert names == {f"level/{level}/return", f"level/{level}/groups"}
            assert found[f"level/{level}/return"] == each[judged[0]]
        else:
            assert names == {f"level/{level}/team/{t}/{what}" for t in judged for what in ("return", "groups")}
            for team in judged:
                assert found[f"level/{level}/team/{team}/return"] == each[team]
                assert found[f"level/{level}/team/{team}/groups"] == 1.0


def test_training_counts_the_same(duel):
    scenario = load(duel, SETTINGS | {"training.teams": ["learn:a", "random", "learn:b"]})
    learner = build_learner(scenario, load_training(scenario))
    learned, actors = learner.init(0)
    dynamic, static = eqx.partition(learned, eqx.is_array)

    def program(dynamic, actors):
        experience = learner.collect(eqx.combine(dynamic, static), actors)[1]
        return experience.rollout.reward, experience.sums

    specs = (PartitionSpec(), PartitionSpec(AXIS))
    sharded = jax.shard_map(program, mesh=learner.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    reward, sums = jax.jit(sharded)(dynamic, actors)
    # Two episodes of four steps in each of four worlds; the entities are the teams.
    assert float(sums.count) == 8
    by_team = np.asarray(reward).sum(axis=(0, 1))
    assert np.abs(by_team).max() > 0
    judged = [team for team, network in enumerate(learner.of_team) if network >= 0]
    for team in range(Duel.n_teams):
        if team in judged:
            assert float(sums.metrics[f"team/{team}/return"]) == by_team[team]
            assert float(sums.metrics[f"kind/player/team/{team}/return"]) == by_team[team]
        else:
            assert f"team/{team}/return" not in sums.metrics
    assert float(sums.metrics["return"]) == float(sums.metrics["kind/player/return"]) == by_team[judged].sum()
