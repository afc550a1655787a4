"""Every key of every scenario and recipe, mutated: refused in one line that names it, or accepted and sane.

What is accepted though it looks odd, and why:
    weights of rewards, and of the urges of boids, of either sign: whoever pays for a crash may study just that;
    wind and seeds below 0: a direction, and a name;
    sizes, speeds and times from a nanometre to a million kilometres: of use are few, but all of them can be computed.
"""

import datetime
import functools
import math
import random
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import pytest
import tomli_w

import scenarios
from swarm import ConfigError, load, make
from swarm.build.scenario_files import scenario_names
from training.config import load_training, recipe_names
from training.runs.build import build_learner

LONG = "x" * 10_000
DATES = (datetime.date(1979, 5, 27), datetime.time(7, 32), datetime.datetime(1979, 5, 27, 7, 32))
BEYOND = (math.nan, math.inf, -math.inf, 1e39, -1e39, 1e-46, 1e-39, 2**63, 10**400, -(10**400))
TABLES = ({}, {"x": 1}, {"uniform": [1.0]}, {"uniform": [2.0, 1.0]}, {"normal": [math.nan, 1.0]}, {"choice": [10**400]})
NEVER = (*DATES, *TABLES, [[]], [[[[1.0]]]])
RULES = ("modulo:0", "modulo:99999999999999999999", "block:-1", "block:2.5", "block:" + "9" * 5000, "kmeans:1000000000")
RULES += (
    "fixed:8,99999999999",
    "fixed:0",
    "components:1e39",
    "components:nan",
    "components:1e-46",
    "nearest:",
    "kind:3",
)
# Numbers that stay on the host may exceed 32 bits.
ON_HOST = ("randomization.seed", "training.steps")
# Of these any number below 0 is meant.
SIGNED = ("randomization.seed", "reward.", "boids.", "air.wind", "control.low", "control.high", "world.pillars")


class Case(NamedTuple):
    """A value for a key of a scenario, or of a recipe for it; `never`: it must not be accepted."""

    scenario: str
    recipe: str | None
    key: str
    value: Any
    never: bool


def mutations(value: Any) -> Iterator[tuple[Any, bool]]:
    """Other values for a key, and whether no key may take them."""
    wrong: tuple = NEVER
    others: tuple = ()
    match value:
        case bool():
            wrong += (0, 1, 1.0, "true", "", [], [True], math.nan)
            others = (not value,)
        case int():
            wrong += (True, False, "8", "", LONG, [], [value], *BEYOND, 2**31, -(2**31), value + 0.5, float(value))
            others = (0, -1, -value, 1, 2, 2**31 - 1, -(2**31) + 1, value + 1, 1000 * value)
        case float():
            wrong += (True, False, "8", "", LONG, [], [value], *BEYOND)
            others = (0, 0.0, -1.0, -value, 1.5, 1e-18, 1e-12, 1e-6, 1e6, 1e12, 1e18, -1e18, 1000 * value, value / 1000)
        case str():
            wrong += (0, 1.0, True, [], [value], LONG, "a\nb", "\0", f"{value}?")
            others = ("", "0", "scripted")
        case list():
            wrong += ("8", LONG, 1, 1.0, True, [value], [*value, {}], [*value, *DATES])
            others = ([], value[:-1], value * 2, value[::-1], value * 1000)
            if value and not isinstance(value[0], str):
                bad = (True, "8", value[:1], *BEYOND)
                wrong += (*([x, *value[1:]] for x in bad), *([*value[:-1], x] for x in bad))
                numbers = (0, -value[0], -1, 1e-18, 1e18, 1000 * value[0])
                others += (*([x, *value[1:]] for x in numbers), *([*value[:-1], x] for x in numbers))
            else:
                wrong += ([1], [True], ["a", 1], [LONG], ["a\nb"])
    yield from ((x, True) for x in wrong)
    yield from ((x, False) for x in others)


