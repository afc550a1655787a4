"""What the commands share: one line for a user's mistake, exit code 2, and no jax before the arguments are read."""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from swarm.errors import SwarmError
from swarm.resolve import trusting

OVERRIDES_HELP = "dotted overrides of the scenario file, like population.heavy.capacity=64 or training.steps=20000"


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks and shows defaults."""


def run(
    command: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parse the arguments and run a command; a user's mistake or a full disk is one line on stderr and exit code 2."""
    # Intermixed, so that overrides may stand before and after options.
    arguments = parser.parse_intermixed_args(argv)
    try:
        with trusting(getattr(arguments, "trust", False)):
            return command(arguments)
    except SwarmError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{parser.prog}: error: {error.filename or 'writing'}: {error.strerror}; make room", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        line = str(error).partition("\n")[0] or "no memory is left"
        print(f"{parser.prog}: error: {line}; lower the capacities, or take fewer worlds", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return 130


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option `--trust`."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let run folders and recordings name code that is not swarm's own; for those whose maker you know",
    )


def import_training() -> Any:
    """Import our `training` package, or say what stands in its way.

    Raises:
        SwarmError: a `training.py` in the working folder shadows it.
    """
    import training

    if not getattr(training, "IS_SWARM", False):
        place = getattr(training, "__file__", None) or next(iter(training.__path__), "?")
        raise SwarmError(
            f"{place} shadows the package 'training' that swarm needs; rename it or work in another folder"
        )
    return training


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def is_run(source: str) -> bool:
    """Whether a word names a run folder."""
    return (Path(source) / "run.json").is_file()
