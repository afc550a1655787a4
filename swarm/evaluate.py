"""`python -m swarm.evaluate`: play episodes with a trained policy, next to the scripted one."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swarm.commands import Formatter, import_training, positive, run

EXAMPLES = """examples:
  python -m swarm.evaluate runs/outpost-mppo-0-20250101-120000
  python -m swarm.evaluate runs/outpost-mppo-0-20250101-120000 --episodes 512 --deterministic"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(
        prog="python -m swarm.evaluate",
        description="Play episodes on unseen maps with a run's last checkpoint, and the same ones with the scripted "
        "policy; prints means with 95 % bootstrap intervals and writes evaluation.json into the run folder.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--episodes", type=positive, default=128, help="number of episodes")
    parser.add_argument("--deterministic", action="store_true", help="take the likeliest actions, do not sample")
    parser.add_argument("--seed", type=int, help="of maps and actions; the run's own if not given")
    return run(_evaluate, parser, argv)


def _evaluate(arguments: argparse.Namespace) -> int:
    import_training()
    from training.build import build_teams
    from training.config import load_training
    from training.restore import frozen_policy
    from training.runs import RunFolder

    folder = RunFolder.open(Path(arguments.run))
    scenario = folder.scenario()
    simulator = scenario.simulator()
    teams = build_teams(scenario, load_training(scenario), simulator)
    policy = teams.with_opponents(frozen_policy(folder, simulator, deterministic=arguments.deterministic))
    seed = folder.identity()["seed"] if arguments.seed is None else arguments.seed
    results = compare(simulator, {"trained": policy}, seed=seed, n_episodes=arguments.episodes)
    path = folder.path / "evaluation.json"
    path.write_text(json.dumps(results, indent=2), "utf-8")
    print_comparison(results, simulator.rules)
    print(f"written: {path}")
    return 0


def compare(simulator: Any, policies: Mapping[str, Any], *, seed: int, n_episodes: int) -> dict[str, Any]:
    """Evaluate policies and the scripted one on the same maps: mean and interval of each metric."""
    from training.evaluation import evaluate, summarise

    everyone = dict(policies) | {"scripted": simulator.rules.scripted_policy()}
    results: dict[str, Any] = {"seed": seed, "episodes": n_episodes, "policies": {}}
    for name, policy in everyone.items():
        episodes = evaluate(simulator, policy, seed=seed, n_episodes=n_episodes)
        results["policies"][name] = {metric: summarise(values) for metric, values in episodes.items()}
    return results


def print_comparison(results: Mapping[str, Any], rules: Any) -> None:
    """Print a table: a row a metric, a column a policy."""
    from rich.console import Console
    from rich.table import Table

    policies = results["policies"]
    table = Table("metric", *policies, title=f"mean of {results['episodes']} episodes [95 % interval]")
    names = list(next(iter(policies.values())))
    names.sort(key=lambda name: (name != rules.success, name != rules.headline, name))
    for name in names:
        cells = [f"{p[name]['mean']:.4g} [{p[name]['low']:.4g}, {p[name]['high']:.4g}]" for p in policies.values()]
        table.add_row(name, *cells)
    # A table cut to a narrow pipe helps nobody.
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
