"""What the commands share: one line for a user's mistake, exit code 2, and no jax before the arguments are read."""

import argparse
import errno
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

from swarm.commands.chatter import without_chatter
from swarm.core.errors import ConfigError, SwarmError, brief
from swarm.core.interrupts import interruptible
from swarm.core.packages import check_ours, find_in_working_folder
from swarm.core.resolve import trusting
from swarm.core.values import LARGEST_WHOLE, shown

OVERRIDES_HELP = "dotted overrides of the scenario file, like population.heavy.capacity=64 or training.steps=20000"


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks and shows defaults."""


def run(
    command: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parse the arguments and run a command; a user's mistake or a full disk is one line on stderr and exit code 2."""
    with interruptible(parser.prog) as interrupted, without_chatter() if argv is None else nullcontext():
        try:
            # Intermixed, so that overrides may stand before and after options.
            arguments = parser.parse_intermixed_args(argv)
            find_in_working_folder()
            with trusting(getattr(arguments, "trust", False)):
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
    """A user's mistake, a file that cannot be used, or too little memory, in one line; None: anything else."""
    if isinstance(error, SwarmError):
        return f"error: {brief(str(error), 2000)}"
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or error.filename:
            return f"error: {error.filename or 'writing'}: {error.strerror}{'; make room' if full else ''}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)):
        return f"error: too little memory ({brief(str(error), 120)}); lower capacities, worlds or steps"
    return None


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option `--trust`."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let run folders and recordings name code that is not swarm's own; for those whose maker you know",
    )


# Of a seed jax uses the lower 32 bits: others would be the same run under another name.
SEEDS = 2**32


def parse_seed(text: str) -> int:
    """Parse a seed: a whole number from 0 to 2^32 - 1, all of which differ.

    Raises:
        ConfigError: it is none.
    """
    # Longer numbers Python refuses to read.
    if not text.strip().isdecimal() or len(text) > 100 or int(text) >= SEEDS:
        raise ConfigError(f"--seed {text[:100]}: expected a whole number from 0 to {SEEDS - 1}")
    return int(text)


def are_overrides(words: Sequence[str]) -> list[bool]:
    """Which of some words are overrides, key=value, and not the path of something that exists."""
    return ["=" in word and not os.path.exists(word) for word in words]


def again(*words: object) -> str:
    """A command to type, its words quoted where a shell needs it."""
    return f"python -m {shlex.join(str(word) for word in words)}"


def start(module: str, argv: Sequence[str] | None) -> int:
    """Run a command of `training`, which is named here, not imported, because it stands above."""
    try:
        main = of_training(module).main
    except ConfigError as error:
        print(f"python -m swarm.{module.rpartition('.')[2]}: error: {error}", file=sys.stderr)
        return 2
    return main(argv)


def of_training(module: str) -> Any:
    """Import a module of our `training` package, or say what stands in its way.

    Raises:
        ConfigError: a module of the user's hides the package.
    """
    check_ours("training")
    return importlib.import_module(module)


def positive(text: str, most: int = 1_000_000) -> int:
    """Parse a whole number from 1 on, up to what memory can be asked for."""
    value = int(text) if text.strip().isdecimal() and len(text) < 20 else 0
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {most:,}, got {shown(text)}")
    return value


def n_steps(text: str) -> int:
    """Parse a number of steps, which take no memory."""
    return positive(text, LARGEST_WHOLE)


def is_run(source: str) -> bool:
    """Whether a word names a run folder."""
    return os.path.isfile(os.path.join(source, "run.json"))
