"""Checkpoints: named arrays, by number of updates, each with a checksum."""

import errno
import json
import shutil
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from swarm.core.errors import RunError
from training.execution.processes import agreed, first_line
from training.runs.checksums import checksums

SPARE = 64 << 20  # bytes that stay free beside a checkpoint, for logs and the files of its format
_SUMS = "checksums"


@runtime_checkable
class HasPath(Protocol):
    """A run folder, or another place that holds checkpoints."""

    path: Path


class DamagedError(RunError):
    """A checkpoint that holds something else than what was saved."""


class Checkpoints:
    """The checkpoints of a run: named arrays, by number of updates, each with a checksum (`checksums.py`)."""

    def __init__(self, folder: HasPath, keep: int, place: str = "checkpoints") -> None:
        self.path = (folder.path / place).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        try:
            self._manager = ocp.CheckpointManager(self.path, options=options)
        except Exception as error:
            raise RunError(f"{self.path}: cannot hold checkpoints: {first_line(error)}; bring back a copy") from None

    @classmethod
    def best(cls, folder: HasPath) -> "Checkpoints":
        """The place of the best networks of a run, which are kept besides the last states."""
        return cls(folder, 1, "best")

    def steps(self) -> list[int]:
        """Updates done at each checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def at(self, update: int | None) -> int:
        """The checkpoint after so many updates, or the last.

        Raises:
            RunError: there is none.
        """
        steps = self.steps()
        if not steps:
            raise RunError(f"{self.path}: holds no checkpoint; {self._otherwise()}")
        if update is not None and update not in steps:
            raise RunError(f"{self.path}: holds no checkpoint of update {update}; those of {_listed(steps)} it does")
        return steps[-1] if update is None else update

    def latest(self) -> int:
        """Updates done at the last checkpoint; errors as for `at`."""
        return self.at(None)

    def reload(self) -> None:
        """See what was moved away."""
        self._manager.reload()

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
        sums = {name: checksums(arrays) for name, arrays in named.items()} | {"shapes": _text_sum(shapes)}
        try:
            listed = ocp.args.JsonSave(shapes | {_SUMS: sums})
            self._manager.save(n_updates, args=ocp.args.Composite(shapes=listed, **items))
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise RunError(full) from None
            raise

    def restore_fitting(self, n_updates: int, part: str, tree: PyTree) -> tuple[PyTree, list[str]]:
        """Restore those arrays of a part that have the name and shape of one in a pytree; the rest stays.

        Returns:
            The pytree, and the names of the arrays that stayed.

        Raises:
            DamagedError: the checkpoint does not hold what was saved.
        """
        old = _named_arrays(tree)
        everywhere = next(iter(old.values())).sharding
        found, sums = self._described(n_updates)
        wanted = {
            name: jax.ShapeDtypeStruct(shape, kind, sharding=everywhere)
            for name, (shape, kind) in self._templates(n_updates, found.get(part, {})).items()
        }
        restored = self._arrays(n_updates, {part: wanted}, sums)[part]
        stayed = [name for name, x in old.items() if found.get(part, {}).get(name) != _shape(x)]
        arrays = {name: x if name in stayed else restored[name] for name, x in old.items()}
        return _with_arrays(tree, arrays), stayed

    def restore(self, n_updates: int, **parts: PyTree) -> dict[str, Any]:
        """Restore pytrees of the same structure as those given, placed on devices as they are.

        Raises:
            DamagedError: the checkpoint does not hold what was saved.
            RunError: it holds other arrays; the message names the first that differs.
        """
        named = {name: _named_arrays(tree) for name, tree in parts.items()}
        found, sums = self._described(n_updates)
        for name, arrays in named.items():
            self._compare(n_updates, found.get(name, {}), {k: _shape(x) for k, x in arrays.items()})
        wanted = {
            name: {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in arrays.items()}
            for name, arrays in named.items()
        }
        restored = self._arrays(n_updates, wanted, sums)
        return {name: _with_arrays(tree, restored[name]) for name, tree in parts.items()}

    def is_whole(self, n_updates: int) -> bool:
        """Whether a checkpoint holds what was saved."""
        try:
            found, sums = self._described(n_updates)
            wanted = {part: self._templates(n_updates, shapes) for part, shapes in found.items()}
            # Arrays of one number, seen as whole ones, take no room.
            empty = {
                part: {k: np.broadcast_to(np.zeros((), kind), shape) for k, (shape, kind) in arrays.items()}
                for part, arrays in wanted.items()
            }
            self._arrays(n_updates, empty, sums)
        except DamagedError:
            return False
        return True

    def _described(self, n_updates: int) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
        """Types and shapes of the arrays of each part, and the checksums; older versions of swarm saved none."""
        found = self._read(n_updates, shapes=ocp.args.JsonRestore())["shapes"]
        sums = found.pop(_SUMS, {}) if isinstance(found, dict) else {}
        if not _of_texts(found) or (sums and (not isinstance(sums, dict) or sums.get("shapes") != _text_sum(found))):
            raise self._damaged(n_updates, "its list of arrays is not what was saved")
        return found, sums

    def _arrays(
        self, n_updates: int, wanted: Mapping[str, Mapping[str, Any]], sums: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Read arrays, and compare their checksums."""
        restored = self._read(n_updates, **{part: ocp.args.StandardRestore(dict(x)) for part, x in wanted.items()})
        for part, arrays in wanted.items():
            if not sums:
                continue
            expected = sums.get(part)
            for name, found in checksums({k: restored[part][k] for k in arrays}).items():
                if not isinstance(expected, dict) or expected.get(name) != found:
                    raise self._damaged(n_updates, f"{part}.{name} is not what was saved; its checksum differs")
        return {part: restored[part] for part in wanted}

    def _templates(self, n_updates: int, shapes: Mapping[str, str]) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and type of each array."""
        try:
            split = {name: text.partition("[") for name, text in shapes.items()}
            return {k: (tuple(json.loads("[" + shape)), jnp.dtype(kind)) for k, (kind, _, shape) in split.items()}
        except (ValueError, TypeError) as error:
            raise self._damaged(n_updates, f"its list of arrays: {first_line(error)}") from None

    def _read(self, n_updates: int, **items: Any) -> Any:
        _hush()
        # Whatever Orbax and what is below it find wrong in damaged files, of which there is no end.
        try:
            return self._manager.restore(n_updates, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._damaged(n_updates, f"cannot be read: {first_line(error)}") from None

    def _damaged(self, n_updates: int, why: str) -> DamagedError:
        return DamagedError(f"{self.path / str(n_updates)}: damaged: {why}")

    def remedy(self, n_updates: int) -> str:
        """What to do where a checkpoint is damaged."""
        others = [step for step in self.steps() if step != n_updates]
        whole = next((step for step in reversed(others) if self.is_whole(step)), None)
        if whole is None:
            return f"no other checkpoint is whole; bring back a copy, or {self._otherwise()}"
        return f"the newest whole checkpoint is {whole}: add --from {whole} to go on from there"

    def _otherwise(self) -> str:
        return "leave out --best" if self.path.name == "best" else "start the run anew"

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


# What such reads say when they are collected: while the program ends, and before.
_LEFT_BEHIND = ("Event loop is closed", "Encountered error while reading array index")


def _hush() -> None:
    """Keep tracebacks from the user that say nothing: of reads that Orbax left behind when another one failed."""
    before = sys.unraisablehook
    if getattr(before, "hushes", False):
        return

    def hook(found: Any) -> None:
        if not str(found.exc_value).startswith(_LEFT_BEHIND):
            before(found)

    hook.hushes = True  # pyright: ignore[reportFunctionMemberAccess]
    sys.unraisablehook = hook


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))


def _of_texts(found: Any) -> bool:
    """Whether it is a table of tables of texts."""
    tables = found.values() if isinstance(found, dict) else [None]
    return all(isinstance(x, dict) and all(isinstance(text, str) for text in x.values()) for x in tables)


def _text_sum(value: Any) -> str:
    """A checksum of what JSON can tell."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


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
