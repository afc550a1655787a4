"""Ctrl-C as a question: long loops on the host ask between two chunks whether to stop, and lose nothing."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SHOW_CURSOR = b"\x1b[?25h"
# Whether a command runs, which a second Ctrl-C ends by itself.
_in_command = False


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second Ctrl-C is immediate.

    An exception that a signal raises wherever the program happens to be can be lost in a callback of a library, or
    leave a file half written. Only the main thread of a program hears of signals; in another one nothing asks to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        if not _in_command:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(name: str) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C end a command in order, by KeyboardInterrupt, and a second one at once, with one line.

    A thread listens for the second: in the middle of a compilation Python itself would hear of it only after that. It
    goes on listening once somebody has asked, for the end of a program may take its time, too.

    Args:
        name: of the command.

    Yields:
        What tells whether a KeyboardInterrupt was raised, which a library may have made another error of.
    """
    global _in_command
    if _in_command or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    raised: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        if _importing(frame):
            # Modules in C would report it at length; and there is nothing to put in order yet.
            _exit(name, "stopped")
        if not raised:
            raised.append(number)
            raise KeyboardInterrupt

    hook = sys.unraisablehook

    def lost(unraisable: Any) -> None:
        # In a callback it would be reported at length, and forgotten.
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            _exit(name, "stopped")
        hook(unraisable)

    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    heard = threading.Event()
    threading.Thread(target=_listen, args=(ear, heard, name), daemon=True).start()
    old_handler, old_mouth = signal.signal(signal.SIGINT, interrupt), signal.set_wakeup_fd(mouth)
    sys.unraisablehook, _in_command = lost, True
    try:
        yield lambda: bool(raised)
    finally:
        _in_command = False
        if not heard.is_set():
            signal.set_wakeup_fd(old_mouth)
            signal.signal(signal.SIGINT, old_handler)
            sys.unraisablehook = hook
            os.close(mouth)


def _listen(ear: int, heard: threading.Event, name: str) -> None:
    """Read the numbers of signals, as the C handler writes them, until the other end is closed."""
    while numbers := os.read(ear, 64):
        for number in numbers:
            if number == signal.SIGINT:
                if heard.is_set():
                    _exit(name, "stopped at once")
                heard.set()
    os.close(ear)


def _importing(frame: Any) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _exit(name: str, how: str) -> None:
    if sys.stdout and sys.stdout.isatty():
        os.write(1, _SHOW_CURSOR)
    os.write(2, f"{name}: {how}\n".encode())
    os._exit(130)
