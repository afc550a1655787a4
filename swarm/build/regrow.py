"""More room in the middle of an episode: double what a status bit says is full, and move the worlds over."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from swarm.build.scenario_files import Scenario, restore
from swarm.core.status import Status
from swarm.core.toml import set_dotted
from swarm.population.entities import Entities


def enlarge(scenario: Scenario, status: Status, crowd: Mapping[str, int]) -> tuple[Scenario, list[str]]:
    """Double the config values that `AbstractRules.room` names for the bits.

    Args:
        scenario: as it is.
        status: the overflow bits that were raised.
        crowd: the most entities of each kind that a team had when they were; `crowding` counts them.

    Returns:
        The larger scenario, and a line for each value that grew; no line: nothing can be done about these bits.
    """
    table = scenario.resolved()
    values = dict(_values(table))
    wanted = [pattern for bit, patterns in scenario.rules_class.room.items() if status & bit for pattern in patterns]
    keys = [key for key in values if any(_matches(key, pattern) for pattern in wanted)]
    doubled = {key: _doubled(values[key]) for key in keys}
    keys = _culprits([key for key in keys if doubled[key] is not None], values, crowd)
    for key in keys:
        set_dotted(table, key, doubled[key])
    larger = restore(scenario.name, scenario.source, table, scenario.rules_class)
    return larger._replace(own=scenario.own), [f"{key} {values[key]} -> {doubled[key]}" for key in keys]


def _doubled(value: Any) -> int | str | None:
    """Twice a number, or a grouping rule with twice its slots ("fixed:8,100"); None for anything else."""
    if type(value) is int and value > 0:
        return 2 * value
    rule, comma, slots = value.rpartition(",") if isinstance(value, str) else ("", "", "")
    return f"{rule},{2 * int(slots)}" if comma and slots.isdecimal() else None


def _culprits(keys: list[str], values: Mapping[str, Any], crowd: Mapping[str, int]) -> list[str]:
    """Leave out kinds that have room, and those that are full only because they were so from the start."""

    def count(key: str) -> float:
        return next((float(crowd[part]) for part in key.split(".") if part in crowd), np.inf)

    full = [key for key in keys if not isinstance(values[key], int) or count(key) >= values[key]]
    grown = [key for key in full if count(key) > values.get(f"{key.rpartition('.')[0]}.initial", -1)]
    return grown or full or keys


def _values(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _matches(key: str, pattern: str) -> bool:
    parts, wanted = key.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(w in ("*", part) for part, w in zip(parts, wanted, strict=True))


def crowding(entities: Entities, kinds: tuple[str, ...]) -> dict[str, int]:
    """The most living entities of each kind that any team has, in any of the stacked populations (host arrays)."""
    alive, kind, team = (np.asarray(x) for x in (entities.alive, entities.kind, entities.team))
    n_teams = int(np.max(team, where=alive, initial=0)) + 1
    masks = {name: [alive & (kind == k) & (team == m) for m in range(n_teams)] for k, name in enumerate(kinds)}
    return {name: max(int(mask.sum(axis=-1).max()) for mask in of_teams) for name, of_teams in masks.items()}


def migrate(fresh: PyTree, old: PyTree) -> PyTree:
    """Write worlds over the corner of freshly reset, larger ones.

    Slots beyond the old ones then hold what a reset leaves in slots that nobody ever used, whatever the rules keep:
    this is right for each array whose axes grow at their end, as axes over slots, groups or neighbours do.

    Raises:
        ValueError: an array has fewer entries or another number of axes than it had.
    """
    leaves, structure = jax.tree.flatten(fresh)
    moved = [_corner(new, x) for new, x in zip(leaves, jax.tree.leaves(old), strict=True)]
    return jax.tree.unflatten(structure, moved)


def _corner(new: Any, old: Any) -> Any:
    if new.shape == old.shape:
        return old
    if new.ndim != old.ndim or any(m < n for m, n in zip(new.shape, old.shape, strict=True)):
        raise ValueError(f"an array of shape {old.shape} does not fit into {new.shape}")
    return new.at[tuple(slice(0, n) for n in old.shape)].set(old)
