"""`python -m swarm.evaluate`: play episodes with trained policies, next to the scripted one."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm.commands.parsing import (
    OVERRIDES_HELP,
    Formatter,
    add_trust,
    are_overrides,
    parse_seed,
    positive,
    run,
)
from swarm.core.errors import ConfigError
from swarm.core.outputs import PICTURES, check_output

if TYPE_CHECKING:
    from training.runs.folders import RunFolder

EXAMPLES = """examples:
  python -m swarm.evaluate runs/outpost-mppo-0-20250101-120000
  python -m swarm.evaluate runs/outpost-mppo-* --episodes 512 --deterministic
  python -m swarm.evaluate runs/outpost-mppo-* --absolute
  python -m swarm.evaluate runs/outpost-mppo-0-20250101-120000 --scenario outpost population.heavy.capacity=32

An interval is over the episodes of one run where a metric is defined; over several runs swarm.plot tells more.
evaluation.json says what was played how, with the values of each episode; those of before are kept beside it, numbered.
--absolute follows the protocol of
the absolute metric: the networks that did best during the run play ten times the episodes of an evaluation in it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(
        prog="python -m swarm.evaluate",
        description="Play episodes on unseen maps with the last networks of runs, and the same ones with the scripted "
        "policy; prints means with 95 % bootstrap intervals, and writes evaluation.json and evaluation.png into each "
        "run folder.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"run folders; and {OVERRIDES_HELP}")
    parser.add_argument("--episodes", type=positive, default=128, help="number of episodes")
    parser.add_argument("--deterministic", action="store_true", help="take the likeliest actions, do not sample")
    parser.add_argument("--best", action="store_true", help="the networks that did best during the run, not the last")
    parser.add_argument(
        "--from", dest="update", type=int, metavar="UPDATE", help="the networks after so many updates, not the last"
    )
    parser.add_argument("--absolute", action="store_true", help="the absolute metric: --best, ten times the episodes")
    parser.add_argument("--seed", type=parse_seed, help="of maps and actions; the run's own if not given")
    parser.add_argument("--scenario", metavar="NAME|FILE", help="play another scenario, whose observations fit")
    parser.add_argument("--render", metavar="FILE", help="also make a picture (.png) or video (.mp4) of one episode")
    add_trust(parser)
    return run(_evaluate, parser, argv)


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.render:
        check_output(arguments.render, option="--render", formats=PICTURES)
    from training.runs.folders import RunFolder

    if arguments.update is not None and (arguments.best or arguments.absolute):
        raise ConfigError("--from and --best (or --absolute) each name the networks to play; give one of them")
    given = list(zip(arguments.runs, are_overrides(arguments.runs), strict=True))
    words = [word for word, is_override in given if is_override]
    folders = [RunFolder.open(Path(word)) for word, is_override in given if not is_override]
    if not folders:
        raise ConfigError("name a run folder, like runs/outpost-mppo-0-20250101-120000")
    for folder in folders:
        check_output(folder.path / f"{_stem(arguments)}.json")
    for folder in folders:
        _evaluate_one(arguments, folder, words)
    return 0


def _evaluate_one(arguments: argparse.Namespace, folder: "RunFolder", words: Sequence[str]) -> None:
    from swarm.build.scenario_files import load
    from swarm.build.simulators import make
    from swarm.core.memory import check_memory
    from swarm.core.toml import parse_overrides
    from training.config import load_training
    from training.runs.build import build_teams
    from training.runs.comparison import compare, name_of, played, print_comparison
    from training.runs.evaluation import AT_ONCE
    from training.runs.failures import kept
    from training.runs.report import plot_bars
    from training.runs.restore import frozen_policy, networks_at

    overrides = parse_overrides(words)
    own = load_training(folder.scenario())
    scenario = load(arguments.scenario, overrides) if arguments.scenario else folder.scenario(overrides)
    simulator = make(scenario)
    config = load_training(scenario)
    if "training.teams" not in overrides:
        # In another scenario, too, the networks meet whom they were trained against, and do not play both sides.
        config = config.model_copy(update={"teams": own.teams})
    teams = build_teams(scenario, config, simulator)
    best, deterministic = arguments.best or arguments.absolute, arguments.deterministic
    update = networks_at(folder, best=best, update=arguments.update)
    policy = frozen_policy(folder, simulator, deterministic=deterministic, best=best, update=update)
    seed = folder.identity()["seed"] if arguments.seed is None else arguments.seed
    n_episodes = 10 * own.evaluation_episodes if arguments.absolute else arguments.episodes
    check_memory(simulator.reset, min(n_episodes, AT_ONCE), scenario.source)
    trained, scripted = (teams.with_opponents(p) for p in (policy, simulator.rules.scripted_policy()))
    policies = {"trained": trained, name_of(simulator.rules): scripted}
    with kept(folder):
        results, values = compare(simulator, policies, seed=seed, n_episodes=n_episodes)
    name = _stem(arguments)
    networks = "best" if best else "last" if arguments.update is None else "earlier"
    results = results | played(networks, update, deterministic=deterministic, values=values)
    contents = {"": results | {"scenario": scenario.source, "overrides": overrides}}
    if arguments.absolute:
        contents |= {"_values": results["values"]["trained"]}
    print(folder.path)
    folder.write_json(name, **contents)
    plot_bars(results, (simulator.rules.success, simulator.rules.headline, "return"), folder.path / f"{name}.png")
    print_comparison(results, simulator.rules)
    print(f"written: {folder.path / name}.json and .png")
    if arguments.render:
        _render(simulator, trained, seed, Path(arguments.render))


def _stem(arguments: argparse.Namespace) -> str:
    """Of the files that are written into each run folder."""
    return "absolute" if arguments.absolute else "evaluation"


def _render(simulator: Any, policy: Any, seed: int, target: Path) -> None:
    from swarm.play.episodes import play
    from swarm.play.pictures import render
    from training.runs.evaluation import episode_keys

    n_steps = int(simulator.max_steps)
    render(play(simulator, policy, episode_keys(seed, 1)[0], n_steps), target, n_steps)
    print(f"rendered: {target}")
