"""Processes that step host environments, some each. Nothing here imports jax, so a process starts quickly.

They are programs of their own, never forks: a process that has started JAX has threads, which a fork would lose. Nor do
they import the script that started them, as those of `multiprocessing` do: it would start training again in each.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing import Pipe, spawn
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np

from swarm.adapters.environments import HostError, make_environment
from swarm.adapters.layout import Converter, Layout, stack
from swarm.core.errors import SwarmError, brief

# Seconds between two looks at whether somebody has asked to stop.
_GLANCE = 0.2
_PROGRAM = "import sys; sys.path[:] = {}; from swarm.adapters.workers import serve; serve({})"
# To the process that started this one, where this one steps environments.
_parent: Connection | None = None


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


class Failure(NamedTuple):
    """What a process says last.

    Attributes:
        line: what went wrong, short.
        details: the whole of it; empty where the line says all.
    """

    line: str
    details: str


def serve(descriptor: int) -> None:
    """Step worlds (number, episode) as told, until told None or nobody is left to tell; a process of its own.

    Says None when its environments are made, and a `Failure` when something fails.
    """
    global _parent
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    _parent = pipe = Connection(descriptor)
    environments: list[HostWorld] = []
    # Where the parent is gone there is nobody to tell.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            task, entropy, worlds, main = pipe.recv()
            if main:
                spawn.prepare(main)
            environments += [HostWorld(task, entropy, index, episode) for index, episode in worlds]
            pipe.send(None)
            pipe.send(stack([world.reset() for world in environments]))
            while (actions := pipe.recv()) is not None:
                pipe.send(stack([world.step(a) for world, a in zip(environments, actions, strict=True)]))
            for world in environments:
                world.close()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except BaseException as error:
            pipe.send(_failure(error))


def _follow(parent: int) -> None:
    """End with the process that started this one, even in the middle of a step."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def refuse_inside() -> None:
    """End this process if it steps environments: it has imported a script that would start others."""
    if _parent is not None:
        guard = 'if __name__ == "__main__":'
        with contextlib.suppress(OSError):
            _parent.send(Failure(f"its module starts training whenever it is imported; put that under {guard}", ""))
        os._exit(1)


def _failure(error: BaseException) -> Failure:
    """An error as one line, with the place in the environment's code where it was raised."""
    if isinstance(error, SwarmError):
        return Failure(brief(str(error)), "")
    last = traceback.extract_tb(error.__traceback__)[-1]
    try:
        text = str(error)
    except Exception:
        text = "of no words"
    details = "".join(traceback.format_exception(error))
    return Failure(f"{brief(f'{type(error).__name__}: {text}')} ({last.filename}:{last.lineno})", details)


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
        n = min(task.processes, len(worlds))
        self._shares = np.array_split(np.arange(len(worlds)), n)
        self._processes, self._pipes = [], []
        main = spawn.get_preparation_data("") if task.environment.startswith("__main__:") else {}
        main = {name: value for name, value in main.items() if name.startswith("init_main")}
        for share in self._shares:
            ours, theirs = Pipe()
            program = _PROGRAM.format([x for x in sys.path if isinstance(x, str)], theirs.fileno())
            # In a group of its own, so that Ctrl-C is for us, who save first.
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
            # Who is dead already is missed below.
            with contextlib.suppress(OSError):
                ours.send((task, tuple(entropy), [worlds[i] for i in share], main))

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [process.pid for process in self._processes]

    def reset(self) -> Steps:
        """The first observations; to be asked for once, before any step. To start and make environments takes its time.

        Raises:
            HostError: as for `step`.
        """
        self._gather(math.inf)
        return self._steps()

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
        return self._steps()

    def close(self) -> None:
        """End the processes, gently if they listen."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                pipe.send(None)
            except OSError:
                process.kill()
        until = time.monotonic() + 1.0
        for process in self._processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in self._pipes:
            pipe.close()
        self._pipes, self._processes = [], []

    def _steps(self) -> Steps:
        rows = self._gather(self._task.patience)
        return Steps(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))

    def _gather(self, patience: float) -> list[Any]:
        """The next message of each process."""
        found: dict[int, Any] = {}
        until = time.monotonic() + patience
        while missing := [i for i in range(len(self._pipes)) if i not in found]:
            if self._stopping.is_set():
                raise Stopped
            left = until - time.monotonic()
            if left <= 0:
                late = f"{self._who(missing[0])} did not answer within {patience:g} s"
                raise HostError(f"{late}; if a step takes so long, raise patience")
            # A pipe is ready, too, when the other end has died.
            ready = wait([self._pipes[i] for i in missing], min(_GLANCE, left))
            for number in missing:
                if self._pipes[number] in ready:
                    found[number] = self._received(number)
        return [found[i] for i in range(len(self._pipes))]

    def _received(self, number: int) -> Any:
        try:
            message = self._pipes[number].recv()
        except (EOFError, OSError):
            raise self._died(number) from None
        if isinstance(message, Failure):
            raise self._failed(number, message)
        return message

    def _failed(self, number: int, failure: Failure) -> HostError:
        return HostError(f"{self._who(number)}: {failure.line}", failure.details)

    def _died(self, number: int) -> HostError:
        pipe, process = self._pipes[number], self._processes[number]
        # Its last words, if it had any.
        with contextlib.suppress(EOFError, OSError):
            while pipe.poll():
                if isinstance(message := pipe.recv(), Failure):
                    return self._failed(number, message)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        return HostError(f"{self._who(number)} died with exit code {process.returncode}")

    def _who(self, number: int) -> str:
        share = self._shares[number]
        return f"{self._task.environment}: process {number} of worlds {share[0]} to {share[-1]}"