def leaves(table: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def is_rule(key: str) -> bool:
    return key == "training.credit.grouping" or (key.startswith("groups.") and key != "groups.levels")


def cases_of(name: str, recipe: str | None = None) -> list[Case]:
    """Of a scenario all but the settings of the learner; with a recipe, these."""
    scenario = load(name, {"training.recipe": recipe} if recipe else None)
    table = scenario.resolved()
    table["training"] = load_training(scenario).model_dump(mode="json")
    found = [
        Case(name, recipe, key, x, never and not (key in ON_HOST and x in (2**31, -(2**31))))
        for key, value in leaves(table)
        if key.startswith("training.") == bool(recipe)
        for x, never in (*mutations(value), *((rule, True) for rule in RULES if is_rule(key)))
    ]
    return found


@functools.cache
def all_cases() -> list[Case]:
    of_recipes = [case for recipe in recipe_names() for case in cases_of("spread", recipe)]
    return [case for name in scenario_names() for case in cases_of(name)] + of_recipes


def below_zero(value: Any) -> bool:
    return any(map(below_zero, value)) if isinstance(value, list) else isinstance(value, int | float) and value < 0


def check_line(message: str) -> None:
    assert message.isprintable(), message
    assert len(message) < 2100, message


def names(message: str, key: str) -> bool:
    """Whether a message tells where to look: the key, or of several that do not fit the table or the airframe."""
    *tables, last = key.split(".")
    return any(word in message for word in (last, *tables[:1] * (len(tables) == 1), *tables[2:], "airframe"))


def judge(case: Case) -> bool:
    """Whether a value is accepted; it must be sane then, and else be refused in one line that names its key."""
    # Minibatches divide the steps or the worlds, whichever the algorithm splits.
    fixed = {"training.recipe": case.recipe, "training.minibatches": 2} if case.recipe else {}
    try:
        scenario = load(case.scenario, fixed | {case.key: case.value})
        config = load_training(scenario)
        if case.recipe:
            build_learner(scenario, config)
        else:
            eqx.filter_eval_shape(make(scenario).reset, jax.random.key(0))
    except ConfigError as error:
        message = str(error)
        check_line(message)
        assert names(message, case.key), f"{case.key}: {message}"
        return False
    assert not case.never, f"{case}: accepted"
    assert not below_zero(case.value) or case.key.startswith(SIGNED), f"{case}: accepted"
    table = scenario.resolved()
    assert tomllib.loads(tomli_w.dumps(table)) == table
    return True


def damaged(text: bytes, stream: random.Random) -> bytes:
    """A file with a few bytes lost, changed, repeated or moved."""
    data = bytearray(text)
    for _ in range(stream.randint(1, 4)):
        at, length = stream.randrange(len(data)), stream.randint(1, 40)
        piece = data[at : at + length]
        match stream.randrange(5):
            case 0:
                del data[at : at + length]
            case 1:
                data[at] = stream.randrange(256)
            case 2:
                data[at:at] = piece * stream.randint(1, 50)
            case 3:
                data[at:at] = stream.choice(
                    [b"\xef\xbb\xbf", b"\r", b"[", b"{", b'"', b"'''", b"=", b".", b"\n[", b"1e"]
                )
            case 4:
                other = stream.randrange(len(data))
                data[other:other] = piece
    return bytes(data)


def check_damaged(number: int, folder: Path) -> None:
    """Damage the file of a scenario; it is read, or refused in one line."""
    stream = random.Random(number)
    names = scenario_names()
    name = names[number % len(names)]
    text = next(Path(scenarios.__file__).parent.glob(f"*/{name}.toml")).read_bytes()
    path = folder / "mine.toml"
    path.write_bytes(damaged(text, stream))
    try:
        load_training(load(path))
    except ConfigError as error:
        check_line(str(error))


def test_a_sample_of_values_is_refused_in_one_line_or_is_sane():
    cases = random.Random(0).sample(all_cases(), 200)
    accepted = [judge(case) for case in cases]
    assert 0 < sum(accepted) < 100


def test_a_sample_of_damaged_files_is_read_or_refused_in_one_line(tmp_path):
    for number in range(100):
        check_damaged(number, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", scenario_names())
def test_any_value_of_a_scenario_is_refused_in_one_line_or_is_sane(name):
    for case in cases_of(name):
        judge(case)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipe_names())
def test_any_value_of_a_recipe_is_refused_in_one_line_or_is_sane(recipe):
    for case in cases_of("spread", recipe):
        judge(case)


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    for number in range(5000):
        check_damaged(number, tmp_path)
