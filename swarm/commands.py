"""What the commands share: one line for a user's mistake, exit code 2, and no jax before the arguments are read."""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from swarm.errors import SwarmError
from swarm.packages import check_ours, find_in_working_folder

OVERRIDES_HELP = "dotted overrides of the scenario file, like population.heavy.capacity=64 or training.steps=20000"


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks and shows defaults."""


def run(
    command: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parse the arguments and run a command; a user's mistake or a full disk is one line on stderr and exit code 2."""
    # Intermixed, so that overrides may stand before and after options.
    arguments = parser.parse_intermixed_args(argv)
    find_in_working_folder()
    try:
        return command(arguments)
    except SwarmError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{parser.prog}: error: {error.filename or 'writing'}: {error.strerror}; make room", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return 130


def import_training() -> Any:
    """Import our `training` package, or say what stands in its way.

    Raises:
        ConfigError: a module of the user's hides it.
    """
    check_ours("training")
    import training

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
