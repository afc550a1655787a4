"""What a run depends on besides its settings, copied into its folder, so that the folder can be moved and sent."""

import filecmp
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swarm.core.errors import RunError

FILES, FROZEN = "files", "frozen"
# Of another run only its networks are needed: neither its optimiser nor its worlds.
_UNNEEDED = shutil.ignore_patterns("learner", "actors")
_ELSEWHERE = ("options",)  # keyword arguments of environments that are not ours, which may look like anything


def contained(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copy the files and runs that a table of settings names into a folder, and name them as they are there.

    Paths in a run's config are relative to its folder (`swarm.build.scenario_files`). Files are recipes and airframes;
    of runs, which act for a team or teach, the last networks are copied.

    Raises:
        RunError: they cannot be copied.
    """
    copied: dict[str, str] = {}

    def inside(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: inner if key in _ELSEWHERE else inside(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [inside(inner) for inner in value]
        if not isinstance(value, str):
            return value
        is_run = os.path.isfile(os.path.join(value, "run.json"))
        if not is_run and not (value.endswith(".toml") and os.path.isfile(value)):
            return value
        path, home = Path(value), folder.resolve()
        if path.resolve().is_relative_to(home):
            return path.resolve().relative_to(home).as_posix()
        try:
            if value not in copied:
                copy, place = (_copied_networks, FROZEN) if is_run else (_copied_file, FILES)
                copied[value] = copy(path, folder / place)
            return copied[value]
        except OSError as error:
            raise RunError(f"{folder}: cannot hold a copy of {value}: {error}; make room") from None

    return inside(table)


def _copied_file(path: Path, place: Path) -> str:
    place.mkdir(exist_ok=True)
    target = free(place / path.name, lambda there: there.is_file() and filecmp.cmp(path, there, shallow=False))
    shutil.copyfile(path, target)
    return f"{FILES}/{target.name}"


def _copied_networks(path: Path, place: Path) -> str:
    target = free(place / path.resolve().name)
    steps = [step for step in (path / "checkpoints").iterdir() if step.name.isdecimal()]
    last = max(steps, key=lambda step: int(step.name))
    aside = target.with_name(target.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(last, aside / "checkpoints" / last.name, ignore=_UNNEEDED)
    for name in ("config.toml", "run.json"):
        shutil.copyfile(path / name, aside / name)
    if (path / FILES).is_dir():
        shutil.copytree(path / FILES, aside / FILES)
    aside.rename(target)
    return f"{FROZEN}/{target.name}"


def free(target: Path, same: Callable[[Path], bool] = lambda there: False) -> Path:
    """The path, or one like it with a number that does not exist or holds the same."""
    found, number = target, 0
    while found.exists() and not same(found):
        number += 1
        found = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return found
