"""The training loop on the host: updates, metrics, evaluations, checkpoints, and the ways a run can stop."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from swarm.adapters.environments import HostError
from swarm.core.errors import RunError
from swarm.core.interrupts import stop_requested
from swarm.core.status import explain
from training.acting.teams import Teams
from training.algorithms.learner import AbstractLearner, Learned
from training.execution.asynchronous import ActorError, Alternating, Asynchronous
from training.execution.processes import agreed, from_first, is_first, local
from training.networks import Minds
from training.runs.checkpoints import Checkpoints, DamagedError
from training.runs.evaluation import VALIDATION, evaluate
from training.runs.events import SummaryWriter
from training.runs.failures import told
from training.runs.folders import EVALUATIONS, METRICS, TIMELINE, RunFolder
from training.runs.progress import Progress
from training.runs.statistics import mean_where_defined, plain


class Interrupted(Exception):
    """The user pressed Ctrl-C; the state has been saved."""


class Run:
    """One seed's part of a training: its folder, state and records.

    Attributes:
        folder: a locked run folder.
        learned: what is learned.
        actors: the worlds.
        rows: lines of metrics of updates before this process.
    """

    def __init__(self, learner: AbstractLearner | Asynchronous | Alternating, folder: RunFolder, seed: int) -> None:
        self.learner, self.folder = learner, folder
        self.checkpoints = Checkpoints(folder, learner.config.keep_checkpoints)
        self.best = Checkpoints.best(folder)
        self.learned, self.actors = learner.init(seed)
        self.seed, self.rows, self.score = seed, [], -np.inf
        self._warned: set[str] = set()

    def resume(self, update: int | None = None) -> None:
        """Take up the checkpoint after an update, or the last.

        It carries the whole state, so that the run goes on bit for bit. What lies after it is set aside, and will be
        done again.

        Raises:
            RunError: there is none, it is damaged, or it does not fit.
        """
        update = self.checkpoints.at(update)
        try:
            restored = self.checkpoints.restore(update, **_parts(self.learned, self.actors))
        except DamagedError as error:
            raise RunError(f"{error}; {self.checkpoints.remedy(update)}") from None
        learned = eqx.tree_at(
            lambda x: x.network, restored["learner"], restored["network"], is_leaf=lambda x: x is None
        )
        self.learned, self.actors = self.learner.place(learned, restored["actors"])
        later = self._set_aside(self.checkpoints)
        self.rows = self.folder.forget_after(self.done, METRICS, keep=later)
        rows = self.folder.forget_after(self.done, EVALUATIONS, keep=later)
        scores = {row["update"]: self._score(row) for row in rows}
        self._set_aside(self.best)
        if not self.best.steps() and scores and self.done == max(scores, key=lambda update: scores[update]):
            self.best.save(self.done, network=self.learned.network)
        # Networks that are no longer there count for nothing.
        self.score = max((scores.get(step, -np.inf) for step in self.best.steps()), default=-np.inf)

    def _set_aside(self, checkpoints: Checkpoints) -> bool:
        """Whether there were any after the update that the run goes on from."""
        later = [step for step in checkpoints.steps() if step > self.done]
        from_first(lambda: [str(self.folder.set_aside(checkpoints.path / str(step))) for step in later])
        checkpoints.reload()
        return bool(later)

    def warm_start(self, change: Callable[[Minds], tuple[Minds, list[str]]]) -> list[str]:
        """Start from other networks; returns the names of arrays that stayed as they were."""
        network, stayed = change(self.learned.network)
        learned = eqx.tree_at(lambda x: x.network, self.learned, network)
        self.learned, self.actors = self.learner.place(learned, self.actors)
        return stayed

    @property
    def done(self) -> int:
        """Updates done."""
        return int(self.learned.n_updates)

    def record(self, writer: SummaryWriter, row: dict[str, Any], metrics: dict[str, Any]) -> Iterator[str]:
        """Write the metrics of an update; yields lines for status bits that episodes left, each once."""
        self.folder.append(row)
        _write(writer, row, "train")
        bits = np.asarray(metrics["episode"].status)
        for line in explain(int(np.sum(bits << np.arange(len(bits))))):
            if line not in self._warned:
                self._warned.add(line)
                yield f"warning: {line}"

    def evaluate(self, writer: SummaryWriter, seconds: float) -> None:
        """Play episodes on maps of their own, and keep the networks if they never did better."""
        values = from_first(self._play)
        row = {"update": self.done, "steps": self.done * self.learner.config.steps_per_update, "seconds": seconds}
        means = row | {f"evaluation/{name}": mean_where_defined(x) for name, x in values.items()}
        row |= {"metrics": values}
        # The networks first: after a crash in between, the run comes by here again.
        if self._score(row) > self.score:
            self.score = self._score(row)
            self.best.save(self.done, network=self.learned.network)
        self.folder.append(row, EVALUATIONS)
        _write(writer, means, "evaluation")

    def _play(self) -> dict[str, list[float | None]]:
        learner = self.learner
        teams = Teams(learner.of_team, learner.opponents)
        policy = teams.policy(local(self.learned.network), learner.simulator.rules)
        n_episodes = learner.config.evaluation_episodes
        episodes = evaluate(learner.simulator, policy, seed=self.seed, n_episodes=n_episodes, stream=VALIDATION)
        return {name: plain(x) for name, x in episodes.items()}

    def _score(self, row: dict[str, Any]) -> float:
        mean = mean_where_defined(row["metrics"].get(self.learner.simulator.rules.headline, []))
        return -np.inf if mean is None else mean

    def settle(self, writer: SummaryWriter, seconds: float, *, ends: bool) -> None:
        """Evaluate and save where it is due after an update, or because training ends with it."""
        config, last = self.learner.config, self.done == self.learner.config.n_updates
        if config.evaluate_every and (last or self.done % config.evaluate_every == 0):
            try:
                self.evaluate(writer, seconds)
            except HostError as error:
                self.save()
                raise RunError(_saved(told(error, self.folder), self.done)) from error
        if ends or self.done % config.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Save the whole state."""
        self.checkpoints.save(self.done, **_parts(self.learned, self.actors))

    def close(self) -> None:
        """Wait for what is being written."""
        self.checkpoints.close()
        self.best.close()


