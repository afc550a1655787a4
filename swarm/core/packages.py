"""Whose modules are found: ours come before what lies in the working folder, and what hides ours is named."""

import importlib.util
import os
import sys
from pathlib import Path

from swarm.core.errors import ConfigError


def check_ours(name: str) -> None:
    """Make sure that `scenarios` or `training` is our package, before anything of it is imported.

    Raises:
        ConfigError: another one hides it.
    """
    loaded = sys.modules.get(name)
    if loaded is not None:
        found = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", ())), None)
    else:
        spec = importlib.util.find_spec(name)
        found = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
    home = Path(__file__).resolve().parents[2] / name
    if found is None or home not in Path(found).resolve().parents:
        raise ConfigError(
            f"{found or 'something'} hides the package {name!r} that swarm needs; rename it, or work in another folder"
        )


def find_in_working_folder() -> None:
    """Let modules of the working folder be found, after all others, however a command was started."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # it was removed
        return
    if not sys.flags.safe_path and not {folder, ""} & set(sys.path):
        sys.path.append(folder)


def hidden(module: str) -> str:
    """A hint where a module of the working folder is not what its name means; else nothing."""
    top = module.partition(".")[0]
    for path in (Path(f"{top}.py").absolute(), Path(top).absolute()):
        known = getattr(sys.modules.get(top), "__file__", None)
        if path.exists() and known and path not in (Path(known), *Path(known).parents):
            return f"; {path} is hidden by {known}, rename it"
    return ""
