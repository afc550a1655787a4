"""A recording can be played again without its policy, bit for bit, and what was changed in it is found."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swarm import SwarmError, load, make
from swarm.play.episodes import play
from swarm.play.telemetry import Recorder
from swarm.play.telemetry.replay import Recording
from swarm.simulate import main

pytestmark = pytest.mark.optimised

N_STEPS = 12
COLONY = Path(__file__).parent / "colony.toml"
FLOCKING = {"population.bird.capacity": 12, "population.bird.initial": 12, "world.size": [6.0, 6.0]}


def recorded(path, scenario):
    """Record an episode in chunks that a replay does not share; keep what a kill would leave after two of them."""
    simulator, key = make(scenario), jax.random.key(3)
    policy = simulator.rules.scripted_policy()
    with Recorder(path, scenario, {"seed": 3, "policy": "scripted"}) as recorder:
        for chunk in play(simulator, policy, key, N_STEPS, n_worlds=2, scenario=scenario, chunk_steps=5):
            recorder.write(chunk)
            if chunk.worlds.step[-1].max() == 10:
                shutil.copytree(path.with_name(f"{path.name}.parts"), path.with_name("cut.parts"))
    return path


@pytest.fixture(scope="module")
def colony(tmp_path_factory):
    """With births, deaths, a capacity that grows, and two continuous commands."""
    scenario = load(COLONY, {"world.room": 64, "population.worker.capacity": 8})
    return recorded(tmp_path_factory.mktemp("recorded") / "a.parquet", scenario)


def test_a_replay_has_all_rows_though_capacities_grew(colony):
    recording = Recording(colony)
    assert recording.about["config"]["population"]["worker"]["capacity"] == 16
    chunks = list(recording.replay())
    assert sum(len(chunk.worlds.step) for chunk in chunks) == recording.n_steps == N_STEPS
    table = pq.read_table(colony)
    first, last, ever = (set(t["uid"].to_pylist()) for t in (at_step(table, 0), at_step(table, N_STEPS), table))
    assert ever - first, "nobody was born"
    assert first - last, "nobody died"


def at_step(table, step):
    return at_steps(table, [step])


def at_steps(table, steps):
    return table.filter(np.isin(np.asarray(table["step"]), list(steps)))


def test_the_command_replays_discrete_actions_without_the_policy(tmp_path, capsys):
    path, csv = recorded(tmp_path / "a.parquet", load("flocking", FLOCKING)), tmp_path / "a.csv"
    assert main(["--replay", str(path), "--record", str(csv)]) == 0
    n_rows = 2 * (N_STEPS + 1) * 12
    out = capsys.readouterr().out
    assert out.endswith(f"replayed: all {n_rows} rows of {path} are the same, bit for bit\n")
    assert csv.read_text("utf-8").count("\n") == 1 + n_rows


def test_what_was_left_of_a_recording_that_was_killed_replays(colony, tmp_path):
    recording = Recording(colony.with_name("cut.parts"))
    assert recording.n_steps == 10
    assert recording.n_rows == len(at_steps(pq.read_table(colony), range(10)))
    assert sum(len(chunk.worlds.step) for chunk in recording.replay()) == 10
    shutil.copytree(colony.with_name("cut.parts"), tmp_path / "cut.parts")
    part = tmp_path / "cut.parts" / "000001.parquet"
    with pytest.raises(SwarmError, match=r"row \d+ \(step 9, .*y = "):
        list(Recording(changed(part, part, flip("y", -1)).parent).replay())


def changed(path, target, change):
    """A recording of which something was changed."""
    table = pq.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), target)
    return target


def flip(name, row):
    def change(columns):
        columns[name][row] = np.nextafter(np.float32(columns[name][row]), np.float32(np.inf)).item()

    return change


def without(row):
    def change(columns):
        for values in columns.values():
            del values[row]

    return change


def act(row):
    def change(columns):
        columns["action_0"][row] = -9.0

    return change


def test_whatever_is_changed_is_found(colony, tmp_path):
    table = pq.read_table(colony)
    last, middle = len(table) - 1, len(table) // 2
    step, world, uid = (table[name][middle].as_py() for name in ("step", "world", "uid"))
    place = rf"row {middle} \(step {step}, world {world}, uid {uid}\)"
    for number, (change, message) in enumerate(
        [
            (flip("x", middle), rf"{place}: x = .*, but the replay gives "),
            (flip("food", last), rf"row {last} .*: food = "),
            (act(0), r"row \d+ \(step 1, world 0, uid 0\): x = "),
            (without(middle), rf"row {middle} "),
            (without(last), rf"row {last} .* is missing"),
        ]
    ):
        target = changed(colony, tmp_path / f"{number}.parquet", change)
        with pytest.raises(SwarmError, match=message) as caught:
            list(Recording(target).replay())
        assert "\n" not in str(caught.value)
        # The same versions on the same device: not to be blamed.
        assert "recorded with" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("x", pa.array(["1.0"]), "expected float in column x, found string"),
        ("x", pa.array([[1.0]]), "expected float in column x, found list"),
        ("kind", pa.array([1]), "expected dictionary.* in column kind, found int64"),
        ("uid", pa.array([None], pa.int32()), "uid = None, but the replay gives 0"),
        ("slot", pa.array([None], pa.int32()), "slot = None, but the replay gives 0"),
        ("slot", pa.array([10**9], pa.int32()), "slot = 1000000000, but the replay gives 0"),
        ("action_0", pa.array(["1.0"]), "expected numbers in column action_0"),
        ("action_0", pa.array([1e300]), "row "),
    ],
)
def test_columns_of_another_kind_are_one_line(colony, tmp_path, name, values, message):
    table = pq.read_table(colony)
    column = pa.concat_arrays([values] * len(table))
    table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SwarmError, match=message) as caught:
        list(Recording(tmp_path / "a.parquet").replay())
    assert "\n" not in str(caught.value)


def test_what_is_no_recording_is_refused(colony, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("no table")
    pq.write_table(pa.table({"step": [1]}), tmp_path / "foreign.parquet")
    about = json.loads(pq.read_schema(colony).metadata[b"swarm"]) | {"seed": None}
    seedless = pq.read_table(colony).replace_schema_metadata({b"swarm": json.dumps(about)})
    pq.write_table(seedless, tmp_path / "seedless.parquet")
    for name, part in [
        ("a.txt", "not a Parquet recording"),
        ("none.parquet", "not a Parquet recording"),
        ("foreign.parquet", "not a Parquet recording"),
        ("seedless.parquet", "does not say its seed"),
    ]:
        assert main(["--replay", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert part in err
        assert err.count("\n") == 1
