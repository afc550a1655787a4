"""Lines of JSON that a run leaves: which of them can be read as what they should be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from swarm.core import strict_json
from swarm.core.errors import RunError

_LARGEST = 2**63


def read_rows(path: Path, fits: Callable[[dict[str, Any]], bool]) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the rows of a file, and the numbers, from 1 on, of the lines that are none; of no file, nothing.

    Raises:
        RunError: it cannot be read at all.
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}; move it away, or bring back a copy") from None
    rows, bad = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = strict_json.loads(line.decode("utf-8"))
        except ValueError:
            row = None
        if isinstance(row, dict) and fits(row):
            rows.append(row)
        elif line.strip():
            bad.append(number)
    return rows, bad


def is_update(row: dict[str, Any]) -> bool:
    """Whether it is a line of `metrics.jsonl`: numbers, or null where something is not defined."""
    return _dated(row) and all(_number(x) for x in row.values())


def is_evaluation(row: dict[str, Any]) -> bool:
    """Whether it is a line of `evaluations.jsonl`: for each metric the values of the episodes."""
    metrics = row.get("metrics")
    if not _dated(row) or not isinstance(metrics, dict) or not metrics:
        return False
    return all(isinstance(values, list) and values and all(map(_number, values)) for values in metrics.values())


def _dated(row: dict[str, Any]) -> bool:
    seconds = row.get("seconds")
    return all(_whole(row.get(name)) for name in ("update", "steps")) and seconds is not None and _number(seconds)


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < _LARGEST


def _number(x: Any) -> bool:
    """Also None: what is not defined."""
    return x is None or isinstance(x, float) or (isinstance(x, int) and not isinstance(x, bool) and abs(x) < _LARGEST)
