"""The recorder: chunks in, a file out, in the format of its name."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from swarm.build.scenario_files import Scenario
from swarm.core.errors import SwarmError
from swarm.core.outputs import RECORDINGS, check_output
from swarm.core.version import __version__
from swarm.play.episodes import Chunk
from swarm.play.telemetry.csv import CsvFile
from swarm.play.telemetry.foxglove import SceneFile
from swarm.play.telemetry.parquet import ParquetParts
from swarm.play.telemetry.rows import Batch, Rows


class Writer(Protocol):
    """One format; made with the path of a file that does not exist. Any method but `give_up` may raise OSError."""

    def write(self, batch: Batch, about: Mapping[str, Any]) -> None:
        """Append rows, of a simulation that `about` tells of; leave all of them or none."""
        ...

    def finish(self) -> None:
        """Complete the file; remove it if nothing was written."""
        ...

    def give_up(self) -> Path:
        """After an error: keep what was written before, and return where it is."""
        ...


_FORMATS: Mapping[str, Callable[[Path], Writer]]
_FORMATS = dict(zip(RECORDINGS, (ParquetParts, CsvFile, SceneFile), strict=True))


class Recorder:
    """Writes chunks to a file, as a context.

    Columns of `.parquet` and `.csv`: `step` (0: as reset), `world`, `slot`, `uid`, `kind` (name), `team`; for each
    level above the entities the slot of the group (`group_<level>`, -1: none) and which of the groups that had the
    slot it is (`generation_<level>`); `x`, `y`, `z`, `heading`, `vx`, `vy`, `vz` in the units of the scenario; what
    the entity chose in this state, `action`, or `action_0`, `action_1`, ... where there are several choices or
    commands (nothing in the last state of an episode); its stores by name. Of `.mcap`: `foxglove.py`.

    Metadata: `scenario` (name), `config` (as resolved), `worlds` (how many), `drawn` (of each value that differs
    between worlds: that of each world), `versions`, `platform`, and what the caller says.
    """

    def __init__(self, path: Path, scenario: Scenario, about: Mapping[str, Any] | None = None) -> None:
        """Make sure that the recording can be written.

        Args:
            path: of the file, which must not exist yet; its suffix says the format.
            scenario: what is simulated, for the file's metadata.
            about: what else to put there: seed, policy; anything that JSON can hold. With `seed`, the number whose
                `jax.random.key` was given to `play`, a Parquet recording can be replayed.

        Raises:
            SwarmError: the file or its parts exist, the folder cannot be written to, or the format is none or needs
                a package.
        """
        self.path, self.n_rows = path, 0
        self._scenario, self._about = scenario, dict(about or {})
        self._rows, self._broken = Rows(), False
        check_output(path, option="--record", formats=RECORDINGS, new=True)
        try:
            self._writer = _FORMATS[path.suffix](path)
        except OSError as error:
            raise SwarmError(f"--record {path}: the folder cannot be written to: {error.strerror}") from None

    def __enter__(self) -> "Recorder":
        return self

    def write(self, chunk: Chunk) -> None:
        """Append the steps of a chunk.

        Raises:
            RecordingError: the disk is full, or the like.
        """
        self._scenario = chunk.scenario or self._scenario
        batch = self._rows.take(chunk)
        self._about["worlds"] = len(chunk.length)
        if chunk.first.draw is not None:
            draws = self._scenario.draws()
            self._about["drawn"] = {key: [draws[i][key] for i in chunk.first.draw] for key in draws[0]}
        self._write(batch)

    def _write(self, batch: Batch) -> None:
        self._try(lambda: self._writer.write(batch, self._metadata()))
        self.n_rows += batch.table.num_rows

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Complete the file, whatever ended the recording."""
        if self._broken:
            return
        rest = self._rows.rest()
        if rest is not None:
            self._write(rest)
        self._try(self._writer.finish)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._broken = True
            reason = os.strerror(error.errno) if error.errno else str(error)
            place = self._writer.give_up()
            kept = f"{self.n_rows:,} rows are kept in {place}" if self.n_rows else "nothing was recorded"
            raise RecordingError(f"--record {self.path}: cannot be written: {reason}; {kept}") from None

    def _metadata(self) -> dict[str, Any]:
        scenario, versions = self._scenario, {"swarm": __version__, "jax": jax.__version__}
        about = {"scenario": scenario.name, "config": scenario.resolved(), "versions": versions}
        return about | {"platform": jax.default_backend()} | self._about


class RecordingError(SwarmError):
    """A recording could not go on."""
