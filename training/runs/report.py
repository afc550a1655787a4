"""Pictures of runs: the curve of one, bars of an evaluation, curves of many over their seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.runs.folders import EVALUATIONS, RunFolder
from training.runs.statistics import interquartile_mean, interval, mean_where_defined


def plot_curve(rows: list[dict[str, Any]], keys: Sequence[str], path: Path) -> None:
    """Plot episode metrics over steps, smoothed over a twentieth of the run, one panel for each key."""
    figure, panels = _panels(len(keys))
    for axes, key in zip(panels, keys, strict=True):
        found = [(r["steps"], r.get(f"episode/{key}"), r.get("episodes", 1)) for r in rows]
        points = [point for point in found if point[1] is not None]
        if points:
            steps, values, weights = np.asarray(points, float).T
            width = max(1, len(steps) // 20)
            window = np.ones(width)
            total = np.convolve(weights, window, "valid")
            smooth = np.convolve(values * weights, window, "valid") / total
            axes.plot(steps, values, ".", color="0.8", ms=3)
            axes.plot(steps[width - 1 :], smooth)
        axes.set(xlabel="world steps", title=key)
        axes.grid(alpha=0.3)
    figure.savefig(path)


def plot_bars(results: Mapping[str, Any], keys: Sequence[str], path: Path) -> None:
    """Plot the means of an evaluation with their intervals, one panel for each metric, one bar for each policy."""
    keys = list(dict.fromkeys(keys))
    figure, panels = _panels(len(keys))
    for axes, key in zip(panels, keys, strict=True):
        for number, (name, metrics) in enumerate(results["policies"].items()):
            m = metrics[key]
            if m["mean"] is None:
                continue
            error = [[m["mean"] - m["low"]], [m["high"] - m["mean"]]]
            axes.bar(number, m["mean"], yerr=error, capsize=4, label=name, color=f"C{number}")
        axes.set(xticks=range(len(results["policies"])), xticklabels=list(results["policies"]), title=key)
        axes.grid(alpha=0.3, axis="y")
    figure.savefig(path)


class Curve(NamedTuple):
    """A metric over steps for several seeds of one kind of run.

    Attributes:
        steps: world steps of each evaluation that all seeds have made; [m].
        values: means over its episodes; [seeds, m].
        ends: steps of the last evaluation of each seed; [seeds].
    """

    steps: np.ndarray
    values: np.ndarray
    ends: np.ndarray

    def middle(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Interquartile mean over the seeds, and its 95 % bootstrap interval."""
        return interquartile_mean(self.values), *interval(self.values, interquartile_mean)


def curve_of(folders: Sequence[RunFolder], metric: str) -> Curve:
    """The evaluations that all of some runs have made, where the metric is defined in all."""
    means = [
        {r["steps"]: mean_where_defined(r["metrics"].get(metric, [])) for r in f.metrics(EVALUATIONS)} for f in folders
    ]
    known = [{step for step, mean in row.items() if mean is not None} for row in means]
    steps = sorted(set.intersection(*known))
    values = np.asarray([[row[s] for s in steps] for row in means], float)
    return Curve(np.asarray(steps), values, np.asarray([max(row) for row in means]))


def plot_curves(curves: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Plot a panel for each metric and a line with its interval for each label."""
    figure, panels = _panels(len(curves))
    for axes, (metric, lines) in zip(panels, curves.items(), strict=True):
        for number, (label, curve) in enumerate(lines.items()):
            if not curve.steps.size:
                continue
            middle, low, high = curve.middle()
            axes.plot(curve.steps, middle, color=f"C{number}", label=f"{label} ({len(curve.values)})")
            axes.fill_between(curve.steps, low, high, color=f"C{number}", alpha=0.2, lw=0)
        axes.set(xlabel="world steps", title=metric)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    figure.savefig(path)


def _panels(n: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * n, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(1, n)))
