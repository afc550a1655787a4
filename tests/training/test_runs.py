"""Runs tell the truth: by which settings they went on, what was not defined, what was damaged, what they stand on."""

import json
import shlex
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tomli_w
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from runs import copy_of, make_run, state_of, take_up

import swarm.train
import training.runs.loop
from swarm import evaluate, make, plot, simulate, train
from swarm.build.scenario_files import load
from swarm.commands.parsing import again
from swarm.core import strict_json
from swarm.core.errors import ConfigError, RunError
from training.acting.rollout import EpisodeSums
from training.config import load_training
from training.runs.checkpoints import Checkpoints
from training.runs.checksums import checksums
from training.runs.contained import contained
from training.runs.events import SummaryWriter
from training.runs.folders import EVALUATIONS, METRICS, RunFolder
from training.runs.loop import Run, _check_finite, _row
from training.runs.restore import frozen_policy, restore_minds
from training.runs.statistics import summarise


@pytest.fixture(scope="module")
def ready(rivals, tmp_path_factory):
    """A run of four updates, of which the last three are saved."""
    return make_run(rivals, tmp_path_factory.mktemp("ready"))


@pytest.fixture
def run(ready, tmp_path):
    """A copy of it that may be changed."""
    return copy_of(ready, tmp_path / "run")


def rewritten(folder, **changes):
    """Change `run.json`."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def strictly(text):
    """Parse as the standard says, without NaN."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def fails(capsys, command, *words):
    assert command.main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


# Settings of resumed runs


def test_each_resumed_run_has_its_own_settings_and_tells_what_changed(run, tmp_path):
    other = copy_of(run, tmp_path / "other")
    config = tomllib.loads((other / "config.toml").read_text())
    config["training"]["learning_rate"] = 0.03
    (other / "config.toml").write_text(tomli_w.dumps(config))
    code, groups = take_up(run, other, "training.steps=1024")
    assert code == 0
    assert [len(group) for group in groups] == [1, 1]
    assert [group[0].learner.config.learning_rate for group in groups] == [0.01, 0.03]
    assert [group[0].learner.config.steps for group in groups] == [1024, 1024]
    for folder, rate in ((run, 0.01), (other, 0.03)):
        entry = RunFolder.open(folder).identity()["resumed"][-1]
        assert (entry["update"], entry["steps"]) == (4, 512)
        assert entry["changed"] == {"training.steps": [512, 1024]}
        settings = load_training(RunFolder.open(folder).scenario())
        assert (settings.steps, settings.learning_rate) == (1024, rate)
        assert "steps = 512" in (folder / "aside" / "config.toml").read_text()
    # From here on these are the run's settings, and nothing changes.
    code, groups = take_up(run, run)
    assert code == 0
    assert [one.learner.config.steps for group in groups for one in group] == [1024]
    assert [entry["changed"] for entry in RunFolder.open(run).identity()["resumed"]][1:] == [{}]


def test_what_does_not_fit_changes_nothing(capsys, run):
    before = (run / "config.toml").read_text(), (run / "run.json").read_text()
    assert "does not fit" in fails(capsys, train, "--resume", run, "training.network.hidden=12")
    assert "training.recipe" in fails(capsys, train, "--resume", run, "training.recipe=ippo")
    assert before == ((run / "config.toml").read_text(), (run / "run.json").read_text())
    assert "has its own scenario" in fails(capsys, train, "spread", "--resume", run)
    assert "--resume" in fails(capsys, train, "spread", "--from", "2")


def test_seeds_killed_between_two_saves_go_on_from_what_all_have(capsys, run, tmp_path):
    other = rewritten(copy_of(run, tmp_path / "other"), seed=1)
    shutil.rmtree(other / "checkpoints" / "4")
    code, groups = take_up(run, other)
    assert code == 0
    assert [[one.done for one in group] for group in groups] == [[3, 3]]
    assert f"{run}: goes on from update 3" in capsys.readouterr().out
    # What had been done after it is kept, and not in the way of its being done again.
    assert (run / "aside" / "checkpoints-4").is_dir()
    assert groups[0][0].checkpoints.steps() == [2, 3]
    assert [row["update"] for row in RunFolder.open(run).metrics()] == [1, 2, 3]
    assert len((run / "aside" / METRICS).read_text().splitlines()) == 4
    for update in (2, 3):
        shutil.rmtree(other / "checkpoints" / str(update))
    assert "holds no checkpoint" in fails(capsys, train, "--resume", run, other)


