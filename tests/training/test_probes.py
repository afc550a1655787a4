"""Games of known answer: each part of the learner finds what it is there for, in seconds, and does not without."""

import pytest

from swarm.config import load
from training.build import build_learner
from training.config import load_training

QUICK = {
    "training.worlds": 32,
    "training.rollout": 8,
    "training.epochs": 4,
    "training.minibatches": 2,
    "training.learning_rate": 1e-2,
    "training.anneal": [],
    "training.entropy_weight": 0.003,
    "training.reward_scale": 1.0,
    "training.value_clip": 0.0,
    "training.network.encoders": ["entity"],
    "training.network.hidden": 16,
}


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    """Train a probe game; returns the metrics of each update."""

    def train(rules, overrides, n_updates=30, steps=4):
        path = tmp_path_factory.mktemp(rules) / f"{rules.lower()}.toml"
        path.write_text(f'rules = "probes:{rules}"\n[world]\nsteps = {steps}\n[groups]\nlevels = ["player", "team"]\n')
        scenario = load(path, QUICK | {f"training.{key}": value for key, value in overrides.items()})
        learner = build_learner(scenario, load_training(scenario))
        learned, actors = learner.init(0)
        rows = []
        for _ in range(n_updates):
            learned, actors, metrics = learner.update(learned, actors)
            rows.append(metrics)
        return rows

    return train


def score(rows):
    """Mean score of the episodes of the last updates."""
    done = [m["episode"] for m in rows[-3:]]
    return sum(float(e.metrics["score"]) for e in done) / sum(float(e.count) for e in done)


def test_a_memory_recalls_what_is_no_longer_seen(learn):
    assert score(learn("Recall", {"network.memory": 16, "minibatches": 1}, 30, steps=5)) > 0.95


def test_without_memory_nothing_is_recalled(learn):
    assert 0.35 < score(learn("Recall", {"minibatches": 1}, 30, steps=5)) < 0.65


def test_continuous_commands_find_their_target(learn):
    # Random commands pay -2.2 an episode of four steps, standing still -0.85.
    assert score(learn("Steer", {"entropy_weight": 0.0}, 60)) > -0.1


def test_several_choices_at_once_are_learned(learn):
    assert score(learn("Lock", {}, 40)) > 3.8


@pytest.mark.parametrize(("posthumous", "low", "high"), [(0.0, 0.3, 0.9), (1.0, 2.5, 3.2)])
def test_the_dead_are_credited_for_what_they_set_going(learn, posthumous, low, high):
    # Living on pays 0.4; dying in the first step 0.1 to oneself and 3 to the mate.
    assert low < score(learn("Martyr", {"credit.posthumous": posthumous})) < high


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, -0.1, 0.3), (1.0, 2.2, 2.6)])
def test_builders_are_credited_for_whom_they_build(learn, share, low, high):
    # To build in the first step pays 3 - 0.5.
    assert low < score(learn("Foundry", {"credit.spawn": share, "discount": 0.5})) < high


def test_the_weight_of_the_own_reward_rises_where_the_rest_is_noise(learn):
    rows = learn("Bandits", {"credit.learn_own_weight": True, "credit.own_weight": 0.5, "learning_rate": 1e-3}, 15)
    assert float(rows[-1]["own_weight"]) > 0.65


@pytest.mark.parametrize(("critic", "grouping"), [("group", "team"), ("world", "player")])
def test_every_critic_learns_the_known_value(learn, critic, grouping):
    # Everybody soon says yes: 1 a step, for ever (truncation is bootstrapped), so 1 / (1 - 0.5) each; a team has 8.
    settings = {"discount": 0.5, "network.critic": critic, "credit.grouping": grouping, "normalise_value": True}
    rows = learn("Bandits", settings, 30)
    assert float(rows[-1]["value"]) == pytest.approx(2.0 if grouping == "player" else 16.0, rel=0.1)


def test_teams_may_learn_apart_or_against_somebody_who_does_not(learn):
    against = learn("Duel", {"teams": ["learn", "random"]}, 20)
    # Only the first team's steps are learned from, and its return is that of always yes against chance: 1/2 a step.
    assert float(against[-1]["agent_steps"]) == 32 * 8
    episode = against[-1]["episode"]
    assert float(episode.metrics["return"] / episode.count) == pytest.approx(2.0, abs=0.4)
    apart = learn("Duel", {"teams": ["learn:a", "learn:b"]}, 2)
    assert float(apart[-1]["agent_steps"]) == 2 * 32 * 8


def test_an_update_stops_when_the_policy_has_moved(learn):
    far = learn("Bandits", {"max_kl": 1e-4}, 3)
    assert 1 <= float(far[0]["minibatches"]) < 8
