"""Environments that are not JAX, by name: Gymnasium's, PettingZoo's parallel ones, and a user's own of either kind.

Nothing here imports jax: the processes that step these environments need none.
"""

import contextlib
import functools
import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import Mapping
from typing import Any, Protocol

from swarm.core import resolve
from swarm.core.errors import ConfigError, SwarmError, brief

EXPECTED = '"gymnasium:ID", "pettingzoo:ID or MODULE" or "module:function"'
# Whose functions make environments, though they say not what they return.
_LIBRARIES = ("gymnasium", "pettingzoo", "mpe2")
# Options that would name another environment.
_NAMES = ("id", "env_type")
INSTALL = "install it with: pip install 'swarm-engine[host]'"


class HostError(SwarmError):
    """An environment, or the process that steps it, failed.

    Attributes:
        details: all that is known, like the trace of an environment's error; empty where the line says it.
    """

    def __init__(self, line: str, details: str = "") -> None:
        super().__init__(line)
        self.details = details


class ParallelEnvironment(Protocol):
    """What is used of `pettingzoo.ParallelEnv`."""

    possible_agents: list[Any]
    agents: list[Any]

    def observation_space(self, agent: Any) -> Any:
        """Of an agent."""

    def action_space(self, agent: Any) -> Any:
        """Of an agent."""

    def reset(self, seed: int | None = None) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Return observations and infos."""
        ...

    def step(self, actions: dict[Any, Any]) -> tuple[dict[Any, Any], ...]:
        """Return observations, rewards, terminations, truncations and infos."""
        ...

    def close(self) -> None:
        """Let go of everything."""


class Alone:
    """A Gymnasium environment as a parallel one of a single agent."""

    possible_agents = ("agent",)

    def __init__(self, environment: Any) -> None:
        self._environment, self.agents = environment, []

    def observation_space(self, agent: str) -> Any:
        """That of the environment."""
        return self._environment.observation_space

    def action_space(self, agent: str) -> Any:
        """That of the environment."""
        return self._environment.action_space

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode."""
        observation, info = self._environment.reset(seed=seed)
        self.agents = ["agent"]
        return {"agent": observation}, {"agent": info}

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Let the agent act."""
        results = self._environment.step(actions["agent"])
        if results[2] or results[3]:
            self.agents = []
        return tuple({"agent": x} for x in results)

    def close(self) -> None:
        """Let go of everything."""
        self._environment.close()


def make_environment(text: str, options: Mapping[str, Any]) -> Any:
    """Make an environment.

    Args:
        text: as `EXPECTED` says.
        options: keyword arguments of its maker.

    Returns:
        A `ParallelEnvironment`.

    Raises:
        ConfigError: there is none of that name, or a package is missing; without the place of the mistake.
    """
    library, colon, name = text.partition(":")
    if not (library and colon and name):
        raise ConfigError(f"expected {EXPECTED}")
    if taken := [option for option in _NAMES if option in options and library in ("gymnasium", "pettingzoo")]:
        raise ConfigError(f"options.{taken[0]} = {options[taken[0]]!r}: the environment names it already; leave it out")
    match library:
        case "gymnasium":
            return Alone(_gymnasium(name, options))
        case "pettingzoo" if "/" in name:
            # Its registry, since 1.27.
            module, function = "pettingzoo", "make"
            options = {"env_type": "parallel", "id": name, **options}
        case "pettingzoo":
            module, function = name, "parallel_env"
        case _:
            module, function = library, name
    maker = getattr(_module(module), function, None)
    if not callable(maker):
        raise ConfigError(f"module {module!r} has no function {function!r}; expected {EXPECTED}")
    if not _makes_environments(maker, module, library):
        raise ConfigError(
            f"{function!r} of module {module!r} is no environment, and says not that it returns one; expected a class "
            "with reset and step, or a function that is annotated to return one"
        )
    environment = _call(maker, options)
    if hasattr(environment, "possible_agents"):
        return environment
    if hasattr(environment, "observation_space") and hasattr(environment, "step"):
        return Alone(environment)
    raise ConfigError(
        f"{function!r} returned {type(environment).__name__}, neither a Gymnasium environment nor a parallel one of "
        "PettingZoo with possible_agents"
    )


def _makes_environments(maker: Any, module: str, library: str) -> bool:
    """Whether it is a class of environments or a function that returns one, as far as can be told before it is called.

    A function of the user's own, in the module that was named, need not be annotated: he wrote it for this. One of an
    installed package may do anything, unless it is annotated or PettingZoo's `parallel_env`.
    """
    if isinstance(maker, functools.partial):
        return _makes_environments(maker.func, module, library)
    if isinstance(maker, type):
        return _is_environment(maker)
    if not inspect.isfunction(maker):
        return False
    try:
        returned = typing.get_type_hints(maker).get("return", Any)
    except Exception:
        # Names that are there for type checkers alone.
        returned = maker.__annotations__.get("return", Any)
    returned = typing.get_origin(returned) or returned
    if isinstance(returned, type) and returned is not Any:
        return _is_environment(returned)
    top, home = (text.partition(".")[0] for text in (module, maker.__module__))
    return home in _LIBRARIES or (home == top and (library == "pettingzoo" or resolve.is_users(top)))


def _is_environment(found: type) -> bool:
    return all(callable(getattr(found, method, None)) for method in ("reset", "step"))


def _gymnasium(name: str, options: Mapping[str, Any]) -> Any:
    gymnasium = _module("gymnasium")
    # The first step of its checker warns of what is not asked here; what matters is checked below.
    return _call(gymnasium.make, {"id": name, "disable_env_checker": True, **options})


def _module(name: str) -> Any:
    main = sys.modules["__main__"]
    # A script that names what it holds itself is not run a second time.
    with contextlib.suppress(ImportError, ValueError, OSError, TypeError, AttributeError):
        if os.path.samefile(importlib.util.find_spec(name).origin, main.__file__):  # pyright: ignore
            return main
    try:
        return resolve.import_named(name)
    except ImportError as error:
        missing = getattr(error, "name", None) or name
        if missing.partition(".")[0] in ("gymnasium", "pettingzoo", "mpe2"):
            # Their own words say where a family of environments has moved.
            more = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
            raise ConfigError(f"{missing} is not installed{more}; {INSTALL}") from None
        raise ConfigError(f"cannot import {name!r}: {_line(error)}") from None


def _call(maker: Any, options: Mapping[str, Any]) -> Any:
    try:
        return maker(**options)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"cannot be made: {_line(error)}") from None


def _line(error: BaseException) -> str:
    """An error of another's code as one line."""
    return brief(f"{type(error).__name__}: {error}")
