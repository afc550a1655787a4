"""Recordings: a Parquet table with a row for each living entity and step.

    with Recorder(Path("flight.parquet"), scenario, {"seed": 0}) as recorder:
        for chunk in play(simulator, policy, jax.random.key(0), 1000, scenario=scenario):
            recorder.write(chunk)

    pyarrow.parquet.read_table("flight.parquet")                                    # or pandas, polars, duckdb
    json.loads(pyarrow.parquet.read_schema("flight.parquet").metadata[b"swarm"])    # config, version, seed

While it runs, the recording is a folder, `flight.parquet.parts`, of complete Parquet files, one for each chunk; when it
ends, by Ctrl-C or an error too, they become the one file. When the program is killed or the disk is full, the folder
stays: `pyarrow.parquet.read_table` reads it as it reads the file, and only the steps of the last chunk are missing.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import swarm
from swarm.config import Scenario
from swarm.entities import Entities
from swarm.episode import Chunk
from swarm.errors import SwarmError
from swarm.hierarchy import Hierarchy

_ROWS_PER_GROUP = 2**20
_AXES = "xyz"


class Recorder:
    """Writes chunks to a file, as a context.

    Columns: `step` (0: as reset), `world`, `uid`, `kind` (name), `team`; for each level above the entities the slot of
    the group (`group_<level>`, -1: none) and which of the groups that had the slot it is (`generation_<level>`);
    `x`, `y`, `z`, `heading`, `vx`, `vy`, `vz` in the units of the scenario; its stores by name.
    """

    def __init__(self, path: Path, scenario: Scenario, about: Mapping[str, Any] | None = None) -> None:
        """Make sure that the recording can be written.

        Args:
            path: of the file, which must not exist yet.
            scenario: what is simulated, for the file's metadata.
            about: what else to put there: seed, policy; anything that JSON can hold.

        Raises:
            SwarmError: the file or its parts exist, or the folder cannot be written to.
        """
        self.path, self.parts = path, path.with_name(path.name + ".parts")
        self.n_rows, self._n_parts = 0, 0
        self._scenario, self._about = scenario, dict(about or {})
        if path.suffix != ".parquet":
            raise SwarmError(f"--record {path}: expected a file that ends in .parquet")
        if path.exists():
            raise SwarmError(f"--record {path}: exists already; remove it or choose another name")
        try:
            self.parts.mkdir()
        except FileExistsError:
            raise SwarmError(
                f"--record {path}: {self.parts} holds a recording that was cut short; move it or choose another name"
            ) from None
        except OSError as error:
            raise SwarmError(f"--record {path}: the folder cannot be written to: {error.strerror}") from None

    def __enter__(self) -> "Recorder":
        return self

    def write(self, chunk: Chunk) -> None:
        """Append the steps of a chunk.

        Raises:
            SwarmError: the disk is full, or the like.
        """
        import pyarrow.parquet as pq

        self._scenario = chunk.scenario or self._scenario
        table = _table(chunk, self._metadata())
        # Names that begin with a dot are no part of the recording to those who read the folder.
        unfinished = self.parts / ".unfinished"
        try:
            pq.write_table(table, unfinished, compression="zstd")
            os.replace(unfinished, self.parts / f"{self._n_parts:06}.parquet")
        except OSError as error:
            self._give_up(unfinished, error)
        self._n_parts += 1
        self.n_rows += table.num_rows

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Make one file of the parts, whatever ended the recording."""
        if not self.parts.exists() or getattr(error, "path", None) == self.path:
            return
        unfinished = self.parts / ".unfinished"
        if not self._n_parts:
            unfinished.unlink(missing_ok=True)
            self.parts.rmdir()
            return
        try:
            self._join(unfinished)
            os.replace(unfinished, self.path)
        except OSError as full:
            self._give_up(unfinished, full)
        for part in self._part_paths():
            part.unlink()
        self.parts.rmdir()

    def _part_paths(self) -> Iterator[Path]:
        return (self.parts / f"{i:06}.parquet" for i in range(self._n_parts))

    def _metadata(self) -> bytes:
        scenario = self._scenario
        about = {"version": swarm.__version__, "scenario": scenario.name, "config": scenario.resolved(), **self._about}
        return json.dumps(about).encode()

    def _join(self, target: Path) -> None:
        """Copy the parts into one file, in row groups of about a million rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pq.read_schema(self.parts / f"{self._n_parts - 1:06}.parquet")
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            tables, n_rows = [], 0
            for number, part in enumerate(self._part_paths(), start=1):
                tables.append(pq.ParquetFile(part).read().replace_schema_metadata(schema.metadata))
                n_rows += tables[-1].num_rows
                if n_rows >= _ROWS_PER_GROUP or number == self._n_parts:
                    writer.write_table(pa.concat_tables(tables), row_group_size=_ROWS_PER_GROUP)
                    tables, n_rows = [], 0

    def _give_up(self, unfinished: Path, error: OSError) -> None:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
            if not self._n_parts:
                self.parts.rmdir()
        reason = os.strerror(error.errno) if error.errno else str(error)
        kept = f"{self._n_parts} chunks of steps are kept in {self.parts}" if self._n_parts else "nothing was recorded"
        raise RecordingError(self.path, f"cannot be written: {reason}; {kept}") from None


class RecordingError(SwarmError):
    """A recording could not go on."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"--record {path}: {message}")
        self.path = path


