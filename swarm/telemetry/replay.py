"""Replays: an episode simulated again, from its seed and the actions of its recording, and compared bit for bit.

    recording = Recording(Path("flight.parquet"))
    for chunk in recording.replay():
        print(chunk.worlds.step[-1])

The policy is not needed. Only the steps of a chunk are in memory at any time.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import swarm
from swarm.config import restore
from swarm.episode import Chunk, repeat
from swarm.errors import SwarmError
from swarm.telemetry.rows import Batch, Rows, is_action

_BATCH_ROWS = 2**16


class Recording:
    """A Parquet recording, or the folder of parts that was left of one.

    Attributes:
        about: its metadata.
        scenario: what was simulated, with the capacities that it ended with.
        n_steps: of its longest episode.
        n_rows: rows that it has.
    """

    def __init__(self, path: Path) -> None:
        """Read what was simulated.

        Raises:
            SwarmError: it cannot be read, is no recording, or does not say its seed.
            ConfigError: the scenario is not valid any more.
        """
        import pyarrow.parquet as pq

        self._path = path
        self._parts = sorted(path.glob("[0-9]*.parquet")) if os.path.isdir(path) else [path]
        try:
            files = [pq.ParquetFile(part) for part in self._parts]
            self.about: dict[str, Any] = json.loads(files[-1].schema_arrow.metadata[b"swarm"])
            table, name = self.about["config"], self.about["scenario"]
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise self._error(f"not a Parquet recording of --record: {error}") from None
        if not isinstance(self.about.get("seed"), int):
            raise self._error("cannot be replayed: it does not say its seed (Recorder(..., {'seed': 0}))")
        self.scenario = restore(name, f"--replay {path}", table)
        groups = [file.metadata.row_group(i) for file in files for i in range(file.num_row_groups)]
        self.n_rows = sum(group.num_rows for group in groups)
        # Rows are in the order of steps.
        last = int(max((g.column(0).statistics.max for g in groups if g.num_rows), default=0))
        # Cut short, it lacks the states that the last actions led to.
        self._cut_short = os.path.isdir(path) and self._acts_in(last)
        self.n_steps = last + self._cut_short

    def replay(self) -> Iterator[Chunk]:
        """Simulate again.

        Yields:
            Each chunk, after its rows were compared.

        Raises:
            SwarmError: at the first row that differs.
        """
        simulator, n_worlds = self.scenario.simulator(), self.about["worlds"]
        log, rows = _Log(self, simulator.rules), Rows()
        key = jax.random.key(self.about["seed"])
        for chunk in repeat(simulator, log.actions, key, self.n_steps, n_worlds=n_worlds, scenario=self.scenario):
            log.compare(rows.take(chunk))
            yield chunk
        rest = rows.rest()
        if rest is not None and not self._cut_short:
            log.compare(rest)
        log.end()

    def batches(self) -> Iterator[Any]:
        """The rows, in tables of some thousands."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for part in self._parts:
            for batch in pq.ParquetFile(part).iter_batches(_BATCH_ROWS):
                yield pa.Table.from_batches([batch])

    def _acts_in(self, step: int) -> bool:
        """Whether anybody chose an action in this step."""
        at = [table.filter(np.equal(table["step"].to_numpy(), step)) for table in self.batches()]
        return any(len(t) > t[name].null_count for t in at for name in t.column_names if is_action(name))

    def _error(self, message: str) -> SwarmError:
        return SwarmError(f"--replay {self._path}: {message}")

    def differs(self, message: str) -> SwarmError:
        """The error of a row that is not what it should be, and what may be the cause."""
        here = {"versions": {"swarm": swarm.__version__, "jax": jax.__version__}, "platform": jax.default_backend()}
        there = {name: self.about.get(name) for name in here}
        others = [f"{name} {there[name]}, here {here[name]}" for name in here if there[name] != here[name]]
        return self._error(message + (f" (recorded with {'; '.join(others)})" if others else ""))