def train(runs: Sequence[Run]) -> None:
    """Run updates until the configured number of steps, saving on the way; several seeds in one compiled program.

    Args:
        runs: of one learner, all at the same update.

    Raises:
        RunError: a loss is NaN or infinite; nothing of that update is saved.
        Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    learner, done = runs[0].learner, runs[0].done
    config = learner.config
    purge = (done + 1) * config.steps_per_update if done else None
    before = runs[0].rows[-1]["seconds"] if runs[0].rows else 0.0
    with Progress(config, done, len(runs)) as progress, stop_requested() as stop, ExitStack() as stack:
        stack.callback(learner.close)
        writers = [
            stack.enter_context(SummaryWriter(str(run.folder.path), purge_step=purge, write_to_disk=is_first()))
            for run in runs
        ]
        start = time.perf_counter()
        while done < config.n_updates:
            try:
                updated = _update(runs)
            except ActorError as error:
                runs[0].save()
                raise RunError(_saved(told(error, runs[0].folder), done)) from error
            rows = [_row(metrics, done + 1, config.steps_per_update) for _, _, metrics in updated]
            for run, row in zip(runs, rows, strict=True):
                _check_finite(run, done + 1, row)
            done += 1
            seconds = round(before + time.perf_counter() - start, 3)
            for run, writer, row, (learned, actors, metrics) in zip(runs, writers, rows, updated, strict=True):
                run.learned, run.actors = learned, actors
                row["seconds"] = seconds
                for line in run.record(writer, row, metrics):
                    progress.print(line)
            if isinstance(learner, Asynchronous | Alternating):
                for span in learner.timeline.take():
                    runs[0].folder.append(span, TIMELINE)
            progress.update(rows)
            # Asked once, so that all that follows is of one mind.
            last, stopping = done == config.n_updates, agreed(stop())
            for run, writer in zip(runs, writers, strict=True):
                run.settle(writer, seconds, ends=last or stopping)
            if stopping and not last:
                raise Interrupted
    for run in runs:
        run.close()


def _update(runs: Sequence[Run]) -> list[tuple[Learned, Any, dict[str, Any]]]:
    """Update all runs: one as it is, several side by side along a leading axis."""
    learner = runs[0].learner
    if len(runs) == 1:
        return [learner.update(runs[0].learned, runs[0].actors)]
    together = jax.tree.map(
        lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0], *[(run.learned, run.actors) for run in runs]
    )
    updated = learner.update_all(*together)
    return [jax.tree.map(lambda x, i=i: x[i] if eqx.is_array(x) else x, updated) for i in range(len(runs))]


def _parts(learned: Learned, actors: PyTree) -> dict[str, PyTree]:
    """The network apart, because evaluation reads it alone."""
    return {"network": learned.network, "learner": eqx.tree_at(lambda x: x.network, learned, None), "actors": actors}


def _row(metrics: dict[str, Any], update: int, steps_per_update: int) -> dict[str, Any]:
    """One line of metrics: plain numbers; of the episodes the means over those where a metric is defined.

    They are absent where no episode ended, and None where a metric was defined in none.
    """
    metrics = jax.device_get(metrics)
    episode = metrics.pop("episode")
    row = {"update": update, "steps": update * steps_per_update, "episodes": int(episode.count)}
    row |= {name: float(value) for name, value in metrics.items()}
    if episode.count:
        numbers = {name: float(n) for name, n in episode.defined.items()}
        means = {name: float(x) / numbers[name] if numbers[name] else None for name, x in episode.metrics.items()}
        row |= {f"episode/{name}": mean for name, mean in means.items()}
    return row


def _write(writer: SummaryWriter, row: dict[str, Any], group: str) -> None:
    for name, value in row.items():
        if name not in ("update", "steps") and value is not None:
            writer.add_scalar(name if "/" in name else f"{group}/{name}", value, row["steps"])


def _saved(error: str, done: int) -> str:
    return f"{error}; saved after {done} updates, from where --resume goes on"


def _check_finite(run: Run, update: int, row: dict[str, Any]) -> None:
    """Judge by losses, gradient and parameters; what episodes measure may be undefined.

    Raises:
        RunError: the learner has diverged.
    """
    finite = bool(row.pop("parameters_finite", True))
    bad = [name for name, x in row.items() if _is_judged(name) and not np.isfinite(x)]
    if finite and not bad:
        return
    what = f"{bad[0]} is {row[bad[0]]}" if bad else "a parameter is NaN or infinite"
    try:
        good = f"the last good checkpoint is {run.checkpoints.path / str(run.checkpoints.latest())}"
    except RunError:
        good = "there was no checkpoint yet"
    raise RunError(f"update {update}: {what}; {good}; lower training.learning_rate or training.reward_scale")


def _is_judged(name: str) -> bool:
    return name.endswith("loss") or name in ("grad_norm", "entropy", "kl", "imitation")
