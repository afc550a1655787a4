"""A recording holds what happened, and can be read whatever ended it."""

import contextlib
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

import swarm
from swarm import SwarmError, load
from swarm.episode import play
from swarm.telemetry import Recorder

N_STEPS = 20
HERE, ROOT = Path(__file__).parent, Path(swarm.__file__).parents[1]


@pytest.fixture(scope="module")
def scenario():
    return load(HERE / "colony.toml", {"world.room": 64, "population.worker.capacity": 64})


@pytest.fixture(scope="module")
def chunks(scenario):
    simulator = scenario.simulator()
    policy = simulator.rules.scripted_policy()
    return list(play(simulator, policy, jax.random.key(1), N_STEPS, n_worlds=2, chunk_steps=8, scenario=scenario))


def record(path, scenario, chunks, **about):
    with Recorder(path, scenario, about) as recorder:
        for chunk in chunks:
            recorder.write(chunk)
    return recorder


def test_each_living_entity_has_a_row_at_each_step(scenario, chunks, tmp_path):
    recorder = record(tmp_path / "a.parquet", scenario, chunks)
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert len(rows) == recorder.n_rows
    found = {(row.pop("world"), row.pop("step"), row.pop("uid")): row for row in rows}
    assert len(found) == len(rows)
    expected = {}
    for chunk in chunks:
        for number in range(2):
            first = [jax.tree.map(lambda x, i=number: x[i], chunk.first)] if chunk is chunks[0] else []
            for world in [*first, *(chunk.world(t, number) for t in range(chunk.length[number]))]:
                expected |= {(number, int(world.step), uid): row for uid, row in rows_of(world)}
    assert found == expected
    assert {step for _, step, _ in found} == set(range(N_STEPS + 1))
    assert {row["kind"] for row in rows} == {"queen", "worker"}


def rows_of(world):
    e, h = world.entities, jax.tree.map(jnp.asarray, world.hierarchy)
    for i in np.flatnonzero(e.alive):
        nest, team = int(h.parent[0][i]), int(h.ancestor(2)[i])
        yield (
            int(e.uid[i]),
            {
                "kind": ("queen", "worker")[e.kind[i]],
                "team": e.team[i],
                "group_nest": nest,
                "generation_nest": int(h.generation[0][nest]),
                "group_team": team,
                "generation_team": int(h.generation[1][team]),
                "x": e.position[i, 0],
                "y": e.position[i, 1],
                "heading": e.heading[i],
                "vx": e.velocity[i, 0],
                "vy": e.velocity[i, 1],
                "food": e.stores[i, 0],
            },
        )


def test_steps_beyond_the_end_of_a_world_are_left_out(scenario, chunks, tmp_path):
    cut = [chunk._replace(length=np.asarray([2, len(chunk.worlds.step)])) for chunk in chunks[:1]]
    record(tmp_path / "a.parquet", scenario, cut)
    table = pq.read_table(tmp_path / "a.parquet", columns=["world", "step"]).to_pylist()
    assert max(row["step"] for row in table if row["world"] == 0) == 2
    assert max(row["step"] for row in table if row["world"] == 1) == 8


def test_the_file_says_what_was_simulated(scenario, chunks, tmp_path):
    larger = scenario._replace(config=scenario.config.model_copy(update={"rules": "grown"}))
    record(
        tmp_path / "a.parquet", scenario, [chunks[0], chunks[1]._replace(scenario=larger)], seed=1, policy="scripted"
    )
    about = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"swarm"])
    assert about == {
        "version": "0.1.0",
        "scenario": "colony",
        "config": larger.resolved(),
        "seed": 1,
        "policy": "scripted",
    }


def test_a_hierarchy_without_a_group_is_told_apart(scenario, chunks, tmp_path):
    # Without a queen a worker has no nest, and is nobody's at any level above.
    lonely = eqx.tree_at(lambda w: w.hierarchy.parent[0], chunks[0].first, replace_fn=lambda x: np.full_like(x, -1))
    chunk = chunks[0]._replace(first=lonely)
    record(tmp_path / "a.parquet", scenario, [chunk])
    at_start = pq.read_table(tmp_path / "a.parquet", filters=[("step", "==", 0)])
    for level in ("nest", "team"):
        assert set(at_start[f"group_{level}"].to_pylist()) == {-1}
        assert set(at_start[f"generation_{level}"].to_pylist()) == {0}


