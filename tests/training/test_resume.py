"""Runs killed by the system continue bit for bit; what is wrong is one line and loses nothing."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import numpy as np
import orbax.checkpoint as ocp
import pytest

from swarm.build.scenario_files import load
from swarm.train import main
from training.config import load_training
from training.runs.build import build_learner
from training.runs.folders import EVALUATIONS, Checkpoints, RunFolder, _named_arrays


def arrays(folder: Path):
    """All arrays of the last checkpoint."""
    run = RunFolder.open(folder)
    config = load_training(run.scenario())
    learner = build_learner(run.scenario(), config)
    learned, actors = learner.init(0)
    checkpoints = Checkpoints(run, config.keep_checkpoints)
    parts = {"network": learned.network, "actors": actors}
    restored = checkpoints.restore(checkpoints.latest(), **parts)
    return {f"{name}.{k}": np.asarray(x) for name in parts for k, x in _named_arrays(restored[name]).items()}


def train(rivals, runs, *words):
    assert main([rivals, "--runs", str(runs), "--episodes", "2", *words]) == 0
    return next(runs.iterdir())


@pytest.fixture(scope="module")
def whole(rivals, tmp_path_factory):
    """An uninterrupted run."""
    return train(rivals, tmp_path_factory.mktemp("whole"))


def test_a_run_leaves_everything_it_promises(whole):
    expected = {
        "config.toml",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "evaluation.json",
        "curve.png",
        "video.mp4",
        "best",
    }
    names = {p.name for p in whole.iterdir()}
    assert expected <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == list(range(1, 21))
    assert load(whole / "config.toml").config.training["worlds"] == 16


def killed(rivals, runs, after, *words):
    """Start training in a process of its own, and kill it when so many updates are on record; returns the folder."""
    command = [sys.executable, "-m", "swarm.train", *words, "--episodes", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(rivals).parent)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if sum(len(p.read_text().splitlines()) for p in runs.glob("*/metrics.jsonl")) >= after:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    return next(runs.iterdir())


def assert_same(folder, other):
    found, expected = arrays(folder), arrays(other)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_killed_and_resumed_is_bit_equal(rivals, whole, tmp_path):
    # A real process and a real SIGKILL, at a moment between checkpoints.
    folder = killed(rivals, tmp_path, 5, rivals, "--runs", str(tmp_path))
    n_before = len(RunFolder.open(folder).metrics())
    assert 5 <= n_before < 20
    assert main(["--resume", str(folder), "--episodes", "2"]) == 0
    assert_same(folder, whole)
    rows = RunFolder.open(folder).metrics()
    assert [row["update"] for row in rows] == list(range(1, 21))
    assert [row["update"] for row in RunFolder.open(folder).metrics(EVALUATIONS)] == [8, 16, 20]


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0, 8])
def test_killed_at_five_random_moments_is_bit_equal(rivals, tmp_path, memory):
    words = [rivals, f"training.network.memory={memory}"]
    uninterrupted = train(rivals, tmp_path / "whole", *words[1:])
    broken = tmp_path / "broken"
    moments = sorted(np.random.default_rng(memory).choice(np.arange(2, 20), 5, replace=False))
    folder = killed(rivals, broken, moments[0], *words, "--runs", str(broken))
    for moment in moments[1:]:
        folder = killed(rivals, broken, moment, "--resume", str(folder), "--trust")
    assert main(["--resume", str(folder), "--episodes", "2"]) == 0
    assert_same(folder, uninterrupted)


def fails(capsys, *words):
    """Run a command that must fail, and return its one line."""
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_checkpoint_that_does_not_fit_is_named(capsys, whole):
    line = fails(capsys, "--resume", str(whole), "training.network.hidden=12")
    assert "actor.inner" in line
    assert "config.toml" in line


def test_a_folder_in_use_is_left_alone(capsys, whole):
    holder = RunFolder.open(whole)
    holder.lock()
    try:
        assert "in use by another process" in fails(capsys, "--resume", str(whole))
    finally:
        holder.close()


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(
    capsys, monkeypatch, rivals, whole, tmp_path, when
):
    free, save = iter([2**40] * 3 + [2**20] * 99), ocp.CheckpointManager.save

    def write(manager, step, **kwargs):
        if step > 4 and manager.directory.name == "checkpoints":
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")
        return save(manager, step, **kwargs)

    with monkeypatch.context() as patch:
        if when == "before":
            patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
        else:
            patch.setattr(ocp.CheckpointManager, "save", write)
        line = fails(capsys, rivals, "--runs", str(tmp_path))
    assert "disk is full" in line
    assert "resume" in line
    folder = next(tmp_path.iterdir())
    assert main(["--resume", str(folder), "--episodes", "2"]) == 0
    assert_same(folder, whole)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(capsys, rivals, tmp_path, monkeypatch):
    rules = importlib.import_module("rivals").Rivals
    act = rules.act

    def overpaid(self, world, action, key):
        entities, fields, outcome = act(self, world, action, key)
        return entities, fields, eqx.tree_at(lambda o: o.reward, outcome, 1e30 * outcome.reward)

    monkeypatch.setattr(rules, "act", overpaid)
    line = fails(capsys, rivals, "--runs", str(tmp_path), "training.checkpoint_every=1")
    assert "update" in line
    assert "learning_rate" in line
    rows = RunFolder.open(next(tmp_path.iterdir())).metrics()
    assert all(np.isfinite(v) for row in rows for v in row.values())


def test_what_is_no_run_is_refused(capsys, tmp_path):
    assert "no run folder" in fails(capsys, "--resume", str(tmp_path))


def test_too_many_devices_are_refused(capsys, rivals, tmp_path):
    assert "8 cpu device(s)" in fails(capsys, rivals, "--devices", "9", "--runs", str(tmp_path))
    assert "does not divide" in fails(capsys, rivals, "--devices", "3", "--runs", str(tmp_path))
