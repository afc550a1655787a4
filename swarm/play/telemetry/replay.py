"""Replays: an episode simulated again, from its seed and the actions of its recording, and compared bit for bit.

    recording = Recording(Path("flight.parquet"))
    for chunk in recording.replay():
        print(chunk.worlds.step[-1])

The policy is not needed. Only the steps of a chunk are in memory at any time.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pydantic

from swarm.build.scenario_files import restore
from swarm.build.simulators import make
from swarm.core.errors import SwarmError
from swarm.core.files import check_regular, parse_json
from swarm.core.version import __version__
from swarm.play.episodes import Chunk, repeat
from swarm.play.telemetry.rows import Batch, Rows, is_action

_BATCH_ROWS = 2**16
# The first columns: numbers of the state, the world and the slot of a row.
_PLACES = ("step", "world", "slot")


class _About(pydantic.BaseModel):
    """What must be said in the metadata, and what it may say."""

    model_config = pydantic.ConfigDict(strict=True)

    scenario: str
    config: dict[str, Any]
    seed: int = pydantic.Field(ge=0, lt=2**32)
    worlds: int = pydantic.Field(ge=1, le=2**20)


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

        The recording is data: unless it is trusted, it may name only rules that are ours (`swarm.core.resolve`).

        Raises:
            SwarmError: it cannot be read, is no recording, says not what is needed, or holds more than can be.
            ConfigError: the scenario is not valid any more, or names code that is not ours.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path = path
        self._parts = sorted(path.glob("[0-9]*.parquet")) if os.path.isdir(path) else [path]
        if not self._parts:
            raise self._error("not a Parquet recording of --record: the folder holds no parts of one")
        try:
            for part in self._parts:
                check_regular(part)
            files = [pq.ParquetFile(part) for part in self._parts]
            about = parse_json(files[-1].schema_arrow.metadata[b"swarm"])
            places = [files[-1].schema_arrow.field(i) for i in range(len(_PLACES))]
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
            reason = " ".join(str(error).split())
            raise self._error(f"not a Parquet recording of --record: {reason}") from None
        self.about: dict[str, Any] = self._checked(about)
        self.scenario = restore(self.about["scenario"], f"--replay {path}", self.about["config"])
        names = files[-1].schema_arrow.names
        if [place.name for place in places if pa.types.is_integer(place.type)] != list(_PLACES) or len(names) != len(
            set(names)
        ):
            raise self._error(f"expected whole numbers in its first columns, {', '.join(_PLACES)}")
        groups = [file.metadata.row_group(i) for file in files for i in range(file.num_row_groups)]
        self.n_rows = sum(group.num_rows for group in groups)
        # Rows are in the order of steps.
        known = [group.column(0).statistics for group in groups if group.num_rows]
        last = max((int(one.max) for one in known if one is not None and one.has_min_max), default=0)
        self._simulator = make(self.scenario)
        self._check_sizes(last)
        # Cut short, it lacks the states that the last actions led to.
        self._cut_short = os.path.isdir(path) and self._acts_in(last)
        self.n_steps = last + self._cut_short

    def _checked(self, about: Any) -> dict[str, Any]:
        """The metadata, if it says what is needed."""
        if not isinstance(about, dict):
            raise self._error(f"not a Parquet recording of --record: its metadata are {str(about)[:40]}")
        config = about.get("config")
        if isinstance(config, dict) and "environment" in config:
            raise self._error(f"environment = {config['environment']!r}: a replay makes no environments")
        if about.get("seed") is None:
            raise self._error("cannot be replayed: it does not say its seed (Recorder(..., {'seed': 0}))")
        try:
            _About.model_validate(about)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            value = "" if problem["type"] == "missing" else f" = {str(problem['input'])[:40]}"
            raise self._error(f"not a recording of --record: {key}{value}: {problem['msg'].lower()}") from None
        return about

    def _check_sizes(self, last: int) -> None:
        """Refuse what claims more steps or rows than its scenario can have."""
        n_worlds, n_slots = self.about["worlds"], self._simulator.rules.n_slots
        most = int(self._simulator.max_steps)
        if not 0 <= last <= most:
            raise self._error(f"step {last:,} is beyond the end of its scenario, world.steps = {most:,}")
        if n_worlds > max(self.n_rows, 1):
            raise self._error(f"worlds = {n_worlds}: it has but {self.n_rows:,} rows")
        if self.n_rows > (last + 1) * n_worlds * n_slots:
            raise self._error(
                f"{self.n_rows:,} rows, where {last + 1:,} states of {n_worlds:,} world(s) with {n_slots:,} slots "
                f"can have {(last + 1) * n_worlds * n_slots:,}"
            )

    def replay(self) -> Iterator[Chunk]:
        """Simulate again.

        Yields:
            Each chunk, after its rows were compared.

        Raises:
            SwarmError: at the first row that differs.
        """
        simulator, n_worlds = self._simulator, self.about["worlds"]
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
            try:
                for batch in pq.ParquetFile(part).iter_batches(_BATCH_ROWS):
                    yield pa.Table.from_batches([batch])
            except (pa.ArrowException, OSError) as error:
                raise self._error(f"{part.name} cannot be read: {' '.join(str(error).split())}") from None

    def _acts_in(self, step: int) -> bool:
        """Whether anybody chose an action in this step."""
        at = [table.filter(np.equal(table["step"].to_numpy(), step)) for table in self.batches()]
        return any(len(t) > t[name].null_count for t in at for name in t.column_names if is_action(name))

    def _error(self, message: str) -> SwarmError:
        return SwarmError(f"--replay {self._path}: {message}")

    def differs(self, message: str) -> SwarmError:
        """The error of a row that is not what it should be, and what may be the cause."""
        here = {"versions": {"swarm": __version__, "jax": jax.__version__}, "platform": jax.default_backend()}
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
        # More rows than these states can have are too many; then `compare` says which is wrong.
        most = (n_steps + 1) * self._recording.about["worlds"] * rules.n_slots
        self._fill(lambda table: table.num_rows > most or (table.num_rows and (table["step"][-1].as_py() or 0) >= end))
        n_columns = rules.n_controls or (len(rules.choices) if len(rules.choices) > 1 else 0)
        names = [f"action_{i}" for i in range(n_columns)] or ["action"]
        kind = np.float32 if rules.n_controls else np.int32
        shape = (n_steps, self._recording.about["worlds"], rules.n_slots)
        found = np.zeros((len(names), *shape), kind)
        if self._table is not None:
            missing = {*_PLACES, *names} - set(self._table.column_names)
            if missing:
                raise self._recording.differs(f"expected columns {', '.join(sorted(missing))}")
            if strange := [name for name in names if _sort(self._table[name].type) != "number"]:
                raise self._recording.differs(f"expected numbers in column {strange[0]}")
            step, world, slot = (self._table[name].fill_null(-1).to_numpy() for name in _PLACES)
            place = (step - n_before, world, slot)
            known = np.all([(x >= 0) & (x < size) for x, size in zip(place, shape, strict=True)], axis=0)
            for values, name in zip(found, names, strict=True):
                # What is no number of this type was not chosen, and `compare` will say so.
                with np.errstate(all="ignore"):
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
    for name in replayed.column_names:
        if _sort(recorded[name].type) != _sort(replayed[name].type):
            return f"expected {replayed[name].type} in column {name}, found {recorded[name].type}"
    n = min(len(recorded), len(replayed))
    wrong = {name: _unequal(recorded[name].slice(0, n), replayed[name].slice(0, n)) for name in replayed.column_names}
    first = {name: int(np.argmax(mask)) for name, mask in wrong.items() if mask.any()}
    if first:
        name = min(first, key=lambda name: first[name])
        row = first[name]
        was, now = (table[name][row].as_py() for table in (recorded, replayed))
        return f"{_row(recorded, row, n_before)}: {name} = {was!r}, but the replay gives {now!r}"
    return f"{_row(replayed, n, n_before)} is missing" if n < len(replayed) else None


def _sort(kind: Any) -> str:
    """Values of one sort can be compared: numbers, or names."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "name" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else str(kind)


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
