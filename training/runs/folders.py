"""Run folders: what a run was asked to do, what it did, and where it can be taken up again."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
import tomli_w

from swarm.build.scenario_files import Scenario, load, read_text
from swarm.commands.parsing import SEEDS
from swarm.core import strict_json
from swarm.core.errors import RunError
from swarm.core.resolve import is_trusted
from swarm.core.toml import parse_toml
from swarm.core.version import __version__
from training.config import TrainingConfig, load_training
from training.execution.processes import is_first
from training.runs.checkpoints import Checkpoints, _named_arrays
from training.runs.contained import FILES, FROZEN, contained, free
from training.runs.records import is_evaluation, is_update, read_rows

__all__ = ["EVALUATIONS", "METRICS", "TIMELINE", "Checkpoints", "RunFolder", "_named_arrays", "flat", "write"]

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
TIMELINE = "timeline.jsonl"
ASIDE = "aside"
_FITS = {METRICS: is_update, EVALUATIONS: is_evaluation}
PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "orbax-checkpoint")


class RunFolder:
    """A folder under `runs/`; holds a lock as long as the process that writes it lives. Of several, process 0 writes.

    Attributes:
        path: the folder.
        config.toml: the resolved scenario file, as it is now; `swarm.train` and `swarm.make` take it as it is.
        run.json: scenario name, seed, devices, command, versions; and, under `resumed`, when what was changed.
        metrics.jsonl: a line per update.
        evaluations.jsonl: a line per evaluation during the run, with the values of each episode.
        checkpoints: the last few states, each complete (written aside, then renamed).
        best: the networks that did best in those evaluations.
        files, frozen: what the run depends on besides: files, and the networks of other runs.
        aside: what was damaged, or left behind by going back to an earlier checkpoint; nothing reads it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = filelock.FileLock(path / "lock")

    @classmethod
    def create(
        cls, scenario: Scenario, config: TrainingConfig, seed: int, parent: Path, about: dict[str, Any]
    ) -> "RunFolder":
        """Make a new folder `<scenario>-<recipe>-<seed>-<time>` and lock it; `run.json` tells what it is about."""
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        stem = f"{scenario.name}-{Path(config.recipe).stem}-{seed}-{stamp}"
        for attempt in range(100):
            path = parent / (stem if attempt == 0 else f"{stem}-{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise RunError(f"{path}: cannot make the run folder: {error}") from None
            folder = cls(path)
            folder.lock()
            write(path / "config.toml", tomli_w.dumps(contained(resolved(scenario, config), path)))
            write(path / "run.json", strict_json.dumps(_identity(scenario, seed) | about, indent=2))
            return folder
        raise RunError(f"{parent / stem}: a hundred folders of this name exist; name another with --runs")

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open a folder that exists, without locking it.

        Raises:
            RunError: it is none, or has links to files elsewhere, which we would write to.
        """
        # Names that are too long for a file are none, too.
        if not all(os.path.isfile(path / name) for name in ("run.json", "config.toml")):
            raise RunError(f"{path}: no run folder (it has no run.json and config.toml); runs are made by swarm.train")
        for inner in path.iterdir():
            target = Path(os.path.realpath(inner))
            if inner.is_symlink() and not target.is_relative_to(os.path.realpath(path)) and not is_trusted():
                raise RunError(f"{inner} is a link to {target}, outside of the run folder; allow it with --trust")
        return cls(path)

    def lock(self) -> None:
        """Reserve the folder for this process.

        Raises:
            RunError: another process holds it.
        """
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunError(f"{self.path}: in use by another process; wait for it or stop it") from None
        except OSError as error:
            raise RunError(f"{self.path / 'lock'}: cannot be locked: {error.strerror}; remove it") from None

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()

    def write_json(self, stem: str, **contents: Any) -> None:
        """Write files `<stem><name>.json`; those of before are kept under a number, and a line says so.

        Raises:
            RunError: the disk is full, or does not let us write.
        """
        old = [path for path in self.path.glob(f"{stem}*") if path.stem in {f"{stem}{name}" for name in contents}]
        number = 1
        while any(self.path.glob(f"{stem}*-{number}.*")):
            number += 1
        for path in old:
            kept = path.with_name(f"{path.stem}-{number}{path.suffix}")
            try:
                path.rename(kept)
            except OSError as error:
                raise RunError(f"{path}: cannot be kept as {kept}: {error.strerror}") from None
            print(f"{path.name} of before is kept as {kept}")
        for name, content in contents.items():
            write(self.path / f"{stem}{name}.json", strict_json.dumps(content, indent=2))

    def scenario(self, overrides: dict[str, Any] | None = None) -> Scenario:
        """The run's scenario, as resolved when it began, with overrides."""
        return load(self.path / "config.toml", overrides)._replace(name=self.identity()["scenario"])

    def identity(self) -> dict[str, Any]:
        """What `run.json` holds.

        Raises:
            RunError: it cannot be read, or holds something else.
        """
        path = self.path / "run.json"
        try:
            about = strict_json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: damaged: {error}; bring back a copy") from None
        problem = _problem(about)
        if problem:
            raise RunError(f"{path}: damaged: {problem}; bring back a copy")
        return about

    def note_resumed(self, scenario: Scenario, config: TrainingConfig, update: int, about: Mapping[str, Any]) -> None:
        """Write into `run.json` from where the run goes on, and what changes; the settings into `config.toml`."""
        if not is_first():
            return
        path, old = self.path / "config.toml", dict(flat(self._table()))
        table = contained(resolved(scenario, config), self.path)
        new = dict(flat(table))
        changed = {k: [old.get(k), new.get(k)] for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)}
        entry = {"update": update, "steps": update * config.steps_per_update, "changed": changed, **about}
        # Who learns for which team may have changed.
        identity = self.identity() | {name: about[name] for name in ("of_team", "networks")}
        entry |= _circumstances()
        if changed:
            self.set_aside(path, copy=True)
            write(path, tomli_w.dumps(table))
        resumed_before = identity.get("resumed", [])
        write(self.path / "run.json", strict_json.dumps(identity | {"resumed": [*resumed_before, entry]}, indent=2))

    def _table(self) -> dict[str, Any]:
        """What `config.toml` holds."""
        return parse_toml(read_text(self.path / "config.toml"), str(self.path / "config.toml"))

    def set_aside(self, path: Path, *, copy: bool = False) -> Path:
        """Move something of the folder, or a copy of it, to where nothing reads it; returns the new path.

        Raises:
            RunError: the disk is full, or does not let us write.
        """
        inside = path.relative_to(self.path.absolute() if path.is_absolute() else self.path)
        target = free(self.path / ASIDE / f"{'-'.join(inside.with_suffix('').parts)}{path.suffix}")
        try:
            target.parent.mkdir(exist_ok=True)
            if copy:
                shutil.copy2(path, target)
            else:
                shutil.move(path, target)
        except OSError as error:
            raise RunError(f"{path}: cannot be set aside as {target}: {error.strerror}; make room") from None
        return target

    # Metrics

    def metrics(self, name: str = METRICS) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, or of another such file; those that cannot be read are left out.

        Raises:
            RunError: the file cannot be read at all.
        """
        return read_rows(self.path / name, _FITS.get(name, bool))[0]

    def unreadable(self, name: str) -> str:
        """Say which lines of such a file cannot be read; nothing where all can."""
        bad = read_rows(self.path / name, _FITS.get(name, bool))[1]
        if not bad:
            return ""
        lines = f"line {bad[0]}" if len(bad) == 1 else f"{len(bad)} lines from {bad[0]} on"
        return f"{self.path / name}: {lines} cannot be read"

    def append(self, row: dict[str, Any], name: str = METRICS) -> None:
        """Add a line to `metrics.jsonl`, or to another such file.

        Raises:
            RunError: the disk is full, or the folder is gone.
        """
        if not is_first():
            return
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(strict_json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"{self.path / name}: cannot be written: {error}; make room and resume the run") from None

    def forget_after(self, n_updates: int, name: str = METRICS, *, keep: bool = False) -> list[dict[str, Any]]:
        """Drop the lines of updates that a resumed run will do again, and return those kept.

        Args:
            n_updates: done when it goes on.
            name: of the file.
            keep: a copy of the file as it was, set aside; one is kept anyway where lines cannot be read.
        """
        rows, told = self.metrics(name), self.unreadable(name)
        kept = [row for row in rows if row["update"] <= n_updates]
        if is_first() and (told or len(kept) < len(rows)):
            if told or keep:
                copy = self.set_aside(self.path / name, copy=True)
                if told:
                    print(f"warning: {told}, left out from here on; the file as it was is {copy}", file=sys.stderr)
            write(self.path / name, "".join(strict_json.dumps(row) + "\n" for row in kept))
        return kept


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a table and the tables in it, by dotted key."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def resolved(scenario: Scenario, config: TrainingConfig) -> dict[str, Any]:
    """All settings of a run, as they would stand in a file."""
    return scenario.resolved() | {"training": config.model_dump(mode="json")}


def settings(folder: RunFolder, scenario: Scenario) -> str:
    """All that a run does by but its seed, as a text; equal for runs that can be trained at once."""
    table = {k: _own(v, folder) for k, v in flat(resolved(scenario, load_training(scenario)))}
    parts = [path for name in (FILES, FROZEN) for path in sorted((folder.path / name).rglob("*")) if path.is_file()]
    held = [(str(path.relative_to(folder.path)), zlib.crc32(path.read_bytes())) for path in parts]
    return strict_json.dumps([table, held])


def history(folder: RunFolder) -> dict[str, Any]:
    """All settings of a run by dotted key, and where it came from: another run's networks, changes on the way."""
    scenario, about = folder.scenario(), folder.identity()
    table = {key: _own(value, folder) for key, value in flat(resolved(scenario, load_training(scenario)))}
    changes = {
        f"changed.{key} after {entry['update']}": f"{old} to {new}"
        for entry in about.get("resumed", [])
        for key, (old, new) in entry["changed"].items()
    }
    return table | {"init_from": about.get("init_from")} | changes


