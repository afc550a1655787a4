"""Curves of a run."""

from pathlib import Path
from typing import Any

import numpy as np


def plot_curve(rows: list[dict[str, Any]], keys: tuple[str, ...], path: Path) -> None:
    """Plot episode metrics over steps, smoothed over a twentieth of the run, one panel for each key."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(keys), 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key in zip(np.atleast_1d(figure.subplots(1, len(keys))), keys, strict=True):
        points = [(r["steps"], r[f"episode/{key}"], r["episodes"]) for r in rows if f"episode/{key}" in r]
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
