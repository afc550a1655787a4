"""Scenario files: TOML and dotted overrides to validated, frozen models. Nothing here imports jax."""

import copy
import functools
import importlib
import importlib.resources
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pydantic

from swarm.errors import ConfigError, nearest
from swarm.randomization import Distribution, distributions, is_distribution, pool, variants_of

if TYPE_CHECKING:
    from swarm.simulator import Simulator


class Table(pydantic.BaseModel):
    """A table of a scenario file: frozen, and without unknown keys."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Population(Table):
    """How many entities of a kind there can be, and are at the start; both per team."""

    capacity: int = pydantic.Field(ge=0)
    initial: int = pydantic.Field(ge=0)

    @pydantic.model_validator(mode="after")
    def _initial_fits(self) -> "Population":
        if self.initial > self.capacity:
            raise ValueError(f"initial = {self.initial} exceeds capacity = {self.capacity}; raise capacity")
        return self


class Randomization(Table):
    """Table `randomization`: how values are drawn for which the file gives distributions (`swarm.randomization`).

    Attributes:
        pool: how many draws there are; each world picks one at its reset.
        variants: how many values there are in a world of what differs between entities.
        seed: of the draws.
    """

    pool: int = pydantic.Field(default=64, ge=1)
    variants: int = pydantic.Field(default=16, ge=2)
    seed: int = pydantic.Field(default=0, ge=0, lt=2**32)


class ScenarioConfig(Table):
    """What every scenario file has; rules add their own tables by subclassing.

    Attributes:
        rules: `module:Class` of the rules, so that a user's own class needs no registration.
        groups: names of the levels, and for each above the first the rule that forms it.
        randomization: how values with distributions are drawn.
        training: settings of the learner, validated by `training.config`.
    """

    rules: str
    groups: dict[str, Any] = pydantic.Field(default_factory=lambda: {"levels": ["entity"]})
    randomization: Randomization = Randomization()
    training: dict[str, Any] = pydantic.Field(default_factory=dict)


COMMAND_LINE = "command line"
# Of scenario files that name an environment instead of rules.
HOST_RULES = "swarm.adapters.host:HostRules"


class Scenario(NamedTuple):
    """A scenario file, read and validated.

    Attributes:
        name: of the scenario.
        source: the file, as errors name it.
        config: its values, validated, with overrides; the median of what is drawn at random.
        rules_class: the class of its rules.
        own: the file's table without overrides; None where there are none.
        random: the values that differ between worlds or entities, by dotted key.
    """

    name: str
    source: str
    config: Any
    rules_class: Any
    own: Mapping[str, Any] | None = None
    random: Mapping[str, Distribution] = {}

    def place(self, key: str) -> str:
        """Where the value of a dotted key comes from, for the message of an error: the file, or the command line."""
        if self.own is None or _value_at(self.own, key) == _value_at(self.resolved(), key):
            return self.source
        return COMMAND_LINE

    def simulator(self) -> "Simulator":
        """Build the simulator (imports jax)."""
        from swarm.build import build_simulator

        return build_simulator(self)

    def resolved(self) -> dict[str, Any]:
        """All values, defaults and overrides included, as they would stand in a file."""
        table = self.config.model_dump(mode="json")
        for key, distribution in self.random.items():
            set_dotted(table, key, distribution.table())
        return table

    def draws(self) -> list[dict[str, Any]]:
        """What may be drawn for the values that differ, by dotted key (`swarm.randomization.pool`); or nothing."""
        settings = self.config.randomization
        return pool(self.random, settings.pool, settings.variants, settings.seed) if self.random else []

    def drawn(self, values: Mapping[str, Any]) -> "Scenario":
        """The scenario with numbers for what is drawn at random.

        Raises:
            ConfigError: they are not within the bounds of these values.
        """
        table = self.config.model_dump(mode="json")
        for key, value in values.items():
            set_dotted(table, key, value)
        label = self.place(next(iter(values), ""))
        config = validate(type(self.config), table, label, prefix="a draw of randomized values: ")
        return self._replace(config=config, random={})


def scenario_names() -> list[str]:
    """Names of the scenarios that come with the package."""
    return sorted(p.name[:-5] for p in _shipped().iterdir() if p.name.endswith(".toml"))


@functools.cache
def _shipped() -> Any:
    return importlib.resources.files("scenarios")


def make(source: str | Path, overrides: Mapping[str, Any] | None = None) -> "Simulator":
    """Build the simulator of a scenario.

    Args:
        source: a shipped scenario's name ("outpost") or the path of a TOML file.
        overrides: dotted keys and their values, like {"population.heavy.capacity": 64}.

    Raises:
        ConfigError: the file, a key or a value is wrong; the message names it and a remedy.
    """
    return load(source, overrides).simulator()


def load(source: str | Path, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Read and validate a scenario file; arguments and errors as for `make`."""
    name, label, table = _read(str(source))
    own = copy.deepcopy(table) if overrides else None
    for key, value in (overrides or {}).items():
        set_dotted(table, key, value)
    return _scenario(name, label, table, own)


