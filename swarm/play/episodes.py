"""Episodes on the host: compiled chunks of steps, one after the other, for whoever wants to see them.

    for chunk in play(simulator, policy, jax.random.key(0), n_steps=100_000):
        print(chunk.worlds.step[-1], chunk.faults)

Only a chunk is in memory at any time. Given the scenario, `play` makes more room when a step runs out of it: the
chunk is thrown away, what was full is doubled (`swarm.build.regrow`), and the episode goes on from the last exact
worlds, so that it is the one that the larger capacity would have given from the start.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree, Shaped

from swarm.build.regrow import crowding, enlarge, migrate
from swarm.build.scenario_files import Scenario
from swarm.build.simulators import make
from swarm.core.memory import check_memory
from swarm.core.status import OVERFLOWS, Fault, Status
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.rules import AbstractRules
from swarm.simulation.simulator import Simulator, finite, usable
from swarm.simulation.types import Observation, TimeStep, World

CHUNK_STEPS = 32
_CHUNK_BYTES = 2**28


class Chunk(NamedTuple):
    """Some successive steps of `b` worlds, as host arrays.

    Attributes:
        simulator: what stepped them; another one than before where `grown` says so.
        scenario: what it was built from; None if `play` was not told.
        first: the worlds before the first of these steps, stacked along b.
        worlds: the worlds after each step, stacked along (t, b).
        timesteps: what each step returned, without the observation (None).
        actions: as chosen by the policy.
        metrics: scalars of each world after each step, [t, b].
        length: for each world, how many of the steps belong to its episode; what comes later is of no meaning.
        faults: bits that were raised in these steps for the first time in any world.
        grown: a line for each capacity that grew before the first of these steps.
    """

    simulator: Simulator
    scenario: Scenario | None
    first: World
    worlds: World
    timesteps: TimeStep
    actions: np.ndarray
    metrics: dict[str, np.ndarray]
    length: np.ndarray
    faults: tuple[Fault, ...]
    grown: tuple[str, ...]

    def world(self, t: int, number: int = 0) -> World:
        """One world after one of the steps."""
        return jax.tree.map(lambda x: x[t, number], self.worlds)

    def last(self, values: Shaped[np.ndarray, "t b"]) -> Shaped[np.ndarray, " b"]:
        """Values after the last step of each world; of no meaning where `length` is 0."""
        return values[np.maximum(self.length, 1) - 1, np.arange(len(self.length))]


def play(
    simulator: Simulator,
    policy: AbstractPolicy,
    key: Key[Array, ""],
    n_steps: int,
    *,
    n_worlds: int = 1,
    scenario: Scenario | None = None,
    chunk_steps: int | None = None,
) -> Iterator[Chunk]:
    """Play one episode in each of some worlds.

    Args:
        simulator: steps the worlds.
        policy: acts in all of them. Where it holds the simulator's rules, it gets the new ones if they grow.
        key: of the first world's map and actions; the others' follow from it.
        n_steps: stop after that many, or when all episodes are over.
        n_worlds: played side by side, in one batch.
        scenario: what the simulator was built from, to make more room when a step runs out of it; None: never.
        chunk_steps: steps per chunk; by default 32, or fewer where those would take more than about 256 MB.

    Yields:
        Each chunk as soon as it is played.

    Raises:
        ConfigError: so many worlds do not fit into memory.
    """
    check_memory(simulator.reset, n_worlds, f"worlds = {n_worlds}")
    reset_keys, act_keys = _keys(key, n_worlds)
    worlds, observations = _reset(simulator, reset_keys)
    memory = _start(policy, worlds)
    done, running, seen, grown = 0, np.ones(n_worlds, bool), Status(0), ()
    while done < n_steps and running.any():
        n = chunk_steps or _affordable(worlds)
        carry, history = _advance(simulator, policy, worlds, observations, memory, act_keys, n)
        chunk = _cut(simulator, scenario, _host(worlds), _host(history), running, n_steps - done)
        faults = tuple(fault for fault in _faults(chunk) if not fault.bit & seen)
        bits = Status(sum(fault.bit for fault in faults))
        if scenario is not None and bits & OVERFLOWS:
            cause = next(fault for fault in faults if fault.bit & OVERFLOWS)
            scenario, lines = enlarge(scenario, bits & OVERFLOWS, _crowd(chunk, cause))
            if lines:
                larger = make(scenario)
                policy = _with_rules(policy, simulator.rules, larger.rules)
                worlds, observations = _move(larger, reset_keys, worlds if done else None)
                memory = migrate(_start(policy, worlds), memory)
                simulator, grown = larger, (*grown, *(f"{line} at step {cause.step}" for line in lines))
                continue
        yield chunk._replace(faults=faults, grown=grown)
        running = running & ~chunk.last(_ended(chunk.timesteps))
        worlds, observations, memory = carry
        done, seen, grown = done + n, seen | bits, ()


def repeat(
    simulator: Simulator,
    actions: Callable[[int, int], np.ndarray],
    key: Key[Array, ""],
    n_steps: int,
    *,
    n_worlds: int = 1,
    scenario: Scenario | None = None,
) -> Iterator[Chunk]:
    """Play episodes again, from the same key, by what was chosen then.

    Args:
        simulator: the one that the episodes ended with, if it grew.
        actions: returns those of some steps, [t, b, n] or [t, b, n, a], when told how many steps came before and t.
        key: as given to `play`, as all that follows.
        n_steps: stop after that many, or when all episodes are over.
        n_worlds: of them.
        scenario: what the simulator was built from, for who reads the chunks.

    Yields:
        Each chunk as soon as it is played; nothing ever grows.
    """
    check_memory(simulator.reset, n_worlds, f"worlds = {n_worlds}")
    reset_keys, act_keys = _keys(key, n_worlds)
    worlds, observations = _reset(simulator, reset_keys)
    done, running, seen, n = 0, np.ones(n_worlds, bool), Status(0), _affordable(worlds)
    while done < n_steps and running.any():
        memory = (jnp.swapaxes(jnp.asarray(actions(done, n)), 0, 1), jnp.zeros(n_worlds, jnp.int32))
        carry, history = _advance(simulator, _Again(), worlds, observations, memory, act_keys, n)
        chunk = _cut(simulator, scenario, _host(worlds), _host(history), running, n_steps - done)
        faults = tuple(fault for fault in _faults(chunk) if not fault.bit & seen)
        yield chunk._replace(faults=faults)
        running = running & ~chunk.last(_ended(chunk.timesteps))
        worlds, observations, _ = carry
        done, seen = done + n, seen | Status(sum(fault.bit for fault in faults))


class _Again(AbstractPolicy):
    """Its memory holds a world's actions of some steps, and how many of these it has repeated."""

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Any:
        raise NotImplementedError("it acts by its memory")

    def act(self, world: World, observation: Observation, memory: PyTree, key: Key[Array, ""]) -> tuple[Any, PyTree]:
        actions, n_repeated = memory
        return actions[n_repeated], (actions, n_repeated + 1)