def test_the_best_networks_are_saved_also_below_those_that_were_left_behind(run, monkeypatch):
    shutil.rmtree(run / "best")
    best = Checkpoints.best(RunFolder.open(run))
    best.save(4, network=jnp.arange(3.0))
    best.close()
    _, groups = take_up(run, "--from", "3")
    one = groups[0][0]
    assert (run / "aside" / "best-4").is_dir()
    assert (one.best.steps(), one.score) == ([], -np.inf)
    monkeypatch.setattr(Run, "_play", lambda _: {"takers": [0.0, 0.5, None]})
    with SummaryWriter(str(run), None, True) as writer:
        one.evaluate(writer, 1.0)
    assert (one.best.steps(), one.score) == ([3], 0.25)
    assert RunFolder.open(run).metrics(EVALUATIONS)[-1]["update"] == 3


# What is not defined


def test_metrics_that_are_not_defined_do_not_end_training_and_are_null(run, tmp_path):
    rows = [strictly(line) for line in (run / METRICS).read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["episode/nobody"] is None
        assert 0.5 < row["episode/takers"] <= 1.0
        assert row["episode/takers"] > row["episode/taking"]
    out, table = tmp_path / "curves.png", tmp_path / "table.json"
    words = ["--metrics", "taking", "takers", "nobody", "--out", str(out), "--marl-eval", str(table)]
    assert plot.main([str(run), *words]) == 0
    assert evaluate.main([str(run), "--episodes", "4"]) == 0
    for path in (run / "run.json", run / "evaluation.json", table):
        strictly(path.read_text())
    for line in (run / EVALUATIONS).read_text().splitlines():
        values = strictly(line)["metrics"]
        assert values["nobody"] == [None] * 2
        assert {type(x) for x in values["taking"]} == {float}
    found = strictly((run / "evaluation.json").read_text())
    assert found["policies"]["trained"]["nobody"] == {"mean": None, "low": None, "high": None}
    # Episodes where it is undefined are no part of the mean.
    takers = [x for x in found["values"]["trained"]["takers"] if x is not None]
    assert all(x > 0.5 for x in takers)
    mean = found["policies"]["trained"]["takers"]["mean"]
    assert mean == (pytest.approx(np.mean(takers)) if takers else None)


def test_a_mean_is_over_the_episodes_where_the_metric_is_defined():
    x = jnp.float32
    sums = EpisodeSums(
        x(4), {"some": x(6), "none": x(0), "all": x(8)}, {"some": x(3), "none": x(0), "all": x(4)}, jnp.zeros(8, int)
    )
    row = _row({"episode": sums, "loss": x(1), "parameters_finite": jnp.bool_(True)}, 1, 8)
    assert (row["episode/some"], row["episode/none"], row["episode/all"]) == (2.0, None, 2.0)
    assert summarise(np.asarray([np.nan, 1.0, np.inf, 3.0]))["mean"] == 2.0


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"policy_loss": np.nan}, "policy_loss"),
        ({"grad_norm": np.inf}, "grad_norm"),
        ({"loss": 1.0, "parameters_finite": 0.0}, "a parameter"),
        ({"loss": 1.0, "episode/taking": None, "explained_variance": np.nan, "parameters_finite": 1.0}, ""),
    ],
)
def test_divergence_is_judged_by_losses_and_parameters(row, word):
    run = object.__new__(Run)
    run.checkpoints = SimpleNamespace(path=Path("checkpoints"), latest=lambda: 3)
    if word:
        with pytest.raises(RunError, match=f"update 4: {word}"):
            _check_finite(run, 4, row)
    else:
        _check_finite(run, 4, row)


