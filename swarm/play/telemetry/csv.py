"""CSV: a line for each row, appended chunk by chunk, and beside it `flight.csv.json`, which says what was simulated."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarm.core.errors import SwarmError
from swarm.play.telemetry.rows import Batch


class CsvFile:
    """Appends lines to a file. A program that is killed leaves whole lines, but for maybe the last one."""

    def __init__(self, path: Path) -> None:
        self._path, self._about_path = path, path.with_name(path.name + ".json")
        if self._about_path.exists():
            raise SwarmError(f"--record {path}: {self._about_path} exists already; remove it or choose another name")
        path.touch(exist_ok=False)
        self._about: Mapping[str, Any] | None = None
        self._n_bytes = 0

    def write(self, batch: Batch, about: Mapping[str, Any]) -> None:
        """Append rows, the first ones after a line of the columns' names."""
        from pyarrow import csv

        if about != self._about:
            self._about_path.write_text(json.dumps(about, indent=1), "utf-8")
        table, lines = batch.table, io.BytesIO()
        at, names = table.column_names.index("kind"), table.column("kind").cast("string")
        csv.write_csv(table.set_column(at, "kind", names), lines, csv.WriteOptions(include_header=not self._n_bytes))
        with self._path.open("ab") as file:
            file.write(lines.getbuffer())
        self._about, self._n_bytes = about, self._n_bytes + lines.getbuffer().nbytes

    def finish(self) -> None:
        """All is there already."""
        if not self._n_bytes:
            self._path.unlink()

    def give_up(self) -> Path:
        """Cut off what was written in part."""
        if self._n_bytes:
            with self._path.open("r+b") as file:
                file.truncate(self._n_bytes)
        else:
            self._path.unlink()
            self._about_path.unlink(missing_ok=True)
        return self._path
