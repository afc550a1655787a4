"""`python -m swarm.train`: train a policy on a scenario (`training.commands.train`)."""

from collections.abc import Sequence

from swarm.commands.parsing import start


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    return start("training.commands.train", argv)


if __name__ == "__main__":
    raise SystemExit(main())
