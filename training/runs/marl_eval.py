"""Runs as the JSON that the tool marl-eval reads (Gorsane et al. 2022): environment, task, algorithm, seed, steps."""

from collections.abc import Sequence
from typing import Any

from swarm.core import strict_json
from swarm.core.errors import RunError
from training.runs.folders import EVALUATIONS, RunFolder
from training.runs.statistics import defined

# Names of marl-eval may hold no commas, and a metric of ours may hold slashes.
_REPLACED = str.maketrans({",": "_", "/": "_"})


def marl_eval(folders: Sequence[RunFolder], labels: Sequence[str]) -> dict[str, Any]:
    """Return the evaluations of runs, and their absolute metrics where `swarm.evaluate --absolute` was run.

    Args:
        folders: the runs.
        labels: name of the algorithm of each.
    """
    table: dict[str, Any] = {}
    for folder, label in zip(folders, labels, strict=True):
        identity = folder.identity()
        task = table.setdefault("swarm", {}).setdefault(identity["scenario"].translate(_REPLACED), {})
        seed = task.setdefault(label.translate(_REPLACED), {}).setdefault(f"seed_{identity['seed']}", {})
        for number, row in enumerate(folder.metrics(EVALUATIONS)):
            metrics = _named(row["metrics"])
            seed[f"step_{number}"] = {"step_count": row["steps"], "elapsed_time": row["seconds"], **metrics}
        absolute = folder.path / "absolute_values.json"
        if absolute.is_file():
            try:
                seed["absolute_metrics"] = _named(strict_json.loads(absolute.read_text("utf-8")))
            except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
                raise RunError(f"{absolute}: damaged: {error}; run swarm.evaluate --absolute again") from None
    return table


def _named(metrics: dict[str, list[float | None]]) -> dict[str, list[float]]:
    """Values by names that marl-eval takes; it knows no values that are not defined."""
    known = {name.translate(_REPLACED): defined(values).tolist() for name, values in metrics.items()}
    return {name: values for name, values in known.items() if values}