def test_json_is_what_the_standard_says():
    text = strict_json.dumps({"a": [np.nan, 1.0, (np.inf, {"b": -np.inf})], "c": "NaN", "d": True})
    assert strictly(text) == {"a": [None, 1.0, [None, {"b": None}]], "c": "NaN", "d": True}
    assert strict_json.loads("[NaN, -Infinity, 1e999, 2.5, 3]") == [None, None, None, 2.5, 3]
    for bad in ("[" * 100_000, "9" * 5000, "{"):
        with pytest.raises(ValueError, match=r"."):
            strict_json.loads(bad)


# What is damaged


def test_checksums_are_the_same_on_one_device_and_on_many_and_see_every_bit():
    mesh = Mesh(np.asarray(jax.devices()), ("x",))
    rng = np.random.default_rng(0)
    kinds = (np.float32, np.int32, np.uint32, np.uint8, bool, jnp.bfloat16)
    arrays = {str(np.dtype(k)): rng.integers(0, 2, (16, 5)).astype(k) for k in kinds} | {"one": np.float32(3)}
    expected = checksums(arrays)
    for spec in (PartitionSpec("x"), PartitionSpec()):
        placed = {
            k: jax.device_put(x, NamedSharding(mesh, spec if x.ndim else PartitionSpec())) for k, x in arrays.items()
        }
        assert checksums(placed) == expected
    for name in ("float32", "int32", "uint8"):
        for place in range(0, 80, 9):
            for bit in range(8 * arrays[name].itemsize):
                raw = arrays[name].copy()
                raw.reshape(-1).view(f"u{raw.itemsize}")[place] ^= np.array(1, f"u{raw.itemsize}") << bit
                assert checksums({"x": raw})["x"] != expected[name]
    swapped = np.arange(6.0)
    assert checksums({"x": swapped}) != checksums({"x": swapped[::-1].copy()})


def spoil(folder, update):
    """Alter an array of a checkpoint, as a careless hand or a bad disk does, but for its checksum."""
    step = folder / "checkpoints" / str(update)
    for path in (step / "network").rglob("d/*"):
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def test_a_damaged_checkpoint_is_named_and_left_only_when_asked(capsys, run, ready):
    spoil(run, 4)
    line = fails(capsys, train, "--resume", run)
    assert str(run / "checkpoints" / "4") in line
    assert "damaged" in line
    assert "--from 3" in line
    line = fails(capsys, evaluate, run)
    assert "damaged" in line
    assert "--from 3" in line
    code, groups = take_up(run, "--from", 3)
    assert code == 0
    expected = state_of(take_up(copy_of(ready, run.parent / "whole"), "--from", 3)[1][0][0])
    for name, x in state_of(groups[0][0]).items():
        np.testing.assert_array_equal(x, expected[name], err_msg=name)
    assert (run / "aside" / "checkpoints-4").is_dir()
    assert "those of 2, 3 it does" in fails(capsys, train, "--resume", run, "--from", "9")
    for update in (2, 3):
        spoil(run, update)
    assert "no other checkpoint is whole" in fails(capsys, train, "--resume", run)


def test_arrays_that_differ_from_what_was_saved_are_told_even_where_the_file_is_sound(run):
    """Written anew by Orbax, so that no checksum of a file can tell."""
    folder = RunFolder.open(run)
    there = Checkpoints(folder, 3, "elsewhere")
    there.save(4, network={"x": jnp.arange(4.0)})
    other = Checkpoints(folder, 3, "other")
    other.save(4, network={"x": jnp.arange(4.0) + 1})
    shutil.rmtree(there.path / "4" / "network")
    shutil.copytree(other.path / "4" / "network", there.path / "4" / "network")
    with pytest.raises(RunError, match=r"network\.x is not what was saved"):
        there.restore(4, network={"x": jnp.zeros(4)})
    assert not there.is_whole(4)
    assert other.is_whole(4)


def test_lines_that_cannot_be_read_are_kept(capsys, run):
    path = run / METRICS
    lines = path.read_text().splitlines()
    text = "\n".join([lines[0], '{"update": 2, "steps": 256, "loss": 0.3', *lines[2:]]) + "\n"
    path.write_text(text)
    assert take_up(run)[0] == 0
    assert "line 2 cannot be read" in capsys.readouterr().err
    assert [row["update"] for row in RunFolder.open(run).metrics()] == [1, 3, 4]
    assert (run / "aside" / METRICS).read_text() == text