def _keys(key: Key[Array, ""], n_worlds: int) -> tuple[Key[Array, " b"], Key[Array, " b"]]:
    """For each world a key of its map, and one of its actions."""
    others = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(1, n_worlds))
    keys = jnp.concatenate([key[None], others])
    reset_keys, act_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    return reset_keys, act_keys


@eqx.filter_jit
def _reset(simulator: Simulator, keys: Key[Array, " b"]) -> tuple[World, Observation]:
    worlds, timesteps = jax.vmap(simulator.reset)(keys)
    return worlds, timesteps.observation


@eqx.filter_jit
def _observe(simulator: Simulator, worlds: World) -> Observation:
    return jax.vmap(simulator.observe)(worlds)


@eqx.filter_jit
def _advance(
    simulator: Simulator,
    policy: AbstractPolicy,
    worlds: World,
    observations: Observation,
    memory: PyTree,
    keys: Key[Array, " b"],
    n_steps: int,
) -> tuple[tuple[World, Observation, PyTree], Any]:
    def step(world: World, observation: Observation, memory: PyTree, key: Key[Array, ""]) -> Any:
        action, memory = policy.act(world, observation, memory, jax.random.fold_in(key, world.step))
        world, timestep = simulator.step(world, action)
        blind = eqx.tree_at(lambda t: t.observation, timestep, None)
        return (world, timestep.observation, memory), (world, blind, action, simulator.metrics(world))

    def body(carry: tuple[World, Observation, PyTree], _: None) -> Any:
        return jax.vmap(step)(*carry, keys)

    return jax.lax.scan(body, (worlds, observations, memory), length=n_steps)


def _start(policy: AbstractPolicy, worlds: World) -> PyTree:
    """The memory of a policy before the first step of each world."""
    return jax.vmap(lambda world: policy.start(world.entities.n_slots))(worlds)


