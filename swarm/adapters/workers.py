"""Processes that step host environments, some each. Nothing here imports jax, so a process starts quickly.

They are spawned, never forked: a process that has started JAX has threads, which a fork would lose.
"""

import json
import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np

from swarm.adapters.environments import HostError, make_environment
from swarm.adapters.layout import Converter, Layout, stack
from swarm.errors import SwarmError

# Seconds between two looks at whether somebody has asked to stop.
_GLANCE = 0.2


class Stopped(Exception):
    """Somebody asked to stop."""


class Task(NamedTuple):
    """What processes need to know; hashable.

    Attributes:
        environment: its name.
        options: keyword arguments of its maker, as JSON.
        layout: of its agents.
        max_steps: an episode is truncated after so many steps, if not before.
        processes: how many there are.
        patience: seconds that a step or a reset may take.
    """

    environment: str
    options: str
    layout: Layout
    max_steps: int
    processes: int
    patience: float


class Steps(NamedTuple):
    """What a step led to; of many worlds with a leading axis b. Where an episode ended the next one has begun.

    Attributes:
        own: features after the step of those that act next or were cut off in it.
        reward: of those that acted.
        terminated: whose life ended in the step.
        truncated: who was cut off in the step alive.
        ended: whether the episode did.
        next_own: features to act on.
        next_mask: legal actions.
        next_alive: who acts; whoever did not act in the step, or whose life ended in it, begins another life.
    """

    own: np.ndarray  # [n, o]
    reward: np.ndarray  # [n]
    terminated: np.ndarray  # [n]
    truncated: np.ndarray  # [n]
    ended: np.ndarray  # []
    next_own: np.ndarray  # [n, o]
    next_mask: np.ndarray  # [n, a]
    next_alive: np.ndarray  # [n]


