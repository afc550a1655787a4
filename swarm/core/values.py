"""Values of TOML in the terms of a table: what stands for what, what arrays can hold, and how errors show it.

Nothing here imports jax.
"""

import math
import reprlib
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticCustomError

LARGEST_WHOLE = 2**31 - 1
# Squares of all that lies between are numbers of single precision, too.
LARGEST, LEAST = 1e18, 1e-18


def fitted(annotation: Any, value: Any) -> Any:
    """A value as an annotation expects it: a tuple where TOML has a list, a plain number where arrays have one.

    Raises:
        PydanticCustomError: it is none of the options of a `Literal`; pydantic itself would take `true` for 1.
    """
    if hasattr(value, "dtype") and value.ndim == 0:
        value = value.item()
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return fitted(inner[0], value)
    if origin in (Union, types.UnionType):
        options = [one for one in inner if one is not type(None)]
        return fitted(options[0], value) if len(options) == 1 and value is not None else value
    if origin is Literal and not any(type(value) is type(one) and value == one for one in inner):
        raise PydanticCustomError("option", "expected {options}", {"options": " or ".join(map(shown, inner))})
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return origin(fitted(_item(inner, i), one) for i, one in enumerate(value))
    return value


def _item(inner: Sequence[Any], i: int) -> Any:
    """The annotation of the i-th item of a tuple or a list."""
    if not inner:
        return Any
    return inner[min(i, len(inner) - 1)] if inner[-1] is not Ellipsis else inner[0]


def check_range(value: Any, *, on_host: bool = False) -> None:
    """Raise where a number, or one in a tuple or a list, is beyond what arrays hold; none is where all stay `on_host`.

    Raises:
        PydanticCustomError: there is one.
    """
    if isinstance(value, tuple | list):
        for one in value:
            check_range(one, on_host=on_host)
    elif isinstance(value, bool) or on_host:
        return
    elif isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise PydanticCustomError("range", "a whole number must be within {most} (32 bits)", {"most": LARGEST_WHOLE})
    elif isinstance(value, float) and math.isfinite(value) and value and not LEAST <= abs(value) <= LARGEST:
        limits = {"least": f"{LEAST:g}", "most": f"{LARGEST:g}"}
        raise PydanticCustomError(
            "range", "a number must be 0 or from {least} to {most} in size (single precision)", limits
        )


class _Short(reprlib.Repr):
    """Shows values much as TOML does, and never at length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxdict = 8
        self.maxlong = self.maxstring = self.maxother = 80

    def repr_bool(self, x: bool, level: int) -> str:
        return str(x).lower()

    def repr_tuple(self, x: tuple[Any, ...], level: int) -> str:
        return self.repr_list(list(x), level)

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out what is longer.
        return super().repr_int(x, level) if x.bit_length() < 8192 else f"{x:#x}"[: self.maxlong] + "..."


def shown(value: Any) -> str:
    """A value for the message of an error: one line, and never a long one."""
    return _SHORT.repr(value)


_SHORT = _Short()
