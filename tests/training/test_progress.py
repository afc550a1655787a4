"""What a run shows while it trains."""

import io
import sys
import time

import pytest

from swarm.build.scenario_files import load
from training.config import load_training
from training.runs.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def config(rivals):
    return load_training(load(rivals))


def test_a_clock_runs_on_a_terminal_while_a_program_compiles(config, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with Progress(config, 0, 1) as progress:
        time.sleep(1.5)
        said = terminal.getvalue()
        progress.update([{"update": 1, "steps": 128, "agent_steps": 256.0}])
        assert "update" in terminal.getvalue()[len(said) :]
    clock = [line for line in said.split("\r") if "compiling" in line]
    assert len(clock) >= 3
    assert "0:01" in clock[-1]


def test_elsewhere_it_is_one_plain_line(config, capsys):
    with Progress(config, 0, 1):
        pass
    assert capsys.readouterr().out == "compiling ...\n"