def restore(name: str, label: str, resolved: Mapping[str, Any]) -> Scenario:
    """Validate what `Scenario.resolved` gave; `label` says where it is from, as errors name it."""
    return _scenario(name, label, copy.deepcopy(dict(resolved)), None)


def _scenario(name: str, label: str, table: dict[str, Any], own: dict[str, Any] | None) -> Scenario:
    for read in (table, own or {}):
        if "environment" in read:
            read.setdefault("rules", HOST_RULES)
    rules = table.get("rules")
    of_rules = COMMAND_LINE if own is not None and own.get("rules") != rules else label
    if not isinstance(rules, str):
        raise ConfigError(f'{of_rules}: rules: expected "module:Class", got {rules!r}; see scenarios/outpost.toml')
    rules_class = _import_rules(rules, of_rules)
    # Tables of an environment that is not ours may look like anything.
    random = {} if "environment" in table else distributions(table, label if own is None else COMMAND_LINE)
    config = validate(rules_class.Config, _medians(table, random), label, own and _medians(own, random))
    scenario = Scenario(name, label, config, rules_class, own, random)
    for key, distribution in random.items():
        for value in distribution.extremes():
            scenario.drawn({key: value})
    # Worlds that differ only in the order of their variants are one.
    numbers = {tuple(one.items()): one for values in scenario.draws() for one in variants_of(values)}
    for one in numbers.values():
        scenario.drawn(one)
    return scenario


def _medians(table: Mapping[str, Any], random: Mapping[str, Distribution]) -> Mapping[str, Any]:
    """A table with a number in the place of each distribution."""
    if not random:
        return table
    table = copy.deepcopy(dict(table))
    for key, distribution in random.items():
        if is_distribution(_value_at(table, key)):
            set_dotted(table, key, distribution.quantile(0.5))
    return table


def _read(source: str, above: tuple[str, ...] = ()) -> tuple[str, str, dict[str, Any]]:
    """Name, label and table of a scenario file, with what it takes from the `base` that it names."""
    name, label, text = _find(source)
    table = (
        beside(parse_toml(text, label), Path(source).parent) if source.endswith(".toml") else parse_toml(text, label)
    )
    base = table.pop("base", None)
    if base is None:
        return name, label, table
    if not isinstance(base, str) or label in above:
        problem = "these files are each other's base" if label in above else "expected a scenario's name or a file"
        raise ConfigError(f'{label}: base = {base!r}: {problem}, as in base = "outpost"')
    if base.endswith(".toml"):
        base = str(Path(source).parent / base)
    return name, label, merged(_read(base, (*above, label))[2], table)


