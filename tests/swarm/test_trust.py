"""Run folders and recordings are data: they call nothing but what is ours, allowed by name, or trusted."""

import importlib
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from swarm import ConfigError, evaluate, load, plot, simulate, train
from swarm.adapters.environments import make_environment
from swarm.build.scenario_files import restore
from swarm.core import resolve

SPREAD = load("spread").resolved()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the working folder, and returns the file that it makes when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    canary, written = tmp_path / "canary", []

    def write(name, text=""):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(canary)!r}, 'w').close()\n{text}")
        importlib.invalidate_caches()
        written.append(name.partition("/")[0])
        return canary

    yield write
    for name in written:
        sys.modules.pop(name, None)


def run_of(tmp_path, table):
    """A run folder of which nothing but the config is read before it is refused."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"scenario": "spread", "seed": 0, "networks": 1, "of_team": [0]}))
    (folder / "config.toml").write_text(tomli_w.dumps(table))
    row = {"update": 1, "steps": 1, "seconds": 1.0, "metrics": {"return": [1.0]}}
    (folder / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def recording_of(tmp_path, about):
    path = tmp_path / "a.parquet"
    table = pa.table({name: pa.array([0], pa.int32()) for name in ("step", "world", "slot")})
    pq.write_table(table.replace_schema_metadata({b"swarm": json.dumps(about)}), path)
    return path


def without(table, *names):
    return {key: value for key, value in table.items() if key not in names}


def error_of(main, words, capsys):
    """The one line of a command that must fail."""
    assert main(list(map(str, words))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


HOST = without(SPREAD, "rules", "world", "population", "reward", "groups")
FOREIGN = {
    "rules": SPREAD | {"rules": "evil:Rules"},
    "rules by another's attribute": SPREAD | {"rules": "evil:os.system"},
    "environment": HOST | {"environment": "evil:Environment"},
    "shell": HOST | {"environment": "os:system", "options": {"command": "touch canary"}},
    "import by Gymnasium": HOST | {"environment": "gymnasium:evil:Environment-v0"},
    "import by PettingZoo": HOST | {"environment": "pettingzoo:evil"},
    "a base": {"base": "other.toml"},
}
COMMANDS = {
    "evaluate": (evaluate.main, lambda run: [run]),
    "resume": (train.main, lambda run: ["--resume", run]),
    "plot": (plot.main, lambda run: [run]),
    "train its config": (train.main, lambda run: [run / "config.toml"]),
    "simulate its config": (simulate.main, lambda run: [run / "config.toml"]),
    "policy": (simulate.main, lambda run: ["spread", "--policy", run]),
    "opponent": (simulate.main, lambda run: ["skirmish", f"training.teams=['learn', '{run}']", "--policy", run]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_run_that_names_foreign_code_is_refused_by_every_command(kind, command, module, tmp_path, capsys):
    canary, run = module("evil"), run_of(tmp_path, FOREIGN[kind])
    (run / "other.toml").write_text('rules = "evil:Rules"\n')
    main, words = COMMANDS[command]
    line = error_of(main, words(run), capsys)
    named = FOREIGN[kind].get("environment") or FOREIGN[kind].get("rules") or "evil:Rules"
    file = run / ("other.toml" if kind == "a base" else "config.toml")
    assert f"{file}: " in line
    assert f" = {named!r}: " in line
    assert "allow it with --trust" in line
    assert not canary.exists()


@pytest.mark.parametrize("kind", without(FOREIGN, "a base"))
def test_a_recording_that_names_foreign_code_is_refused(kind, module, tmp_path, capsys):
    canary = module("evil")
    path = recording_of(tmp_path, {"scenario": "spread", "seed": 0, "worlds": 1, "config": FOREIGN[kind]})
    line = error_of(simulate.main, ["--replay", path], capsys)
    assert f"--replay {path}: " in line
    assert not canary.exists()


@pytest.mark.parametrize("text", ["gymnasium:CartPole-v1", "os:system", "evil:Environment"])
def test_a_replay_never_makes_an_environment(text, module, tmp_path, capsys):
    canary, config = module("evil"), HOST | {"environment": text, "options": {"command": "touch canary"}}
    path = recording_of(tmp_path, {"scenario": "x", "seed": 0, "worlds": 1, "config": config})
    assert f"environment = {text!r}" in error_of(simulate.main, ["--replay", path, "--trust"], capsys)
    assert not canary.exists()


def test_who_trusts_a_run_lets_it_name_anything(module, tmp_path, capsys):
    canary, run = module("evil"), run_of(tmp_path, FOREIGN["rules"])
    assert "has no rules class 'Rules'" in error_of(evaluate.main, [run, "--trust"], capsys)
    assert canary.exists()
    # The trust ends with the command.
    assert "allow it with --trust" in error_of(evaluate.main, [run], capsys)


def test_data_may_name_what_the_user_named(module, tmp_path, capsys):
    module("mine", "from scenarios.spread import Spread as Mine\n")
    run = run_of(tmp_path, SPREAD | {"rules": "mine:Mine"})
    with pytest.raises(ConfigError, match="allow it with --trust"):
        load(run / "config.toml")
    own = tmp_path / "own.toml"
    own.write_text('base = "spread"\nrules = "mine:Mine"\n')
    assert load(own).rules_class is load(run / "config.toml").rules_class
    resolve._named.remove("mine:Mine")


@pytest.mark.parametrize("top", resolve.OURS)
def test_a_package_of_the_working_folder_is_not_ours(top, module, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == top]:
        monkeypatch.delitem(sys.modules, name)
    canary = module(f"{top}/__init__")
    assert not resolve.is_ours(f"{top}.spread:Spread")
    with pytest.raises(ConfigError, match="allow it with --trust"):
        restore("spread", "a.parquet", SPREAD | {"rules": f"{top}.spread:Spread"})
    with pytest.raises(ConfigError, match="shadows the package"):
        resolve.import_named(f"{top}.spread")
    assert not canary.exists()


def test_a_library_of_the_working_folder_is_not_the_library(module, monkeypatch):
    assert resolve.is_library("gymnasium:CartPole-v1")
    for name in [name for name in sys.modules if name.partition(".")[0] == "gymnasium"]:
        monkeypatch.delitem(sys.modules, name)
    canary = module("gymnasium")
    assert not resolve.is_library("gymnasium:CartPole-v1")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["lock", "evaluation.json", "metrics.jsonl", "checkpoints"])
@pytest.mark.parametrize("command", ["evaluate", "resume", "plot", "policy"])
def test_a_link_out_of_a_run_folder_is_not_followed(name, command, tmp_path, capsys):
    run, precious = run_of(tmp_path, SPREAD), tmp_path / "precious"
    precious.write_text("mine")
    (run / name).symlink_to(precious)
    main, words = COMMANDS[command]
    line = error_of(main, words(run), capsys)
    assert f"{run / name} is a link to {precious}" in line
    assert precious.read_text() == "mine"


# What a user names himself is checked before it is called.

MINE = """
import functools
import gymnasium
from os import system
from subprocess import run

