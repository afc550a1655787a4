"""Runs as the JSON that the tool marl-eval reads (Gorsane et al. 2022): environment, task, algorithm, seed, steps."""

import json
from collections.abc import Sequence
from typing import Any

from training.runs import EVALUATIONS, RunFolder

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
            metrics = {name.translate(_REPLACED): values for name, values in row["metrics"].items()}
            seed[f"step_{number}"] = {"step_count": row["steps"], "elapsed_time": row["seconds"], **metrics}
        absolute = folder.path / "absolute_values.json"
        if absolute.is_file():
            values = json.loads(absolute.read_text("utf-8"))
            seed["absolute_metrics"] = {name.translate(_REPLACED): x for name, x in values.items()}
    return table
