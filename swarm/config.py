"""Scenario files: TOML and dotted overrides to validated, frozen models. Nothing here imports jax."""

import copy
import functools
import importlib.resources
import itertools
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_args

import pydantic

from swarm import resolve
from swarm.errors import ConfigError, nearest
from swarm.files import read_bytes
from swarm.packages import check_ours, hidden
from swarm.randomization import Distribution, distributions, is_distribution, pool, variants_of
from swarm.values import check_range, fitted, shown

if TYPE_CHECKING:
    from swarm.scenario import AbstractRules
    from swarm.simulator import Simulator


class Table(pydantic.BaseModel):
    """A table of a scenario file: frozen, without unknown keys, each value of the very type that the table names.

    `true` is no number and `"8"` no whole number; a whole number may stand where a real one is meant, a list where a
    tuple is. Numbers fit into the arrays that they become (`swarm.values`).

    Attributes:
        on_host: names of numbers that no array ever holds, and that may be as large as they like.
    """

    # What stands in a table that is not ours (`options`) may be infinite, and stays so.
    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, ser_json_inf_nan="constants"
    )

    on_host: ClassVar[tuple[str, ...]] = ()

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _fitted(cls, value: Any, info: Any) -> Any:
        return fitted(cls.model_fields[info.field_name].annotation, value)

    @pydantic.field_validator("*", mode="after")
    @classmethod
    def _in_range(cls, value: Any, info: Any) -> Any:
        check_range(value, on_host=info.field_name in cls.on_host)
        return value


class Population(Table):
    """How many entities of a kind there can be (16 million at most), and are at the start; both per team."""

    capacity: int = pydantic.Field(ge=0, le=2**24)
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

    on_host = ("seed",)

    pool: int = pydantic.Field(default=64, ge=1, le=10_000)
    variants: int = pydantic.Field(default=16, ge=2, le=10_000)
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
_LONGEST, _DEEPEST, _MOST_BASES = 1_000_000, 32, 16
_TOO_DEEP = f"tables or lists more than {_DEEPEST} deep; no scenario or recipe has these"
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

    @property
    def foreign(self) -> bool:
        """Whether it names code that is not ours, so that its run folders need `--trust`."""
        return bool(_foreign(self.config.model_dump(include={"rules", "environment"})))

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


def about(name: str) -> str:
    """What a shipped scenario is: the first sentence of its file."""
    lines = (_shipped() / f"{name}.toml").read_text("utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    return comment.partition(". ")[0].rstrip(".")


@functools.cache
def _shipped() -> Any:
    check_ours("scenarios")
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
    _judge(overrides or {}, COMMAND_LINE, data=False)
    _check_depth(table, COMMAND_LINE)
    return _scenario(name, label, table, own)


def restore(
    name: str, label: str, resolved: Mapping[str, Any], rules_class: "type[AbstractRules] | None" = None
) -> Scenario:
    """Validate what `Scenario.resolved` gave.

    Args:
        name: of the scenario.
        label: where it is from, as errors name it.
        resolved: the values.
        rules_class: of the rules; None: the class that the values name, which may be ours alone (`swarm.resolve`).

    Raises:
        ConfigError: as for `make`; or the values, which are data, name code that is not ours.
    """
    if rules_class is None:
        _judge(resolved, label, data=True)
    return _scenario(name, label, copy.deepcopy(dict(resolved)), None, rules_class)


def _judge(table: Mapping[str, Any], label: str, *, data: bool) -> None:
    """Refuse data that names code which is not ours; what the user's own words name is allowed to data, too."""
    for key, text in _foreign(table).items():
        if not data:
            resolve.name(text)
        elif not resolve.may_name(text):
            raise resolve.refuse(f"{label}: {key} = {text!r}")


def _foreign(table: Mapping[str, Any]) -> dict[str, str]:
    """What a file names that is not ours, by key."""
    known = {"rules": resolve.is_ours, "environment": resolve.is_library}
    named = {key: table[key] for key in known if isinstance(table.get(key), str)}
    return {key: text for key, text in named.items() if not known[key](text)}


def _scenario(
    name: str, label: str, table: dict[str, Any], own: dict[str, Any] | None, rules_class: Any = None
) -> Scenario:
    for read in (table, own or {}):
        if "environment" in read:
            read.setdefault("rules", HOST_RULES)
    rules = table.get("rules")
    of_rules = COMMAND_LINE if own is not None and own.get("rules") != rules else label
    if not isinstance(rules, str):
        raise ConfigError(f'{of_rules}: rules: expected "module:Class", got {shown(rules)}; see scenarios/outpost.toml')
    rules_class = rules_class or _import_rules(rules, of_rules)
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


def _read(source: str, above: tuple[str, ...] = (), *, data: bool = False) -> tuple[str, str, dict[str, Any]]:
    """Name, label and table of a scenario file, with what it takes from the `base` that it names.

    A run's config is data, and so is its base.
    """
    name, label, text = _find(source)
    table = parse_toml(text, label)
    table = beside(table, Path(source).parent) if source.endswith(".toml") else table
    data = data or is_run_config(Path(source))
    _judge(table, label, data=data)
    base = table.pop("base", None)
    if base is None:
        return name, label, table
    # A file may have many paths.
    place = os.path.realpath(source) if source.endswith(".toml") else source
    problem = "" if isinstance(base, str) else "expected a scenario's name or a file"
    problem = "these files are each other's base" if place in above else problem
    problem = f"more than {_MOST_BASES} files stand on each other" if len(above) > _MOST_BASES else problem
    if problem:
        raise ConfigError(f'{label}: base = {shown(base)}: {problem}, as in base = "outpost"')
    if base.endswith(".toml"):
        base = str(Path(source).parent / base)
    return name, label, merged(_read(base, (*above, place), data=data)[2], table)


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
    if not os.path.isfile(path) and path.stem in scenario_names() and path.parent.name == "scenarios":
        return path.stem, source, (_shipped() / path.name).read_text("utf-8")
    return path.stem, source, read_text(path)


def is_run_config(path: Path) -> bool:
    """Whether a file is the config of a run folder."""
    return path.name == "config.toml" and os.path.exists(path.parent / "run.json")


def read_text(path: Path) -> str:
    """Read a file that the user named."""
    try:
        # Some editors begin files with a mark of the byte order.
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; shipped scenarios: {', '.join(scenario_names())}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as text: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}; save it as UTF-8") from None


