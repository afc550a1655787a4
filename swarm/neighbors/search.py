"""Which neighbour search suits a space, a radius and a number of entities."""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pydantic

from swarm.core.errors import ConfigError
from swarm.core.tables import Table
from swarm.geometry.space import AbstractSpace
from swarm.neighbors.cell_grid import REACH, CellGrid
from swarm.neighbors.questions import AbstractNeighborSearch, AllPairs

Backend = Literal["auto", "all_pairs", "cell_grid"]

# Below this many entities all pairs are faster (perf/test_neighbors.py).
_ALL_PAIRS_BELOW = 192
_MOST_ALL_PAIRS = 2**17
_BLOCK = 8
# Windows are multiples of it.
_MULTIPLE = 8
_MOST = 2**31 - 1


class SearchTable(Table):
    """Table `search` of a scenario file: how neighbours are found.

    Attributes:
        backend: `auto` chooses by the number of entities.
        room: for how many times the candidates of evenly spread entities the cell grid has room. Crowds need more; too
            little is reported (NEIGHBORS_FULL), and can be regrown.
    """

    backend: Backend = "auto"
    room: int = pydantic.Field(default=1, ge=1)


def neighbor_search(
    space: AbstractSpace, radius: float | int, n_slots: int, table: SearchTable | None = None
) -> AbstractNeighborSearch:
    """Build the search for neighbours nearer than a radius (metres) among `n_slots` entities.

    Raises:
        ConfigError: there are more entities than can be numbered, or too many to compare each with each.
    """
    table = table or SearchTable()
    small = n_slots < _ALL_PAIRS_BELOW or not math.isfinite(radius)
    if table.backend == "all_pairs" or (table.backend == "auto" and small):
        if n_slots > _MOST_ALL_PAIRS:
            raise ConfigError(
                f"all pairs of {n_slots:,} entities are too many, at most of {_MOST_ALL_PAIRS:,}; lower "
                'population.<kind>.capacity, or take search.backend = "cell_grid" and a finite radius'
            )
        return AllPairs(space, jnp.float32(radius))
    cells = _cells(np.asarray(space.size, float), radius, n_slots)
    _check_room(cells, n_slots)
    return CellGrid(space, jnp.float32(radius), cells, _windows(cells, n_slots, table.room), _BLOCK)


def _cells(size: np.ndarray, radius: float | int, n_slots: int) -> tuple[int, ...]:
    """Cells at least a radius wide (half of it along the first axis), and not many more than entities."""
    # The margin keeps a pair at the very radius within reach, whatever way its cells were rounded: a place along a side
    # is right to some 2^-23 of the side.
    margin = np.maximum(1e-3, size / radius * 2.0**-22)
    across = np.maximum(np.floor(size / ((1.0 + margin) * radius)), 1.0)
    # What an axis of few cells cannot give up, the others must.
    for _ in size:
        n_divided = max(1, np.count_nonzero(across > 1.0))
        coarser = max(1.0, (np.prod(across) / max(n_slots, 1)) ** (1.0 / n_divided))
        across = np.maximum(np.floor(across / coarser), 1.0)
    return (int(across[0]) * REACH, *(int(n) for n in across[1:]))


def _check_room(cells: tuple[int, ...], n_slots: int) -> None:
    """Whether places in blocks, of which each row of cells has one that is not full, can be numbered.

    Raises:
        ConfigError: they cannot.
    """
    n_places = n_slots + _BLOCK * (math.prod(cells[1:]) + 1)
    if n_places > _MOST:
        raise ConfigError(
            f"neighbours of {n_slots} entities: the cell grid would number {n_places} places, and can at most {_MOST} "
            "(32 bits); lower population.<kind>.capacity"
        )


def _windows(cells: tuple[int, ...], n_slots: int, room: int) -> tuple[int, ...]:
    """Mean candidates of a block where entities are spread evenly and a standard deviation; twice, and five times that.

    The first suffices for three quarters of the blocks, the others are for chance and crowds.
    """
    per_cell = n_slots / math.prod(cells)
    span = min(_BLOCK / per_cell + 2 * REACH + 1, cells[0])
    mean = math.prod(min(n, 3) for n in cells[1:]) * span * per_cell
    first = room * (mean + mean**0.5)
    bounds = [_MULTIPLE * -(-min(int(part * first), n_slots) // _MULTIPLE) for part in (1, 2, 5)]
    windows = np.diff([0, *bounds])
    return tuple(int(window) for window in windows if window > 0)
