"""`python -m swarm.simulate`: play one episode, and look at it."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swarm.commands import OVERRIDES_HELP, Formatter, import_training, is_run, positive, run
from swarm.errors import ConfigError, nearest

EXAMPLES = """examples:
  python -m swarm.simulate outpost --render outpost.mp4
  python -m swarm.simulate flocking --policy random population.bird.initial=200
  python -m swarm.simulate outpost --policy runs/outpost-mppo-0-20250101-120000 --render trained.gif"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and simulate."""
    parser = argparse.ArgumentParser(
        prog="python -m swarm.simulate",
        description="Play one episode of a scenario and print its metrics; with --render also draw it.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("scenario", help="a scenario's name (see python -m swarm) or a .toml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    parser.add_argument("--policy", default="scripted", help="scripted, random, or a run folder")
    parser.add_argument("--render", metavar="FILE", help="draw the episode: .gif, .mp4, or .png (six moments)")
    parser.add_argument("--seed", type=int, default=0, help="of the map and the actions")
    parser.add_argument("--steps", type=positive, help="stop earlier than the scenario's own end")
    return run(_simulate, parser, argv)


def _simulate(arguments: argparse.Namespace) -> int:
    from swarm.config import load, parse_overrides

    target = Path(arguments.render) if arguments.render else None
    if target:
        from swarm.render import check_format

        check_format(target)
    simulator = load(arguments.scenario, parse_overrides(arguments.overrides)).simulator()
    policy = _policy(arguments.policy, simulator)

    import jax

    from swarm.render import play, render
    from swarm.status import explain

    n_steps = min(arguments.steps or int(simulator.max_steps), int(simulator.max_steps))
    start = time.perf_counter()
    worlds, metrics = play(simulator, policy, jax.random.key(arguments.seed), n_steps)
    n_alive = int(worlds.entities.alive.sum())
    print(f"{len(worlds.step)} steps, {n_alive:,} agent-steps in {time.perf_counter() - start:.1f} s with compilation")
    for name, values in metrics.items():
        print(f"  {name:20} {float(values[-1]):.4g}")
    for line in explain(int(worlds.status[-1])):
        print(f"warning: {line}")
    if target:
        render(simulator, worlds, target)
        print(f"rendered: {target}")
    return 0


def _policy(name: str, simulator: Any) -> Any:
    from swarm.scenario import RandomPolicy

    if name == "scripted":
        return simulator.rules.scripted_policy()
    if name == "random":
        return RandomPolicy(simulator.rules.n_controls)
    if not is_run(name):
        raise ConfigError(f"--policy {name}: neither a run folder nor a policy{nearest(name, ['scripted', 'random'])}")
    import_training()
    from training.restore import restore_policy
    from training.runs import RunFolder

    return restore_policy(RunFolder.open(Path(name)), simulator=simulator)[1]


if __name__ == "__main__":
    raise SystemExit(main())
