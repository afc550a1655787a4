"""Ctrl-C, once and twice, wherever a command happens to be: a line or two, exit code 130."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import argparse, hashlib, sys, time
from swarm.commands.parsing import run
from swarm.core.interrupts import stop_requested

def say():
    print("here", flush=True)

def in_python(_):
    say()
    while True:
        time.sleep(0.01)

def in_c(_):
    # Like the compiler: Python's handlers wait until it returns.
    say()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

def saving(_):
    with stop_requested() as stop:
        say()
        while not stop():
            time.sleep(0.01)
        say()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

def stopping(_):
    with stop_requested() as stop:
        say()
        while not stop():
            time.sleep(0.01)
    return 0

def ending(_):
    import atexit
    atexit.register(hashlib.pbkdf2_hmac, "sha256", b"", b"", 10**9)
    in_python(_)

def changed(_):
    try:
        in_python(_)
    except KeyboardInterrupt:
        raise RuntimeError("INTERNAL: a library's own words\\n" * 50)

def importing(_):
    # As an extension in C may: it prints the error of what it imports, and raises another.
    import importlib.util, sys, traceback
    class Loader:
        def create_module(self, spec):
            return None
        def exec_module(self, module):
            try:
                in_python(None)
            except KeyboardInterrupt:
                traceback.print_exc()
                raise ImportError
        def find_spec(self, name, path=None, target=None):
            return importlib.util.spec_from_loader(name, self) if name == "extension" else None
    sys.meta_path.append(Loader())
    import extension

class Dying:
    def __del__(self):
        in_python(None)

def lost(_):
    dying = Dying()
    del dying
    say()

raise SystemExit(run(globals()[sys.argv.pop()], argparse.ArgumentParser(prog="it"), None))
"""


def interrupt(where, n):
    """Exit code and lines of errors after n times Ctrl-C, each once the script has said where it is, if it does."""
    settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, where], env=os.environ, **settings)
    try:
        assert process.stdout.readline() == "here\n"
        for again in range(n):
            if again and where == "saving":
                assert process.stdout.readline() == "here\n"
            # Until it is where it said, and for the kernel, which makes one of two signals that nobody has heard yet.
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, errors.splitlines()


@pytest.mark.parametrize(
    ("where", "n", "code", "lines"),
    [
        ("in_python", 1, 130, ["it: stopped"]),
        ("changed", 1, 130, ["it: stopped"]),
        ("stopping", 1, 0, []),
        ("lost", 1, 130, ["it: stopped"]),
        ("importing", 1, 130, ["it: stopped"]),
        ("in_c", 2, 130, ["it: stopped at once"]),
        ("saving", 2, 130, ["it: stopped at once"]),
        ("ending", 1, 130, ["it: stopped"]),
    ],
)
def test_ctrl_c_is_a_line(where, n, code, lines):
    assert interrupt(where, n) == (code, lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["swarm.train", "outpost", "training.worlds=4", "training.minibatches=2"],
        ["swarm.simulate", "outpost", "--steps", "100"],
        ["swarm.train", str(Path(__file__).parents[1] / "training" / "signs.toml")],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("seconds", [2.0, 8.0, 20.0])
def test_a_second_ctrl_c_ends_a_command(words, seconds, tmp_path):
    path = os.pathsep.join([*(p for p in sys.path if p), str(Path(__file__).parents[1] / "training")])
    settings = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": path}, "text": True}
    process = subprocess.Popen(
        [sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=seconds)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=0.5)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 130
    assert len(errors.splitlines()) <= 2, errors
