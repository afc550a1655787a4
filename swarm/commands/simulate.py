"""`python -m swarm.simulate`: play one episode, and look at it."""

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swarm.commands.parsing import (
    OVERRIDES_HELP,
    Formatter,
    add_trust,
    is_run,
    n_steps,
    of_training,
    parse_seed,
    positive,
    run,
)
from swarm.core.errors import ConfigError, nearest
from swarm.core.outputs import PICTURES, RECORDINGS, check_output

EXAMPLES = """examples:
  python -m swarm.simulate outpost --render outpost.mp4
  python -m swarm.simulate flocking --policy random population.bird.initial=200
  python -m swarm.simulate flocking --record flight.parquet --worlds 4
  python -m swarm.simulate --replay flight.parquet --render flight.mp4
  python -m swarm.simulate pursuit 'population.scout.speed={uniform=[3.0, 5.0]}' --worlds 8 --record pursuit.mcap
  python -m swarm.simulate outpost --policy runs/outpost-mppo-0-20250101-120000 --render trained.gif"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and simulate."""
    parser = argparse.ArgumentParser(
        prog="python -m swarm.simulate",
        description="Play one episode of a scenario and print its metrics; with --render also draw it.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("scenario", nargs="?", help="a scenario's name (see python -m swarm) or a .toml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    parser.add_argument("--policy", default="scripted", help="scripted, random, or a run folder")
    parser.add_argument("--render", metavar="FILE", help="draw the episode: .gif, .mp4, or .png (six moments)")
    parser.add_argument("--record", metavar="FILE", help="write who was where at each step: .parquet, .csv, .mcap")
    parser.add_argument("--replay", metavar="FILE", help="simulate a .parquet recording again, and compare each bit")
    parser.add_argument("--seed", type=parse_seed, default=0, help="of the map and the actions")
    parser.add_argument("--steps", type=n_steps, help="stop earlier than the scenario's own end")
    parser.add_argument("--worlds", type=positive, default=1, help="play and record so many at once; draw the first")
    parser.add_argument(
        "--regrow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="double a capacity that is reached, and go on as if it had been so from the start",
    )
    add_trust(parser)
    return run(_simulate, parser, argv)


def _simulate(arguments: argparse.Namespace) -> int:
    target = Path(arguments.render) if arguments.render else None
    if target:
        check_output(target, option="--render", formats=PICTURES)
    if arguments.record:
        check_output(arguments.record, option="--record", formats=RECORDINGS, new=True)

    from swarm.core.interrupts import stop_requested
    from swarm.play.pictures import Renderer
    from swarm.play.telemetry import Recorder

    episode = _replayed(arguments) if arguments.replay else _played(arguments)
    tally = Tally(episode.n_worlds)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requested())
        consumers: list[Any] = [tally]
        if arguments.record:
            consumers.append(stack.enter_context(Recorder(Path(arguments.record), episode.scenario, episode.about)))
        if target:
            consumers.append(stack.enter_context(Renderer(target, episode.n_steps)))
        for chunk in episode.chunks:
            for consumer in consumers:
                consumer.write(chunk)
            if stop():
                raise KeyboardInterrupt
    tally.print()
    for word, path in (("recorded", arguments.record), ("rendered", target)):
        if path:
            print(f"{word}: {path}")
    if episode.verdict:
        print(episode.verdict)
    return 0


class _Episode(NamedTuple):
    """What is looked at: the scenario, what a recording says about it, and the chunks of steps."""

    scenario: Any
    about: dict[str, Any]
    n_steps: int
    n_worlds: int
    chunks: Iterator[Any]
    verdict: str = ""


def _played(arguments: argparse.Namespace) -> _Episode:
    from swarm.build.scenario_files import load
    from swarm.build.simulators import make
    from swarm.core.toml import parse_overrides

    if not arguments.scenario:
        raise ConfigError("which scenario? name one (python -m swarm lists them), or a recording to --replay")
    scenario = load(arguments.scenario, parse_overrides(arguments.overrides))
    simulator = make(scenario)
    policy = _policy(arguments.policy, scenario, simulator)

    import jax

    from swarm.play.episodes import play

    n_steps = min(arguments.steps or int(simulator.max_steps), int(simulator.max_steps))
    about = {"seed": arguments.seed, "policy": arguments.policy}
    grows = scenario if arguments.regrow else None
    key, n_worlds = jax.random.key(arguments.seed), arguments.worlds
    chunks = play(simulator, policy, key, n_steps, n_worlds=n_worlds, scenario=grows)
    return _Episode(scenario, about, n_steps, n_worlds, chunks)


def _replayed(arguments: argparse.Namespace) -> _Episode:
    from swarm.play.telemetry.replay import Recording

    if arguments.scenario:
        raise ConfigError(f"--replay {arguments.replay}: says all itself; leave out {arguments.scenario}")
    recording = Recording(Path(arguments.replay))
    about = {name: recording.about[name] for name in ("seed", "policy") if name in recording.about}
    verdict = f"replayed: all {recording.n_rows:,} rows of {arguments.replay} are the same, bit for bit"
    n_steps, n_worlds = recording.n_steps, recording.about["worlds"]
    return _Episode(recording.scenario, about, n_steps, n_worlds, recording.replay(), verdict)


class Tally:
    """Counts an episode, says at once what grew, and prints the rest at the end."""

    def __init__(self, n_worlds: int) -> None:
        self._start = time.perf_counter()
        self._n_worlds, self._n_agent_steps, self._status = n_worlds, 0, 0
        self._length = np.zeros(n_worlds, int)
        self._metrics: dict[str, Any] = {}
        self._faults: list[Any] = []

    def write(self, chunk: Any) -> None:
        """Count the steps of a chunk."""
        for line in chunk.grown:
            print(f"grown: {line}", flush=True)
        played = chunk.length > 0
        happened = np.arange(chunk.length.max())[:, None] < chunk.length[None]
        self._n_agent_steps += int((chunk.worlds.entities.alive & happened[..., None]).sum())
        self._length += chunk.length
        for name, values in chunk.metrics.items():
            before = self._metrics.get(name, np.zeros(self._n_worlds))
            self._metrics[name] = np.where(played, chunk.last(values), before)
        self._status |= int(np.bitwise_or.reduce(chunk.last(chunk.worlds.status)[played]))
        self._faults += chunk.faults

    def print(self) -> None:
        """Print steps, metrics (means over the worlds) and warnings."""
        from swarm.core.status import explain

        seconds = time.perf_counter() - self._start
        of_worlds = f" of {self._n_worlds} worlds, means" if self._n_worlds > 1 else ""
        steps = f"{int(self._length.max())} steps{of_worlds}, {self._n_agent_steps:,} agent-steps"
        print(f"{steps} in {seconds:.1f} s with compilation")
        for name, values in self._metrics.items():
            # Where it is not defined, as a mean over nobody is, it does not count.
            known = values[np.isfinite(values)]
            print(f"  {name:20} {f'{float(known.mean()):.4g}' if known.size else '-'}")
        for line in explain(self._status, self._faults):
            print(f"warning: {line}")


def _policy(name: str, scenario: Any, simulator: Any) -> Any:
    from swarm.simulation.random_policy import RandomPolicy

    if name == "scripted":
        return simulator.rules.scripted_policy()
    if name == "random":
        return RandomPolicy.of(simulator.rules)
    if not is_run(name):
        raise ConfigError(f"--policy {name}: neither a run folder nor a policy{nearest(name, ['scripted', 'random'])}")
    return of_training("training.runs.build").policy_of_run(Path(name), scenario, simulator)
