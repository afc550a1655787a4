"""`python -m swarm.train`: train a policy on a scenario."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.commands import OVERRIDES_HELP, Formatter, import_training, is_run, positive, run
from swarm.errors import ConfigError, RunError, SwarmError

if TYPE_CHECKING:
    from training.loop import Run

EXAMPLES = """examples:
  python -m swarm.train outpost
  python -m swarm.train outpost training.credit.grouping=global --seed 1
  python -m swarm.train spread training.recipe=ippo --seeds 5
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
    parser.add_argument(
        "--resume", metavar="RUN", nargs="+", help="go on with a run (or several) from the last checkpoint"
    )
    parser.add_argument("--init-from", metavar="RUN", help="start from the networks of another run, as far as they fit")
    parser.add_argument("--seed", type=int, default=0, help="of parameters, maps and actions")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="train N seeds at once, from --seed on")
    parser.add_argument(
        "--devices", "--learner-devices", type=positive, default=1, help="devices to share the worlds over"
    )
    parser.add_argument(
        "--actor-devices", type=int, default=0, metavar="N", help="devices for training.impala.actors, besides those"
    )
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="where run folders are made")
    parser.add_argument("--episodes", type=positive, default=128, help="episodes of the evaluation at the end")
    return run(_train, parser, argv)


def _train(arguments: argparse.Namespace) -> int:
    from swarm.config import load, parse_overrides

    import_training()
    from training.build import build_learner
    from training.config import load_training
    from training.loop import Interrupted, Run, train
    from training.networks import n_parameters
    from training.runs import RunFolder

    words = list(arguments.overrides)
    # Overrides may follow the runs to resume.
    resumed = [RunFolder.open(Path(word)) for word in arguments.resume or () if "=" not in word]
    if resumed:
        words = [w for w in (arguments.scenario, *words, *arguments.resume) if w and "=" in w]
        scenario = resumed[0].scenario(parse_overrides(words))
        seeds = [folder.identity()["seed"] for folder in resumed]
    else:
        if not arguments.scenario:
            raise ConfigError("name a scenario, like outpost, or a run with --resume; python -m swarm lists scenarios")
        if is_run(arguments.scenario):
            raise ConfigError(f"{arguments.scenario} is a run folder; to go on with it: --resume {arguments.scenario}")
        scenario = load(arguments.scenario, parse_overrides(words))
        seeds = list(range(arguments.seed, arguments.seed + arguments.seeds))
    config = load_training(scenario)
    if len(seeds) > 1 and (config.impala.actors or hasattr(scenario.config, "environment")):
        raise ConfigError(
            "--seeds: actors of their own, and host environments, learn one seed at a time; start each by itself"
        )
    learner = build_learner(scenario, config, arguments.devices, arguments.actor_devices)
    about = {"devices": arguments.devices, "of_team": learner.of_team, "networks": max(learner.of_team) + 1}
    parent = Path(arguments.runs)
    for folder in resumed:
        folder.lock()
    folders = resumed or [RunFolder.create(scenario, config, seed, parent, about) for seed in seeds]
    print(f"run folder: {', '.join(str(folder.path) for folder in folders)}", flush=True)
    try:
        runs = [Run(learner, folder, seed) for folder, seed in zip(folders, seeds, strict=True)]
        _start(runs, resumed=bool(resumed), init_from=arguments.init_from)
        train(runs)
        print(f"trained {n_parameters(runs[0].learned.network):,} parameters", flush=True)
        for one in runs:
            _finish(one, arguments.episodes)
    except Interrupted:
        again = " ".join(str(folder.path) for folder in folders)
        print(f"stopped and saved; go on with: python -m swarm.train --resume {again}", file=sys.stderr)
        return 130
    finally:
        for folder in folders:
            folder.close()
    return 0


def _start(runs: Sequence["Run"], *, resumed: bool, init_from: str | None) -> None:
    """Take up checkpoints, or warm-start from another run."""
    from training.restore import warm_start
    from training.runs import RunFolder

    if resumed and init_from:
        raise ConfigError("--init-from starts a new run, --resume goes on with an old one; give one of them")
    for one in runs:
        if resumed:
            one.resume()
        elif init_from:
            stayed = one.warm_start(lambda network: warm_start(network, RunFolder.open(Path(init_from))))
            print(f"starting from {init_from}; {len(stayed)} array(s) fresh: {', '.join(stayed) or 'none'}", flush=True)
    if len({one.done for one in runs}) > 1:
        raise RunError("--resume: these runs are at different updates; resume them one by one")


def _finish(run: "Run", n_episodes: int) -> None:
    """Evaluate, draw the curve, render a video, and say where they are."""
    from swarm.adapters.host import HostRules
    from swarm.episode import play
    from swarm.evaluate import compare, name_of, print_comparison
    from swarm.render import render
    from training.evaluation import episode_keys
    from training.report import plot_curve
    from training.teams import Teams

    folder, learner, seed = run.folder, run.learner, run.seed
    simulator, teams = learner.simulator, Teams(learner.of_team, learner.opponents)
    policy = teams.policy(run.learned.network, simulator.rules)
    print(f"evaluating {n_episodes} episodes on maps that training never saw ...", flush=True)
    scripted = teams.with_opponents(simulator.rules.scripted_policy())
    policies = {"trained": policy, name_of(simulator.rules): scripted}
    results, _ = compare(simulator, policies, seed=seed, n_episodes=n_episodes)
    (folder.path / "evaluation.json").write_text(json.dumps(results, indent=2), "utf-8")
    print_comparison(results, simulator.rules)
    curve, video = folder.path / "curve.png", folder.path / "video.mp4"
    rules = simulator.rules
    plot_curve(folder.metrics(), list(dict.fromkeys(("return", rules.headline, rules.success))), curve)
    if isinstance(rules, HostRules):
        print(f"run:   {folder.path}\ncurve: {curve}\nvideo: none; a host environment draws itself, if it can")
        return
    n_steps = int(simulator.max_steps)
    try:
        render(play(simulator, policy, episode_keys(seed, 1)[0], n_steps), video, n_steps)
    except OSError as error:
        raise SwarmError(f"{video}: could not be written: {error}; the run itself is complete") from None
    print(f"run:   {folder.path}\ncurve: {curve}\nvideo: {video}")


if __name__ == "__main__":
    raise SystemExit(main())
