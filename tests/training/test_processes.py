"""Several processes on one machine learn what one learns; whoever dies is noticed, and the run goes on with others."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from member import LEARNERS, SMALL, parameters

from swarm.build.scenario_files import load
from swarm.core.errors import ConfigError
from swarm.core.interrupts import stop_requested
from swarm.train import main
from training.config import load_training
from training.execution import processes
from training.runs.build import build_learner
from training.runs.folders import EVALUATIONS, METRICS, Checkpoints, RunFolder
from training.runs.loop import Run, train

HERE = Path(__file__).parent
# Enough updates to be interrupted in their midst.
LONG = LEARNERS["impala"] | {"training.steps": 5120, "training.evaluate_every": 0}
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    # Programs that run for a second need not be fast.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


class Group:
    """Processes of one command, with what they say; none outlives the context."""

    def __init__(self, *commands):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        start = lambda words: subprocess.Popen([sys.executable, *map(str, words)], env=ENVIRONMENT, **pipes)  # noqa: E731
        self.processes = [start(words) for words in commands]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate(timeout=60)

    def after(self, n_updates, runs):
        """Wait until so many updates are on record; returns the run's folder."""
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and all(p.poll() is None for p in self.processes):
            for path in runs.glob("*/metrics.jsonl"):
                if path.read_text().count("\n") >= n_updates:
                    return path.parent
            time.sleep(0.05)
        raise AssertionError([p.communicate(timeout=60) if p.poll() is not None else "lives" for p in self.processes])

    def ends(self, within=60):
        """Exit status, stdout and stderr of each."""
        deadline, found = time.monotonic() + within, []
        for process in self.processes:
            out, err = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
            found.append((process.returncode, out, err))
        return found


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def training(n, *words):
    """The commands of so many processes."""
    options = "--coordinator", free_port(), "--num-processes", n, "--process-id"
    return [("-m", "swarm.train", *words, *options, i) for i in range(n)]


def fresh(rivals, runs):
    return rivals, *(f"{k}={v}" for k, v in (SMALL | LONG).items()), "--episodes", 2, "--runs", runs


def last_words(err):
    """The last line that is ours."""
    return [line for line in err.splitlines() if line.startswith("python -m swarm.train:")][-1]


def assert_same_as_one(rivals, tmp_path, n, *names):
    out, where = tmp_path / "found.npz", free_port()
    with Group(*[(HERE / "member.py", rivals, out, ",".join(names), where, n, i) for i in range(n)]) as group:
        expected = {name: parameters(rivals, LEARNERS[name], 10) for name in names}
        assert [code for code, _, _ in group.ends(180)] == [0] * n
    found = np.load(out)
    assert len(found.files) == sum(map(len, expected.values())) > 10
    for name, row in expected.items():
        for i, x in enumerate(row):
            np.testing.assert_allclose(found[f"{name}.{i}"], x, atol=1e-5, rtol=0)


def go_on_alone(rivals, folder):
    """Resume in this process, and compare with a run that nobody interrupted."""
    held = RunFolder.open(folder)
    scenario = held.scenario()
    run = Run(build_learner(scenario, load_training(scenario)), held, 0)
    run.resume()
    assert 0 < run.done < 40
    train([run])
    assert [row["update"] for row in held.metrics()] == list(range(1, 41))
    expected = parameters(rivals, LONG, 40)
    found = jax.tree.leaves(run.learned.network)
    for a, b in zip(found, expected, strict=False):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


def test_two_processes_learn_the_same_parameters_as_one(rivals, tmp_path):
    assert_same_as_one(rivals, tmp_path, 2, "mppo")


@pytest.fixture(scope="module")
def stopped(rivals, tmp_path_factory):
    """What two processes said when one of them got SIGTERM, and the run's folder."""
    runs = tmp_path_factory.mktemp("stopped")
    with Group(*training(2, *fresh(rivals, runs))) as group:
        folder = group.after(3, runs)
        group.processes[1].send_signal(signal.SIGTERM)
        return group.ends(), folder


def test_a_signal_to_one_process_stops_and_saves_all(stopped):
    ((code_0, out_0, err_0), (code_1, out_1, err_1)), folder = stopped
    assert code_0 == code_1 == 130
    assert re.search(f"stopped and saved; go on with: python -m swarm.train --resume {folder} --trust\n$", err_0)
    # Process 0 speaks for all; Gloo greets by itself.
    assert "run folder" in out_0
    assert re.fullmatch(r"(\[Gloo\].*\n)?", out_1)
    assert "swarm" not in err_1
    # Both did the same number of updates, and saved the last.
    saved = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved) == len(RunFolder.open(folder).metrics()) < 40
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1


def test_a_killed_process_stops_the_other_and_the_run_goes_on_alone(rivals, stopped):
    _, folder = stopped
    done = len(RunFolder.open(folder).metrics())
    with Group(*training(2, "--resume", folder, "--trust")) as group:
        group.after(done + 3, folder.parent)
        # The worst one: the others meet where it listens.
        group.processes[0].kill()
        _, (code, _, err) = group.ends()
    assert code not in (0, 130)
    assert "another" in last_words(err)
    assert f"--resume {folder}" in last_words(err)
    go_on_alone(rivals, folder)


