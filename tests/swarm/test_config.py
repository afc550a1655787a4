"""A mistake in a scenario file is one line that names file, key, value and remedy; what is right comes through."""

import pathlib
import tomllib

import jax.numpy as jnp
import numpy as np
import pytest
import tomli_w

import scenarios
from swarm import ConfigError, load, make
from swarm.build.scenario_files import scenario_names
from swarm.core.toml import parse_overrides
from training.config import load_training
from training.runs.build import build_learner


def message_of(function, *arguments):
    """The one line of the error that must be raised."""
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert ": :" not in message  # an empty name of a key
    assert "jax" not in message
    return message


# Files that stand on others


@pytest.fixture
def files(tmp_path):
    """Writes TOML files by name; returns their paths."""

    def write(**texts):
        paths = [tmp_path / f"{name}.toml" for name in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text)
        return [str(path) for path in paths]

    return write


def test_a_file_takes_from_its_base_what_it_does_not_give(files):
    *_, last = files(
        first='base = "outpost"\n[world]\nsize = [20, 20]\nsteps = 64\n',
        second='base = "first.toml"\nworld.steps = 32\n',
    )
    mine, outpost = load(last, {"population.light.capacity": 3, "population.light.initial": 1}), load("outpost")
    assert mine.config.world.model_dump() == outpost.config.world.model_dump() | {"size": (20, 20), "steps": 32}
    assert mine.config.population.heavy == outpost.config.population.heavy
    assert mine.config.population.light.capacity == 3
    assert (mine.name, mine.place("world.size"), mine.place("population.light.capacity")) == (
        "second",
        last,
        "command line",
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("base = 3", ["base = 3", "expected a scenario's name or a file"]),
        ('base = "outpots"', ["outpots: no such scenario", "did you mean 'outpost'"]),
        ('base = "gone.toml"', ["gone.toml: no such file"]),
        ('base = "mine.toml"', ["base = 'mine.toml'", "each other's base"]),
        ('base = "outpost"\nworld.stepps = 3', ["'world.stepps'", "did you mean 'steps'"]),
    ],
)
def test_a_wrong_base_is_one_line(files, text, parts):
    (path,) = files(mine=text)
    message = message_of(load, path)
    assert all(part in message for part in parts)


# Values


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"population.heavy.capcity": 3}, ["'population.heavy.capcity'", "did you mean 'capacity'?"]),
        ({"popul": 3}, ["'popul'", "did you mean 'population'?"]),
        ({"world.zzz": 3}, ["'world.zzz'", "valid: cycle, day"]),
        ({"world.steps": "many"}, ["world.steps = 'many'", "integer"]),
        ({"world.steps": 2.5}, ["world.steps = 2.5", "integer"]),
        ({"world.steps": 0}, ["world.steps = 0", "greater than or equal to 1"]),
        ({"world.size": [8, 8, 8]}, ["world.size", "at most 2 items"]),
        ({"world.size": [4, 8]}, ["size = [4, 8]", "from 8 to 128"]),
        ({"world.teams": 3}, ["world.teams = 3", "1 or 2"]),
        ({"world.ice": 1.5}, ["world.ice = 1.5", "less than or equal to 1"]),
        ({"world.ice": 0.4, "world.ore": 0.3}, ["ice + ore = 0.7", "lower one"]),
        ({"world.day": 60}, ["day = 60", "cycle = 50", "lower day"]),
        ({"world.rubble": float("nan")}, ["world.rubble = nan", "finite"]),
        ({"reward.early": float("inf")}, ["reward.early = inf", "finite"]),
        ({"world": 3}, ["world = 3", "dictionary"]),
        ({"training": 3}, ["training = 3", "dictionary"]),
        ({"population.light.initial": 99}, ["population.light", "initial = 99", "capacity = 16", "raise capacity"]),
        ({"population.depot.initial": 0}, ["population.depot.initial = 0", "greater than or equal to 1"]),
        ({"population.heavy.cargo": 0.0}, ["population.heavy.cargo = 0.0", "greater than 0"]),
        ({"world.size": [8, 8]}, ["world.size = [8, 8]", "no room for 2 depots", "enlarge"]),
        ({"world.steps": 0, "world.cycle": 0}, ["world.steps = 0", "and 1 more"]),
    ],
)
def test_a_wrong_value_or_key_is_named_with_its_remedy(overrides, parts):
    message = message_of(load, "outpost", overrides)
    assert message.startswith("command line: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"world.size": [0.0, 4.0]}, ["size = [0.0, 4.0]", "longer than 0"]),
        ({"world.raster": [2, 16]}, ["raster = [2, 16]", "from 4 to 128"]),
        ({"population.bird.speed": 0.0}, ["population.bird.speed = 0.0", "greater than 0"]),
        ({"population.bird.radius": 30.0}, ["population.bird.radius = 30", "shorter side", "lower it"]),
    ],
)
def test_a_wrong_value_of_flocking_is_named_with_its_remedy(overrides, parts):
    message = message_of(load, "flocking", overrides)
    assert message.startswith("command line: ")
    for part in parts:
        assert part in message