class HostWorld:
    """One environment, restarted where its episode ends; its seeds follow from the run, its number and the episode's.

    Draws do not depend on which process steps it.
    """

    def __init__(self, task: Task, entropy: Sequence[int], index: int, episode: int) -> None:
        self._task, self._layout = task, task.layout
        self._environment = make_environment(task.environment, json.loads(task.options))
        self._convert = Converter(task.layout, self._environment)
        self._entropy, self._index, self._episode = tuple(entropy), index, episode
        self._slot = {agent: slot for slot, agent in enumerate(task.layout.agents)}
        self._n_steps = 0
        self._acting: list[Any] = []

    def reset(self) -> Steps:
        """Begin the next episode; only what comes next means something."""
        seed = np.random.SeedSequence((*self._entropy, self._index, self._episode)).generate_state(1)[0]
        observations, infos = self._environment.reset(seed=int(seed) >> 1)
        self._episode += 1
        self._n_steps = 0
        own, mask, alive = self._rows(observations, infos, set(self._environment.agents))
        if not alive.any():
            raise HostError("an episode began without agents")
        self._acting = self._present(alive)
        no = np.zeros_like(alive)
        return Steps(np.zeros_like(own), np.zeros(len(no), np.float32), no, no, np.asarray(False), own, mask, alive)

    def step(self, action: np.ndarray) -> Steps:
        """Carry out the actions [n, ...] of those that act."""
        agents, acting = self._layout.agents, self._acting
        actions = {agent: self._convert.action(agent, action[self._slot[agent]]) for agent in acting}
        observations, rewards, terminations, truncations, infos = self._environment.step(actions)
        self._n_steps += 1
        left = set(self._environment.agents)
        acted, listed = (np.asarray([agent in some for agent in agents]) for some in (acting, left))
        truncated = acted & np.asarray([bool(truncations.get(agent, False)) for agent in agents])
        # Who is not listed any more is gone, whatever was said of it.
        terminated = acted & np.asarray([bool(terminations.get(agent, False)) for agent in agents])
        terminated |= acted & ~listed & ~truncated
        truncated &= ~terminated
        # Who stays listed after its end begins another life, unless nobody goes on: then the episode is over.
        going_on = listed if (listed & ~terminated & ~truncated).any() else np.zeros_like(listed)
        if self._n_steps >= self._task.max_steps:
            truncated, going_on = truncated | (going_on & acted & ~terminated), np.zeros_like(going_on)
        reward = np.asarray([_number(agent, rewards.get(agent, 0.0)) for agent in agents], np.float32)
        shown = set(self._present(going_on | truncated)) | (left - set(agents))
        own, mask, _ = self._rows(observations, infos, shown)
        ended = not going_on.any()
        if ended:
            begun = self.reset()
            following = begun.next_own, begun.next_mask, begun.next_alive
        else:
            self._acting = self._present(going_on)
            following = own, mask, going_on
        return Steps(own, np.where(acted, reward, 0), terminated, truncated, np.asarray(ended), *following)

    def close(self) -> None:
        """Let go of the environment."""
        self._environment.close()

    def _present(self, mask: np.ndarray) -> list[Any]:
        return [agent for agent, marked in zip(self._layout.agents, mask, strict=True) if marked]

    def _rows(self, observations: Any, infos: Any, shown: set[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, masks and presence of some agents."""
        n = len(self._slot)
        own, mask = np.zeros((n, self._layout.n_own), np.float32), np.zeros((n, self._layout.n_actions), bool)
        alive = np.zeros(n, bool)
        for agent in shown:
            if agent not in self._slot:
                raise HostError(f"agent {agent} is none of the {n} possible_agents")
            if agent not in observations:
                raise HostError(f"there is no observation of {agent}, who lives")
            slot = self._slot[agent]
            own[slot] = self._convert.row(agent, observations[agent])
            mask[slot] = self._convert.mask(agent, observations[agent], infos.get(agent))
            alive[slot] = True
        return own, mask, alive


def _number(agent: Any, reward: Any) -> float:
    """A reward, which may stand in an array of one."""
    with np.errstate(over="ignore"):
        value = np.asarray(reward, np.float32)
    if value.size != 1 or not np.isfinite(value).all():
        what = f"has shape {list(value.shape)}" if value.size != 1 else "is NaN or infinite, in float32"
        raise HostError(f"reward of {agent} {what}")
    return float(value.item())


def _serve(pipe: Connection, task: Task, entropy: Sequence[int], worlds: Sequence[tuple[int, int]]) -> None:
    """Step worlds (number, episode) as told, until told None or nobody is left to tell."""
    # Ctrl-C is the parent's, who saves first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environments: list[HostWorld] = []
    try:
        environments += [HostWorld(task, entropy, index, episode) for index, episode in worlds]
        pipe.send(stack([world.reset() for world in environments]))
        while (actions := pipe.recv()) is not None:
            pipe.send(stack([world.step(a) for world, a in zip(environments, actions, strict=True)]))
        for world in environments:
            world.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The parent is gone.
        return
    except BaseException as error:
        pipe.send(_told(error))


def _told(error: BaseException) -> str:
    """An error as one line, with the place in the environment's code where it was raised."""
    if isinstance(error, SwarmError):
        return str(error)
    line = " ".join(f"{type(error).__name__}: {error}".split())
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{line} ({last.filename}:{last.lineno})"


class Workers:
    """Processes that step the worlds of one actor side by side; close them when it is over."""

    def __init__(
        self,
        task: Task,
        entropy: Sequence[int],
        worlds: Sequence[tuple[int, int]],
        stopping: threading.Event | None = None,
    ) -> None:
        """Start the processes.

        Args:
            task: what they do.
            entropy: whole numbers that seeds derive from.
            worlds: number of each world, and of its first episode.
            stopping: set it from any thread, to end a wait.
        """
        self._stopping = stopping or threading.Event()
        self._task = task
        context = multiprocessing.get_context("spawn")
        n = min(task.processes, len(worlds))
        self._shares = np.array_split(np.arange(len(worlds)), n)
        self._processes, self._pipes = [], []
        for number, share in enumerate(self._shares):
            ours, theirs = context.Pipe()
            arguments = theirs, task, entropy, [worlds[i] for i in share]
            process = context.Process(target=_serve, args=arguments, name=f"environments-{number}", daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def reset(self) -> Steps:
        """The first observations; to be asked for once, before any step.

        Raises:
            HostError: as for `step`.
        """
        return self._gather()

    def step(self, actions: np.ndarray) -> Steps:
        """Step all worlds; [b, n, ...].

        Raises:
            HostError: an environment raised an error, a process died, or one took longer than `patience`.
            Stopped: by `stopping`.
        """
        for number, (pipe, share) in enumerate(zip(self._pipes, self._shares, strict=True)):
            try:
                pipe.send(actions[share])
            except (BrokenPipeError, ConnectionResetError):
                raise self._died(number) from None
        return self._gather()

    def close(self) -> None:
        """End the processes, gently if they listen."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                pipe.send(None)
            except OSError:
                process.kill()
        until = time.monotonic() + 1.0
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()
        self._pipes, self._processes = [], []

    def _gather(self) -> Steps:
        found: dict[int, Steps] = {}
        until = time.monotonic() + self._task.patience
        while missing := [i for i in range(len(self._pipes)) if i not in found]:
            if self._stopping.is_set():
                raise Stopped
            left = until - time.monotonic()
            if left <= 0:
                raise HostError(
                    f"{self._who(missing[0])} did not answer within {self._task.patience:g} s; "
                    "if a step takes so long, raise patience"
                )
            # A pipe is ready, too, when the other end has died.
            ready = wait([self._pipes[i] for i in missing], min(_GLANCE, left))
            for number in missing:
                if self._pipes[number] in ready:
                    found[number] = self._received(number)
        rows = [found[i] for i in range(len(self._pipes))]
        return Steps(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))

    def _received(self, number: int) -> Steps:
        try:
            message = self._pipes[number].recv()
        except (EOFError, OSError):
            raise self._died(number) from None
        if isinstance(message, str):
            raise HostError(f"{self._who(number)}: {message}")
        return message

    def _died(self, number: int) -> HostError:
        pipe, process = self._pipes[number], self._processes[number]
        # Its last words, if it had any.
        try:
            if pipe.poll() and isinstance(message := pipe.recv(), str):
                return HostError(f"{self._who(number)}: {message}")
        except (EOFError, OSError):
            pass
        process.join(1.0)
        return HostError(f"{self._who(number)} died with exit code {process.exitcode}")

    def _who(self, number: int) -> str:
        share = self._shares[number]
        return f"{self._task.environment}: process {number} of worlds {share[0]} to {share[-1]}"
