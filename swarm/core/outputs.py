"""Files that a command will write: checked before its work, not after. Nothing here imports jax."""

import os
from collections.abc import Collection
from pathlib import Path

from swarm.core.errors import SwarmError

PICTURES = (".gif", ".mp4", ".png")
RECORDINGS = (".parquet", ".csv", ".mcap")


def check_output(path: str | Path, *, option: str = "", formats: Collection[str] = (), new: bool = False) -> None:
    """Refuse a file that cannot be written. One that was not there is made for a moment: nothing else tells for sure.

    Args:
        path: of the file.
        option: of the command that names it, for the message.
        formats: how its name may end; empty: in any way.
        new: it must not be there yet.

    Raises:
        SwarmError: of another format, in a folder that does not exist or cannot be written to, no file, or there.
    """
    path = Path(path)
    where = f"{option} {path}".strip()
    if formats and path.suffix not in formats:
        raise SwarmError(f"{where}: expected a file that ends in {', '.join(formats)}")
    try:
        existed = path.exists()
        if existed and not path.is_file():
            raise SwarmError(f"{where}: is no file; choose another name")
        if existed and new:
            raise SwarmError(f"{where}: exists already; remove it or choose another name")
        with path.open("ab"):
            pass
        if not existed:
            # Through a link, its target was made.
            os.remove(os.path.realpath(path))
    except (OSError, ValueError) as error:
        folder = path.absolute().parent
        missing = "" if os.path.exists(folder) else f"; the folder {folder} does not exist"
        reason = getattr(error, "strerror", None) or error
        raise SwarmError(f"{where}: cannot be written: {reason}{missing}") from None
