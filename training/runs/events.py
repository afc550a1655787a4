"""TensorBoard events of a run."""

import time
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from swarm.core.errors import RunError

# Made by protobuf as the module is imported.
Event, SessionLog = (getattr(event_pb2, name) for name in ("Event", "SessionLog"))
_SECONDS_BETWEEN_FLUSHES = 5.0


class SummaryWriter:
    """Writes scalars as a context; like tensorboardX's of this name, which stays in memory until the program ends."""

    def __init__(self, folder: str, purge_step: int | None, write_to_disk: bool) -> None:
        """Begin a file.

        Args:
            folder: where.
            purge_step: what was written of this step and later ones is void; None: nothing is.
            write_to_disk: whether to write at all.
        """
        self._folder, self._flushed = folder, time.monotonic()
        self._file = EventsWriter(f"{folder}/events") if write_to_disk else None
        if purge_step is not None:
            self._write(Event(step=purge_step, file_version="brain.Event:2"))
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float | int, step: int) -> None:
        """Write a number.

        Raises:
            RunError: the disk is full, or the folder is gone.
        """
        self._write(Event(step=step, summary=scalar(name, value)))

    def _write(self, event: Any) -> None:
        if self._file is None:
            return
        event.wall_time = time.time()
        try:
            self._file.write_event(event)
            if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            raise RunError(f"{self._folder}: events cannot be written: {error}; make room and resume the run") from None

    def __enter__(self) -> "SummaryWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Complete the file."""
        if self._file is not None:
            self._file.close()
