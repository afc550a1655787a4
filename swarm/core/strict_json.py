"""JSON as the standard has it (RFC 8259), which knows neither NaN nor infinity: what is undefined is null."""

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """Write a value; numbers that are not finite become null, and what JSON does not know (dates) text."""
    return json.dumps(_defined(value), indent=indent, allow_nan=False, default=str)


def loads(text: str) -> Any:
    """Read a value; `NaN`, `Infinity` and numbers beyond a float, which other programs write, become None.

    Raises:
        ValueError: it is no JSON, or nested deeper than any of ours.
    """
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_number)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _number(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _defined(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _defined(inner) for key, inner in value.items()}
    return [_defined(inner) for inner in value] if isinstance(value, list | tuple) else value
