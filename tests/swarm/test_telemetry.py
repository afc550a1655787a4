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
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import swarm
from swarm import SwarmError, load, make
from swarm.play.episodes import play
from swarm.play.telemetry import Recorder
from swarm.play.telemetry.foxglove_schemas import POSES_IN_FRAME, SCENE_UPDATE

N_STEPS = 20
HERE, ROOT = Path(__file__).parent, Path(swarm.__file__).parents[1]


@pytest.fixture(scope="module")
def scenario():
    return load(HERE / "colony.toml", {"world.room": 64, "population.worker.capacity": 64})


@pytest.fixture(scope="module")
def chunks(scenario):
    simulator = make(scenario)
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
        for number, length in enumerate(chunk.length):
            first = jax.tree.map(lambda x, i=number: x[i], chunk.first)
            worlds = [first, *(chunk.world(t, number) for t in range(length))]
            # The last world's rows are written anew with the next chunk, which knows what was chosen there.
            for world, action in zip(worlds, [*chunk.actions[:length, number], None], strict=True):
                expected |= {(number, int(world.step), uid): row for uid, row in rows_of(world, action)}
    assert found == expected
    assert {step for _, step, _ in found} == set(range(N_STEPS + 1))
    assert {row["kind"] for row in rows} == {"queen", "worker"}


def rows_of(world, action):
    e, h = world.entities, jax.tree.map(jnp.asarray, world.hierarchy)
    for i in np.flatnonzero(e.alive):
        nest, team = int(h.parent[0][i]), int(h.ancestor(2)[i])
        yield (
            int(e.uid[i]),
            {
                "slot": i,
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
                "action_0": None if action is None else action[i, 0],
                "action_1": None if action is None else action[i, 1],
                "food": e.stores[i, 0],
            },
        )


def test_steps_beyond_the_end_of_a_world_are_left_out(scenario, chunks, tmp_path):
    """Wherever the episode is cut into chunks: the first world ends in one, with one, or with the first of one."""
    for end in (2, 8, 9):
        lengths = [np.asarray([np.clip(end - 8 * i, 0, 8), len(c.worlds.step)]) for i, c in enumerate(chunks)]
        cut = [chunk._replace(length=length) for chunk, length in zip(chunks, lengths, strict=True)]
        record(tmp_path / f"{end}.parquet", scenario, cut)
        table = pq.read_table(tmp_path / f"{end}.parquet", columns=["step", "world", "slot", "action_0"]).to_pylist()
        places = [(row["step"], row["world"], row["slot"]) for row in table]
        assert places == sorted(set(places))
        last = [max(step for step, world, _ in places if world == number) for number in range(2)]
        assert last == [end, N_STEPS]
        unknown = {(row["step"], row["world"]) for row in table if row["action_0"] is None}
        assert unknown == {(end, 0), (N_STEPS, 1)}


