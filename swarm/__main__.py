"""`python -m swarm`: what there is."""

import argparse
from collections.abc import Sequence

from swarm.commands.parsing import Formatter, run

COMMANDS = (
    ("swarm.train", "train a policy on a scenario; makes a run folder"),
    ("swarm.evaluate", "play episodes with a trained policy, next to the scripted one"),
    ("swarm.plot", "compare runs: learning curves over seeds, with intervals"),
    ("swarm.simulate", "play one episode with a scripted, random or trained policy; picture or video"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """List commands and scenarios."""
    parser = argparse.ArgumentParser(
        prog="python -m swarm",
        description="Swarm simulation with hierarchical agent groups, and multi-agent training. Lists what there is.",
        formatter_class=Formatter,
    )
    return run(_list, parser, argv)


def _list(arguments: argparse.Namespace) -> int:
    from swarm.build.scenario_files import about, scenario_names

    print("Commands (each has --help):")
    for name, purpose in COMMANDS:
        print(f"  python -m {name:16} {purpose}")
    print("\nScenarios:")
    for name in scenario_names():
        print(f"  {name:16} {about(name)}")
    print("\nBegin with: python -m swarm.train outpost")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
