"""Failures of host environments in runs: a line for the user, and all that is known of them in the run folder."""

import contextlib
import traceback
from collections.abc import Iterator

from swarm.adapters.environments import HostError
from swarm.core.errors import RunError, SwarmError
from training.runs.folders import RunFolder

FILE = "error.txt"


def told(error: BaseException, folder: RunFolder) -> str:
    """An error as one line; what more its cause knows is kept in the folder."""
    cause = error.__cause__ or error
    details = getattr(cause, "details", "")
    if not details and not isinstance(cause, SwarmError):
        details = "".join(traceback.format_exception(cause))
    if not details:
        return str(error)
    path = folder.path / FILE
    try:
        path.write_text(details, "utf-8", errors="replace")
    except OSError:
        return str(error)
    return f"{error}; {path} has all of it"


@contextlib.contextmanager
def kept(folder: RunFolder) -> Iterator[None]:
    """Keep what is known of a host environment's failure inside.

    Raises:
        RunError: in place of a `HostError`.
    """
    try:
        yield
    except HostError as error:
        raise RunError(told(error, folder)) from error
