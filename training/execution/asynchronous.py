"""IMPALA with actors that run by themselves: threads that step worlds, a bounded queue, and the learner.

Each actor steps a batch of worlds for a rollout, in one compiled program on its device, with the newest parameters
that were published, and puts the experience on the queue. A full queue holds actors back. The learner takes experience
in the order of its arrival, corrects for its age by V-trace, and publishes. Nobody waits for ever: every wait looks
every second whether the others live.
"""

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from swarm.adapters.environments import HostError
from swarm.adapters.host import HostRules
from swarm.core.errors import RunError, SwarmError, brief
from training.acting.rollout import Actors, Experience, collect, start
from training.algorithms.impala import IMPALA
from training.algorithms.learner import AbstractLearner, Learned, put, rollout_key, run_key
from training.algorithms.reductions import AXIS
from training.execution.host import HostCollector
from training.networks.normalise import ValueScale


class ActorError(RunError):
    """An actor died or does not deliver; what was learned is whole."""


# Seconds between two looks at whether the others live.
_GLANCE = 1.0
# One for all learners: each wrapper compiles anew, and what it has compiled stays.
_start = eqx.filter_jit(start)


@dataclasses.dataclass
class Delivery:
    """What an actor hands over.

    Attributes:
        actor: its number.
        version: updates behind the parameters that it acted with.
        experience: of one rollout.
        actors: its worlds afterwards.
        waited: seconds that it waited for room on the queue the last time.
    """

    actor: int
    version: int
    experience: Experience
    actors: Actors
    waited: float


class Timeline:
    """Who was busy with what, and when; seconds since the start."""

    def __init__(self) -> None:
        self._start, self._lock, self._spans = time.perf_counter(), threading.Lock(), []

    @contextlib.contextmanager
    def span(self, who: str, what: str) -> Iterator[None]:
        """Record the time inside."""
        begin = time.perf_counter() - self._start
        yield
        end = time.perf_counter() - self._start
        with self._lock:
            self._spans.append({"who": who, "what": what, "begin": round(begin, 4), "end": round(end, 4)})

    def take(self) -> list[dict[str, Any]]:
        """All spans since the last call."""
        with self._lock:
            spans, self._spans = self._spans, []
        return spans


class Parameters:
    """The newest parameters, for actors to fetch."""

    def __init__(self, version: int, arrays: PyTree) -> None:
        self._lock, self._newest = threading.Lock(), (version, arrays)

    def publish(self, version: int, arrays: PyTree) -> None:
        """Replace them."""
        with self._lock:
            self._newest = version, arrays

    def newest(self) -> tuple[int, PyTree]:
        """Number of updates, and the arrays."""
        with self._lock:
            return self._newest


class Collector:
    """Steps the worlds of actors on one device, each in its own call; compiled once, before anybody's time is taken."""

    def __init__(self, step: Any) -> None:
        self._step, self._program, self._lock = step, None, threading.Lock()

    def prepare(self, arrays: PyTree, draw: Int[Array, " 3"], actors: Actors, scale: ValueScale) -> None:
        """Compile; the first that asks does it for all."""
        with self._lock:
            if self._program is None:
                self._program = self._step.lower(arrays, draw, actors, scale).compile()

    def __call__(
        self, arrays: PyTree, draw: Int[Array, " 3"], actors: Actors, scale: ValueScale
    ) -> tuple[Actors, Experience]:
        """Step for a rollout; as `HostCollector`."""
        assert self._program is not None
        return self._program(arrays, draw, actors, scale)


class Actor(threading.Thread):
    """Steps its worlds until told to stop; an error ends it, and is kept for the learner to find.

    `ready` is set when all is compiled.
    """

    def __init__(
        self,
        number: int,
        step: Any,
        actors: Actors,
        device: Any,
        parameters: Parameters,
        deliveries: "queue.Queue[Delivery]",
        timeline: Timeline,
    ) -> None:
        super().__init__(name=f"actor-{number}", daemon=True)
        self.number, self.error, self.stopping, self.ready = number, None, threading.Event(), threading.Event()
        self._step, self._actors, self._device = step, actors, device
        self._parameters, self._deliveries, self._timeline = parameters, deliveries, timeline

    def run(self) -> None:
        """Collect and deliver, again and again."""
        try:
            rollout, waited = 0, 0.0
            _, arrays, draw, scale = self._inputs(rollout)
            self._step.prepare(arrays, draw, self._actors, scale)
            self.ready.set()
            while not self.stopping.is_set():
                with self._timeline.span(self.name, "collect"):
                    version, arrays, draw, scale = self._inputs(rollout)
                    self._actors, experience = jax.block_until_ready(self._step(arrays, draw, self._actors, scale))
                began = time.perf_counter()
                with self._timeline.span(self.name, "wait"):
                    self._deliver(Delivery(self.number, version, experience, self._actors, waited))
                waited = time.perf_counter() - began
                rollout += 1
        except BaseException as error:
            self.error = error

    def _inputs(self, rollout: int) -> tuple[int, PyTree, Int[Array, " 3"], ValueScale]:
        """The newest version, its parameters, the numbers that name the rollout, and the scale of values."""
        version, published = self._parameters.newest()
        arrays, scale = jax.device_put(published, self._device)
        return version, arrays, jnp.asarray([self.number, version, rollout], jnp.int32), scale

    def _deliver(self, delivery: Delivery) -> None:
        while not self.stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._deliveries.put(delivery, timeout=_GLANCE)
                return