def _table(chunk: Chunk, metadata: bytes) -> Any:
    """The rows of a chunk; of the first one, also those of the worlds as reset."""
    import pyarrow as pa

    rows = []
    if not np.any(chunk.first.step):
        rows.append(_columns(chunk, chunk.first, np.ones(len(chunk.length), bool)))
    happened = np.arange(len(chunk.worlds.step))[:, None] < chunk.length[None]
    rows.append(_columns(chunk, chunk.worlds, happened))
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    arrays = {name: pa.array(values) for name, values in columns.items()}
    arrays["kind"] = pa.DictionaryArray.from_arrays(arrays["kind"], list(chunk.simulator.rules.kinds))
    return pa.table(arrays).replace_schema_metadata({b"swarm": metadata})


def _columns(chunk: Chunk, worlds: Any, happened: np.ndarray) -> dict[str, np.ndarray]:
    """One array per column, from worlds stacked along any axes, of those that `happened`."""
    entities: Entities = worlds.entities
    rows = np.nonzero(np.asarray(entities.alive) & happened[..., None])
    columns = {"step": np.asarray(worlds.step)[rows[:-1]], "world": rows[-2].astype(np.int32)}
    columns |= {name: getattr(entities, name)[rows] for name in ("uid", "kind", "team")}
    columns |= _groups(worlds.hierarchy, rows)
    position, velocity, stores = entities.position[rows], entities.velocity[rows], entities.stores[rows]
    axes = _AXES[: position.shape[1]]
    columns |= dict(zip(axes, position.T, strict=True))
    columns |= {"heading": entities.heading[rows]}
    columns |= {f"v{axis}": column for axis, column in zip(axes, velocity.T, strict=True)}
    names = chunk.simulator.rules.stores or [f"s{i}" for i in range(stores.shape[1])]
    if taken := columns.keys() & set(names):
        raise ValueError(f"{sorted(taken)}: names of stores that are names of other columns")
    return columns | dict(zip(names, stores.T, strict=True))


def _groups(hierarchy: Hierarchy, rows: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """Slot and generation of each row's group at each level."""
    columns = {}
    group = rows[-1]
    for level, parent, generation in zip(hierarchy.levels[1:], hierarchy.parent, hierarchy.generation, strict=True):
        known = (*rows[:-1], np.maximum(group, 0))
        group = np.where(group >= 0, np.asarray(parent)[known], -1)
        found = np.asarray(generation)[(*rows[:-1], np.maximum(group, 0))]
        columns[f"group_{level}"] = group.astype(np.int32)
        columns[f"generation_{level}"] = np.where(group >= 0, found, 0).astype(np.int32)
    return columns
