"""TOML of files and of the command line: parsed within limits, and values by dotted keys. Nothing here imports jax."""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from swarm.core.errors import ConfigError
from swarm.core.values import shown

COMMAND_LINE = "command line"
_LONGEST, _DEEPEST = 1_000_000, 32
_TOO_DEEP = f"tables or lists more than {_DEEPEST} deep; no scenario or recipe has these"


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
    check_depth(table, label)
    return table


def check_depth(table: Any, label: str) -> None:
    """Refuse what functions that walk it by recursion could not follow."""
    layer = [table]
    for _ in range(_DEEPEST):
        layer = [inner for one in layer for inner in (one.values() if isinstance(one, Mapping) else one)]
        layer = [one for one in layer if isinstance(one, Mapping | list)]
        if not layer:
            return
    raise ConfigError(f"{label}: {_TOO_DEEP}")


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


def value_at(table: Any, key: str) -> Any:
    """A value by its dotted key; None where there is none."""
    for name in key.split("."):
        table = table.get(name) if isinstance(table, Mapping) else None
    return table
