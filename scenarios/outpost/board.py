"""The board of outpost: names of kinds, stores and actions, the numbers of the units, and where depots are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from swarm.population.entities import Entities

DEPOT, LIGHT, HEAVY = range(3)
ICE, ORE, WATER, METAL, POWER = range(5)
STAY, NORTH, EAST, SOUTH, WEST, DIG, UNLOAD, CHARGE = range(8)
BUILD_LIGHT, BUILD_HEAVY = 1, 2
N_STORES = 5
ICE_PER_WATER, ORE_PER_METAL = 4.0, 5.0
# Row and column steps of north, east, south, west. Numpy, because importing must not start a jax backend.
ROW_STEP = np.asarray([-1, 0, 1, 0])
COLUMN_STEP = np.asarray([0, 1, 0, -1])


class Kinds(eqx.Module):
    """Numbers per kind, indexed by kind; zero where a kind has none."""

    cargo: Float[Array, " k"]
    battery: Float[Array, " k"]
    charge: Float[Array, " k"]
    move: Float[Array, " k"]
    move_rubble: Float[Array, " k"]
    dig: Float[Array, " k"]
    dig_gain: Float[Array, " k"]
    dig_rubble: Float[Array, " k"]
    build_metal: Float[Array, " k"]
    build_power: Float[Array, " k"]


class Fields(eqx.Module):
    """The map and the tally of a world; cells are indexed [row, column] = [y, x].

    Attributes:
        ice: where ice can be dug.
        ore: where ore can be dug.
        rubble: 0 to 100.
        to_ice: offset (x, y) from each cell to the nearest ice.
        to_ore: offset (x, y) from each cell to the nearest ore.
        delivered: ice delivered so far, per team.
        lost: units lost so far, per team.
        refused: units that depots wanted when their kind was full, per team.
    """

    ice: Bool[Array, "h w"]
    ore: Bool[Array, "h w"]
    rubble: Float[Array, "h w"]
    to_ice: Float[Array, "h w 2"]
    to_ore: Float[Array, "h w 2"]
    delivered: Float[Array, " m"]
    lost: Float[Array, " m"]
    refused: Float[Array, " m"]


class Board(eqx.Module):
    """Sizes and numbers that moves, sight and maps share.

    Attributes:
        width: cells.
        height: cells.
        teams: one or two.
        capacity: slots per team, by kind.
        initial: how many per team begin, by kind.
        n_ice: cells with ice on a map.
        n_ore: cells with ore.
        friendly_fire: whether mates collide.
        rubble: mean rubble of a map.
        steps: length of an episode.
        day: steps of sun in each cycle.
        cycle: steps.
        table: numbers of the kinds.
    """

    width: int = eqx.field(static=True)
    height: int = eqx.field(static=True)
    teams: int = eqx.field(static=True)
    capacity: tuple[int, ...] = eqx.field(static=True)
    initial: tuple[int, ...] = eqx.field(static=True)
    n_ice: int = eqx.field(static=True)
    n_ore: int = eqx.field(static=True)
    friendly_fire: Bool[Array, ""]
    rubble: Float[Array, ""]
    steps: Float[Array, ""]
    day: Int[Array, ""]
    cycle: Int[Array, ""]
    table: Kinds

    @property
    def n_slots(self) -> int:
        """Slots for every kind of every team."""
        return self.teams * sum(self.capacity)

    @property
    def depot_slots(self) -> int:
        """Depots are first on the map and never built: they are always among the first so many slots."""
        return self.teams * self.capacity[DEPOT]

    def cell(self, entities: Entities) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
        """Row and column of each entity, inside the grid for dead slots too."""
        place = jnp.where(entities.alive[:, None], entities.position, 0.0).astype(jnp.int32)
        return place[:, 1], place[:, 0]

    def depot_at(self, entities: Entities) -> Int[Array, "h w"]:
        """Slot of the depot that covers a cell; -1: none."""
        row, column = (x[: self.depot_slots, None] for x in self.cell(entities))
        around = jnp.arange(9)[None]
        living = entities.is_kind(DEPOT)[: self.depot_slots, None]
        rows = jnp.where(living, row + around // 3 - 1, self.height)
        columns = column + around % 3 - 1
        slots = jnp.broadcast_to(jnp.arange(self.depot_slots, dtype=jnp.int32)[:, None], rows.shape)
        return jnp.full((self.height, self.width), -1, jnp.int32).at[rows, columns].max(slots, mode="drop")

    def home(self, entities: Entities, row: Array, column: Array, depot_at: Array) -> Int[Array, " n"]:
        """Slot of the own living depot that a unit stands on; -1: none."""
        slot = depot_at[row, column]
        own = (slot >= 0) & (entities.team[slot] == entities.team) & (entities.kind != DEPOT)
        return jnp.where(own & entities.alive, slot, -1)

    def to_depot(self, entities: Entities, detour: Float[Array, " n"] | float = 0.0) -> Float[Array, "n 2"]:
        """Offset to the centre of the nearest own depot, each `detour` (per slot) farther; 0 where there is none."""
        p = self.depot_slots
        offset = entities.position[None, :p, :] - entities.position[:, None, :]
        own = entities.is_kind(DEPOT)[None, :p] & (entities.team[:, None] == entities.team[None, :p])
        detour = jnp.broadcast_to(detour, entities.alive.shape)[:p]
        distance = jnp.where(own, jnp.max(jnp.abs(offset), axis=2) + detour[None, :], jnp.inf)
        nearest = jnp.argmin(distance, axis=1)
        chosen = jnp.take_along_axis(offset, nearest[:, None, None], axis=1)[:, 0]
        return jnp.where((jnp.any(own, axis=1) & entities.alive)[:, None], chosen, 0.0)

    def count(self, entities: Entities, kind: int) -> Int[Array, " m"]:
        """How many of a kind each team has."""
        mates = entities.team[:, None] == jnp.arange(self.teams)[None]
        return jnp.sum(entities.is_kind(kind)[:, None] & mates, axis=0, dtype=jnp.int32)

    def room(self, entities: Entities, kind: int) -> Int[Array, " m"]:
        """How many more of a kind each team may have."""
        return self.capacity[kind] - self.count(entities, kind)

    def is_day(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether the sun shines."""
        return step % self.cycle < self.day


def nearest_marked(marked: Bool[Array, "h w"]) -> Int[Array, "h w"]:
    """Index (row by row) of the marked cell nearest to each cell by steps, of equally near ones the lowest; -1: none.

    Two sweeps along each axis find it in O(cells), where looking at all pairs would take O(cells^2).
    """
    size = marked.size
    # Distance first, then index, in one number; a sweep passes on the lowest, one step farther per cell.
    key = jnp.where(marked, jnp.arange(size, dtype=jnp.int32).reshape(marked.shape), 2**30)
    for axis, length in enumerate(marked.shape):
        way = (size * jnp.arange(length, dtype=jnp.int32)).reshape((-1, 1) if axis == 0 else (1, -1))
        forward = jax.lax.cummin(key - way, axis) + way
        key = jnp.minimum(forward, jax.lax.cummin(key + way, axis, reverse=True) - way)
    return jnp.where(jnp.any(marked), key % size, -1)


def move_cost(table: Kinds, kind: Array, rubble: Array) -> Array:
    """Power that a move costs, by kind and by the rubble of the cell entered; whole numbers."""
    return jnp.floor(table.move[kind] + table.move_rubble[kind] * rubble)
