"""Actors that run by themselves: they overlap with the learner, lag, drop, die and stop."""

import threading
import time

import jax
import numpy as np
import pytest

from swarm import train
from swarm.build.scenario_files import load
from swarm.core.errors import ConfigError
from training.config import load_training
from training.execution.asynchronous import ActorError, Asynchronous, Collector
from training.runs.build import build_learner
from training.runs.folders import RunFolder

SETTINGS = {
    "training.recipe": "impala",
    "training.epochs": 1,
    "training.steps": 4096,
    "training.learning_rate": 1e-2,
    "training.impala.actors": 2,
}


def build(rivals, n_devices=1, n_actor_devices=0, **settings):
    overrides = {f"training.{k.replace('__', '.')}": v for k, v in settings.items()}
    scenario = load(rivals, SETTINGS | overrides)
    return build_learner(scenario, load_training(scenario), n_devices, n_actor_devices)


def update_for(learner, n_updates, learned, actors):
    rows = []
    for _ in range(n_updates):
        learned, actors, metrics = learner.update(learned, actors)
        rows.append(jax.device_get(metrics))
    return learned, actors, rows


def names():
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("actor-")}


@pytest.fixture(scope="module")
def learned(rivals):
    """Metrics and spans of 32 updates on two devices that learn, with two actors on two others."""
    learner = build(rivals, 2, 2)
    assert isinstance(learner, Asynchronous)
    learned, actors, rows = update_for(learner, 32, *learner.init(0))
    during = names()
    learner.close()
    return learned, actors, rows, learner.timeline.take(), during


def test_actors_feed_a_learner_on_other_devices(learned):
    state, actors, rows, _, during = learned
    assert int(state.n_updates) == 32
    assert [len(jax.tree.leaves(a)[0].devices()) for a in actors] == [1, 1]
    assert sum(float(row["episode"].count) for row in rows) > 100
    assert all(float(row["agent_steps"]) == 256 for row in rows)
    # Both learn to take, whoever acted.
    assert np.mean([float(row["value"]) for row in rows[-4:]]) < np.mean([float(row["value"]) for row in rows[:4]])
    assert during == {"actor-0", "actor-1"}
    assert not names()


def test_the_lag_is_measured_and_bounded_by_queue_and_actors(learned):
    _, _, rows, _, _ = learned
    lags = [int(row["lag"]) for row in rows]
    # On the queue, in the hands of the actors, and on the way.
    assert 0 < max(lags) <= 2 + 2 * 2
    assert min(lags) >= 0


def test_actors_step_while_the_learner_learns(learned):
    _, _, _, spans, _ = learned
    learning = [s for s in spans if s["who"] == "learner" and s["what"] == "learn"]
    stepping = [s for s in spans if s["what"] == "collect"]
    assert any(a["begin"] < b["end"] and b["begin"] < a["end"] for a in learning for b in stepping)
    assert {s["who"] for s in stepping} == {"actor-0", "actor-1"}


def test_what_is_too_old_is_dropped(rivals):
    learner = build(rivals, impala__max_lag=1, impala__queue=4)
    _, _, rows = update_for(learner, 12, *learner.init(0))
    learner.close()
    assert max(int(row["lag"]) for row in rows) <= 1


def test_an_actor_that_dies_stops_the_learner(rivals):
    learner = build(rivals)
    learned, actors = learner.init(0)
    learned, actors, _ = learner.update(learned, actors)

    def fail(*_):
        raise ZeroDivisionError("the world is flat")

    learner._threads[1]._step = fail
    with pytest.raises(ActorError, match="actor-1 died: ZeroDivisionError"):
        update_for(learner, 50, learned, actors)
    learner.close()
    assert not names()


def test_who_never_delivers_is_not_waited_for(rivals, monkeypatch):
    monkeypatch.setattr(Collector, "__call__", lambda self, *_: time.sleep(1.0))
    learner = build(rivals, impala__patience=0.01)
    learned, actors = learner.init(0)
    with pytest.raises(ActorError, match="no actor delivered"):
        learner.update(learned, actors)
    learner.close()


def test_patience_does_not_count_compilation(rivals, monkeypatch):
    prepare, clock, later = Collector.prepare, time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + later[0])

    def slowly(self, *inputs):
        # An hour passes while the learner waits.
        time.sleep(0.5)
        later[0] += 3600.0
        time.sleep(1.5)
        prepare(self, *inputs)

    monkeypatch.setattr(Collector, "prepare", slowly)
    learner = build(rivals, impala__patience=600.0)
    learner.update(*learner.init(0))
    learner.close()


def test_the_command_trains_saves_and_goes_on(rivals, tmp_path, capsys):
    words = [rivals, *(f"{k}={v}" for k, v in SETTINGS.items()), "training.minibatches=1", "training.steps=1024"]
    assert train.main([*words, "--actor-devices", "1", "--runs", str(tmp_path), "--episodes", "2"]) == 0
    folder = RunFolder.open(next(tmp_path.iterdir()))
    rows = folder.metrics()
    assert {"lag", "dropped", "learner_waited", "actor_waited"} <= rows[-1].keys()
    assert (folder.path / "timeline.jsonl").stat().st_size > 100
    capsys.readouterr()
    assert train.main(["--resume", str(folder.path), "--episodes", "2"]) == 0


def test_what_does_not_fit_is_one_line(rivals):
    with pytest.raises(ConfigError, match="set one of them to 0"):
        build(rivals, impala__lag=2)
    with pytest.raises(ConfigError, match="nobody acts apart"):
        build(rivals, 1, 1, impala__actors=0)
    with pytest.raises(ConfigError, match="this machine has 8"):
        build(rivals, 4, 5)
    with pytest.raises(ConfigError, match="for algorithm"):
        build(rivals, algorithm="ppo")