class Asynchronous:
    """IMPALA with `impala.actors` threads; `init` and `update` like a learner's, `close` when it is over.

    The worlds are a tuple, one batch for each actor, as they stood after its last rollout that was learned from.

    Attributes:
        learner: in its deterministic form.
        timeline: who was busy with what.
    """

    def __init__(self, learner: IMPALA, actor_devices: Sequence[Any]) -> None:
        self.learner, self.timeline = learner, Timeline()
        self._devices = [actor_devices[i % len(actor_devices)] for i in range(learner.config.impala.actors)]
        self._threads: list[Actor] = []
        self._collectors: list[HostCollector] = []
        self._deliveries: queue.Queue[Delivery] = queue.Queue(learner.config.impala.queue)
        self._parameters: Parameters | None = None

    def __getattr__(self, name: str) -> Any:
        """Everything else is the learner's: its simulator, its settings, who learns for which team."""
        return getattr(self.learner, name)

    def init(self, seed: int) -> tuple[Learned, Any]:
        """Return a fresh learner, and worlds for each actor."""
        learner = self.learner
        learned = learner.init_learned(seed)
        n, stage = learner.config.worlds, learner.stage(learned.network)
        worlds = [_start(stage, run_key(learned.key, 1), jnp.arange(n) + i * n) for i in range(len(self._devices))]
        return self.place(learned, tuple(worlds))

    def place(self, learned: Learned, actors: Any) -> tuple[Learned, Any]:
        """Put what is learned on every device that learns, and each actor's worlds on its own."""
        replicated = NamedSharding(self.learner.mesh, PartitionSpec())
        placed = (put(a, d) for a, d in zip(actors, self._devices, strict=True))
        return put(learned, replicated), tuple(placed)

    def update(self, learned: Learned, actors: Any) -> tuple[Learned, Any, dict[str, Any]]:
        """Learn from the next experience.

        Raises:
            ActorError: an actor died, or none delivered for `impala.patience` seconds.
        """
        version = int(learned.n_updates)
        if not self._threads:
            self._begin(learned, actors)
        began, n_dropped = time.perf_counter(), 0
        with self.timeline.span("learner", "wait"):
            delivery = self._next()
            limit = self.learner.config.impala.max_lag
            while limit and version - delivery.version > limit:
                n_dropped += 1
                delivery = self._next()
        waited = time.perf_counter() - began
        with self.timeline.span("learner", "learn"):
            experience = spread(delivery.experience, self.learner.mesh)
            learned, metrics = jax.block_until_ready(self.learner.learn_from(learned, experience))
        self._publish(learned)
        taken = tuple(delivery.actors if i == delivery.actor else a for i, a in enumerate(actors))
        metrics |= {
            "episode": delivery.experience.sums,
            "lag": version - delivery.version,
            "dropped": n_dropped,
            "learner_waited": waited,
            "actor_waited": delivery.waited,
            "queue": self._deliveries.qsize(),
        }
        return learned, taken, metrics

    def close(self) -> None:
        """Stop the actors; one that steps finishes its rollout first, unless its environments are slow hosts."""
        for thread in self._threads:
            thread.stopping.set()
        for collector in self._collectors:
            collector.stop()
        for thread in self._threads:
            thread.join(self.learner.config.impala.patience)
        for collector in self._collectors:
            collector.close()
        self._threads, self._collectors = [], []
        self._deliveries = queue.Queue(self.learner.config.impala.queue)

    def _begin(self, learned: Learned, actors: tuple[Actors, ...]) -> None:
        learner, static = self.learner, eqx.filter(learned.network, eqx.is_inexact_array, inverse=True)
        self._parameters = Parameters(int(learned.n_updates), _published(learned))

        @eqx.filter_jit
        def step(
            arrays: PyTree, draw: Int[Array, " 3"], actors: Actors, scale: ValueScale
        ) -> tuple[Actors, Experience]:
            stage, act_base = learner.stage(eqx.combine(arrays, static), scale), rollout_key(learned.key, draw)
            return collect(stage, actors, run_key(learned.key, 1), act_base, learner.config.rollout, learner.n_parts)

        if isinstance(learner.simulator.rules, HostRules):
            self._collectors = [HostCollector(learner, learned, device) for device in self._devices]
        of_device = {device: Collector(step) for device in self._devices}
        steps = self._collectors or [of_device[device] for device in self._devices]
        for i, (mine, device) in enumerate(zip(actors, self._devices, strict=True)):
            self._threads.append(Actor(i, steps[i], mine, device, self._parameters, self._deliveries, self.timeline))
        for thread in self._threads:
            thread.start()

    def _next(self) -> Delivery:
        patience = self.learner.config.impala.patience
        # Patience is for rollouts, not for the compiler.
        until = None
        while (left := _GLANCE if until is None else until - time.perf_counter()) > 0:
            if until is None and all(thread.ready.is_set() for thread in self._threads):
                until = time.perf_counter() + patience
                continue
            # Also while others deliver: who died is missed at once.
            for thread in self._threads:
                if thread.error is not None:
                    why = thread.error if isinstance(thread.error, SwarmError) else brief(repr(thread.error))
                    raise ActorError(f"{thread.name} died: {why}") from thread.error
            with contextlib.suppress(queue.Empty):
                return self._deliveries.get(timeout=min(_GLANCE, left))
        # Perhaps it was this thread that was held up.
        with contextlib.suppress(queue.Empty):
            return self._deliveries.get_nowait()
        raise ActorError(
            f"no actor delivered within {patience:g} s; if a rollout takes so long, raise training.impala.patience"
        )

    def _publish(self, learned: Learned) -> None:
        assert self._parameters is not None
        self._parameters.publish(int(learned.n_updates), _published(learned))


