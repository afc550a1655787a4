"""Scenario files: TOML and dotted overrides to validated, frozen models. Nothing here imports jax."""

import copy
import functools
import importlib.resources
import inspect
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from swarm.build.randomization import Distribution, distributions, is_distribution, pool, variants_of
from swarm.core import resolve
from swarm.core.errors import ConfigError, nearest
from swarm.core.files import read_bytes
from swarm.core.packages import check_ours, hidden
from swarm.core.tables import ScenarioConfig, validate
from swarm.core.toml import COMMAND_LINE, check_depth, parse_toml, set_dotted, value_at
from swarm.core.values import shown

if TYPE_CHECKING:
    from swarm.simulation.rules import AbstractRules


_MOST_BASES = 16
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
        if self.own is None or value_at(self.own, key) == value_at(self.resolved(), key):
            return self.source
        return COMMAND_LINE

    @property
    def foreign(self) -> bool:
        """Whether it names code that is not ours, so that its run folders need `--trust`."""
        return bool(_foreign(self.config.model_dump(include={"rules", "environment"})))

    def resolved(self) -> dict[str, Any]:
        """All values, defaults and overrides included, as they would stand in a file."""
        table = self.config.model_dump(mode="json")
        for key, distribution in self.random.items():
            set_dotted(table, key, distribution.table())
        return table

    def draws(self) -> list[dict[str, Any]]:
        """What may be drawn for the values that differ, by dotted key (`randomization.pool`); or nothing."""
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
    return sorted(_shipped())


def about(name: str) -> str:
    """What a shipped scenario is: the first sentence of its file."""
    lines = _shipped()[name][1].splitlines()
    comment = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    return comment.partition(". ")[0].rstrip(".")


@functools.cache
def _shipped() -> Mapping[str, tuple[str, str]]:
    """Labels, like scenarios/flocking/vicsek.toml, and texts of the files that come with the package, by name."""
    check_ours("scenarios")
    folders = [folder for folder in importlib.resources.files("scenarios").iterdir() if folder.is_dir()]
    files = [(folder, file) for folder in folders for file in folder.iterdir() if file.name.endswith(".toml")]
    return {
        file.name.removesuffix(".toml"): (f"scenarios/{folder.name}/{file.name}", file.read_text("utf-8"))
        for folder, file in files
    }


def load(source: str | Path, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Read and validate a scenario file.

    Args:
        source: a shipped scenario's name ("outpost") or the path of a TOML file.
        overrides: dotted keys and their values, like {"population.heavy.capacity": 64}.

    Raises:
        ConfigError: the file, a key or a value is wrong; the message names it and a remedy.
    """
    name, label, table = _read(str(source))
    own = copy.deepcopy(table) if overrides else None
    for key, value in (overrides or {}).items():
        set_dotted(table, key, value)
    _judge(overrides or {}, COMMAND_LINE, data=False)
    check_depth(table, COMMAND_LINE)
    return _scenario(name, label, table, own)


def restore(
    name: str, label: str, resolved: Mapping[str, Any], rules_class: "type[AbstractRules] | None" = None
) -> Scenario:
    """Validate what `Scenario.resolved` gave.

    Args:
        name: of the scenario.
        label: where it is from, as errors name it.
        resolved: the values.
        rules_class: of the rules; None: the class that the values name, which may be ours alone (`swarm.core.resolve`).

    Raises:
        ConfigError: as for `load`; or the values, which are data, name code that is not ours.
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
        found = f'expected "module:Class", got {shown(rules)}'
        raise ConfigError(f"{of_rules}: rules: {found}; see scenarios/outpost/outpost.toml")
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
        if is_distribution(value_at(table, key)):
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
        if source in _shipped():
            return source, *_shipped()[source]
        hint = nearest(source, scenario_names())
        raise ConfigError(f"{source}: no such scenario{hint} (a file of your own must end in .toml)")
    label, text = _shipped().get(path.stem, ("", ""))
    # Its own path, or as if all files were in one folder, as they were once.
    places = (f"/{label}", f"/scenarios/{path.name}")
    if label and f"/{path.as_posix()}".endswith(places) and not os.path.isfile(path):
        return path.stem, source, text
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


def _import_rules(rules: str, label: str) -> Any:
    from swarm.simulation.rules import AbstractRules

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
    """Whether it is a final class of rules, and says what its scenario files hold."""
    if not (isinstance(found, type) and issubclass(found, expected)) or inspect.isabstract(found):
        return False
    config = getattr(found, "Config", None)
    return isinstance(config, type) and issubclass(config, ScenarioConfig)