def boom(**options):
    open("called", "w").close()

class Plain:
    def __init__(self, **options):
        boom()

class Callable:
    def __call__(self, **options):
        boom()

thing = Callable()
part = functools.partial(run)
def number(**options) -> int:
    return boom()
def nothing(**options) -> None:
    return boom()
def annotated(**options) -> gymnasium.Env:
    return gymnasium.make("CartPole-v1")
def told(**options) -> "gymnasium.Env":
    return gymnasium.make("CartPole-v1")
def silent(**options):
    return gymnasium.make("CartPole-v1")
partial = functools.partial(silent, delay=1)
class Own(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)
    def reset(self, **options): ...
    def step(self, action): ...
"""


@pytest.mark.parametrize(
    "text",
    [
        *("os:system", "os:path.join", "builtins:eval", "builtins:exec", "builtins:dict", "subprocess:Popen"),
        *("shutil:rmtree", "importlib:import_module", "pathlib:Path", "code:interact", "runpy:run_path", "sys:exit"),
        *("numpy:save", "numpy:load", "numpy:random.seed", "pip:main", "jax:jit", "swarm.simulate:main"),
        *(
            "swarm.train:main",
            "training.runs.folders:RunFolder",
            "gymnasium:os.system",
            "pettingzoo:os",
            "pettingzoo:numpy",
        ),
        *("mine:system", "mine:run", "mine:Plain", "mine:thing", "mine:part", "mine:number", "mine:nothing"),
        *("mine:gymnasium", "mine:", ":system", "mine", "mine:os.system", "mine:__builtins__", "mine:functools.reduce"),
    ],
)
def test_what_makes_no_environments_is_refused_before_it_is_called(text, module, tmp_path):
    module("mine", MINE)
    with pytest.raises(ConfigError) as caught:
        make_environment(text, {"command": "touch called", "args": "touch called", "file": "called", "arr": [1]})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("name", ["annotated", "told", "silent", "partial", "Own"])
def test_classes_and_functions_of_environments_are_called(name, module):
    module("mine", MINE)
    assert make_environment(f"mine:{name}", {}).possible_agents == ("agent",)


@pytest.mark.parametrize(("library", "option"), [("gymnasium:CartPole-v1", "id"), ("pettingzoo:a/b", "env_type")])
def test_options_cannot_name_another_environment(library, option, module):
    canary = module("evil")
    with pytest.raises(ConfigError, match=f"options.{option} = 'evil:X-v0'"):
        make_environment(library, {option: "evil:X-v0"})
    assert not canary.exists()


@pytest.mark.parametrize("rules", ["os:system", "builtins:dict", "mine:boom", "mine:Plain", "mine:Own", "mine:thing"])
def test_what_is_no_class_of_rules_is_refused_before_it_is_called(rules, module, tmp_path):
    module("mine", MINE)
    (tmp_path / "own.toml").write_text(tomli_w.dumps(SPREAD | {"rules": rules}))
    with pytest.raises(ConfigError, match=r"own.toml: rules = ") as caught:
        load(tmp_path / "own.toml")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "called").exists()
    resolve._named.discard(rules)


def test_a_script_that_ends_the_program_is_one_line(module, tmp_path):
    module("script", "raise SystemExit(3)")
    (tmp_path / "own.toml").write_text('rules = "script:Rules"')
    with pytest.raises(ConfigError, match="importing 'script' ends the program"):
        load(tmp_path / "own.toml")
    resolve._named.discard("script:Rules")