class Alternating:
    """A learner of host environments without actors of their own: rollouts and learning take turns.

    Attributes:
        learner: any.
        timeline: who was busy with what.
    """

    def __init__(self, learner: AbstractLearner) -> None:
        self.learner, self.timeline = learner, Timeline()
        self._collector: HostCollector | None = None

    def __getattr__(self, name: str) -> Any:
        """Everything else is the learner's."""
        return getattr(self.learner, name)

    def init(self, seed: int) -> tuple[Learned, Actors]:
        """Return a fresh learner and its worlds."""
        learner = self.learner
        learned, worlds = learner.init_learned(seed), jnp.arange(learner.config.worlds)
        actors = _start(learner.stage(learned.network), run_key(learned.key, 1), worlds)
        return self.place(learned, actors)

    def place(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors]:
        """Put what is learned on every device, and the worlds on the first, which chooses."""
        mesh = self.learner.mesh
        return put(learned, NamedSharding(mesh, PartitionSpec())), put(actors, mesh.devices.flat[0])

    def update(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors, dict[str, Any]]:
        """Collect a rollout and learn from it.

        Raises:
            ActorError: an environment, or the process that steps it, failed.
        """
        learner = self.learner
        device = learner.mesh.devices.flat[0]
        if self._collector is None:
            self._collector = HostCollector(learner, learned, device)
        draw = jnp.asarray([0, int(learned.n_updates), 0], jnp.int32)
        try:
            with self.timeline.span("actor-0", "collect"):
                arrays, scale = put(eqx.filter(learner.acting(learned), eqx.is_inexact_array), device)
                actors, experience = jax.block_until_ready(self._collector(arrays, draw, actors, scale))
        except HostError as error:
            raise ActorError(str(error)) from error
        with self.timeline.span("learner", "learn"):
            learned, metrics = jax.block_until_ready(learner.learn_from(learned, spread(experience, learner.mesh)))
        return learned, actors, metrics | {"episode": experience.sums}

    def close(self) -> None:
        """End the processes."""
        if self._collector is not None:
            self._collector.close()
            self._collector = None


def _published(learned: Learned) -> tuple[PyTree, ValueScale]:
    """What actors fetch: the parameters, and the scale of their values."""
    return eqx.filter(learned.network, eqx.is_inexact_array), learned.scale


def spread(experience: Experience, mesh: Mesh) -> Experience:
    """Share the worlds of experience over the devices that learn."""

    def over(tree: PyTree, *axes: str | None) -> PyTree:
        return put(tree, NamedSharding(mesh, PartitionSpec(*axes)))

    e = experience
    parts = over(e.rollout, None, AXIS), over(e.state, None, AXIS), over(e.last, AXIS), over(e.index, AXIS)
    return Experience(*parts, over(e.sums))