def _affordable(worlds: World) -> int:
    """Steps whose worlds fit into the memory of a chunk."""
    n_bytes = sum(x.nbytes for x in jax.tree.leaves(worlds) if not _is_key(x))
    return int(np.clip(_CHUNK_BYTES // max(n_bytes, 1), 1, CHUNK_STEPS))


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _host(tree: Any) -> Any:
    return jax.tree.map(lambda x: x if _is_key(x) else np.asarray(x), tree)


def _ended(timesteps: TimeStep) -> np.ndarray:
    return np.asarray(timesteps.world_terminated) | np.asarray(timesteps.world_truncated)


def _cut(
    simulator: Simulator, scenario: Scenario | None, first: World, history: Any, running: np.ndarray, n_left: int
) -> Chunk:
    """Keep the steps until the last world's episode is over, or no steps are left."""
    ended = _ended(history[1])
    n = min(len(ended), n_left)
    to_end = np.where(ended[:n].any(axis=0), np.argmax(ended[:n], axis=0) + 1, n)
    length = np.where(running, to_end, 0)
    worlds, timesteps, actions, metrics = jax.tree.map(lambda x: x[: length.max()], history)
    return Chunk(simulator, scenario, first, worlds, timesteps, actions, metrics, length, (), ())


def _faults(chunk: Chunk) -> list[Fault]:
    """The first step, world and entity for each bit that was not set before the chunk; at step 0 those of the reset."""
    status, of_reset = np.asarray(chunk.worlds.status), np.asarray(chunk.first.step) == 0
    happened = np.arange(len(status))[:, None] < chunk.length[None]
    known = np.where(of_reset, 0, chunk.first.status)
    raised = np.where(happened, status & ~known[None], 0)
    faults = []
    for bit in Status:
        places = np.argwhere(raised & bit)
        if len(places):
            t, number = (int(i) for i in places[0])
            at_reset = of_reset[number] and bit & int(chunk.first.status[number])
            step = 0 if at_reset else int(chunk.worlds.step[t, number])
            label = number if len(chunk.length) > 1 else None
            faults.append(Fault(bit, step, _offender(chunk, bit, t, number), label))
    return faults


def _before(chunk: Chunk, t: int) -> World:
    """The worlds before a step."""
    return jax.tree.map(lambda x: x[t - 1], chunk.worlds) if t else chunk.first


def _offender(chunk: Chunk, bit: Status, t: int, number: int) -> int | None:
    if bit is Status.NON_FINITE:
        entities = chunk.world(t, number).entities
        uid, bad = entities.uid, entities.alive & ~np.asarray(finite(entities))
    elif bit is Status.BAD_ACTION:
        before = jax.tree.map(lambda x: x[number], _before(chunk, t)).entities
        _, marked = usable(jnp.asarray(chunk.actions[t, number]), chunk.simulator.rules.choices)
        uid, bad = before.uid, before.alive & np.asarray(marked)
    else:
        return None
    return int(uid[np.argmax(bad)])


def _crowd(chunk: Chunk, fault: Fault) -> dict[str, int]:
    """The most entities of a kind that a team had just before and after a fault."""
    t = max(fault.step - 1 - int(np.asarray(chunk.first.step)[0]), 0)
    after = jax.tree.map(lambda x: x[t], chunk.worlds)
    kinds = chunk.simulator.rules.kinds
    counts = [crowding(worlds.entities, kinds) for worlds in (_before(chunk, t), after)]
    return {name: max(count[name] for count in counts) for name in kinds}


def _with_rules(policy: AbstractPolicy, old: AbstractRules, new: AbstractRules) -> AbstractPolicy:
    """Replace the rules inside a policy, which may know their sizes; rules of its own making stay."""

    def is_rules(x: Any) -> bool:
        return isinstance(x, AbstractRules)

    def replace(x: Any) -> Any:
        return new if is_rules(x) and bool(eqx.tree_equal(x, old)) else x

    return jax.tree.map(replace, policy, is_leaf=is_rules)


def _move(simulator: Simulator, reset_keys: Key[Array, " b"], worlds: World | None) -> tuple[World, Observation]:
    """Continue worlds in a larger simulator; None: from the start."""
    fresh, observations = _reset(simulator, reset_keys)
    if worlds is None:
        return fresh, observations
    moved = migrate(fresh, worlds)
    return moved, _observe(simulator, moved)
