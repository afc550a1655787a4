"""`python -m swarm.evaluate`: play episodes with trained policies (`training.commands.evaluate`)."""

from collections.abc import Sequence

from swarm.commands.parsing import start


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate."""
    return start("training.commands.evaluate", argv)


if __name__ == "__main__":
    raise SystemExit(main())
