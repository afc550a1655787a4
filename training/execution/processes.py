"""Several processes that learn as one (`jax.distributed`): how they meet, what they agree on, and how they end.

Every process runs the same program on its share of the worlds. What is the same everywhere is computed everywhere; what
happens once, files and messages, is process 0's.
"""

import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from swarm.core.errors import ConfigError, SwarmError

T = TypeVar("T")

# Who is not heard of for so long is taken for dead; where a connection breaks, the others know at once.
HEARTBEAT_SECONDS = 30
_COMMAND = "python -m swarm.train"
# What jax's errors hold when they are another process's fault.
_OTHERS = ("Gloo", "NCCL", "coordination", "heartbeat", "arrier", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")
# The launchers that jax detects by itself: number of processes, and which one of its host a process is.
_LAUNCHERS = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


def is_first() -> bool:
    """Whether this is process 0, which writes and speaks for all; also where there is but one."""
    return jax.process_index() == 0


def n_processes() -> int:
    """How many there are."""
    return jax.process_count()


def agreed(flag: bool) -> bool:
    """Whether any process says so; the same answer everywhere, so that nobody goes on alone."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def from_first(compute: Callable[[], T]) -> T:
    """What process 0 computes, as JSON can tell it; the others wait for it."""
    if jax.process_count() == 1:
        return compute()
    text = np.frombuffer(json.dumps(compute()).encode(), np.uint8) if is_first() else np.zeros(0, np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    text = multihost_utils.broadcast_one_to_all(text if is_first() else np.zeros(size, np.uint8))
    return json.loads(np.asarray(text, np.uint8).tobytes())


def check_same(settings: dict[str, Any]) -> None:
    """See that all processes were started alike.

    Raises:
        ConfigError: here are other settings than in process 0; the message names where.
    """
    mine: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    first = from_first(lambda: mine)
    differ = sorted(key for key in mine.keys() | first.keys() if mine.get(key) != first.get(key))
    if differ:
        raise ConfigError(
            f"process {jax.process_index()} was started with other settings than process 0: {', '.join(differ)}; give "
            "all the same words"
        )


def local(tree: PyTree) -> PyTree:
    """This process's copy of arrays that are the same on all devices."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


class Will:
    """The last word of a process that is killed: a shell, waiting on a pipe, says it.

    jax aborts a process that waits for one that is dead, from a thread where no Python runs.
    """

    _SHELL = 'while IFS= read -r line; do last=$line; done; [ -z "$last" ] || printf "%s\\n" "$last" >&2'

    def __init__(self, line: str) -> None:
        # Ctrl-C is for us, not for the shell.
        self._shell = subprocess.Popen(["/bin/sh", "-c", self._SHELL], stdin=subprocess.PIPE, start_new_session=True)
        self.remedy = "start it again"
        self.tell(f"{_COMMAND}: error: {line}")

    def set_remedy(self, remedy: str) -> None:
        """Say how to go on after a failure."""
        self.remedy = remedy
        self.tell(f"{_COMMAND}: error: {_who()} was killed, by somebody or because another one is gone; {remedy}")

    def tell(self, line: str) -> None:
        """Let this be the last word; it replaces the one before."""
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(line.encode() + b"\n")
            self._shell.stdin.flush()

    def revoke(self) -> None:
        """All is well, or has been said."""
        self.tell("")
        self._shell.communicate()


@contextlib.contextmanager
def connected(
    coordinator: str | None, n_processes: int | None, process_id: int | None, n_devices: int
) -> Iterator[Callable[[str], None]]:
    """Be one of several processes inside, if started as such; yields what takes the remedy after a failure.

    An error ends the process at once: an orderly end would wait for the others, who wait for this one. Processes that
    somebody else connected, like Ray Train, are left to their owner.

    Args:
        coordinator: `HOST:PORT`, where process 0 listens.
        n_processes: how many there are.
        process_id: which one this is. None for all three: as Slurm or Open MPI say, if they started several;
            else this process is alone.
        n_devices: of each process.

    Raises:
        ConfigError: the others cannot be found so.
    """
    foreign = jax.distributed.is_initialized()
    will = None if foreign else _connect(coordinator, n_processes, process_id, n_devices)
    with contextlib.ExitStack() as stack:
        if (foreign or will) and not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        if will is None:
            yield lambda remedy: None
            return
        will.set_remedy(will.remedy)
        try:
            yield will.set_remedy
            jax.distributed.shutdown()
            will.revoke()
        except KeyboardInterrupt:
            _leave(will, "stopped", 130)
        except Exception as error:
            _leave(will, f"error: {_explained(error, will.remedy)}", 2)


def _connect(coordinator: str | None, n_processes: int | None, process_id: int | None, n_devices: int) -> Will | None:
    """Meet the other processes; None if there are none."""
    launched = next((pair for pair in _LAUNCHERS if int(os.environ.get(pair[0], 1)) > 1), None)
    given = [x is not None for x in (coordinator, n_processes, process_id)]
    if not any(given) and launched is None:
        return None
    if not all(given) and launched is None:
        raise ConfigError(
            "--coordinator HOST:PORT, --num-processes N and --process-id I go together; give all three, or leave it to "
            "srun or mpirun"
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ConfigError(f"--coordinator {coordinator}: expected HOST:PORT, like host0:4000")
    if n_processes is not None and process_id is not None and not 0 <= process_id < n_processes:
        raise ConfigError(f"--process-id {process_id}: expected 0 to {n_processes - 1}, with --num-processes")
    ids = None
    if launched is not None and n_devices > 1 and launched[1] in os.environ:
        # By itself jax would give one device to each process.
        first = int(os.environ[launched[1]]) * n_devices
        ids = list(range(first, first + n_devices))
    where = coordinator or "as the launcher says"
    # jax aborts a process that waits in vain.
    will = Will(
        f"--coordinator {where}: the processes did not meet; process 0 must listen there, all must reach it, and be "
        "started within five minutes"
    )
    # Its handler would swallow a SIGTERM that comes before training.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator, n_processes, process_id, ids, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        will.revoke()
        raise ConfigError(
            f"--coordinator {where}: {first_line(error)}; is the port free on the host of process 0? With a launcher "
            "that jax does not know give --num-processes and --process-id, too"
        ) from None
    return will


def _leave(will: Will, line: str, code: int) -> None:
    print(f"{_COMMAND}: {line}", file=sys.stderr)
    will.revoke()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _who() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _explained(error: Exception, remedy: str) -> str:
    """One line; of an error that nobody foresaw the traceback, too."""
    if isinstance(error, SwarmError):
        return str(error)
    if any(word in str(error) for word in _OTHERS):
        return f"{_who()} lost another one, whose own messages may say why ({first_line(error)}); {remedy}"
    traceback.print_exception(error)
    return f"{_who()} failed: {first_line(error)}; {remedy}"


def first_line(error: Exception) -> str:
    """What an error says first, not too long."""
    return next(iter(str(error).splitlines()), repr(error))[:200]
