"""`python -m swarm.train`: train a policy on a scenario."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm.commands import OVERRIDES_HELP, Formatter, import_training, is_run, positive, run
from swarm.errors import ConfigError, SwarmError

if TYPE_CHECKING:
    from training.runs import RunFolder

EXAMPLES = """examples:
  python -m swarm.train outpost
  python -m swarm.train outpost training.credit.grouping=global --seed 1
  python -m swarm.train mine.toml population.heavy.capacity=64 training.steps=50000
  python -m swarm.train --resume runs/outpost-mppo-0-20250101-120000

The run folder holds the resolved config, checkpoints, TensorBoard events, metrics.jsonl, and at the end an
evaluation, the curve and a video. Ctrl-C saves a checkpoint and says how to go on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m swarm.train",
        description="Train a policy on a scenario, evaluate it, and show what it learned.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("scenario", nargs="?", help="a scenario's name (see python -m swarm) or a .toml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    parser.add_argument("--resume", metavar="RUN", help="go on with a run from its last checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of parameters, maps and actions")
    parser.add_argument("--devices", type=positive, default=1, help="devices to share the worlds over")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="where run folders are made")
    parser.add_argument("--episodes", type=positive, default=128, help="episodes of the evaluation at the end")
    return run(_train, parser, argv)


def _train(arguments: argparse.Namespace) -> int:
    from swarm.config import load, parse_overrides

    import_training()
    from training.build import build_learner
    from training.config import load_training
    from training.loop import Interrupted, train
    from training.networks import n_parameters
    from training.runs import RunFolder

    words = list(arguments.overrides)
    resumed = None
    if arguments.resume:
        words = [w for w in (arguments.scenario, *words) if w]
        resumed = RunFolder.open(Path(arguments.resume))
        scenario, seed = resumed.scenario(parse_overrides(words)), resumed.identity()["seed"]
    else:
        if not arguments.scenario:
            raise ConfigError("name a scenario, like outpost, or a run with --resume; python -m swarm lists scenarios")
        if is_run(arguments.scenario):
            raise ConfigError(f"{arguments.scenario} is a run folder; to go on with it: --resume {arguments.scenario}")
        scenario, seed = load(arguments.scenario, parse_overrides(words)), arguments.seed
    config = load_training(scenario)
    learner = build_learner(scenario, config, arguments.devices)
    if resumed:
        resumed.lock()
    folder = resumed or RunFolder.create(scenario, config, seed, arguments.devices, Path(arguments.runs))
    print(f"run folder: {folder.path}", flush=True)
    try:
        learned = train(learner, folder, seed, resume=bool(arguments.resume))
        print(f"trained {n_parameters(learned.network):,} parameters", flush=True)
        _finish(folder, learner, learned, seed, arguments.episodes)
    except Interrupted:
        print(f"stopped and saved; go on with: python -m swarm.train --resume {folder.path}", file=sys.stderr)
        return 130
    finally:
        folder.close()
    return 0


def _finish(folder: "RunFolder", learner: Any, learned: Any, seed: int, n_episodes: int) -> None:
    """Evaluate, draw the curve, render a video, and say where they are."""
    from swarm.episode import play
    from swarm.evaluate import compare, print_comparison
    from swarm.render import render
    from training.evaluation import episode_keys
    from training.policy import NetworkPolicy
    from training.report import plot_curve

    simulator, policy = learner.simulator, NetworkPolicy(learned.network)
    print(f"evaluating {n_episodes} episodes on maps that training never saw ...", flush=True)
    results = compare(simulator, {"trained": policy}, seed=seed, n_episodes=n_episodes)
    (folder.path / "evaluation.json").write_text(json.dumps(results, indent=2), "utf-8")
    print_comparison(results, simulator.rules)
    curve, video = folder.path / "curve.png", folder.path / "video.mp4"
    rules = simulator.rules
    plot_curve(folder.metrics(), ("return", rules.headline, rules.success), curve)
    n_steps = int(simulator.max_steps)
    try:
        render(play(simulator, policy, episode_keys(seed, 1)[0], n_steps), video, n_steps)
    except OSError as error:
        raise SwarmError(f"{video}: could not be written: {error}; the run itself is complete") from None
    print(f"run:   {folder.path}\ncurve: {curve}\nvideo: {video}")


if __name__ == "__main__":
    raise SystemExit(main())
