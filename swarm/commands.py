"""What the commands share: one line for a user's mistake, exit code 2, and no jax before the arguments are read."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from swarm.chatter import without_chatter
from swarm.errors import SwarmError, brief
from swarm.interrupts import interruptible

OVERRIDES_HELP = "dotted overrides of the scenario file, like population.heavy.capacity=64 or training.steps=20000"


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks and shows defaults."""


def run(
    command: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parse the arguments and run a command; a user's mistake or a full disk is one line on stderr and exit code 2."""
    # Intermixed, so that overrides may stand before and after options.
    arguments = parser.parse_intermixed_args(argv)
    with interruptible(parser.prog) as interrupted, without_chatter() if argv is None else nullcontext():
        try:
            code = command(arguments)
        except (Exception, KeyboardInterrupt) as error:
            stopped = interrupted() or isinstance(error, KeyboardInterrupt)
            line = "stopped" if stopped else _explained(error)
            if line is None:
                raise
            print(f"{parser.prog}: {line}", file=sys.stderr)
            code = 130 if stopped else 2
    if code == 130 and argv is None:
        # All is in order; what libraries still do at the end of a program may take its time, and be interrupted again.
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


def _explained(error: BaseException) -> str | None:
    """A user's mistake or a full disk in one line; None: anything else."""
    if isinstance(error, SwarmError):
        return f"error: {brief(str(error), 2000)}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"error: {error.filename or 'writing'}: {error.strerror}; make room"
    return None


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