@pytest.mark.slow
def test_four_processes_learn_the_same_parameters_as_one(rivals, tmp_path):
    assert_same_as_one(rivals, tmp_path, 4, "mppo", "impala")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_goes_on_with_another_number_of_processes(rivals, tmp_path, victim):
    with Group(*training(4, *fresh(rivals, tmp_path))) as group:
        folder = group.after(6, tmp_path)
        group.processes[victim].kill()
        ends = group.ends()
    for i, (code, _, err) in enumerate(ends):
        assert code not in (0, 130)
        assert f"--resume {folder}" in last_words(err), i
    for n in (2, 4):
        done = len(RunFolder.open(folder).metrics())
        with Group(*training(n, "--resume", folder, "--trust")) as group:
            group.after(done + 2, tmp_path)
            for process in group.processes:
                process.send_signal(signal.SIGINT)
            assert [code for code, _, _ in group.ends()] == [130] * n
    go_on_alone(rivals, folder)


@pytest.mark.slow
def test_a_process_that_hangs_is_taken_for_dead(rivals, tmp_path):
    with Group(*training(2, *fresh(rivals, tmp_path))) as group:
        folder = group.after(3, tmp_path)
        group.processes[1].send_signal(signal.SIGSTOP)
        _, err = group.processes[0].communicate(timeout=60)
        assert group.processes[0].returncode not in (0, 130)
    assert "another" in last_words(err)
    assert f"--resume {folder}" in last_words(err)


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(rivals, tmp_path):
    one, other = training(2, *fresh(rivals, tmp_path))
    with Group(one, (*other, "training.rollout=16", "--seed", 1)) as group:
        (_, _, err_0), (code, _, err) = group.ends()
    assert code == 2
    assert "process 1 was started with other settings than process 0: seeds, training" in last_words(err)
    assert "another" in last_words(err_0)


@pytest.mark.slow
def test_several_seeds_that_take_over_from_another_run(rivals, tmp_path):
    def alone(runs, *words):
        assert main([str(word) for word in (*words, "--runs", tmp_path / runs)]) == 0
        return RunFolder.open(next((tmp_path / runs).iterdir()))

    words = rivals, *(f"{k}={v}" for k, v in SMALL.items()), "training.checkpoint_every=20", "--episodes", 2
    before = alone("before", *words, "training.steps=1024").path
    words = *words, f"training.teams=['learn', '{before}']", "--init-from", before
    with Group(*training(2, *words, "--seeds", 2, "--runs", tmp_path / "two")) as group:
        assert [code for code, _, _ in group.ends(600)] == [0, 0]
    one = alone("one", *words, "--seed", 1)
    folders = sorted((tmp_path / "two").iterdir())
    assert [RunFolder.open(folder).identity()["seed"] for folder in folders] == [0, 1]
    two = RunFolder.open(folders[1])
    for name in (METRICS, EVALUATIONS):
        assert len(two.metrics(name)) == len(one.metrics(name)) > 0
    for mine, expected in zip(two.metrics(EVALUATIONS), one.metrics(EVALUATIONS), strict=True):
        assert mine["metrics"]["taking"] == pytest.approx(expected["metrics"]["taking"])
    assert (two.path / "video.mp4").is_file()
    assert Checkpoints.best(two).latest() == Checkpoints.best(one).latest()


def test_what_does_not_fit_is_one_line(capsys, monkeypatch, rivals):
    def fails(*words):
        assert main([rivals, *words]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "give all three" in fails("--coordinator", "localhost:4000")
    assert "expected HOST:PORT" in fails("--coordinator", "host", "--num-processes", "2", "--process-id", "1")
    assert "expected 0 to 1" in fails("--coordinator", "localhost:4000", "--num-processes", "2", "--process-id", "2")
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "local_devices", lambda process=0: jax.devices()[process : process + 1])
    scenario = load(rivals)
    with pytest.raises(ConfigError, match="each of 3 processes does not divide"):
        build_learner(scenario, load_training(scenario))
    alone = load(rivals, {"training.recipe": "impala", "training.epochs": 1, "training.impala.actors": 1})
    with pytest.raises(ConfigError, match="set it to 0"):
        build_learner(alone, load_training(alone))


@pytest.mark.parametrize(
    ("environment", "n_devices", "asked"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}, 1, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}, 2, [2, 3]),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, 8, list(range(8))),
    ],
)
def test_launchers_are_left_to_jax_but_for_the_devices_of_a_process(monkeypatch, environment, n_devices, asked):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *words, **_: calls.append(words))
    assert not processes._connect(None, None, None, n_devices)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    will = processes._connect(None, None, None, n_devices)
    assert will is not None
    will.revoke()
    assert calls == [(None, None, None, asked)]


def test_a_killed_process_has_a_last_word():
    program = (
        "import os\nfrom training.execution.processes import Will\n"
        "Will('one').revoke()\nwill = Will('two')\nwill.set_remedy('do so')\nos.abort()"
    )
    words = [sys.executable, "-c", program]
    found = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    (line,) = found.stderr.strip().splitlines()
    assert "process 0 of 1 was killed" in line
    assert line.endswith("; do so")


def test_apart_from_the_main_thread_nothing_is_asked_to_stop():
    found = []

    def ask():
        with stop_requested() as stop:
            found.append(stop())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [False]
