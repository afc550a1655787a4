"""Environments that are not JAX, trained by the same learners and commands; failures end a run and lose nothing."""

import json
import multiprocessing
import re
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from test_resume import arrays

from swarm import evaluate, train
from swarm.build.scenario_files import Scenario, load
from swarm.build.simulators import build_simulator
from swarm.core.errors import ConfigError
from training.acting.rollout import collect, start
from training.algorithms.learner import run_key
from training.config import load_training
from training.execution.asynchronous import Alternating, Asynchronous
from training.execution.host import HostCollector
from training.runs.build import build_learner
from training.runs.folders import RunFolder

SIGNS = str(Path(__file__).parent / "signs.toml")


def build(environment="hosts:Signs", n_devices=1, **settings):
    overrides = {f"training.{k.replace('__', '.')}": v for k, v in settings.items()}
    scenario = load(SIGNS, {"environment": environment} | overrides)
    return build_learner(scenario, load_training(scenario), n_devices)


def update_for(learner, n_updates, learned, actors):
    rows = []
    for _ in range(n_updates):
        learned, actors, metrics = learner.update(learned, actors)
        rows.append(jax.device_get(metrics))
    return learned, actors, rows


def returns(rows):
    """Mean over the episodes that ended."""
    return sum(float(r["episode"].metrics["return"]) for r in rows) / sum(float(r["episode"].count) for r in rows)


def nobody_left():
    return not [p for p in multiprocessing.active_children() if p.name.startswith("environments-")]


def overlap(spans):
    learning = [s for s in spans if s["what"] == "learn"]
    return any(
        a["begin"] < b["end"] and b["begin"] < a["end"] for a in learning for b in spans if b["what"] == "collect"
    )


# Parity: a game played in JAX, and the same game in processes.


@pytest.fixture(scope="module")
def twins():
    """Experience of two rollouts of `Martyr`, from processes and by the compiled program."""
    host = build("hosts:Martyrs", rollout=6, worlds=3)
    config = probes.Martyr.Config.model_validate(
        {"rules": "probes:Martyr", "world": {"steps": 4}, "groups": {"levels": ["entity", "team"], "team": "global"}}
    )
    simulator = build_simulator(Scenario("martyr", "here", config, probes.Martyr))
    learned, blank = host.init(0)
    arrays = eqx.filter(learned.network, eqx.is_inexact_array)
    collector = HostCollector(host.learner, learned, jax.devices()[0])
    stage = eqx.tree_at(lambda s: s.simulator, host.stage(learned.network), simulator)
    actors = eqx.filter_jit(start)(stage, run_key(learned.key, 1), jnp.arange(3))
    pairs, worlds = [], blank
    for number in range(2):
        draw, base = jnp.asarray([0, number, 0], jnp.int32), run_key(learned.key, 2)
        for part in draw:
            base = jax.random.fold_in(base, part)
        worlds, found = collector(arrays, draw, worlds)
        actors, expected = eqx.filter_jit(collect)(stage, actors, run_key(learned.key, 1), base, 6, 1)
        pairs.append((found, expected))
    collector.close()
    assert nobody_left()
    return pairs


def test_a_rollout_is_that_of_the_same_game_in_jax(twins):
    for found, expected in twins:
        assert jax.tree.structure(found.rollout) == jax.tree.structure(expected.rollout)
        alive = np.asarray(expected.rollout.observation.alive)
        assert not alive.all()
        for part in ("raw", "log_prob", "reward", "mind", "ended", "final_valid", "fresh", "value", "final_value"):
            a, b = (np.asarray(getattr(x.rollout, part)) for x in (found, expected))
            per_entity = a.shape == alive.shape and part not in ("value", "final_value")
            a, b = (np.where(alive, x, 0) if per_entity else x for x in (a, b))
            np.testing.assert_allclose(a, b, atol=1e-6, err_msg=part)
        np.testing.assert_array_equal(found.rollout.membership.index, expected.rollout.membership.index)
        np.testing.assert_array_equal(found.rollout.people.uid, expected.rollout.people.uid)
        np.testing.assert_array_equal(found.rollout.observation.alive, alive)
        own = (np.where(alive[..., None], x.rollout.observation.own, 0) for x in (found, expected))
        np.testing.assert_array_equal(*own)
        np.testing.assert_array_equal(found.last.mind, expected.last.mind)
        np.testing.assert_array_equal(found.index, expected.index)


def test_episodes_are_counted_as_in_jax(twins):
    for found, expected in twins:
        assert float(found.sums.count) == float(expected.sums.count) > 0
        for name in ("return", "length", "n_player"):
            np.testing.assert_allclose(found.sums.metrics[name], expected.sums.metrics[name], atol=1e-5, err_msg=name)