# What a run stands on


def test_a_run_folder_holds_what_it_depends_on(rivals, ready, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    shutil.copy(train_recipes() / "mppo.toml", here / "mine.toml")
    shutil.copy(rivals, here / "rivals.toml")
    copy_of(ready, here / "rival")
    monkeypatch.chdir(here)
    words = {"training.recipe": "mine.toml", "training.teams": ["learn", "rival"], "training.teacher.policy": "rival"}
    scenario = load("rivals.toml", words)
    config = load_training(scenario)
    folder = RunFolder.create(scenario, config, 0, here / "runs", {})
    folder.close()
    moved = there / "run"
    shutil.move(folder.path, moved)
    shutil.rmtree(here)
    monkeypatch.chdir(there)
    held = RunFolder.open(moved)
    found = load_training(held.scenario())
    assert found.model_copy(update={"recipe": "", "teams": [], "teacher": None}) == config.model_copy(
        update={"recipe": "", "teams": [], "teacher": None}
    )
    table = tomllib.loads((moved / "config.toml").read_text())["training"]
    assert (table["recipe"], table["teams"]) == ("files/mine.toml", ["learn", "frozen/rival"])
    assert not list((moved / "frozen").rglob("actors"))
    simulator = make(held.scenario())
    minds = restore_minds(RunFolder.open(there / found.teams[1]), simulator)
    for a, b in zip(
        *(jax.tree.leaves(x) for x in (minds, restore_minds(RunFolder.open(ready), simulator))), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    # Once inside, it is copied no more.
    assert contained(tomllib.loads((moved / "config.toml").read_text()), moved)["training"] == table


def train_recipes():
    return Path(training.__file__).parent / "algorithms" / "recipes"


def test_a_file_that_names_files_means_those_beside_it(rivals, tmp_path, monkeypatch):
    shutil.copy(train_recipes() / "ippo.toml", tmp_path / "mine.toml")
    text = Path(rivals).read_text().replace("[training]", '[training]\nrecipe = "mine.toml"')
    (tmp_path / "own.toml").write_text(text)
    monkeypatch.chdir("/")
    assert load_training(load(tmp_path / "own.toml")).network.encoders == ["entity"]


def test_a_path_may_hold_what_overrides_and_shells_take_for_theirs(capsys, run, tmp_path):
    odd = tmp_path / "lr=1 of two; 'x'"
    odd.mkdir()
    run = run.rename(odd / "seed=0")
    assert evaluate.main([str(run), "--episodes", "2"]) == 0
    assert plot.main([str(run), "--out", str(odd / "c.png")]) == 0
    code, groups = take_up(run, "training.steps=1024")
    assert (code, groups[0][0].learner.config.steps) == (0, 1024)
    capsys.readouterr()
    line = fails(capsys, train, run)
    assert shlex.split(line)[-2:] == ["--resume", str(run)]
    assert shlex.split(again("swarm.train", "--resume", run))[-1] == str(run)


def test_a_run_counts_once_however_often_it_is_named(capsys, run, tmp_path):
    copy = copy_of(run, tmp_path / "copy")
    out = tmp_path / "c.png"
    table = tmp_path / "t.json"
    assert plot.main([str(run), f"{run}/../run", str(copy), "--out", str(out), "--marl-eval", str(table)]) == 0
    told = capsys.readouterr()
    assert f"{copy} has the settings and the seed of {run}, and is left out" in told.err
    assert "│ 1     │" in told.out
    assert list(json.loads(table.read_text())["swarm"]["rivals"]["mppo"]) == ["seed_0"]


def test_curves_of_other_lengths_are_told(capsys, run, tmp_path):
    other = rewritten(copy_of(run, tmp_path / "other"), seed=1)
    path = other / EVALUATIONS
    path.write_text(path.read_text().splitlines()[0] + "\n")
    out = ["--out", str(tmp_path / "c.png")]
    assert plot.main([str(run), str(other), *out]) == 0
    assert "ends at 256 steps, the last that all its runs share; some go on to 512" in capsys.readouterr().err
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(config.replace("learning_rate = 0.01", "learning_rate = 0.02"))
    assert plot.main([str(run), str(other), *out]) == 0
    assert "after different numbers of steps" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"steps": 256', '"steps": 300'))
    (other / "config.toml").write_text(config)
    assert plot.main([str(run), str(other), *out]) == 0
    assert "no evaluation at a number of steps that all its runs share" in capsys.readouterr().err


def test_an_evaluation_says_what_was_played_and_replaces_none(run):
    assert evaluate.main([str(run), "--episodes", "2", "--seed", "5"]) == 0
    first = (run / "evaluation.json").read_bytes()
    assert evaluate.main([str(run), "--episodes", "3", "--deterministic", "--best"]) == 0
    assert (run / "evaluation-1.json").read_bytes() == first
    assert (run / "evaluation-1.png").is_file()
    for data, expected in (
        (first, {"seed": 5, "episodes": 2, "deterministic": False, "networks": "last", "update": 4}),
        ((run / "evaluation.json").read_bytes(), {"seed": 0, "episodes": 3, "deterministic": True, "networks": "best"}),
    ):
        found = json.loads(data)
        assert {name: found[name] for name in expected} == expected
        for policy, metrics in found["policies"].items():
            values = found["values"][policy]
            assert values.keys() == metrics.keys()
            assert all(len(x) == expected["episodes"] for x in values.values())
            assert metrics["return"]["mean"] == pytest.approx(np.mean(values["return"]))


def test_the_networks_of_an_earlier_checkpoint_can_be_evaluated(capsys, run):
    assert evaluate.main([str(run), "--episodes", "2", "--from", "2"]) == 0
    assert json.loads((run / "evaluation.json").read_text())["update"] == 2
    capsys.readouterr()
    assert "--from" in fails(capsys, evaluate, run, "--from", "2", "--best")


# Seeds, and a full disk


@pytest.mark.parametrize("seed", ["-1", "4294967296", "9" * 20, "9" * 5000, "1.5", "one", "²"])
@pytest.mark.parametrize("command", [train, evaluate, simulate])
def test_a_seed_that_would_be_another_is_refused_in_one_line(capsys, command, seed):
    line = fails(capsys, command, "spread", f"--seed={seed}")
    assert "a whole number from 0 to 4294967295" in line
    assert len(line) < 300


def test_seeds_that_count_beyond_the_last_are_refused(capsys, rivals, run):
    assert "begin lower" in fails(capsys, train, rivals, "--seed", 2**32 - 1, "--seeds", "2")
    for seed in (-1, 2**32, 1.0, "0", None, True):
        assert "seed" in fails(capsys, train, "--resume", rewritten(run, seed=seed))
        with pytest.raises(RunError, match="seed"):
            RunFolder.open(run).identity()


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20])
def test_seeds_of_files_are_bounded_alike(rivals, seed):
    with pytest.raises(ConfigError, match=r"randomization\.seed"):
        load(rivals, {"randomization.seed": seed})


