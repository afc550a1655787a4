"""Games of known answer: each part of the learner finds what it is there for, in seconds, and does not without."""

import pytest

from swarm.build.scenario_files import load
from training.config import load_training
from training.runs.build import build_learner

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

    built = {}

    def learner_of(rules, overrides, steps):
        path = tmp_path_factory.mktemp(rules) / f"{rules.lower()}.toml"
        path.write_text(f'rules = "probes:{rules}"\n[world]\nsteps = {steps}\n[groups]\nlevels = ["player", "team"]\n')
        scenario = load(path, QUICK | {f"training.{key}": value for key, value in overrides.items()})
        return build_learner(scenario, load_training(scenario))

    def train(rules, overrides, n_updates=30, steps=4, seed=0):
        case = rules, str(overrides), steps
        learner = built[case] = built[case] if case in built else learner_of(rules, overrides, steps)
        learned, actors = learner.init(seed)
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


@pytest.mark.slow
def test_without_memory_nothing_is_recalled(learn):
    assert 0.35 < score(learn("Recall", {"minibatches": 1}, 30, steps=5)) < 0.65


def test_continuous_commands_find_their_target(learn):
    rows = learn("Steer", {"entropy_weight": 0.0, "max_kl": 0.03}, 20)
    # Random commands pay -2.2 an episode of four steps, standing still -0.85.
    assert score(rows) > -0.1
    # An update stops once the policy has moved: some did, after a part of their 8 minibatches.
    taken = [float(m["minibatches"]) for m in rows]
    assert 1 <= min(taken) < max(taken) == 8


def test_several_choices_at_once_are_learned(learn):
    assert score(learn("Lock", {}, 40)) > 3.8


@pytest.mark.parametrize(
    ("posthumous", "low", "high"), [pytest.param(0.0, 0.3, 0.9, marks=pytest.mark.slow), (1.0, 2.5, 3.2)]
)
def test_the_dead_are_credited_for_what_they_set_going(learn, posthumous, low, high):
    # Living on pays 0.4; dying in the first step 0.1 to oneself and 3 to the mate.
    assert low < score(learn("Martyr", {"credit.posthumous": posthumous})) < high


@pytest.mark.parametrize(
    ("share", "low", "high"), [pytest.param(0.0, -0.1, 0.3, marks=pytest.mark.slow), (1.0, 2.2, 2.6)]
)
def test_builders_are_credited_for_whom_they_build(learn, share, low, high):
    # To build in the first step pays 3 - 0.5.
    assert low < score(learn("Foundry", {"credit.spawn": share, "discount": 0.5})) < high


@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("impala", marks=pytest.mark.slow)])
def test_a_teacher_is_imitated_until_it_stops(learn, algorithm):
    # An odd number of steps: what the teacher remembers of the last episode would turn it round.
    settings = {"teacher.policy": "scripted", "teacher.until": 0.5, "entropy_weight": 0.0, "algorithm": algorithm}
    rows = learn("Rote", settings | {"steps": 20 * 32 * 8}, 20, steps=5)
    assert score(rows) > 4.8
    errors = [float(m["imitation"]) for m in rows]
    assert errors[0] > 0.3
    assert errors[9] < 0.1
    assert errors[10:] == [0.0] * 10


def test_the_weight_of_the_own_reward_rises_where_the_rest_is_noise(learn):
    rows = learn("Bandits", {"credit.learn_own_weight": True, "credit.own_weight": 0.5, "learning_rate": 1e-3}, 15)
    assert float(rows[-1]["own_weight"]) > 0.65


@pytest.mark.parametrize(("critic", "grouping"), [("group", "team"), ("world", "player")])
def test_every_critic_learns_the_known_value(learn, critic, grouping):
    # Everybody soon says yes: 1 a step, for ever (truncation is bootstrapped), so 1 / (1 - 0.5) each; a team has 8.
    settings = {"discount": 0.5, "network.critic": critic, "credit.grouping": grouping, "normalise_value": True}
    rows = learn("Bandits", settings, 30)
    assert float(rows[-1]["value"]) == pytest.approx(2.0 if grouping == "player" else 16.0, rel=0.1)


def test_teams_may_learn_apart_and_against_somebody_who_does_not(learn):
    rows = learn("Duel", {"teams": ["learn:a", "learn:b", "random"]}, 20)
    # The steps of the first two teams are learned from. Both soon say yes: the second gives what it takes, the first
    # gives to chance half of what it takes, in four steps.
    assert float(rows[-1]["agent_steps"]) == 2 * 32 * 8
    episode = rows[-1]["episode"]
    assert float(episode.metrics["return"] / episode.count) == pytest.approx(2.0, abs=0.4)


N_PLAYED = 240
TURNS = {
    "algorithm": "impala",
    "clip": 0.0,
    "credit.grouping": "team",
    "discount": 0.0,
    "entropy_weight": 0.0,
    "epochs": 1,
    "minibatches": 1,
    "normalise_advantage": False,
}


# The best is a mixture: the gradient changes its sign on the way, and who acts is late to tell.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("lag", "vtrace", "low", "high"),
    [
        *((lag, True, 0.4, 0.43) for lag in (0, 1, 4, 16)),
        *((lag, False, 0.4, 0.43) for lag in (0, 1)),
        (4, False, 0.0, 0.43),
        (16, False, 0.0, 0.25),
    ],
)
def test_vtrace_holds_up_under_lag_where_the_uncorrected_learner_does_not(learn, lag, vtrace, low, high):
    settings = TURNS | {"impala.lag": lag, "impala.vtrace": vtrace}
    reached = []
    for seed in range(5):
        rows = learn("Turns", settings, N_PLAYED, seed=seed)[-40:]
        done = [m["episode"] for m in rows]
        reached.append(sum(float(e.metrics["score"]) for e in done) / sum(float(e.count) for e in done) / 4)
    print(f"lag {lag}, V-trace {vtrace}: {', '.join(f'{x:.3f}' for x in reached)}; at best {4 * 0.25 * 0.75**3:.3f}")
    assert low < sum(reached) / 5 < high
