"""What libraries print past Python: no alarms, and everything else."""

import subprocess
import sys

import pytest

SCRIPT = """
import argparse, os, sys
from swarm.commands.parsing import run

ALARM = b'''2026-01-01 00:00:00.0 E external/xla/xla/service/slow_operation_alarm.cc:73]
********************************
[Compiling module jit_f for CPU] Very slow compile? If you want to file a bug, run with envvar \
XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
********************************
'''

def command(_):
    os.write(2, ALARM + b"F external/xla/x.cc:1] Check failed: room\\n")
    os.write(1, b"[Gloo] Rank 1 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1\\n")
    os.write(1, b"[Gloo] Rank 1 has lost its peers\\n")
    print("result", flush=True)
    print("warning", file=sys.stderr)
    if sys.argv[-1] == "abort":
        os.abort()
    return 0

sys.exit(run(command, argparse.ArgumentParser(), None))
"""


@pytest.mark.parametrize("how", ["", "abort"])
def test_alarms_are_left_out_and_all_else_comes_through(how):
    # The argument is not the parser's.
    script = SCRIPT.replace("sys.argv[-1]", repr(how))
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode == 0) == (not how)
    assert sorted(found.stdout.splitlines()) == ["[Gloo] Rank 1 has lost its peers", "result"]
    assert sorted(found.stderr.splitlines()) == ["F external/xla/x.cc:1] Check failed: room", "warning"]


def test_streams_of_a_program_that_calls_a_command_are_left_alone():
    script = SCRIPT.replace("ArgumentParser(), None", "ArgumentParser(), []")
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "Gloo] Rank 1 is connected" in found.stdout
    assert "Very slow compile" in found.stderr


def test_the_streams_are_as_they_were_afterwards():
    script = (
        "import os, sys\nfrom swarm.commands.chatter import without_chatter\nbefore = sys.stdout, sys.stderr\n"
        "for _ in range(3):\n    with without_chatter():\n        print('inside', sys.stdout.isatty())\n"
        "assert before == (sys.stdout, sys.stderr)\nn = len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc') "
        "else 4\nos.write(2, b'after\\n')\nprint(n)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout.splitlines() == ["inside False"] * 3 + ["4"]
    assert found.stderr == "after\n"