def parse_toml(text: str, label: str) -> dict[str, Any]:
    """Parse TOML, naming the file in the error.

    Raises:
        ConfigError: it is none, or longer or deeper than any that means something here.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"{label}: longer than {_LONGEST:,} characters; no scenario or recipe is")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{label}: {_TOO_DEEP}") from None
    except ValueError as error:
        # Also of whole numbers with thousands of digits.
        raise ConfigError(f"{label}: not valid TOML: {error}") from None
    _check_depth(table, label)
    return table


def _check_depth(table: Any, label: str) -> None:
    """Refuse what functions that walk it by recursion could not follow."""
    layer = [table]
    for _ in range(_DEEPEST):
        layer = [inner for one in layer for inner in (one.values() if isinstance(one, Mapping) else one)]
        layer = [one for one in layer if isinstance(one, Mapping | list)]
        if not layer:
            return
    raise ConfigError(f"{label}: {_TOO_DEEP}")


def _import_rules(rules: str, label: str) -> Any:
    from swarm.scenario import AbstractRules

    module_name, _, class_name = rules.partition(":")
    if module_name.partition(".")[0] == "scenarios":
        check_ours("scenarios")
    where = f"{label}: rules = {rules!r}"
    try:
        module = resolve.import_named(module_name) if module_name and class_name else None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{where}: no module {error.name!r}; is its folder on PYTHONPATH, or installed?{hidden(module_name)}"
        ) from None
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"{where}: cannot import {module_name!r}: {error}") from None
    if module is None:
        raise ConfigError(f'{where}: expected "module:Class"')
    rules_class = getattr(module, class_name, None)
    if not _is_rules(rules_class, AbstractRules):
        classes = [k for k, v in vars(module).items() if _is_rules(v, AbstractRules)]
        hint = nearest(class_name, classes) if classes else ""
        raise ConfigError(
            f"{where}: module {module_name!r} has no rules class {class_name!r}{hint}{hidden(module_name)}"
        )
    return rules_class


def _is_rules(found: Any, expected: type) -> bool:
    """Whether it is a class of rules, and says what its scenario files hold."""
    config = getattr(found, "Config", None) if isinstance(found, type) and issubclass(found, expected) else None
    return isinstance(config, type) and issubclass(config, ScenarioConfig)


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Parse `key.path=value` words; the value is read as TOML, and as a bare string when it is none."""
    overrides = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{COMMAND_LINE}: {word!r}: expected key=value, like population.heavy.capacity=64")
        overrides[key] = _value_of(value, key)
    return overrides


def _value_of(text: str, key: str) -> Any:
    if len(text) > _LONGEST:
        raise ConfigError(f"{COMMAND_LINE}: {shown(key)}: a value longer than {_LONGEST:,} characters")
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise ConfigError(f"{COMMAND_LINE}: {shown(key)}: {_TOO_DEEP}") from None
    except ValueError as error:
        raise ConfigError(f"{COMMAND_LINE}: {shown(key)}: {error}") from None
    # More lines would be more keys.
    return table["value"] if len(table) == 1 else text


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
        problems, first = error.errors(), _explain(model, error.errors()[0])
    if own is not None:
        try:
            model.model_validate(own)
            label = COMMAND_LINE
        except pydantic.ValidationError as error:
            same = any(first == _explain(model, one) for one in error.errors() if one["loc"] == problems[0]["loc"])
            label = label if same else COMMAND_LINE
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise ConfigError(f"{label}: {prefix}{first}{more}")


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
            return f"unknown key {shown(key)}{nearest(str(problem['loc'][-1]), known)}"
        case "missing":
            return f"{key}: missing; this table needs it"
        case "value_error":
            return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
        case _:
            return f"{key} = {shown(problem['input'])}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _fields_at(model: type[Table], path: Sequence[Any]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, Table)]
        if not options:
            return []
        model = options[0]
    return list(model.model_fields)
