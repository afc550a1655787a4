"""Policies on the same maps: what each measured, as files hold it and as a table."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from swarm.adapters.host import HostRules
from training.runs.evaluation import evaluate
from training.runs.statistics import plain, summarise


def played(networks: str, update: int, *, deterministic: bool, values: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluation.json` says besides the means: which networks played how, and the values of each episode."""
    return {
        "networks": networks,
        "update": update,
        "deterministic": deterministic,
        "values": {name: {metric: plain(x) for metric, x in episodes.items()} for name, episodes in values.items()},
    }


def name_of(rules: Any) -> str:
    """What the policy is called that trained ones are compared with."""
    return "random" if isinstance(rules, HostRules) else "scripted"


def compare(
    simulator: Any, policies: Mapping[str, Any], *, seed: int, n_episodes: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate policies on the same maps: mean and interval of each metric, and the values of each episode."""
    values = {name: evaluate(simulator, policy, seed=seed, n_episodes=n_episodes) for name, policy in policies.items()}
    summaries = {name: {metric: summarise(x) for metric, x in episodes.items()} for name, episodes in values.items()}
    return {"seed": seed, "episodes": n_episodes, "policies": summaries}, values


def _cell(found: Mapping[str, float | None]) -> str:
    return "-" if found["mean"] is None else f"{found['mean']:.4g} [{found['low']:.4g}, {found['high']:.4g}]"


def print_comparison(results: Mapping[str, Any], rules: Any) -> None:
    """Print a table: a row a metric, a column a policy."""
    policies = results["policies"]
    table = Table("metric", *policies, title=f"mean of {results['episodes']} episodes [95 % interval]")
    names = list(next(iter(policies.values())))
    names.sort(key=lambda name: (name != rules.success, name != rules.headline, "/" in name, name))
    for name in names:
        table.add_row(name, *(_cell(p[name]) for p in policies.values()))
    # A table cut to a narrow pipe helps nobody.
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
