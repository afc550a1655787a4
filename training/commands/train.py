"""`python -m swarm.train`: train a policy on a scenario."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from swarm.commands.parsing import (
    OVERRIDES_HELP,
    SEEDS,
    Formatter,
    add_trust,
    again,
    are_overrides,
    is_run,
    parse_seed,
    positive,
    run,
)
from swarm.core.errors import ConfigError, RunError, SwarmError

if TYPE_CHECKING:
    from swarm.build.scenario_files import Scenario
    from training.runs.folders import RunFolder
    from training.runs.loop import Run

EXAMPLES = """examples:
  python -m swarm.train outpost
  python -m swarm.train outpost training.credit.grouping=global --seed 1
  python -m swarm.train spread training.recipe=ippo --seeds 5
  python -m swarm.train mine.toml population.heavy.capacity=64 training.steps=50000
  python -m swarm.train --resume runs/outpost-mppo-0-20250101-120000
  python -m swarm.train --resume runs/outpost-mppo-0-20250101-120000 --from 400 training.learning_rate=1e-4
  python -m swarm.train outpost --coordinator host0:4000 --num-processes 2 --process-id 0    (on host1: 1)

The run folder holds the resolved config, checkpoints, TensorBoard events, metrics.jsonl, and at the end an
evaluation, the curve and a video. Ctrl-C saves a checkpoint and says how to go on. A run that is resumed has its own
settings; those given with --resume go over them from there on, and run.json says which and when."""


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
    parser.add_argument(
        "--from", dest="update", type=int, metavar="UPDATE", help="with --resume: from the checkpoint of that update"
    )
    parser.add_argument("--init-from", metavar="RUN", help="start from the networks of another run, as far as they fit")
    parser.add_argument("--seed", type=parse_seed, default=0, help="of parameters, maps and actions")
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
    add_trust(parser)
    return run(_train, parser, argv)


def _train(arguments: argparse.Namespace) -> int:
    from training.execution.processes import connected, is_first
    from training.networks import n_parameters
    from training.runs.loop import Interrupted, train

    processes = arguments.coordinator, arguments.num_processes, arguments.process_id
    with ExitStack() as stack:
        with connected(*processes, arguments.devices) as set_remedy:
            groups = _runs(arguments, stack)
            folders = [one.folder for runs in groups for one in runs]
            trust = ["--trust"] if any(folder.scenario().foreign for folder in folders) else []
            go_on = again("swarm.train", "--resume", *(folder.path for folder in folders), *trust)
            set_remedy(f"go on from the last checkpoint with: {go_on}")
            for runs in groups:
                try:
                    train(runs)
                except Interrupted:
                    if is_first():
                        print(f"stopped and saved; go on with: {go_on}", file=sys.stderr)
                    return 130
                print(f"trained {n_parameters(runs[0].learned.network):,} parameters", flush=True)
        if is_first():
            for runs in groups:
                for one in runs:
                    _finish(one, arguments.episodes)
    return 0


class _Plan(NamedTuple):
    """Runs of the same settings, which are trained at once.

    Attributes:
        scenarios: of each run, with its own paths.
        seeds: of each.
        resumed: their folders; empty for new runs.
    """

    scenarios: "list[Scenario]"
    seeds: list[int]
    resumed: "list[RunFolder]"


def _runs(arguments: argparse.Namespace, stack: ExitStack) -> "list[list[Run]]":
    """Fresh or resumed runs, those of the same settings together; their folders are held as long as the stack."""
    from training.config import load_training
    from training.execution.processes import check_same
    from training.runs.loop import Run

    if arguments.resume and arguments.init_from:
        raise ConfigError("--init-from starts a new run, --resume goes on with an old one; give one of them")
    if arguments.update is not None and not arguments.resume:
        raise ConfigError("--from names a checkpoint of the run to --resume; name that, too")
    plans = _resumed(arguments) if arguments.resume else [_fresh(arguments)]
    held = []
    for plan in plans:
        scenario = plan.scenarios[0]
        alone = load_training(scenario).impala.actors or hasattr(scenario.config, "environment")
        if len(plan.seeds) > 1 and alone:
            raise ConfigError(
                "--seeds: actors of their own, and host environments, learn one seed at a time; start each by itself"
            )
        check_same(scenario.resolved() | {"seeds": plan.seeds, "devices": arguments.devices})
        held.append(_hold(plan, arguments, stack))
    print(f"run folder: {', '.join(str(one.path) for _, folders, _ in held for one in folders)}", flush=True)
    groups = []
    for plan, (learner, folders, about) in zip(plans, held, strict=True):
        runs = [Run(learner, folder, seed) for folder, seed in zip(folders, plan.seeds, strict=True)]
        if plan.resumed:
            _take_up(runs, plan, about, arguments.update)
        elif arguments.init_from:
            _warm_start(runs, arguments.init_from)
        groups.append(runs)
    return groups


def _fresh(arguments: argparse.Namespace) -> _Plan:
    """New runs of a scenario."""
    from swarm.build.scenario_files import load
    from swarm.core.toml import parse_overrides

    if not arguments.scenario:
        raise ConfigError("name a scenario, like outpost, or a run with --resume; python -m swarm lists scenarios")
    if is_run(arguments.scenario):
        go_on = again("swarm.train", "--resume", arguments.scenario)
        raise ConfigError(f"{arguments.scenario} is a run folder; to go on with it: {go_on}")
    seeds = list(range(arguments.seed, arguments.seed + arguments.seeds))
    if seeds[-1] >= SEEDS:
        raise ConfigError(f"--seed {seeds[0]} --seeds {len(seeds)}: the last is beyond {SEEDS - 1}; begin lower")
    return _Plan([load(arguments.scenario, parse_overrides(arguments.overrides))], seeds, [])


def _resumed(arguments: argparse.Namespace) -> list[_Plan]:
    """Runs to go on with, each by its own settings and the overrides; those of the same settings together."""
    from swarm.core.toml import parse_overrides
    from training.runs.folders import RunFolder, settings

    # Overrides may follow the runs to resume.
    given = [word for word in (arguments.scenario, *arguments.overrides) if word]
    given += arguments.resume
    marks = are_overrides(given)
    others = [word for word, mark in zip(given, marks, strict=True) if not mark and word not in arguments.resume]
    if others:
        raise ConfigError(f"{others[0]}: a run that is resumed has its own scenario; give --resume runs and overrides")
    overrides = parse_overrides([word for word, mark in zip(given, marks, strict=True) if mark])
    if "training.recipe" in overrides:
        raise ConfigError(
            "training.recipe: a run has all values of its recipe; override the values, or start a new run"
        )
    paths = [Path(word) for word, mark in zip(given, marks, strict=True) if not mark]
    groups: dict[str, _Plan] = {}
    for path in {path.resolve(): path for path in paths}.values():
        folder = RunFolder.open(path)
        scenario = folder.scenario(overrides)
        plan = groups.setdefault(settings(folder, scenario), _Plan([], [], []))
        plan.scenarios.append(scenario)
        plan.seeds.append(folder.identity()["seed"])
        plan.resumed.append(folder)
    if not groups:
        raise ConfigError("--resume: name a run folder, like runs/outpost-mppo-0-20250101-120000")
    return list(groups.values())


def _hold(
    plan: _Plan, arguments: argparse.Namespace, stack: ExitStack
) -> "tuple[Any, list[RunFolder], dict[str, Any]]":
    """Build the learner; process 0 locks or makes the folders, and the others open the same."""
    from training.config import load_training
    from training.execution.processes import from_first, n_processes
    from training.runs.build import build_learner
    from training.runs.folders import RunFolder

    scenario = plan.scenarios[0]
    config = load_training(scenario)
    learner = build_learner(scenario, config, arguments.devices, arguments.actor_devices)
    about = {"devices": arguments.devices, "processes": n_processes(), "of_team": learner.of_team}
    about |= {"networks": max(learner.of_team) + 1}
    if arguments.init_from:
        about["init_from"] = arguments.init_from
    held: list[RunFolder] = []

    def hold() -> list[str]:
        for folder in plan.resumed:
            folder.lock()
        parent = Path(arguments.runs)
        held.extend(plan.resumed or [RunFolder.create(scenario, config, seed, parent, about) for seed in plan.seeds])
        return [str(folder.path.absolute()) for folder in held]

    paths = from_first(hold)
    folders = held or [RunFolder.open(Path(path)) for path in paths]
    for folder in folders:
        stack.callback(folder.close)
    return learner, folders, about


def _take_up(runs: "Sequence[Run]", plan: _Plan, about: "Mapping[str, Any]", update: int | None) -> None:
    """Go on from a checkpoint: the one that is asked for, or the newest that all of the runs have."""
    from training.config import load_training

    last = [one.checkpoints.at(update) for one in runs]
    common = set.intersection(*(set(one.checkpoints.steps()) for one in runs))
    if not common:
        raise RunError("--resume: there is no update of which all these runs have a checkpoint; resume them one by one")
    update = max(common) if update is None else update
    for one in runs:
        one.resume(update)
    for one, newest, scenario in zip(runs, last, plan.scenarios, strict=True):
        if newest > update:
            print(
                f"{one.folder.path}: goes on from update {update}, the last of which all these runs have a checkpoint"
            )
        one.folder.note_resumed(scenario, load_training(scenario), update, about)


def _warm_start(runs: "Sequence[Run]", source: str) -> None:
    """Start from the networks of another run, as far as they fit."""
    from training.runs.folders import RunFolder
    from training.runs.restore import warm_start

    for one in runs:
        stayed = one.warm_start(lambda network: warm_start(network, RunFolder.open(Path(source))))
        print(f"starting from {source}; {len(stayed)} array(s) fresh: {', '.join(stayed) or 'none'}", flush=True)


def _finish(run: "Run", n_episodes: int) -> None:
    """Evaluate, draw the curve, render a video, and say where they are."""
    from swarm.adapters.host import HostRules
    from swarm.play.episodes import play
    from swarm.play.pictures import render
    from training.acting.teams import Teams
    from training.execution.processes import local
    from training.runs.comparison import compare, name_of, played, print_comparison
    from training.runs.evaluation import episode_keys
    from training.runs.failures import kept
    from training.runs.report import plot_curve

    folder, learner, seed = run.folder, run.learner, run.seed
    simulator, teams = learner.simulator, Teams(learner.of_team, learner.opponents)
    policy = teams.policy(local(run.learned.network), simulator.rules)
    print(f"evaluating {n_episodes} episodes on maps that training never saw ...", flush=True)
    scripted = teams.with_opponents(simulator.rules.scripted_policy())
    policies = {"trained": policy, name_of(simulator.rules): scripted}
    with kept(folder):
        results, values = compare(simulator, policies, seed=seed, n_episodes=n_episodes)
    print_comparison(results, simulator.rules)
    results = results | played("last", run.done, deterministic=False, values=values)
    folder.write_json("evaluation", **{"": results})
    curve, video = folder.path / "curve.png", folder.path / "video.mp4"
    rules = simulator.rules
    try:
        plot_curve(folder.metrics(), list(dict.fromkeys(("return", rules.headline, rules.success))), curve)
    except OSError as error:
        raise SwarmError(f"{curve}: could not be written: {error}; the run itself is complete") from None
    if isinstance(rules, HostRules):
        print(f"run:   {folder.path}\ncurve: {curve}\nvideo: none; a host environment draws itself, if it can")
        return
    n_steps = int(simulator.max_steps)
    try:
        render(play(simulator, policy, episode_keys(seed, 1)[0], n_steps), video, n_steps)
    except OSError as error:
        raise SwarmError(f"{video}: could not be written: {error}; the run itself is complete") from None
    print(f"run:   {folder.path}\ncurve: {curve}\nvideo: {video}")