def test_all_seeds_that_are_allowed_differ():
    seeds = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
    assert len({tuple(np.asarray(jax.random.key_data(jax.random.key(seed)))) for seed in seeds}) == len(seeds)


def test_a_full_disk_at_the_evaluation_is_one_line(capsys, run, monkeypatch):
    write_text = type(run).write_text

    def full(path, *rest, **more):
        if "evaluation.json" in path.name:
            raise OSError(28, "No space left on device")
        return write_text(path, *rest, **more)

    monkeypatch.setattr(type(run), "write_text", full)
    line = fails(capsys, evaluate, run, "--episodes", "2")
    assert "evaluation.json" in line
    assert "make room" in line
    monkeypatch.setattr(training.runs.loop, "train", lambda runs: None)
    line = fails(capsys, swarm.train, "--resume", run, "--episodes", "2")
    assert "evaluation.json" in line
    assert "make room" in line


def test_frozen_policies_take_an_update(ready):
    folder = RunFolder.open(ready)
    simulator = make(folder.scenario())
    first, last = (frozen_policy(folder, simulator, update=update) for update in (2, None))
    leaves = [jax.tree.leaves(eqx.filter(policy, eqx.is_array)) for policy in (first, last)]
    assert any(bool(jnp.any(a != b)) for a, b in zip(*leaves, strict=True))
