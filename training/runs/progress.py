"""What a run shows in the terminal: a live table, or plain lines where the output is no terminal."""

import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from training.config import TrainingConfig
from training.runs.statistics import mean_where_defined

_SHOWN = (
    ("return", "episode/return", "{:.1f}"),
    ("episode length", "episode/length", "{:.0f}"),
    ("population", "population", "{:.1f}"),
    ("groups", "groups", "{:.1f}"),
    ("policy loss", "policy_loss", "{:.4f}"),
    ("value loss", "value_loss", "{:.4f}"),
    ("explained variance", "explained_variance", "{:.2f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("kl", "kl", "{:.4f}"),
    ("clip fraction", "clip_fraction", "{:.3f}"),
)
_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """A context in which `update(row)` shows the metrics of an update."""

    def __init__(self, config: TrainingConfig, done: int, n_seeds: int) -> None:
        self._config, self._done, self._n_seeds = config, done, n_seeds
        self._console = Console(file=sys.stdout)
        self._began, self._shown = time.perf_counter(), None
        # Drawn anew by a thread of its own, so that the clock runs while the compiler holds this one.
        live = Live(console=self._console, refresh_per_second=4, get_renderable=self._view)
        self._live = live if self._console.is_terminal else None
        # Rates are over the last few updates, so that they do not remember the compilation.
        self._marks: deque[tuple[float, float]] = deque(maxlen=20)
        self._agent_steps, self._printed = 0.0, 0.0
        self._episode: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        self._began = time.perf_counter()
        if self._live:
            self._live.start()
        else:
            self.print("compiling ...")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def print(self, line: str) -> None:
        """Print a line above the table."""
        self._console.print(line, highlight=False, soft_wrap=True)
        self._console.file.flush()

    def update(self, rows: Sequence[dict[str, Any]]) -> None:
        """Show an update: means over the seeds."""
        now = time.perf_counter()
        row: dict[str, Any] = {key: mean_where_defined([row[key] for row in rows if key in row]) for key in rows[0]}
        row |= {"update": rows[0]["update"], "steps": rows[0]["steps"]}
        self._agent_steps += sum(row["agent_steps"] for row in rows)
        self._marks.append((now, self._agent_steps))
        self._done = rows[0]["update"]
        self._episode |= {k: v for k, v in row.items() if k.startswith("episode/") and v is not None}
        row = row | self._episode
        if self._live:
            self._shown = self._table(row)
            self._live.refresh()
        elif now - self._printed > _SECONDS_BETWEEN_LINES or self._done == self._config.n_updates:
            self._printed = now
            self.print("  ".join(f"{name} {value}" for name, value in self._cells(row)))

    def _view(self) -> Table | str:
        """What the terminal shows now."""
        return self._shown or f"compiling ... {_clock(time.perf_counter() - self._began)}"

    def _rates(self) -> tuple[float, float]:
        """Agent-steps per second, and seconds left."""
        (t0, a0), (t1, a1) = self._marks[0], self._marks[-1]
        if t1 == t0:
            return 0.0, 0.0
        per_update = (t1 - t0) / (len(self._marks) - 1)
        return (a1 - a0) / (t1 - t0), per_update * (self._config.n_updates - self._done)

    def _cells(self, row: dict[str, Any]) -> list[tuple[str, str]]:
        rate, left = self._rates()
        cells = [("seeds", f"{self._n_seeds} at once")] if self._n_seeds > 1 else []
        cells += [
            ("update", f"{self._done}/{self._config.n_updates}"),
            ("steps", f"{row['steps']:,}"),
            ("agent-steps/s", f"{rate:,.0f}" if rate else "-"),
            ("left", _clock(left) if rate else "-"),
        ]
        row = {key: value for key, value in row.items() if value is not None}
        cells += [(name, form.format(row[key])) for name, key, form in _SHOWN if key in row]
        known = {key for _, key, _ in _SHOWN}
        cells += [(k[8:], f"{v:.4g}") for k, v in row.items() if k.startswith("episode/") and k not in known]
        return cells

    def _table(self, row: dict[str, Any]) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row("", ProgressBar(total=self._config.n_updates, completed=self._done, width=40))
        for name, value in self._cells(row):
            table.add_row(name, value)
        return table


def _clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
