"""Files that claim sizes beyond all measure, and files that are none, end in one line, before anything is compiled."""

import json
import os
import signal

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import swarm
from swarm import ConfigError, SwarmError, load, simulate
from swarm.build.scenario_files import scenario_names
from swarm.commands import parsing as commands
from swarm.core import memory
from swarm.core.errors import RunError
from swarm.core.files import MOST_BYTES, parse_json
from swarm.dynamics import load_airframe
from swarm.geometry.terrain import HeightMap
from swarm.play.episodes import _keys, play
from swarm.play.telemetry.replay import Recording
from training.config import load_training
from training.runs.build import build_learner
from training.runs.folders import RunFolder
from training.runs.restore import restore_minds


@pytest.fixture(autouse=True)
def _in_time():
    """Fail where something waits without end."""

    def late(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Files that are no files

READERS = {
    ".toml": [load, load_airframe, lambda path: load_training(load("spread", {"training.recipe": str(path)}))],
    ".npy": [lambda path: HeightMap.read(path, (0, 0), (1, 1))],
    ".png": [lambda path: HeightMap.read(path, (0, 0), (1, 1))],
    ".parquet": [Recording],
}


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def empty_device(path):
    path.symlink_to("/dev/null")


def folder(path):
    path.mkdir()


def circle(path):
    path.symlink_to(path)


def huge(path):
    with path.open("wb") as file:
        file.truncate(2**40 if path.suffix != ".toml" else MOST_BYTES + 1)


def noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(1000))


def nothing(path):
    if path.suffix != ".toml":
        path.write_bytes(b"")
    else:
        path.write_bytes(b"\xff")


@pytest.mark.parametrize("make", [pipe, endless, empty_device, folder, circle, huge, noise, nothing])
@pytest.mark.parametrize(("suffix", "read"), [(suffix, read) for suffix in READERS for read in READERS[suffix]])
def test_what_is_no_file_of_its_kind_is_one_line(suffix, read, make, tmp_path):
    path = tmp_path / f"a{suffix}"
    make(path)
    with pytest.raises(SwarmError, match=f"{path}: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_heights_that_a_file_claims_but_does_not_hold_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"1234")
    with pytest.raises(ConfigError, match="cannot be read as a height map"):
        HeightMap.read(path, (0, 0), (1, 1))
    np.save(path, np.asarray([[print, print], [print, print]], object), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be read as a height map"):
        HeightMap.read(path, (0, 0), (1, 1))


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "", "{", "1" * 10_000, b"\xff"])
def test_json_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


# Recordings

SPREAD = load("spread").resolved()
ABOUT = {"scenario": "spread", "config": SPREAD, "worlds": 1, "seed": 0}


def recording(tmp_path, about=ABOUT, **columns):
    path = tmp_path / "a.parquet"
    columns = {name: pa.array([0], pa.int32()) for name in ("step", "world", "slot")} | columns
    meta = about if isinstance(about, bytes) else json.dumps(about)
    pq.write_table(pa.table(columns).replace_schema_metadata({b"swarm": meta}), path)
    return path


def test_a_recording_that_says_what_it_should_is_read(tmp_path):
    assert Recording(recording(tmp_path)).n_rows == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        *(("worlds", value, "worlds = ") for value in (2, 10**6, 10**9, 10**30, 0, -1, True, "8", 2.0, None, [1])),
        *(("seed", value, "seed = ") for value in (10**20, -(10**20), True, "1", 1.5, [1])),
        *(("config", value, "config = ") for value in (3, None, [], "config")),
        *(("scenario", value, "scenario = ") for value in (3, None, ["spread"])),
        ("config", {}, "rules: "),
        ("config", SPREAD | {"rules": 3}, "rules: "),
        ("config", SPREAD | {"population": {"agent": SPREAD["population"]["agent"] | {"capacity": 10**9}}}, "capacity"),
    ],
)
def test_metadata_of_a_recording_that_cannot_be_is_one_line(tmp_path, capsys, key, value, said):
    path = recording(tmp_path, ABOUT | {key: value})
    assert simulate.main(["--replay", str(path)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert len(err) < 600 + 2 * len(str(path))


@pytest.mark.parametrize("about", [b"[" * 200_000, b"[1]", b'"config"', b"null", b"{}", b"\xff", b"", b"1" * 10_000])
def test_metadata_that_is_none_is_one_line(tmp_path, about):
    with pytest.raises(SwarmError, match=r"a\.parquet: ") as caught:
        Recording(recording(tmp_path, about))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({name: pa.array(np.zeros(100_000, np.int32)) for name in ("step", "world", "slot")}, "100,000 rows, where 1"),
        ({"step": pa.array([2**31 - 1], pa.int32())}, "step 2,147,483,647 is beyond the end"),
        ({"step": pa.array([-3], pa.int32())}, "step -3 is beyond the end"),
        ({"step": pa.array(["a"])}, "expected whole numbers in its first columns"),
        ({"world": pa.array([[1]])}, "expected whole numbers in its first columns"),
    ],
)
def test_rows_that_cannot_be_are_one_line(tmp_path, columns, said):
    with pytest.raises(SwarmError, match=said):
        Recording(recording(tmp_path, **columns))


