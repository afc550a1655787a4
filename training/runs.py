"""Run folders: what a run was asked to do, what it did, and where it can be taken up again."""

import datetime
import errno
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import filelock
import jax
import numpy as np
import orbax.checkpoint as ocp
import tomli_w
from jaxtyping import PyTree

import swarm
from swarm.config import Scenario, load
from swarm.errors import RunError
from swarm.resolve import is_trusted
from training.config import TrainingConfig
from training.processes import agreed, is_first

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
TIMELINE = "timeline.jsonl"
PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "orbax-checkpoint")
SPARE = 64 << 20  # bytes that stay free beside a checkpoint, for logs and the files of its format


class RunFolder:
    """A folder under `runs/`; holds a lock as long as the process that writes it lives. Of several, process 0 writes.

    Attributes:
        path: the folder.
        config.toml: the resolved scenario file; `swarm.train` and `swarm.make` take it as it is.
        run.json: scenario name, seed, devices, command, versions.
        metrics.jsonl: a line per update.
        evaluations.jsonl: a line per evaluation during the run, with the values of each episode.
        checkpoints: the last few states, each complete (written aside, then renamed).
        best: the networks that did best in those evaluations.
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
            table = scenario.resolved() | {"training": config.model_dump(mode="json")}
            _write(path / "config.toml", tomli_w.dumps(table))
            _write(path / "run.json", json.dumps(_identity(scenario, seed) | about, indent=2))
            return folder
        raise RunError(f"{parent / stem}: a hundred folders of this name exist; name another with --runs")

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open a folder that exists, without locking it.

        Raises:
            RunError: it is none, or has links to files elsewhere, which we would write to.
        """
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

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()

    def scenario(self, overrides: dict[str, Any] | None = None) -> Scenario:
        """The run's scenario, as resolved when it began, with overrides."""
        return load(self.path / "config.toml", overrides)._replace(name=self.identity()["scenario"])

    def identity(self) -> dict[str, Any]:
        """What `run.json` holds."""
        return json.loads((self.path / "run.json").read_text("utf-8"))

    # Metrics

    def metrics(self, name: str = METRICS) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, or of another such file; a last line cut off by a crash is left out."""
        path, rows = self.path / name, []
        for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def append(self, row: dict[str, Any], name: str = METRICS) -> None:
        """Add a line to `metrics.jsonl`, or to another such file.

        Raises:
            RunError: the disk is full, or the folder is gone.
        """
        if not is_first():
            return
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"{self.path / name}: cannot be written: {error}; make room and resume the run") from None

    def forget_after(self, n_updates: int, name: str = METRICS) -> list[dict[str, Any]]:
        """Drop the lines of updates that a resumed run will do again, and return those kept."""
        kept = [row for row in self.metrics(name) if row["update"] <= n_updates]
        if is_first():
            _write(self.path / name, "".join(json.dumps(row) + "\n" for row in kept))
        return kept


def _identity(scenario: Scenario, seed: int) -> dict[str, Any]:
    return {
        "scenario": scenario.name,
        "source": scenario.source,
        "seed": seed,
        "device": jax.local_devices()[0].device_kind,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "swarm": swarm.__version__,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _write(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text, "utf-8")
    os.replace(aside, path)


class Checkpoints:
    """The checkpoints of a run: named arrays, by number of updates."""

    def __init__(self, folder: RunFolder, keep: int, place: str = "checkpoints") -> None:
        self.path = (folder.path / place).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.path, options=options)

    @classmethod
    def best(cls, folder: RunFolder) -> "Checkpoints":
        """The place of the best networks of a run, which are kept besides the last states."""
        return cls(folder, 1, "best")

    def latest(self) -> int:
        """Updates done at the last checkpoint.

        Raises:
            RunError: there is none.
        """
        step = self._manager.latest_step()
        if step is None:
            raise RunError(f"{self.path}: holds no checkpoint; start the run anew")
        return step

    def save(self, n_updates: int, **parts: PyTree) -> None:
        """Save the arrays of some pytrees, each under its name.

        Raises:
            RunError: the disk is full; the checkpoints before are whole.
        """
        if n_updates in self._manager.all_steps():
            return
        named = {name: _named_arrays(tree) for name, tree in parts.items()}
        shapes = {name: {k: _shape(x) for k, x in arrays.items()} for name, arrays in named.items()}
        items: dict[str, Any] = {name: ocp.args.StandardSave(arrays) for name, arrays in named.items()}
        full = f"{self.path}: the disk is full, so update {n_updates} is not saved; make room and resume the run"
        # Beforehand, because Orbax's threads report a full disk page after page.
        needed = SPARE + 2 * sum(x.nbytes for a in named.values() for x in a.values())
        if agreed(shutil.disk_usage(self.path).free < needed):
            raise RunError(full)
        try:
            self._manager.save(n_updates, args=ocp.args.Composite(shapes=ocp.args.JsonSave(shapes), **items))
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise RunError(full) from None
            raise

    def names(self, n_updates: int, part: str) -> dict[str, str]:
        """Names of the arrays of a part, with their types and shapes."""
        shapes = self._manager.restore(n_updates, args=ocp.args.Composite(shapes=ocp.args.JsonRestore()))["shapes"]
        return shapes.get(part, {})

    def restore_fitting(self, n_updates: int, part: str, tree: PyTree) -> tuple[PyTree, list[str]]:
        """Restore those arrays of a part that have the name and shape of one in a pytree; the rest stays.

        Returns:
            The pytree, and the names of the arrays that stayed.
        """
        found, old = self.names(n_updates, part), _named_arrays(tree)
        stayed = [name for name, x in old.items() if found.get(name) != _shape(x)]
        kinds = {
            name: (text.partition("[")[0], json.loads("[" + text.partition("[")[2])) for name, text in found.items()
        }
        everywhere = next(iter(old.values())).sharding
        wanted = {name: jax.ShapeDtypeStruct(shape, kind, sharding=everywhere) for name, (kind, shape) in kinds.items()}
        items = {part: ocp.args.StandardRestore(wanted)}
        restored = self._manager.restore(n_updates, args=ocp.args.Composite(**items))[part]
        arrays = {name: x if name in stayed else restored[name] for name, x in old.items()}
        return _with_arrays(tree, arrays), stayed

    def restore(self, n_updates: int, **parts: PyTree) -> dict[str, Any]:
        """Restore pytrees of the same structure as those given, placed on devices as they are.

        Raises:
            RunError: the checkpoint holds other arrays; the message names the first that differs.
        """
        named = {name: _named_arrays(tree) for name, tree in parts.items()}
        for name, arrays in named.items():
            self._compare(n_updates, self.names(n_updates, name), {k: _shape(x) for k, x in arrays.items()})
        wanted = {
            name: ocp.args.StandardRestore(
                {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in arrays.items()}
            )
            for name, arrays in named.items()
        }
        restored = self._manager.restore(n_updates, args=ocp.args.Composite(**wanted))
        return {name: _with_arrays(tree, restored[name]) for name, tree in parts.items()}

    def _compare(self, n_updates: int, found: dict[str, str], wanted: dict[str, str]) -> None:
        for key in sorted(set(found) | set(wanted)):
            if found.get(key) != wanted.get(key):
                raise RunError(
                    f"{self.path / str(n_updates)}: does not fit this configuration: {key} is "
                    f"{found.get(key, 'absent')} in the checkpoint, {wanted.get(key, 'absent')} here; "
                    "use the run's own config.toml"
                )

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.close()


def _shape(x: jax.Array) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _raw(x: Any) -> Any:
    """Random keys as the integers they are made of."""
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _named_arrays(tree: PyTree) -> dict[str, jax.Array]:
    """Arrays by name; empty ones are left out, since Orbax refuses them and they hold nothing."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path, simple=True, separator="."): _raw(x) for path, x in leaves if x.size}


def _with_arrays(tree: PyTree, arrays: dict[str, Any]) -> PyTree:
    dynamic, static = eqx.partition(tree, eqx.is_array)

    def take(path: Any, old: Any) -> Any:
        if not old.size:
            return old
        new = arrays[jax.tree_util.keystr(path, simple=True, separator=".")]
        is_key = jax.dtypes.issubdtype(old.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if is_key else new

    return eqx.combine(jax.tree_util.tree_map_with_path(take, dynamic), static)


def finite(metrics: dict[str, Any]) -> bool:
    """Whether all numbers are finite."""
    return all(np.all(np.isfinite(x)) for x in jax.tree.leaves(metrics))
