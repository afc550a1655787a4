"""`python -m swarm.simulate`: play one episode, and look at it (`swarm.commands.simulate`)."""

from swarm.commands.simulate import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