def test_who_is_cut_off_alone_is_bootstrapped_and_who_terminates_is_not():
    learner = build("hosts:Shift", rollout=5, worlds=2)
    learned, actors = learner.init(0)
    # Values that are not 0, so that a missing one is seen.
    critic = lambda x: x.network.networks[0].critic  # noqa: E731
    more = jax.tree.map(lambda x: x + 0.5 if eqx.is_inexact_array(x) else x, critic(learned))
    raised = eqx.tree_at(critic, learned, more)
    arrays = eqx.filter(raised.network, eqx.is_inexact_array)
    collector = HostCollector(learner.learner, raised, jax.devices()[0])
    _, e = collector(arrays, jnp.zeros(3, jnp.int32), actors)
    collector.close()
    valid = np.asarray(e.rollout.final_valid)[:, 0]
    expected = np.zeros((5, 3), bool)
    expected[2, 1] = expected[4, 2] = True
    np.testing.assert_array_equal(valid, expected)
    value = np.asarray(e.rollout.final_value)[:, 0, :, 0]
    assert np.all(np.abs(value[expected]) > 1e-3)
    assert not value[~expected].any()
    # Credit: with a discount of a half, the last steps earn 1 and half of what was expected after them, or nothing.

    @eqx.filter_jit
    def assign(network, e):
        groups = learner.groups(e)
        last_value = learner.last_value(network, e)
        return groups.reward, learner.assign(learned.scale, e, groups, e.rollout.value, last_value)[0]

    reward, advantage = (np.asarray(x)[:, 0] for x in assign(raised.network, e))
    now, advantage = np.asarray(e.rollout.value)[:, 0, :, 0], advantage[..., 0]
    np.testing.assert_allclose(advantage[2, 1], reward[2, 1] + 0.5 * value[2, 1] - now[2, 1], atol=1e-5)
    np.testing.assert_allclose(advantage[1, 0], reward[1, 0] - now[1, 0], atol=1e-5)


@pytest.mark.parametrize("stays", ["truncated", pytest.param("", marks=pytest.mark.slow)])
def test_whoever_comes_back_remembers_nothing_and_owes_nothing(stays):
    scenario = load(SIGNS, {"environment": "hosts:Returns", "options.stays": stays, "training.recipe": "mppo"})
    settings = load_training(scenario).model_copy(update={"rollout": 6, "worlds": 2, "minibatches": 1})
    learner = build_learner(scenario, settings)
    learned, actors = learner.init(0)
    collector = HostCollector(learner.learner, learned, jax.devices()[0])
    actors, e = collector(eqx.filter(learned.network, eqx.is_inexact_array), jnp.zeros(3, jnp.int32), actors)
    collector.close()
    alive, fresh, cut, identity = (
        np.asarray(x)[:, 0]
        for x in (
            e.rollout.observation.alive,
            e.rollout.fresh,
            e.rollout.final_valid,
            e.rollout.membership.identity,
        )
    )
    # It leaves in its second step, and acts again two steps later, or at once where it is still listed.
    back = 2 if stays else 3
    assert list(alive[:, 0]) == [t != 2 or bool(stays) for t in range(6)]
    assert [t for t in range(6) if fresh[t, 0] and alive[t, 0]] == [0, back]
    assert list(np.flatnonzero(fresh[:, 1])) == [0]
    assert [t for t in range(6) if identity[t, 0] != identity[0, 0] and alive[t, 0]] == list(range(back, 6))
    # Cut off it is bootstrapped; terminated not, nor anybody at the end.
    assert list(zip(*np.nonzero(cut), strict=True)) == ([(1, 0)] if stays else [])


# Learning.


def test_learner_and_environments_in_turn(tmp_path, capsys):
    words = [SIGNS, "training.steps=4096", "training.evaluate_every=1000"]
    assert train.main([*words, "--runs", str(tmp_path), "--episodes", "8"]) == 0
    said = capsys.readouterr().out
    assert "video: none" in said
    folder = RunFolder.open(next(tmp_path.iterdir()))
    assert not overlap(folder.metrics("timeline.jsonl"))
    results = json.loads((folder.path / "evaluation.json").read_text())["policies"]
    # At random 4 of 8.
    assert results["trained"]["return"]["mean"] > 7.0
    assert results["random"]["return"]["high"] < 5.5
    assert results["trained"]["length"]["mean"] == 8
    assert nobody_left()
    assert evaluate.main([str(folder.path), "--episodes", "8", "--deterministic"]) == 0
    found = json.loads((folder.path / "evaluation.json").read_text())["policies"]
    assert found["trained"]["return"]["mean"] >= results["trained"]["return"]["mean"] - 0.5


