"""What depends on the device that a program runs on, where the program cannot be told."""

from collections.abc import Callable
from typing import TypeVar

import jax

Result = TypeVar("Result")


def by_platform(function: Callable[[str], Result]) -> Result:
    """Call `function(platform)`, with `cpu` or `accelerator`, for what the program will be compiled for.

    While a program is traced its device is not known: a default, a sharding or where its arguments are decides. So both
    calls are traced, and one of them is compiled; they must return arrays of the same shapes.
    """
    return jax.lax.platform_dependent(cpu=lambda: function("cpu"), default=lambda: function("accelerator"))
