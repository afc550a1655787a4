"""From chunks of steps to the rows of a recording."""

from typing import Any, NamedTuple

import jax
import numpy as np

from swarm.play.episodes import Chunk
from swarm.population.entities import Entities
from swarm.population.hierarchy import Hierarchy

_AXES = "xyz"


class Batch(NamedTuple):
    """Rows of successive states of the worlds, in the order of step, world and slot.

    Attributes:
        table: the rows (a `pyarrow.Table`).
        step: of each of the states, those in which nobody lives included.
        world: likewise.
    """

    table: Any
    step: np.ndarray
    world: np.ndarray


class Rows:
    """Turns the chunks of an episode, one after the other, into rows.

    A row holds an entity's state and the action that it chose in this state. The last states of a chunk wait for the
    next one, which knows what was chosen in them; so the rows do not depend on how an episode is cut into chunks.
    """

    def __init__(self) -> None:
        self._waiting: np.ndarray | None = None
        self._rest: Batch | None = None

    def take(self, chunk: Chunk) -> Batch:
        """The states of a chunk but the last, and the last ones of the chunk before."""
        n_steps = len(chunk.worlds.step)
        number = np.arange(n_steps)[:, None]
        written = (number <= chunk.length) & (chunk.length > 0)
        if self._waiting is not None:
            written[0] |= self._waiting
        acted = number < chunk.length
        worlds = jax.tree.map(lambda x: x[:-1], chunk.worlds)
        first = _state(chunk, chunk.first, written[0], chunk.actions[0], acted[0])
        batch = _batch(chunk, first, _state(chunk, worlds, written[1:], chunk.actions[1:], acted[1:]))
        # Whose episode ended with the last step waits, too: otherwise the order would depend on the cut.
        self._waiting = waiting = chunk.length == n_steps
        last = jax.tree.map(lambda x: x[-1], chunk.worlds)
        self._rest = _batch(chunk, _state(chunk, last, waiting, chunk.actions[-1], acted[0] & False))
        return batch

    def rest(self) -> Batch | None:
        """The last states, in which nothing was chosen any more; None before the first chunk."""
        return self._rest


class _State(NamedTuple):
    columns: dict[str, np.ndarray]
    unknown: np.ndarray
    step: np.ndarray
    world: np.ndarray


def _state(chunk: Chunk, worlds: Any, written: np.ndarray, actions: np.ndarray, acted: np.ndarray) -> _State:
    """One array per column, of the worlds to be written, which are stacked along any axes.

    Args:
        chunk: where they come from.
        worlds: what is written.
        written: which of them.
        actions: chosen in them.
        acted: where the actions are of any meaning.
    """
    entities: Entities = worlds.entities
    rows = np.nonzero(np.asarray(entities.alive) & written[..., None])
    columns = {"step": np.asarray(worlds.step)[rows[:-1]], "world": rows[-2].astype(np.int32)}
    columns |= {"slot": rows[-1].astype(np.int32)}
    columns |= {name: getattr(entities, name)[rows] for name in ("uid", "kind", "team")}
    columns |= _groups(worlds.hierarchy, rows)
    position, velocity, stores = entities.position[rows], entities.velocity[rows], entities.stores[rows]
    axes = _AXES[: position.shape[1]]
    columns |= dict(zip(axes, position.T, strict=True))
    columns |= {"heading": entities.heading[rows]}
    columns |= {f"v{axis}": column for axis, column in zip(axes, velocity.T, strict=True)}
    columns |= _actions(np.asarray(actions)[rows])
    names = chunk.simulator.rules.stores or [f"s{i}" for i in range(stores.shape[1])]
    if taken := columns.keys() & set(names):
        raise ValueError(f"{sorted(taken)}: names of stores that are names of other columns")
    columns |= dict(zip(names, stores.T, strict=True))
    places = np.nonzero(written)
    return _State(columns, ~acted[rows[:-1]], np.asarray(worlds.step)[places], places[-1])


def _actions(chosen: np.ndarray) -> dict[str, np.ndarray]:
    """The chosen action of each row, or each of its choices or commands."""
    return {"action": chosen} if chosen.ndim == 1 else {f"action_{i}": column for i, column in enumerate(chosen.T)}


def is_action(name: str) -> bool:
    """Whether a column holds what was chosen."""
    return name == "action" or (name.startswith("action_") and name[7:].isdecimal())


def _groups(hierarchy: Hierarchy, rows: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """Slot and generation of each row's group at each level."""
    columns = {}
    group = rows[-1]
    for level, parent, generation in zip(hierarchy.levels[1:], hierarchy.parent, hierarchy.generation, strict=True):
        known = (*rows[:-1], np.maximum(group, 0))
        group = np.where(group >= 0, np.asarray(parent)[known], -1)
        found = np.asarray(generation)[(*rows[:-1], np.maximum(group, 0))]
        columns[f"group_{level}"] = group.astype(np.int32)
        columns[f"generation_{level}"] = np.where(group >= 0, found, 0).astype(np.int32)
    return columns


def _batch(chunk: Chunk, *states: _State) -> Batch:
    import pyarrow as pa

    unknown = np.concatenate([state.unknown for state in states])
    arrays = {}
    for name in states[0].columns:
        values = np.concatenate([state.columns[name] for state in states])
        arrays[name] = pa.array(values, mask=unknown if is_action(name) else None)
    arrays["kind"] = pa.DictionaryArray.from_arrays(arrays["kind"], list(chunk.simulator.rules.kinds))
    step, world = (np.concatenate([getattr(state, name) for state in states]) for name in ("step", "world"))
    return Batch(pa.table(arrays), step, world)
