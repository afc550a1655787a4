"""What the commands share: one line for a user's mistake, exit code 2, and no jax before the arguments are read."""

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from swarm.errors import ConfigError, SwarmError

OVERRIDES_HELP = "dotted overrides of the scenario file, like population.heavy.capacity=64 or training.steps=20000"


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks and shows defaults."""


def run(
    command: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parse the arguments and run a command; a user's mistake or a full disk is one line on stderr and exit code 2."""
    try:
        # Intermixed, so that overrides may stand before and after options.
        return command(parser.parse_intermixed_args(argv))
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
    return os.path.isfile(Path(source) / "run.json")
