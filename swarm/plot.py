"""`python -m swarm.plot`: learning curves of runs, over their seeds (`training.commands.plot`)."""

from collections.abc import Sequence

from swarm.commands.parsing import start


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and plot."""
    return start("training.commands.plot", argv)


if __name__ == "__main__":
    raise SystemExit(main())
