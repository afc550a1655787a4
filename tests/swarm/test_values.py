"""Values have the types that tables name and fit into arrays; what cannot be read is refused in one line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import pytest

from swarm.build.scenario_files import load
from swarm.core.errors import ConfigError
from swarm.core.tables import Table, validate
from swarm.core.toml import parse_overrides
from swarm.core.values import shown


class Inner(Table):
    pair: tuple[float, float] = (0.0, 0.0)


class Sample(Table):
    on_host = ("steps",)

    real: float = 0.0
    whole: int = 0
    truth: bool = False
    text: str = ""
    option: Literal[1, 2] = 1
    reals: tuple[float, ...] = ()
    pairs: tuple[tuple[int, float], ...] = ()
    words: list[str] = pydantic.Field(default_factory=list)
    maybe: float | None = None
    inner: Inner = Inner()
    steps: int = 0


def message_of(function, *arguments):
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 2100
    return message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("real", x) for x in (True, "8", [1.0], {}, 10**400, 1e39, -1e39, 1e-46, 1e-39, np.inf, np.nan)],
        *[("whole", x) for x in (True, "8", 8.0, 2**31, -(2**31), 2**63, 10**400, np.float32(8))],
        *[("truth", x) for x in (1, 0, 1.0, "true", "yes")],
        *[("text", x) for x in (1, True, ["a"], b"a")],
        *[("option", x) for x in (True, 1.0, "1", 3, [1])],
        *[("reals", x) for x in (1.0, "1.0", [True], ["1"], [1e39], [[1.0]], [1e-46])],
        *[("pairs", x) for x in ([[1.0, 1.0]], [[2**31, 1.0]], [[1, 1e39]], [[1, True]], [[1]], [1, 2])],
        *[("words", x) for x in ("a", [1], [["a"]])],
        *[("maybe", x) for x in (True, "8", 1e39)],
        *[("inner", x) for x in (3, [], {"pair": [1.0]}, {"pair": [1e39, 0.0]}, {"pear": 1})],
        *[("steps", x) for x in (True, 8.0, "8")],
    ],
)
def test_a_value_of_another_type_or_beyond_what_arrays_hold_is_named(key, value):
    message = message_of(validate, Sample, {key: value}, "file")
    assert message.startswith("file: ")
    assert key in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("real", 3, 3.0),
        ("real", np.float32(0.5), 0.5),
        ("real", -1e18, -1e18),
        ("whole", 2**31 - 1, 2**31 - 1),
        ("whole", np.int64(3), 3),
        ("option", 2, 2),
        ("reals", [1, 2.5], (1.0, 2.5)),
        ("pairs", [[1, 2], (3, 4.0)], ((1, 2.0), (3, 4.0))),
        ("words", ("a",), ["a"]),
        ("maybe", None, None),
        ("maybe", 1, 1.0),
        ("inner", {"pair": [1, 2]}, Inner(pair=(1.0, 2.0))),
        ("steps", 10**12, 10**12),
    ],
)
def test_a_value_that_is_meant_comes_through(key, value, expected):
    found = getattr(validate(Sample, {key: value}, "file"), key)
    assert found == expected
    assert type(found) is type(expected)


def test_values_are_shown_shortly():
    for value in ("x" * 10**6, list(range(10**6)), 10**400, 10**5000, [[[[1]]]], {"a": ("b" * 10**6,)}, "a\nb"):
        assert len(shown(value)) < 1000
        assert "\n" not in shown(value)
    assert shown((1, True, "a")) == "[1, true, 'a']"


# What is typed


@pytest.mark.parametrize("word", ["a=" + "[" * 100_000, "a=" + "9" * 5000, "a=" + "x" * 2_000_000], ids=range(3))
def test_an_override_that_no_parser_takes_is_one_line(word):
    assert message_of(parse_overrides, [word]).startswith("command line: 'a'")


def test_an_override_gives_one_value():
    assert parse_overrides(["a=3\nb = 4"]) == {"a": "3\nb = 4"}
    assert "world.steps" in message_of(load, "outpost", parse_overrides(["world.steps=3\nb = 4"]))
    assert "deep" in message_of(load, "outpost", {".".join("a" * 5000): 3})


# Files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_marks_of_windows_editors_are_read_over(folder):
    (folder / "mine.toml").write_bytes(b'\xef\xbb\xbfbase = "outpost"\r\n[world]\r\nsteps = 7\r\n')
    assert load("mine.toml").config.world.steps == 7


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000 + "]" * 100_000,
        ".".join("a" * 20_000) + " = 1",
        "a = " + "{a = " * 300 + "1" + "}" * 300,
        "[" + ".".join("a" * 200) + "]",
        "a = " + "9" * 5000,
        "".join(f"k{i} = {i}\n" for i in range(200_000)),
        'base = "outpost"\n' + "".join(f"k{i} = {i}\n" for i in range(20_000)),
        "rules = 1979-05-27",
        'base = "outpost"\nworld = 1979-05-27T07:32:00Z',
        'base = "outpost"\nworld.steps = 07:32:00',
        'base = "outpost"\nworld.ice = inf',
        'base = "outpost"\nworld.ice = {uniform = [0.0, inf]}',
        'base = "a\\u0000b.toml"',
        "base = 'outpost\ufeff'",
        "base = [1, 2]",
        'base = "' + "x" * 300 + '.toml"',
        'base = "' + "x" * 10_000 + '"',
        "x = 1\nx = 2",
    ],
    ids=range(18),
)
def test_a_file_that_means_nothing_is_one_line(folder, text):
    (folder / "mine.toml").write_text(text)
    assert "mine.toml" in message_of(load, "mine.toml") or "base" in text


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_of_another_encoding_says_so(folder, encoding):
    (folder / "mine.toml").write_bytes('base = "outpost" # é'.encode(encoding))
    assert "save it as UTF-8" in message_of(load, "mine.toml")


def test_bases_in_a_circle_are_named_whatever_their_paths(folder):
    (folder / "sub").mkdir()
    (folder / "link.toml").symlink_to("mine.toml")
    for base in ("mine.toml", "./mine.toml", "sub/../mine.toml", "link.toml", str(folder / "mine.toml")):
        (folder / "mine.toml").write_text(f'base = "{base}"')
        assert "each other's base" in message_of(load, "mine.toml")
    (folder / "mine.toml").write_text('base = "sub/other.toml"')
    (folder / "sub" / "other.toml").write_text('base = "../mine.toml"')
    assert "each other's base" in message_of(load, str(folder / "mine.toml"))
    for i in range(100):
        (folder / f"{i}.toml").write_text(f'base = "{i + 1}.toml"')
    assert "stand on each other" in message_of(load, "0.toml")


def test_names_too_long_for_a_file_are_one_line(folder):
    for name in ("x" * 300, "x" * 300 + ".toml", "x" * 10_000, "a/" * 3000 + "x.toml", "\ud800.toml"):
        message_of(load, name)


def test_options_of_an_environment_are_what_can_be_handed_on(folder):
    text = 'environment = "gymnasium:CartPole-v1"\n[options]\n'
    for value in ("1979-05-27", "07:32:00", "[1979-05-27T07:32:00Z]", "{a = 1979-05-27}"):
        (folder / "mine.toml").write_text(f"{text}a = {value}")
        assert "options" in message_of(load, "mine.toml")
    (folder / "mine.toml").write_text(f"{text}a = inf\nb = [1e39, 10000000000000000000000]")
    scenario = load("mine.toml")
    assert scenario.resolved()["options"] == {"a": float("inf"), "b": [1e39, 10**22]}


# What lies in the working folder


def run(*words, folder, **settings):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, **settings)


def test_modules_of_the_working_folder_hide_nothing(folder):
    for name in ("random", "argparse", "json", "numpy", "jax", "training", "pydantic"):
        (folder / f"{name}.py").write_text("raise SystemExit('shadow')")
    (folder / "scenarios").mkdir()
    (folder / "scenarios" / "__init__.py").write_text("raise SystemExit('shadow')")
    (folder / "mine.py").write_text("NOTHING = 1")
    (folder / "mine.toml").write_text('base = "spread"\nrules = "mine:Rules"')
    (folder / "other.toml").write_text('base = "spread"\nrules = "scenarios.other:Rules"')
    command = (sys.executable, "-m", "swarm.simulate")
    assert "outpost" in run(sys.executable, "-m", "swarm", folder=folder).stdout
    found = run(*command, "mine.toml", folder=folder).stderr
    assert "module 'mine' has no rules class" in found
    assert "shadow" not in found
    assert "is hidden by" in run(*command, "other.toml", folder=folder).stderr


def test_a_module_named_swarm_is_named_by_python_and_hides_nothing_from_the_installed_command(folder):
    (folder / "swarm.py").write_text("")
    result = run(sys.executable, "-m", "swarm.simulate", folder=folder)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "'swarm'" in result.stderr


def test_the_installed_command_finds_what_lies_in_the_working_folder(folder):
    (folder / "mine.py").write_text("NOTHING = 1")
    (folder / "mine.toml").write_text('base = "spread"\nrules = "mine:Rules"')
    script = folder / "bin" / "swarm-simulate"
    script.parent.mkdir()
    script.write_text("import sys\nfrom swarm.simulate import main\nsys.exit(main())")
    assert "module 'mine' has no rules class" in run(sys.executable, script, "mine.toml", folder=folder).stderr


@pytest.mark.parametrize("name", ["scenarios", "training"])
def test_a_package_that_hides_ours_is_named(folder, name):
    """As it does beside a script of the user's, whose folder Python looks into first."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise SystemExit('shadow')")
    script = folder / "mine.py"
    script.write_text("import sys\nfrom swarm.train import main\nsys.exit(main(['nothing']))")
    result = run(sys.executable, script, folder=folder)
    assert result.returncode == 2
    assert f"hides the package '{name}'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_without_docstrings_and_asserts_the_list_is_the_same(folder):
    plain, optimised = (run(sys.executable, *flags, "-m", "swarm", folder=folder) for flags in ((), ("-OO",)))
    assert plain.stdout == optimised.stdout != ""