# Files


@pytest.fixture
def file(tmp_path):
    """Writes a scenario file of the given text and returns its path."""

    def write(text, name="mine.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.mark.parametrize("path", ["scenarios/{0}/{1}.toml", "scenarios/{1}.toml"])
@pytest.mark.parametrize("name", scenario_names())
def test_a_shipped_file_is_found_by_its_path_from_any_folder(tmp_path, monkeypatch, name, path):
    monkeypatch.chdir(tmp_path)
    shipped = load(name)
    folder = shipped.config.rules.split(":")[0].split(".")[1]
    assert shipped.source == f"scenarios/{folder}/{name}.toml"
    assert load(path.format(folder, name)).resolved() == shipped.resolved()
    assert "no such file" in message_of(load, "other" + path.format(folder, name))
    # A file of that path comes first.
    own = tmp_path / path.format(folder, name)
    own.parent.mkdir(parents=True)
    own.write_text(f'base = "{name}"\nworld.steps = 7')
    assert load(path.format(folder, name)).config.world.steps == 7


def test_a_missing_table_is_named(file):
    path = file('rules = "scenarios.flocking:Flocking"\n[world]\nsize=[9.0,9.0]\nsteps=3\ntime_step=0.1\nraster=[4,4]')
    message = message_of(load, path)
    assert message.startswith(f"{path}: population: missing")
    assert "and 1 more" in message


def test_text_that_is_no_toml_is_named_with_its_line(file):
    path = file('rules = "scenarios.flocking:Flocking"\nsteps = = 3')
    message = message_of(load, path)
    assert message.startswith(f"{path}: not valid TOML")
    assert "line 2" in message


def test_a_file_that_is_no_text_is_named(file, tmp_path):
    path = file(b"\xff\xfe\x00")
    assert message_of(load, path).startswith(f"{path}: cannot be read as text")
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert message_of(load, str(folder)).startswith(f"{folder}: cannot be read as text")


def test_a_file_that_is_not_there_is_named_with_those_that_are(tmp_path):
    message = message_of(load, str(tmp_path / "none.toml"))
    assert f"{tmp_path / 'none.toml'}: no such file" in message
    assert "flocking, legion, outpost" in message


@pytest.mark.parametrize(
    ("name", "hint"), [("outpos", "did you mean 'outpost'?"), ("zzzzzz", "valid: battle, crossing, delivery, flocking")]
)
def test_an_unknown_scenario_is_named_with_those_known(name, hint):
    message = message_of(load, name)
    assert message.startswith(f"{name}: no such scenario")
    assert hint in message
    assert ".toml" in message


@pytest.mark.parametrize(
    ("rules", "parts"),
    [
        ("", ["'module:Class'", "got None"]),
        ("rules = 3", ["rules", "'module:Class'", "got 3"]),
        ('rules = "scenarios.outpost"', ["rules = 'scenarios.outpost'", "'module:Class'"]),
        ('rules = ":Outpost"', ["rules = ':Outpost'", "'module:Class'"]),
        ('rules = "no_such_module:Rules"', ["no module 'no_such_module'", "PYTHONPATH"]),
        ('rules = "scenarios.nowhere:Rules"', ["no module 'scenarios.nowhere'", "PYTHONPATH"]),
        ('rules = ".outpost:Outpost"', ["rules = '.outpost:Outpost'", "cannot import"]),
        ('rules = "scenarios.outpost:Outpots"', ["no rules class 'Outpots'", "did you mean 'Outpost'?"]),
        ('rules = "scenarios.outpost:OutpostConfig"', ["no rules class 'OutpostConfig'", "did you mean 'Outpost'?"]),
        ('rules = "scenarios.spread:AbstractSpread"', ["no rules class 'AbstractSpread'", "did you mean 'Spread'?"]),
        ('rules = "swarm.core.errors:ConfigError"', ["no rules class 'ConfigError'"]),
    ],
)
def test_rules_that_cannot_be_found_are_named_with_what_was_expected(file, rules, parts):
    path = file(rules)
    message = message_of(load, path).replace('"', "'")
    assert message.startswith(f"{path}: rules")
    for part in parts:
        assert part in message


def test_a_module_that_lacks_a_module_of_its_own_is_not_mistaken_for_a_missing_one(file, tmp_path, monkeypatch):
    (tmp_path / "broken_rules.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        load(file('rules = "broken_rules:Rules"'))


# Overrides


@pytest.mark.parametrize("word", ["steps", "=3", "a..b=3", ".a=3", "a.=3", ""])
def test_a_word_that_is_no_override_is_named_with_an_example(word):
    message = message_of(parse_overrides, [word])
    assert repr(word) in message
    assert "key=value, like population.heavy.capacity=64" in message


def test_overrides_are_read_as_toml_and_else_as_text():
    words = ["a.b=3", "c=2.5", "d=true", "e=[1, 2]", 'f="x"', "g=nearest:depot", "h=", "i=a=b"]
    assert parse_overrides(words) == {
        "a.b": 3,
        "c": 2.5,
        "d": True,
        "e": [1, 2],
        "f": "x",
        "g": "nearest:depot",
        "h": "",
        "i": "a=b",
    }


def test_a_key_below_a_value_is_refused():
    message = message_of(load, "outpost", {"world.size.x": 3})
    assert "world.size.x" in message
    assert "world.size is a value, not a table" in message


def test_the_place_of_a_problem_is_where_its_value_comes_from(file):
    text = (pathlib.Path(scenarios.__file__).parent / "outpost" / "outpost.toml").read_text()
    bad = text.replace("\nrubble = 20.0", "\nrubble = -7.0").replace('crew = "nearest:depot"', 'crew = "nearest:x"')
    bad += "[training.credit]\nown_weight = 2.0\n"
    assert bad.count("-7.0") == bad.count("nearest:x") == 1
    path, mended = file(bad), {"world.rubble": 20.0, "groups.crew": "team", "training.credit.own_weight": 1.0}

    def place(function, overrides):
        return message_of(function, path, mended | overrides).partition(": ")[0]

    of_training = lambda *arguments: load_training(load(*arguments))  # noqa: E731
    assert place(load, {"world.rubble": -7.0, "world.ice": 0.1}) == path  # the same as in the file
    assert place(load, {"world.rubble": -2.0}) == "command line"
    assert place(load, {"rules": 3}) == place(load, {"rules": "nothing:Rules"}) == "command line"
    assert place(make, {"groups.crew": "nearest:x"}) == path
    assert place(make, {"groups.crew": "nearest:y"}) == "command line"
    assert place(make, {"groups.levels": ["unit", "zzz", "crew"]}) == "command line"
    assert place(of_training, {"training.credit.own_weight": 2.0}) == path
    assert place(of_training, {"training.credit.own_wait": 1.0}) == "command line"
    assert place(of_training, {"training.recipe": "mpo"}) == "command line"
    # What the command line does not touch is the file's, and nothing of it is judged that was mended.
    assert message_of(load, path, {"training.worlds": 3}).startswith(f"{path}: world.rubble = -7.0")
    assert load_training(load(path, mended)).credit.own_weight == 1.0


def test_overrides_reach_the_simulator():
    overrides = {"population.light.capacity": 20, "world.steps": 77, "population.heavy.dig": 33.0, "world.teams": 2}
    simulator = make("outpost", overrides)
    assert simulator.rules.board.capacity == (2, 20, 8)
    assert simulator.rules.n_slots == 2 * 30
    assert int(simulator.max_steps) == 77
    np.testing.assert_array_equal(simulator.rules.board.table.dig, jnp.asarray([0.0, 5.0, 33.0]))


@pytest.mark.parametrize("name", scenario_names())
def test_the_resolved_values_written_to_a_file_give_the_same_scenario(name, file):
    whole = load(name, {"world.steps": 78, "training.worlds": 3})
    again = load(file(tomli_w.dumps(whole.resolved())))
    assert again.config == whole.config
    assert again.rules_class is whole.rules_class
    assert tomllib.loads(tomli_w.dumps(again.resolved())) == whole.resolved()
    assert again.config.world.steps == 78


def test_a_validated_scenario_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load("outpost").config.world.steps = 3


# Groups


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"groups.levels": "unit"}, ["groups.levels = 'unit'", "expected a list of names", '"unit"']),
        ({"groups.levels": []}, ["groups.levels = []", "expected a list of names"]),
        ({"groups.levels": ["unit", 3]}, ["groups.levels = ['unit', 3]", "expected a list of names"]),
        ({"groups": {"crew": "team"}}, ["groups.levels = None", "expected a list of names"]),
        ({"groups.levels": ["unit", "crew", "crew"]}, ["'crew', 'crew'", "a name of its own"]),
        ({"groups.crow": "team"}, ["groups: unknown key 'crow'", "did you mean 'crew'?"]),
        ({"groups.levels": ["unit", "crew"]}, ["groups: unknown key 'team'", "valid: crew"]),
        ({"groups.unit": "team"}, ["groups: unknown key 'unit'"]),
        (
            {"groups": {"levels": ["unit", "zzz"]}},
            ["groups.zzz = 'zzz'", "unknown grouping 'zzz'", "valid: block:SIZE, components"],
        ),
        ({"groups.crew": "nearest:depto"}, ["groups.crew = 'nearest:depto'", "did you mean 'depot'?"]),
        ({"groups.crew": "modulo:0"}, ["groups.crew = 'modulo:0'", "like 'modulo:4'"]),
        ({"groups.crew": "quadrnt"}, ["groups.crew = 'quadrnt'", "did you mean 'quadrant'?"]),
        ({"groups.crew": 3}, ["groups.crew = 3", "like 'nearest:depot'"]),
    ],
)
def test_a_hierarchy_that_cannot_be_built_is_named_with_its_remedy(overrides, parts):
    message = message_of(make, "outpost", overrides)
    assert message.startswith("command line: groups")
    for part in parts:
        assert part in message


