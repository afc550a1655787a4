"""The training loop on the host: updates, metrics, checkpoints, and the ways a run can stop."""

import time
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree
from tensorboardX import SummaryWriter

from swarm.errors import RunError
from swarm.interrupts import stop_requested
from swarm.status import explain
from training.mppo import MPPO, Learned
from training.progress import Progress
from training.rollout import Actors
from training.runs import Checkpoints, RunFolder, finite


class Interrupted(Exception):
    """The user pressed Ctrl-C; the state has been saved."""


def train(learner: MPPO, folder: RunFolder, seed: int, *, resume: bool) -> Learned:
    """Run updates until the configured number of steps, saving on the way.

    Args:
        learner: the learner.
        folder: a locked run folder.
        seed: of a new run; a resumed one has its own in the checkpoint.
        resume: go on from the last checkpoint.

    Raises:
        RunError: a loss is NaN or infinite; nothing of that update is saved.
        Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    config = learner.config
    checkpoints = Checkpoints(folder, config.keep_checkpoints)
    learned, actors = learner.init(seed)
    rows: list[dict[str, Any]] = []
    if resume:
        restored = checkpoints.restore(checkpoints.latest(), **_parts(learned, actors))
        learned = eqx.tree_at(
            lambda x: x.network, restored["learner"], restored["network"], is_leaf=lambda x: x is None
        )
        learned, actors = learner.place(learned, restored["actors"])
        rows = folder.forget_after(int(learned.n_updates))
    done = int(learned.n_updates)
    # Checkpoints carry the whole state, so a resumed run continues bit for bit.
    writer = SummaryWriter(str(folder.path), purge_step=(done + 1) * config.steps_per_update if resume else None)
    before = rows[-1]["seconds"] if rows else 0.0
    warned: set[str] = set()
    with Progress(config, done) as progress, stop_requested() as stop, writer:
        start = time.perf_counter()
        while done < config.n_updates:
            learned, actors, metrics = learner.update(learned, actors)
            row = _row(metrics, done + 1, config.steps_per_update)
            if not finite(row):
                raise RunError(_diverged(checkpoints, done + 1, row))
            done += 1
            row["seconds"] = round(before + time.perf_counter() - start, 3)
            _record(folder, writer, row)
            progress.update(row)
            for line in _warnings(metrics, warned):
                progress.print(line)
            if done % config.checkpoint_every == 0 or done == config.n_updates or stop():
                checkpoints.save(done, **_parts(learned, actors))
            if stop() and done < config.n_updates:
                raise Interrupted
    checkpoints.close()
    return learned


def _parts(learned: Learned, actors: Actors) -> dict[str, PyTree]:
    """The network apart, because evaluation reads it alone."""
    return {"network": learned.network, "learner": eqx.tree_at(lambda x: x.network, learned, None), "actors": actors}


def _row(metrics: dict[str, Any], update: int, steps_per_update: int) -> dict[str, Any]:
    """One line of metrics: plain numbers, of the episodes their means (absent where none ended)."""
    metrics = jax.device_get(metrics)
    episode = metrics.pop("episode")
    row = {"update": update, "steps": update * steps_per_update, "episodes": int(episode.count)}
    row |= {name: float(value) for name, value in metrics.items()}
    if episode.count:
        row |= {f"episode/{name}": float(total / episode.count) for name, total in episode.metrics.items()}
    return row


def _record(folder: RunFolder, writer: SummaryWriter, row: dict[str, Any]) -> None:
    folder.append_metrics(row)
    for name, value in row.items():
        if name not in ("update", "steps"):
            writer.add_scalar(name if "/" in name else f"train/{name}", value, row["steps"])


def _warnings(metrics: dict[str, Any], warned: set[str]) -> Iterator[str]:
    """Lines for status bits that episodes left, each once."""
    bits = np.asarray(metrics["episode"].status)
    for line in explain(int(np.sum(bits << np.arange(len(bits))))):
        if line not in warned:
            warned.add(line)
            yield f"warning: {line}"


def _diverged(checkpoints: Checkpoints, update: int, row: dict[str, Any]) -> str:
    name = next(k for k, v in row.items() if not np.isfinite(v))
    try:
        good = f"the last good checkpoint is {checkpoints.path / str(checkpoints.latest())}"
    except RunError:
        good = "there was no checkpoint yet"
    return f"update {update}: {name} is {row[name]}; {good}; lower training.learning_rate or training.reward_scale"