def beside(value: Any, folder: Path) -> Any:
    """Values of a file, with the paths of files and run folders that lie beside it as seen from the working folder."""
    if isinstance(value, dict):
        # Options of environments that are not ours may look like anything; a base is found by itself.
        own = ("options", "base", "rules", "environment")
        return {key: inner if key in own else beside(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [beside(inner, folder) for inner in value]
    if isinstance(value, str) and value and not os.path.isabs(value):
        path = folder / value
        if (value.endswith(".toml") and os.path.isfile(path)) or os.path.isfile(path / "run.json"):
            return str(path)
    return value


def merged(base: Any, over: Any) -> Any:
    """Put values over others, table by table; a distribution is a value."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)) or is_distribution(over):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def _find(source: str) -> tuple[str, str, str]:
    path = Path(source)
    if path.suffix != ".toml":
        if source in scenario_names():
            return source, f"scenarios/{source}.toml", (_shipped() / f"{source}.toml").read_text("utf-8")
        hint = nearest(source, scenario_names())
        raise ConfigError(f"{source}: no such scenario{hint} (a file of your own must end in .toml)")
    if not path.is_file() and path.stem in scenario_names() and path.parent.name == "scenarios":
        return path.stem, source, (_shipped() / path.name).read_text("utf-8")
    return path.stem, source, read_text(path)


def read_text(path: Path) -> str:
    """Read a file that the user named."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; shipped scenarios: {', '.join(scenario_names())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None


def parse_toml(text: str, label: str) -> dict[str, Any]:
    """Parse TOML, naming the file in the error."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Also of whole numbers with thousands of digits, and of tables a thousand deep.
        raise ConfigError(f"{label}: not valid TOML: {error}") from None


def _import_rules(rules: str, label: str) -> Any:
    module_name, _, class_name = rules.partition(":")
    where = f"{label}: rules = {rules!r}"
    try:
        module = importlib.import_module(module_name) if module_name and class_name else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"{where}: no module {error.name!r}; is its folder on PYTHONPATH, or installed?") from None
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"{where}: cannot import {module_name!r}: {error}") from None
    if module is None:
        raise ConfigError(f'{where}: expected "module:Class"')
    rules_class = getattr(module, class_name, None)
    config = getattr(rules_class, "Config", None)
    if not (isinstance(config, type) and issubclass(config, ScenarioConfig)):
        classes = [k for k, v in vars(module).items() if isinstance(v, type) and hasattr(v, "Config")]
        hint = nearest(class_name, classes) if classes else ""
        raise ConfigError(f"{where}: module {module_name!r} has no rules class {class_name!r}{hint}")
    return rules_class


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Parse `key.path=value` words; the value is read as TOML, and as a bare string when it is none."""
    overrides = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{COMMAND_LINE}: {word!r}: expected key=value, like population.heavy.capacity=64")
        try:
            overrides[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[key] = value
    return overrides


def set_dotted(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a value by its dotted key, making tables on the way."""
    *parents, last = key.split(".")
    for position, name in enumerate(parents):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            inside = ".".join(parents[: position + 1])
            raise ConfigError(f"{COMMAND_LINE}: {key}: {inside} is a value, not a table")
    table[last] = value


def validate(
    model: type[Table], table: Mapping[str, Any], label: str, own: Mapping[str, Any] | None = None, prefix: str = ""
) -> Any:
    """Validate a table; the first problem becomes one line with place, key, value, expectation and nearest key.

    Args:
        model: what the table should be.
        table: the values.
        label: the file, as the error names it.
        own: the file's own values where some were overridden: a problem that these have not is the command line's.
        prefix: stands between place and problem.

    Raises:
        ConfigError: a key is unknown or missing, or a value is wrong.
    """
    try:
        return model.model_validate(table)
    except pydantic.ValidationError as error:
        problems = _problems(model, error)
    if own is not None:
        try:
            model.model_validate(own)
            label = COMMAND_LINE
        except pydantic.ValidationError as error:
            label = label if problems[0] in _problems(model, error) else COMMAND_LINE
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise ConfigError(f"{label}: {prefix}{problems[0]}{more}")


def _problems(model: type[Table], error: pydantic.ValidationError) -> list[str]:
    return [_explain(model, problem) for problem in error.errors()]


def _value_at(table: Any, key: str) -> Any:
    """A value by its dotted key; None where there is none."""
    for name in key.split("."):
        table = table.get(name) if isinstance(table, Mapping) else None
    return table


def _explain(model: type[Table], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            known = _fields_at(model, problem["loc"][:-1])
            return f"unknown key {key!r}{nearest(str(problem['loc'][-1]), known)}"
        case "missing":
            return f"{key}: missing; this table needs it"
        case "value_error":
            return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
        case _:
            return f"{key} = {problem['input']!r}: {problem['msg'].lower()}"


def _fields_at(model: type[Table], path: Sequence[Any]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, Table)]
        if not options:
            return []
        model = options[0]
    return list(model.model_fields)