def test_a_level_without_a_rule_is_formed_by_the_rule_of_its_name():
    simulator = make("outpost", {"groups": {"levels": ["unit", "quadrant", "team"]}})
    assert simulator.levels == ("unit", "quadrant", "team")
    assert [type(grouping).__name__ for grouping in simulator.groupings] == ["Quadrant", "ByTeam"]


# Training


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_recipe_validates(name):
    config = load_training(load(name))
    assert config.n_updates >= 1
    # The scenario's own values stand over the recipe's.
    for key, value in load(name).config.training.items():
        if not isinstance(value, dict):
            assert getattr(config, key) == value


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"training.recipe": "mpo"}, ["training.recipe = 'mpo'", "did you mean 'mppo'?"]),
        ({"training.recipe": 3}, ["training.recipe = 3", "no such recipe"]),
        ({"training.lerning_rate": 0.1}, ["'lerning_rate'", "did you mean 'learning_rate'?"]),
        ({"training.credit.grooping": "kind"}, ["'credit.grooping'", "did you mean 'grouping'?"]),
        ({"training.credit": 3}, ["credit = 3", "dictionary"]),
        ({"training.credit.reward": "all"}, ["credit.reward = 'all'", "'group' or 'global'"]),
        ({"training.credit.own_weight": 2.0}, ["credit.own_weight = 2.0", "less than or equal to 1"]),
        ({"training.learning_rate": -1.0}, ["learning_rate = -1.0", "greater than 0"]),
        ({"training.network.dilations": [1, 0]}, ["network.dilations", "at least 1"]),
        (
            {"training.rollout": 7, "training.minibatches": 4},
            ["minibatches = 4", "rollout = 7", "does not divide"],
        ),
    ],
)
def test_a_wrong_setting_of_the_learner_is_named_with_its_remedy(overrides, parts):
    message = message_of(load_training, load("outpost", overrides))
    assert message.startswith("command line: training")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("grouping", "hint"), [("crow", "did you mean 'crew'?"), ("modulo:x", "like 'modulo:4'"), ("nearest:x", "valid: ")]
)
def test_a_grouping_of_credit_that_is_none_is_named_with_its_remedy(grouping, hint):
    scenario = load("outpost", {"training.credit.grouping": grouping})
    message = message_of(build_learner, scenario, load_training(scenario))
    assert message.startswith(f"command line: training.credit.grouping = {grouping!r}")
    assert hint in message