def _own(value: Any, folder: RunFolder) -> Any:
    """A setting, with paths in the run's folder as they stand in its config."""
    if isinstance(value, list):
        return [_own(inner, folder) for inner in value]
    return value.removeprefix(f"{folder.path}/") if isinstance(value, str) else value


def write(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one.

    Raises:
        RunError: the disk is full, or does not let us write.
    """
    aside = path.with_name(path.name + ".new")
    try:
        aside.write_text(text, "utf-8")
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise RunError(f"{path}: cannot be written: {error.strerror or error}; make room and try again") from None


def _problem(about: Any) -> str:
    """What is wrong with the content of `run.json`; nothing if it can be right."""
    if not isinstance(about, dict):
        return "it holds no table"
    of_team = about.get("of_team", [0])
    if not isinstance(of_team, list) or not of_team or not all(type(x) is int and x >= -1 for x in of_team):
        return f"of_team = {str(of_team)[:60]}"
    checks = {
        "scenario": isinstance(about.get("scenario"), str),
        "seed": type(about.get("seed")) is int and 0 <= about["seed"] < SEEDS,
        "networks": about.get("networks", 1) == max(0, *of_team) + 1 <= len(of_team),
        "resumed": _is_history(about.get("resumed", [])),
    }
    return next((f"{name} = {str(about.get(name))[:60]}" for name, right in checks.items() if not right), "")


def _is_history(entries: Any) -> bool:
    """Whether it says when what was changed: pairs of an old and a new value, by dotted key."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return False
    changes = [entry.get("changed") for entry in entries]
    pairs = [pair for change in changes if isinstance(change, dict) for pair in change.values()]
    dated = all(type(entry.get("update")) is int for entry in entries)
    whole = all(isinstance(change, dict) for change in changes)
    return dated and whole and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)


def _identity(scenario: Scenario, seed: int) -> dict[str, Any]:
    return {"scenario": scenario.name, "source": scenario.source, "seed": seed, **_circumstances()}


def _circumstances() -> dict[str, Any]:
    return {
        "device": jax.local_devices()[0].device_kind,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "swarm": __version__,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
