"""What libraries in C++ print past Python: lines that alarm and mean nothing are left out, all others come through."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

# XLA's alarm at a compilation of more than two minutes, with its frame; Gloo's report of how processes met.
NOISE = (
    r"slow_operation_alarm\.cc",
    r"Very slow compile\? If you want to file a bug",
    r"^\*{16,}$",
    r"^\[Gloo\] Rank [0-9]+ is connected to",
)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Filter what is written to the descriptors 1 and 2 inside; Python's own streams go on as they are.

    A process of its own reads, so that the last words of one that aborts are not lost.
    """
    grep = shutil.which("grep")
    with ExitStack() as stack:
        for name, number in (("stdout", 1), ("stderr", 2)):
            stream = getattr(sys, name)
            if grep and stream is not None and _number(stream) == number:
                stack.callback(setattr, sys, name, stream)
                setattr(sys, name, stack.enter_context(_filtered(grep, stream, number)))
        yield


def _number(stream: Any) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError):
        return None


@contextmanager
def _filtered(grep: str, stream: TextIO, number: int) -> Iterator[TextIO]:
    """Yield a stream that writes where the given one did."""
    stream.flush()
    there = os.dup(number)
    patterns = [word for pattern in NOISE for word in ("-e", pattern)]
    words = [grep, "-a", "-E", "-v", "--line-buffered", *patterns]
    # In a group of its own: Ctrl-C is not for it.
    reader = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=there, process_group=0)
    assert reader.stdin is not None
    os.dup2(reader.stdin.fileno(), number)
    reader.stdin.close()
    replaced = open(there, "w", encoding=stream.encoding, errors=stream.errors, closefd=False)  # noqa: SIM115
    replaced.reconfigure(line_buffering=stream.isatty() or number == 2)
    try:
        yield replaced
    finally:
        replaced.flush()
        os.dup2(there, number)
        # Others may write on, like a process of an environment that ends; they are not waited for.
        with suppress(subprocess.TimeoutExpired):
            reader.wait(0.5)
        os.close(there)
