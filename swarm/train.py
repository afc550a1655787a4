"""`python -m swarm.train`: train a policy on a scenario."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.commands import OVERRIDES_HELP, Formatter, import_training, is_run, positive, run
from swarm.errors import ConfigError, RunError, SwarmError

if TYPE_CHECKING:
    from training.loop import Run
    from training.runs import RunFolder

EXAMPLES = """examples:
  python -m swarm.train outpost
  python -m swarm.train outpost training.credit.grouping=global --seed 1
  python -m swarm.train spread training.recipe=ippo --seeds 5
  python -m swarm.train mine.toml population.heavy.capacity=64 training.steps=50000
  python -m swarm.train --resume runs/outpost-mppo-0-20250101-120000
  python -m swarm.train outpost --coordinator host0:4000 --num-processes 2 --process-id 0    (on host1: 1)

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
        "--devices", "--learner-devices", type=positive, default=1, help="devices of each process to share worlds over"
    )
    parser.add_argument(
        "--actor-devices", type=int, default=0, metavar="N", help="devices for training.impala.actors, besides those"
    )
    several = parser.add_argument_group("several processes", "on one host or many; srun and mpirun need none of these")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens for the others")
    several.add_argument("--num-processes", type=positive, metavar="N", help="how many there are")
    several.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0 on")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="where run folders are made")
    parser.add_argument("--episodes", type=positive, default=128, help="episodes of the evaluation at the end")
    return run(_train, parser, argv)


def _train(arguments: argparse.Namespace) -> int:
    import_training()
    from training.loop import Interrupted, train
    from training.networks import n_parameters
    from training.processes import connected, is_first

    processes = arguments.coordinator, arguments.num_processes, arguments.process_id
    with ExitStack() as stack:
        with connected(*processes, arguments.devices) as set_remedy:
            runs = _runs(arguments, stack)
            again = f"python -m swarm.train --resume {' '.join(str(one.folder.path) for one in runs)}"
            set_remedy(f"go on from the last checkpoint with: {again}")
            try:
                train(runs)
            except Interrupted:
                if is_first():
                    print(f"stopped and saved; go on with: {again}", file=sys.stderr)
                return 130
            print(f"trained {n_parameters(runs[0].learned.network):,} parameters", flush=True)
        if is_first():
            for one in runs:
                _finish(one, arguments.episodes)
    return 0


def _runs(arguments: argparse.Namespace, stack: ExitStack) -> list["Run"]:
    """Fresh or resumed runs, whose folders are held as long as the stack."""
    from swarm.config import load, parse_overrides
    from training.build import build_learner
    from training.config import load_training
    from training.loop import Run
    from training.processes import check_same, n_processes
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
    check_same(scenario.resolved() | {"seeds": seeds, "devices": arguments.devices})
    learner = build_learner(scenario, config, arguments.devices, arguments.actor_devices)
    about = {"devices": arguments.devices, "processes": n_processes(), "of_team": learner.of_team}
    about |= {"networks": max(learner.of_team) + 1}

    def create(seed: int) -> RunFolder:
        return RunFolder.create(scenario, config, seed, Path(arguments.runs), about)

    folders = _folders(resumed, create, seeds)
    for folder in folders:
        stack.callback(folder.close)
    print(f"run folder: {', '.join(str(folder.path) for folder in folders)}", flush=True)
    runs = [Run(learner, folder, seed) for folder, seed in zip(folders, seeds, strict=True)]
    _start(runs, resumed=bool(resumed), init_from=arguments.init_from)
    return runs


def _folders(
    resumed: "list[RunFolder]", create: "Callable[[int], RunFolder]", seeds: Sequence[int]
) -> "list[RunFolder]":
    """Process 0 locks or makes the folders; the others open the same."""
    from training.processes import from_first
    from training.runs import RunFolder

    held: list[RunFolder] = []

    def hold() -> list[str]:
        for folder in resumed:
            folder.lock()
        held.extend(resumed or [create(seed) for seed in seeds])
        return [str(folder.path.absolute()) for folder in held]

    paths = from_first(hold)
    return held or [RunFolder.open(Path(path)) for path in paths]


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
    from training.failures import kept
    from training.processes import local
    from training.report import plot_curve
    from training.teams import Teams

    folder, learner, seed = run.folder, run.learner, run.seed
    simulator, teams = learner.simulator, Teams(learner.of_team, learner.opponents)
    policy = teams.policy(local(run.learned.network), simulator.rules)
    print(f"evaluating {n_episodes} episodes on maps that training never saw ...", flush=True)
    scripted = teams.with_opponents(simulator.rules.scripted_policy())
    policies = {"trained": policy, name_of(simulator.rules): scripted}
    with kept(folder):
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
