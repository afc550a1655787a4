"""Means and intervals of what episodes measured, where it is defined."""

from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float


def defined(values: Any) -> Float[np.ndarray, " e"]:
    """Those that are numbers, and not NaN, infinite or None, as a mean over nobody is."""
    values = np.asarray(values, float)
    return values[np.isfinite(values)]


def mean_where_defined(values: Any) -> float | None:
    """Mean of the values that are numbers; None if none is."""
    values = defined(values)
    return float(values.mean()) if values.size else None


def plain(values: Float[np.ndarray, " e"]) -> list[float | None]:
    """Values as JSON has them: None where one is not defined."""
    return [float(x) if np.isfinite(x) else None for x in values]


def summarise(values: Float[np.ndarray, " e"]) -> dict[str, Any]:
    """Mean and its 95 % bootstrap interval (percentile method), from a fixed seed, over where a value is defined."""
    values = defined(values)
    if not values.size:
        return {"mean": None, "low": None, "high": None}
    low, high = interval(values[:, None], np.mean)
    return {"mean": float(values.mean()), "low": float(low[0]), "high": float(high[0])}


def interquartile_mean(values: Float[np.ndarray, "s ..."], axis: int = 0) -> Float[np.ndarray, "..."]:
    """Mean of the middle half (Agarwal et al. 2021)."""
    return scipy.stats.trim_mean(values, 0.25, axis=axis)


def interval(values: Float[np.ndarray, "s m"], statistic: Any) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap interval of a statistic over the first axis; the value itself where it cannot vary."""
    middle = statistic(values, axis=0)
    varies = np.ptp(values, axis=0) > 0
    low, high = middle.astype(float).copy(), middle.astype(float).copy()
    if len(values) > 1 and varies.any():
        found = scipy.stats.bootstrap(
            (values[:, varies],), statistic, axis=0, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low[varies], high[varies] = found.low, found.high
    return low, high