# Runs


@pytest.mark.parametrize(
    "said",
    [
        *({"networks": value} for value in (10**9, 2, 0, -1, True, "1", None, 1.0)),
        *({"of_team": value} for value in ([10**9], [1], [-2], ["0"], [True], 0, None, {"0": 0})),
    ],
    ids=str,
)
def test_networks_that_a_run_cannot_have_are_one_line(said, tmp_path):
    import tomli_w

    (tmp_path / "config.toml").write_text(tomli_w.dumps(SPREAD))
    (tmp_path / "run.json").write_text(json.dumps({"scenario": "spread", "seed": 0} | said))
    with pytest.raises(RunError, match=r"run\.json: ") as caught:
        restore_minds(RunFolder.open(tmp_path), swarm.make("spread"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200 + len(str(tmp_path))


# Scenarios


def capacities():
    for name in scenario_names():
        for kind, table in load(name).resolved()["population"].items():
            if isinstance(table, dict) and "capacity" in table:
                yield name, kind


@pytest.mark.parametrize(("name", "kind"), list(capacities()))
def test_no_kind_has_more_slots_than_can_be(name, kind):
    with pytest.raises(ConfigError, match=f"population.{kind}.capacity = 1000000000: .* less than or equal to"):
        load(name, {f"population.{kind}.capacity": 10**9})


@pytest.mark.parametrize(
    "overrides",
    [
        {"training.rollout": 10**9},
        {"world.landmarks": 10**9},
        {"observation.others": 10**9},
        {"training.network.hidden": 10**9},
        {"training.network.memory": 10**9},
        {"training.worlds": 10**9},
        {"training.evaluation_episodes": 10**9},
        {"training.teams": ["learn"] * 1000},
    ],
    ids=str,
)
def test_a_training_that_no_memory_holds_is_refused_before_it_is_compiled(overrides):
    def build():
        scenario = load("spread", overrides)
        return build_learner(scenario, load_training(scenario))

    with pytest.raises(ConfigError) as caught:
        build()
    assert "\n" not in str(caught.value)
    assert any(word in str(caught.value) for word in ("GiB", "less than or equal", "at most"))


@pytest.mark.parametrize(
    "rule",
    ["modulo:N", "block:N", "kmeans:N", "fixed:N", "fixed:8,N", "components:2.5,N"],
)
@pytest.mark.parametrize("number", ["0", "1000000000", "99999999999999999999", "1" * 5000, "-1", "1.5"])
def test_no_grouping_has_more_groups_than_can_be(rule, number):
    with pytest.raises(ConfigError, match="at most ") as caught:
        swarm.make("outpost", {"groups.crew": rule.replace("N", number)})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_worlds_that_no_memory_holds_are_refused_before_they_are_compiled(monkeypatch):
    simulator = swarm.make("spread")
    monkeypatch.setattr(memory, "memory", lambda: 2**20)
    chunks = play(simulator, simulator.rules.scripted_policy(), jax.random.key(0), 1, n_worlds=2**14)
    with pytest.raises(ConfigError, match=r"worlds = 16384: takes more than 0\.0 GiB"):
        next(chunks)


def test_a_recording_that_no_memory_holds_is_refused_before_it_is_compiled(monkeypatch, tmp_path):
    path = recording(tmp_path, ABOUT | {"config": SPREAD | {"world": SPREAD["world"] | {"landmarks": 10_000}}})
    monkeypatch.setattr(memory, "memory", lambda: 2**10)
    with pytest.raises(ConfigError, match=r"worlds = 1: takes more than .* GiB"):
        next(Recording(path).replay())


def test_the_worlds_of_an_episode_have_the_keys_they_had():
    key = jax.random.key(7)
    expected = [jax.random.split(key), *(jax.random.split(jax.random.fold_in(key, i)) for i in (1, 2))]
    for n in (1, 3):
        found = np.stack([jax.random.key_data(x) for x in _keys(key, n)], axis=1)
        np.testing.assert_array_equal(found, np.stack([jax.random.key_data(x) for x in expected[:n]]))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 3")])
def test_memory_that_runs_out_is_one_line(error, capsys):
    import argparse

    def command(arguments):
        raise error

    assert commands.run(command, argparse.ArgumentParser(prog="x"), []) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(RuntimeError, match="else"):
        commands.run(lambda _: (_ for _ in ()).throw(RuntimeError("else")), argparse.ArgumentParser(prog="x"), [])