def test_agents_that_end_at_different_times_learn_by_actors_of_their_own():
    learner = build("hosts:Shift", impala__actors=2)
    assert isinstance(learner, Asynchronous)
    _, _, rows = update_for(learner, 32, *learner.init(0))
    spans = learner.timeline.take()
    learner.close()
    assert nobody_left()
    # Two, then three steps of workers, and three of the guard; who says yes always gets all 8, at random half.
    assert returns(rows[:2]) < 5.5
    assert returns(rows[-6:]) > 7.0
    assert overlap(spans)
    assert all(float(row["population"]) < 3 for row in rows)


@pytest.mark.slow
def test_ppo_learns_commands_in_a_box():
    settings = {"recipe": "mppo", "epochs": 4, "minibatches": 2, "rollout": 16, "entropy_weight": 0.0}
    learner = build("hosts:Aim", **settings)
    assert isinstance(learner, Alternating)
    _, _, rows = update_for(learner, 40, *learner.init(0))
    learner.close()
    # At random the mean distance is 1.7.
    assert returns(rows[-5:]) > -0.8 > -1.2 > returns(rows[:2])


@pytest.mark.slow
def test_a_learner_on_two_devices_learns_the_same():
    found = []
    for n_devices in (1, 2):
        learner = build(n_devices=n_devices, rollout=8)
        learned, _, _ = update_for(learner, 3, *learner.init(0))
        learner.close()
        found.append(jax.device_get(jax.tree.leaves(eqx.filter(learned.network, eqx.is_inexact_array))))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# Failure.


@pytest.mark.parametrize("actors", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_crash_ends_the_run_with_its_error_and_a_checkpoint(actors, tmp_path, capsys):
    # Each of four worlds in a process steps 16 times an update.
    words = [SIGNS, "environment=hosts:Bomb", "options.fuse=40", f"training.impala.actors={actors}"]
    began = time.monotonic()
    assert train.main([*words, "--runs", str(tmp_path)]) == 2
    assert time.monotonic() - began < 60
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "ZeroDivisionError: the world is flat" in error
    done = int(re.search(r"saved after (\d+) updates, from where --resume goes on", error)[1])
    assert nobody_left()
    folder = next(tmp_path.iterdir())
    assert (folder / "checkpoints" / str(done)).is_dir()
    # All of it, with the way to where it happened.
    assert f"{folder / 'error.txt'} has all of it" in error
    assert 'raise ZeroDivisionError("the world is flat")' in (folder / "error.txt").read_text()
    if actors:
        return
    # Parameters, optimiser and counters are as they were; the environments begin anew.
    saved = arrays(folder)
    words = ["--resume", str(folder), "options.fuse=0", f"training.steps={128 * (done + 2)}", "--episodes", "2"]
    assert train.main(words) == 0
    rows = RunFolder.open(folder).metrics()
    assert [row["update"] for row in rows] == list(range(1, done + 3))
    assert done == 2
    assert any(np.any(value != saved[name]) for name, value in arrays(folder).items())


def test_a_crash_in_an_evaluation_saves_too(tmp_path, capsys):
    # Evaluations take up to eight steps in processes of their own.
    words = [
        SIGNS,
        "environment=hosts:Bomb",
        "options.fuse=5",
        "training.evaluate_every=1",
        "training.rollout=4",
    ]
    assert train.main([*words, "--runs", str(tmp_path)]) == 2
    assert "saved after 1 updates" in capsys.readouterr().err
    assert nobody_left()


def test_several_seeds_are_refused(capsys):
    assert train.main([SIGNS, "--seeds", "2"]) == 2
    assert "host environments, learn one seed at a time" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="finds no maps in the observation of HostRules"):
        build(network__encoders=["map"])


# Speed.


def seconds_of(n_updates, actors):
    """Wall time of updates after the first ones; for each, processes of four worlds sleep 16 times 60 ms."""
    scenario = load(SIGNS, {"options.delay": 0.015, "training.impala.actors": actors})
    learner = build_learner(scenario, load_training(scenario))
    learned, actors, _ = update_for(learner, 2, *learner.init(0))
    began = time.perf_counter()
    update_for(learner, n_updates, learned, actors)
    seconds = time.perf_counter() - began
    spans = learner.timeline.take()
    learner.close()
    return seconds, spans


def test_actors_of_their_own_are_faster_where_environments_are_slow():
    alternating, spans = seconds_of(5, 0)
    assert not overlap(spans)
    asynchronous, spans = seconds_of(5, 2)
    assert overlap(spans)
    # Twice, were there nothing to compute; much of it is sleep, so that a busy machine does not hide the difference.
    assert alternating > 1.3 * asynchronous
