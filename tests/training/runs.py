"""A small run folder, and commands that act on copies of it, for tests of what run folders hold."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import training.commands.train
import training.runs.loop
from swarm import train
from training.runs.checkpoints import _named_arrays

# Four updates, all saved and two evaluated; some metrics are not always defined.
TINY = [
    "rules=rivals:Absent",
    *("training.steps=512", "training.checkpoint_every=1", "training.keep_checkpoints=3"),
    *("training.evaluate_every=2", "training.evaluation_episodes=2"),
]


def make_run(rivals: str, runs: Path, *words: str) -> Path:
    """Train without what comes after training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.commands.train, "_finish", lambda *_: None)
        assert train.main([rivals, *TINY, "--runs", str(runs), *words]) == 0
    return next(runs.iterdir())


def copy_of(run: Path, to: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(run, to)
    (to / "lock").unlink(missing_ok=True)
    return to


def take_up(*words: object) -> tuple[int, list]:
    """Resume without training on; returns the exit code and the runs as they stand then, in groups."""
    groups = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.commands.train, "_finish", lambda *_: None)
        patch.setattr(training.runs.loop, "train", groups.append)
        code = train.main(["--resume", *map(str, words)])
    return code, groups


def state_of(run) -> dict[str, np.ndarray]:
    """All arrays of a run, by name."""
    named = _named_arrays((run.learned, run.actors))
    return {name: np.asarray(x) for name, x in jax.device_get(named).items()}
