"""`python -m swarm.simulate`: play one episode, and look at it (`swarm.commands.simulate`)."""

from collections.abc import Sequence

from swarm.commands.parsing import start


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and simulate."""
    return start("swarm.commands.simulate", argv)


if __name__ == "__main__":
    raise SystemExit(main())