class _Log:
    """Reads the rows in their order: once for their actions, and then to compare them."""

    def __init__(self, recording: Recording, rules: Any) -> None:
        self._recording, self._rules = recording, rules
        self._batches = recording.batches()
        self._table: Any = None
        self._n_compared = 0

    def _fill(self, enough: Any) -> None:
        """Read on until there is enough, or no more."""
        import pyarrow as pa

        while self._table is None or not enough(self._table):
            batch = next(self._batches, None)
            if batch is None:
                return
            self._table = batch if self._table is None else pa.concat_tables([self._table, batch])

    def actions(self, n_before: int, n_steps: int) -> np.ndarray:
        """Those of some steps, [t, b, n] or [t, b, n, a]; 0 where there are none."""
        end, rules = n_before + n_steps, self._rules
        self._fill(lambda table: table.num_rows and table["step"][-1].as_py() >= end)
        n_columns = rules.n_controls or (len(rules.choices) if len(rules.choices) > 1 else 0)
        names = [f"action_{i}" for i in range(n_columns)] or ["action"]
        kind = np.float32 if rules.n_controls else np.int32
        shape = (n_steps, self._recording.about["worlds"], rules.n_slots)
        found = np.zeros((len(names), *shape), kind)
        if self._table is not None:
            missing = {"step", "world", "slot", *names} - set(self._table.column_names)
            if missing:
                raise self._recording.differs(f"expected columns {', '.join(sorted(missing))}")
            step, world, slot = (self._table[name].to_numpy() for name in ("step", "world", "slot"))
            place = (step - n_before, world, slot)
            known = np.all([(x >= 0) & (x < size) for x, size in zip(place, shape, strict=True)], axis=0)
            for values, name in zip(found, names, strict=True):
                values[tuple(x[known] for x in place)] = self._table[name].fill_null(0).to_numpy()[known]
        return np.moveaxis(found, 0, -1) if n_columns else found[0]

    def compare(self, batch: Batch) -> None:
        """Compare the next rows with those of a replay, and forget them."""
        n = batch.table.num_rows
        self._fill(lambda table: table.num_rows >= n)
        recorded = batch.table.slice(0, 0) if self._table is None else self._table.slice(0, n)
        problem = _difference(recorded, batch.table, self._n_compared)
        if problem:
            raise self._recording.differs(problem)
        self._table = self._table and self._table.slice(n)
        self._n_compared += n

    def end(self) -> None:
        """Make sure that nothing is left."""
        self._fill(lambda table: table.num_rows)
        if self._table is not None and self._table.num_rows:
            raise self._recording.differs(f"{_row(self._table, 0, self._n_compared)} is not in the replay")


def _difference(recorded: Any, replayed: Any, n_before: int) -> str | None:
    """What is wrong with the first row that differs in any bit; None: none does."""
    if recorded.column_names != replayed.column_names:
        return f"expected columns {', '.join(replayed.column_names)}"
    n = min(len(recorded), len(replayed))
    wrong = {name: _unequal(recorded[name].slice(0, n), replayed[name].slice(0, n)) for name in replayed.column_names}
    first = {name: int(np.argmax(mask)) for name, mask in wrong.items() if mask.any()}
    if first:
        name = min(first, key=lambda name: first[name])
        row = first[name]
        was, now = (table[name][row].as_py() for table in (recorded, replayed))
        return f"{_row(recorded, row, n_before)}: {name} = {was!r}, but the replay gives {now!r}"
    return f"{_row(replayed, n, n_before)} is missing" if n < len(replayed) else None


def _unequal(one: Any, other: Any) -> np.ndarray:
    """Where two columns differ: in being there, or in a bit."""
    import pyarrow as pa

    if pa.types.is_dictionary(other.type) or one.type != other.type:
        one, other = one.cast("string"), other.cast("string")
    there = [column.is_valid().to_numpy() for column in (one, other)]
    values = [column.fill_null("" if pa.types.is_string(column.type) else 0).to_numpy() for column in (one, other)]
    bits = [x.view(f"u{x.dtype.itemsize}") if x.dtype.kind == "f" else x for x in values]
    return (there[0] != there[1]) | (bits[0] != bits[1])


def _row(table: Any, row: int, n_before: int) -> str:
    at: Mapping[str, Any] = {name: table[name][row].as_py() for name in ("step", "world", "uid")}
    return f"row {n_before + row:,} ({', '.join(f'{name} {value}' for name, value in at.items())})"
