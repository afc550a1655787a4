"""Parquet: a folder of parts while it is written, one file when it ends.

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

from swarm.core.errors import SwarmError
from swarm.play.telemetry.rows import Batch

_ROWS_PER_GROUP = 2**20


class ParquetParts:
    """Writes rows to a folder of parts, which become one file; the metadata is the last part's."""

    def __init__(self, path: Path) -> None:
        self._path, self.parts, self._n_parts = path, path.with_name(path.name + ".parts"), 0
        # Names that begin with a dot are no part of the recording to those who read the folder.
        self._unfinished = self.parts / ".unfinished"
        try:
            self.parts.mkdir()
        except FileExistsError:
            raise SwarmError(
                f"--record {path}: {self.parts} holds a recording that was cut short; move it or choose another name"
            ) from None

    def write(self, batch: Batch, about: Mapping[str, Any]) -> None:
        """Add a part."""
        import pyarrow.parquet as pq

        table = batch.table.replace_schema_metadata({b"swarm": json.dumps(about).encode()})
        pq.write_table(table, self._unfinished, compression="zstd")
        os.replace(self._unfinished, self.parts / f"{self._n_parts:06}.parquet")
        self._n_parts += 1

    def finish(self) -> None:
        """Make one file of the parts."""
        if self._n_parts:
            self._join(self._unfinished)
            os.replace(self._unfinished, self._path)
        for part in self._part_paths():
            part.unlink()
        self.parts.rmdir()

    def give_up(self) -> Path:
        """Keep the parts."""
        with contextlib.suppress(OSError):
            self._unfinished.unlink(missing_ok=True)
            if not self._n_parts:
                self.parts.rmdir()
        return self.parts

    def _part_paths(self) -> Iterator[Path]:
        return (self.parts / f"{i:06}.parquet" for i in range(self._n_parts))

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