def test_names_that_are_taken_are_refused(scenario, chunks, tmp_path, monkeypatch):
    monkeypatch.setattr(type(chunks[0].simulator.rules), "stores", ("x",))
    with pytest.raises(ValueError, match="'x'"):
        record(tmp_path / "a.parquet", scenario, chunks)
    assert list(tmp_path.iterdir()) == []


# What cannot be begun


def test_what_cannot_be_written_is_refused_before_anything_is_played(scenario, tmp_path):
    (tmp_path / "old.parquet").touch()
    (tmp_path / "cut.parquet.parts").mkdir()
    for name, part in [
        ("a.csv", "ends in .parquet"),
        ("old.parquet", "exists already"),
        ("cut.parquet", "cut short"),
        ("none/a.parquet", "No such file or directory"),
    ]:
        with pytest.raises(SwarmError, match=part) as caught:
            Recorder(tmp_path / name, scenario)
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.parquet.parts", "old.parquet"]


# What cuts a recording short


def cut_short(chunks, error):
    yield from chunks
    raise error


def test_an_error_leaves_a_file_of_what_was_written(scenario, chunks, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "a.parquet", scenario, cut_short(chunks[:2], KeyboardInterrupt))
    assert max(pq.read_table(tmp_path / "a.parquet")["step"].to_pylist()) == 16
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
    with pytest.raises(RuntimeError):
        record(tmp_path / "none.parquet", scenario, cut_short([], RuntimeError))
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


@contextlib.contextmanager
def full_disk(n_bytes):
    """No file can become larger, as on a disk without space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_parts_that_were_written(scenario, chunks, tmp_path):
    record(tmp_path / "whole.parquet", scenario, chunks[:2])
    recorder = Recorder(tmp_path / "a.parquet", scenario)
    recorder.write(chunks[0])
    recorder.write(chunks[1])
    kept = pytest.raises(SwarmError, match=r"File too large; 2 chunks of steps are kept in .*parts$")
    with full_disk(1000), kept as caught, recorder:
        recorder.write(chunks[2])
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet.parts", "whole.parquet"]
    assert pq.read_table(tmp_path / "a.parquet.parts").equals(pq.read_table(tmp_path / "whole.parquet"))


def test_a_disk_that_is_full_at_the_end_leaves_the_parts(scenario, chunks, tmp_path):
    recorder = Recorder(tmp_path / "a.parquet", scenario)
    for chunk in chunks:
        recorder.write(chunk)
    largest = max(part.stat().st_size for part in recorder.parts.iterdir())
    with full_disk(largest), pytest.raises(SwarmError, match="3 chunks of steps are kept"):
        recorder.__exit__(None, None, None)
    assert pq.read_table(recorder.parts).num_rows == recorder.n_rows
    assert not recorder.path.exists()


def test_a_disk_that_is_full_from_the_start_leaves_nothing(scenario, chunks, tmp_path):
    with full_disk(1000), pytest.raises(SwarmError, match="nothing was recorded"):
        record(tmp_path / "a.parquet", scenario, chunks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_recording_that_is_stopped_or_killed_can_be_read(how, tmp_path):
    target, parts = tmp_path / "a.parquet", tmp_path / "a.parquet.parts"
    words = ["flocking", "population.bird.capacity=8", "population.bird.initial=8", "world.steps=100000000"]
    command = [sys.executable, "-m", "swarm.simulate", *words, "--record", str(target)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not (parts / "000001.parquet").exists():
        time.sleep(0.01)
    child.send_signal(how)
    _, stderr = child.communicate(timeout=60)
    if how is signal.SIGINT:
        assert (child.returncode, stderr) == (130, "python -m swarm.simulate: stopped\n")
    left = target if how is signal.SIGINT else parts
    assert [p.name for p in tmp_path.iterdir()] == [left.name]
    steps = pq.read_table(left)["step"].to_numpy()
    assert steps.max() >= 64
    np.testing.assert_array_equal(steps, np.repeat(np.arange(steps.max() + 1), 8))
