"""Reading files that somebody else may have made: regular ones of limited size, and JSON that is not too deep."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 2**24


def check_regular(path: Path, most: int | None = None) -> None:
    """Refuse pipes and devices, which might be waited for without end, and what is too large.

    Args:
        path: of the file.
        most: bytes that it may have; None: any number.

    Raises:
        OSError: it is none, or cannot be looked at.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        reason = errno.EISDIR if stat.S_ISDIR(about.st_mode) else errno.EINVAL
        raise OSError(reason, os.strerror(reason) if stat.S_ISDIR(about.st_mode) else "It is no regular file")
    if most is not None and about.st_size > most:
        raise OSError(errno.EFBIG, f"It has {about.st_size:,} bytes; at most {most:,} are read")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a file; arguments and errors as for `check_regular`."""
    check_regular(path, most)
    with path.open("rb") as file:
        # Some files of the system say that they have no size.
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"It has more than {most:,} bytes")
    return content


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is none, or deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