def test_the_file_says_what_was_simulated(scenario, chunks, tmp_path):
    larger = scenario._replace(config=scenario.config.model_copy(update={"rules": "grown"}))
    record(
        tmp_path / "a.parquet", scenario, [chunks[0], chunks[1]._replace(scenario=larger)], seed=1, policy="scripted"
    )
    about = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"swarm"])
    assert about == {
        "scenario": "colony",
        "config": larger.resolved(),
        "versions": {"swarm": "0.1.0", "jax": jax.__version__},
        "platform": "cpu",
        "worlds": 2,
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


# Other formats


def test_csv_holds_the_same_rows(scenario, chunks, tmp_path):
    for name in ("a.parquet", "a.csv"):
        record(tmp_path / name, scenario, chunks, seed=1)
    wanted = pq.read_table(tmp_path / "a.parquet")
    schema = {field.name: pa.string() if field.name == "kind" else field.type for field in wanted.schema}
    options = pyarrow.csv.ConvertOptions(column_types=schema)
    found = pyarrow.csv.read_csv(tmp_path / "a.csv", convert_options=options)
    for name in wanted.column_names:
        assert found[name].to_pylist() == wanted[name].to_pylist()
    assert json.loads((tmp_path / "a.csv.json").read_text("utf-8"))["seed"] == 1


def messages(path):
    """By topic, the messages of a file and their times in seconds."""
    reader = pytest.importorskip("mcap.reader")
    by_topic = {}
    with path.open("rb") as file:
        reader = reader.make_reader(file)
        for schema, channel, message in reader.iter_messages():
            assert json.loads(schema.data)["title"] == schema.name
            by_topic.setdefault((channel.topic, schema.name), {})[message.log_time / 1e9] = json.loads(message.data)
        about = {record.name: record.metadata for record in reader.iter_metadata()}
    return by_topic, about


def test_mcap_shows_everybody_until_they_die(scenario, chunks, tmp_path):
    pytest.importorskip("mcap")
    record(tmp_path / "a.parquet", scenario, chunks, seed=1)
    record(tmp_path / "a.mcap", scenario, chunks, seed=1)
    by_topic, about = messages(tmp_path / "a.mcap")
    assert json.loads(about["swarm"]["config"]) == scenario.resolved()
    rows = pq.read_table(tmp_path / "a.parquet", filters=[("world", "==", 1)]).to_pylist()
    scenes = by_topic[("/world_1/scene", "foxglove.SceneUpdate")]
    shown = {}
    for step in range(N_STEPS + 1):
        scene = scenes[float(step)]
        for deletion in scene["deletions"]:
            assert deletion["type"] == 0
            del shown[deletion["id"]]
        shown |= {entity["id"]: entity for entity in scene["entities"]}
        living = {str(row["uid"]): row for row in rows if row["step"] == step}
        assert set(shown) == set(living)
        for uid, row in living.items():
            [body] = shown[uid]["arrows" if row["kind"] == "queen" else "cubes"]
            assert body["pose"]["position"] == {"x": row["x"], "y": row["y"], "z": 0}
            assert {"key": "kind", "value": row["kind"]} in shown[uid]["metadata"]
    assert sum(len(scene["deletions"]) for scene in scenes.values()) > 0
    poses = by_topic[("/world_1/poses/worker", "foxglove.PosesInFrame")][float(N_STEPS)]["poses"]
    wanted = [(row["x"], row["y"]) for row in rows if row["step"] == N_STEPS and row["kind"] == "worker"]
    assert [(pose["position"]["x"], pose["position"]["y"]) for pose in poses] == wanted


def test_messages_are_of_the_types_that_the_file_names(scenario, chunks, tmp_path):
    pytest.importorskip("mcap")
    validate = pytest.importorskip("jsonschema").validate
    record(tmp_path / "a.mcap", scenario, chunks[:1])
    schemas = {schema["title"]: schema for schema in (SCENE_UPDATE, POSES_IN_FRAME)}
    by_topic, _ = messages(tmp_path / "a.mcap")
    for (_, name), by_time in by_topic.items():
        validate(by_time[8.0], schemas[name])


def test_heading_is_the_rotation_about_z_and_what_is_not_finite_is_not_shown(scenario, chunks, tmp_path):
    pytest.importorskip("mcap")
    living = np.flatnonzero(chunks[0].first.entities.alive[0])
    heading = np.asarray(chunks[0].first.entities.heading).copy()
    heading[0, living[:2]] = [np.pi / 2, np.nan]
    turned = eqx.tree_at(lambda w: w.entities.heading, chunks[0].first, heading)
    record(tmp_path / "a.mcap", scenario, [chunks[0]._replace(first=turned)])
    by_topic, _ = messages(tmp_path / "a.mcap")
    entities = by_topic[("/world_0/scene", "foxglove.SceneUpdate")][0.0]["entities"]
    assert len(entities) == len(living) - 1
    turn = entities[0]["arrows"][0]["pose"]["orientation"]
    np.testing.assert_allclose([turn[axis] for axis in "xyzw"], [0, 0, 0.5**0.5, 0.5**0.5], atol=1e-6)


def test_without_the_package_mcap_is_refused(scenario, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcap.writer", None)
    with pytest.raises(SwarmError, match=r"pip install mcap$"):
        Recorder(tmp_path / "a.mcap", scenario)
    assert list(tmp_path.iterdir()) == []


def test_mcap_without_its_end_can_be_read_up_to_the_last_whole_chunk(scenario, chunks, tmp_path):
    pytest.importorskip("mcap")
    from mcap.exceptions import EndOfFile
    from mcap.records import Message
    from mcap.stream_reader import StreamReader

    times = set()
    with Recorder(tmp_path / "a.mcap", scenario) as recorder:
        for _ in range(20):
            recorder.write(chunks[1])
        # As a program would leave it that is killed now.
        with recorder.path.open("rb") as file, contextlib.suppress(EndOfFile):
            for record in StreamReader(file).records:
                times |= {record.log_time / 1e9} if isinstance(record, Message) else set()
    assert times >= {8.0, 12.0}


@pytest.mark.parametrize("name", ["a.csv", "a.mcap"])
def test_what_a_full_disk_cuts_is_cut_off(name, scenario, chunks, tmp_path):
    if name == "a.mcap":
        pytest.importorskip("mcap")
    recorder = Recorder(tmp_path / name, scenario)
    sizes = []

    def write():
        for _ in range(500):
            recorder.write(chunks[0])
            sizes.append(recorder.path.stat().st_size)

    with full_disk(50_000), pytest.raises(SwarmError, match=rf"rows are kept in .*{name}$"):
        write()
    assert recorder.path.stat().st_size == sizes[-1] > 0


# What cannot be begun


def test_what_cannot_be_written_is_refused_before_anything_is_played(scenario, tmp_path):
    (tmp_path / "old.parquet").touch()
    (tmp_path / "cut.parquet.parts").mkdir()
    for name, part in [
        ("a.txt", r"ends in \.parquet, \.csv, \.mcap"),
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


def rows_until(table, step):
    return table.filter(pc.field("step") < step)


def test_a_full_disk_leaves_the_parts_that_were_written(scenario, chunks, tmp_path):
    record(tmp_path / "whole.parquet", scenario, chunks)
    recorder = Recorder(tmp_path / "a.parquet", scenario)
    recorder.write(chunks[0])
    recorder.write(chunks[1])
    kept = pytest.raises(SwarmError, match=rf"File too large; {recorder.n_rows:,} rows are kept in .*parts$")
    with full_disk(1000), kept as caught, recorder:
        recorder.write(chunks[2])
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet.parts", "whole.parquet"]
    whole = rows_until(pq.read_table(tmp_path / "whole.parquet"), 16)
    assert pq.read_table(tmp_path / "a.parquet.parts").equals(whole)


def test_a_disk_that_is_full_at_the_end_leaves_the_parts(scenario, chunks, tmp_path):
    recorder = Recorder(tmp_path / "a.parquet", scenario)
    for chunk in chunks:
        recorder.write(chunk)
    parts = tmp_path / "a.parquet.parts"
    largest = max(part.stat().st_size for part in parts.iterdir())
    with full_disk(largest), pytest.raises(SwarmError, match="rows are kept"):
        recorder.__exit__(None, None, None)
    assert pq.read_table(parts).num_rows == recorder.n_rows
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
        # The compiler may have said something about programs that it kept.
        assert child.returncode == 130
        assert stderr.endswith("python -m swarm.simulate: stopped\n")
        assert "Traceback" not in stderr
    left = target if how is signal.SIGINT else parts
    assert [p.name for p in tmp_path.iterdir()] == [left.name]
    steps = pq.read_table(left)["step"].to_numpy()
    assert steps.max() >= 63
    np.testing.assert_array_equal(steps, np.repeat(np.arange(steps.max() + 1), 8))
