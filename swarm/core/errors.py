"""Errors that a user can mend: each is one line that says what, where, what was expected, and the remedy."""

import difflib
from collections.abc import Iterable

_LONGEST = 2000


class SwarmError(Exception):
    """A mistake outside the program. Commands print its one line and leave with exit code 2."""

    def __init__(self, message: str) -> None:
        """Make one line of a message, and not a long one, whatever it quotes."""
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
        half = _LONGEST // 2
        super().__init__(line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}")


class ConfigError(SwarmError):
    """A scenario file, recipe or override that cannot be right."""


class RunError(SwarmError):
    """A run folder or checkpoint that cannot be used as asked, or a run that cannot go on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the nearest known word, or the list of all when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(known)}"


def brief(text: str, limit: int = 400) -> str:
    """Return a text of somebody else as one line, without its middle where it is longer than `limit` characters."""
    line = " ".join(text.split()) if "\n" in text else text
    if len(line) <= limit:
        return line
    end = limit // 4
    return f"{line[: limit - end]} ... {line[-end:]} ({len(line):,} characters)"
