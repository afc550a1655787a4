"""Moves of outpost: what each entity may do, where units go, and who survives where they meet."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from scenarios.outpost.board import (
    COLUMN_STEP,
    DEPOT,
    HEAVY,
    ICE,
    LIGHT,
    METAL,
    NORTH,
    ORE,
    POWER,
    ROW_STEP,
    WEST,
    Board,
    Fields,
    move_cost,
)
from swarm.population.entities import Entities


def legal_actions(board: Board, entities: Entities, fields: Fields, depot_at: Int[Array, "h w"]) -> Bool[Array, "n 8"]:
    """What each entity may do; dead slots may do nothing at all."""
    row, column = board.cell(entities)
    kind, stores, table = entities.kind, entities.stores, board.table
    unit = entities.alive & (kind != DEPOT)
    power, cargo = stores[:, POWER], stores[:, ICE] + stores[:, ORE]
    rows, columns = row[:, None] + ROW_STEP[None], column[:, None] + COLUMN_STEP[None]
    on_board = (rows >= 0) & (rows < board.height) & (columns >= 0) & (columns < board.width)
    rows, columns = jnp.clip(rows, 0, board.height - 1), jnp.clip(columns, 0, board.width - 1)
    there = depot_at[rows, columns]
    foreign = (there >= 0) & (entities.team[there] != entities.team[:, None])
    mates = jnp.zeros((board.teams, board.height, board.width)).at[entities.team, row, column].add(unit)
    crowded = (mates[entities.team[:, None], rows, columns] > 0) & (there < 0)
    blocked = foreign | (crowded & ~board.friendly_fire)
    cost = move_cost(table, kind[:, None], fields.rubble[rows, columns])
    move = unit[:, None] & on_board & ~blocked & (power[:, None] >= cost)
    home = board.home(entities, row, column, depot_at)
    resource = fields.ice[row, column] | fields.ore[row, column]
    useful = jnp.where(resource, cargo < table.cargo[kind], fields.rubble[row, column] > 0)
    dig = unit & (power >= table.dig[kind]) & useful & (depot_at[row, column] < 0)
    unload = unit & (home >= 0) & (cargo > 0)
    charge = unit & (home >= 0) & (power < table.battery[kind]) & (stores[home, POWER] >= 1.0)
    units = jnp.concatenate([unit[:, None], move, jnp.stack([dig, unload, charge], axis=1)], axis=1)
    depot = entities.is_kind(DEPOT)
    build = [depot & _can_build(board, entities, k) for k in (LIGHT, HEAVY)]
    depots = jnp.stack([depot, *build, *[jnp.zeros_like(depot)] * 5], axis=1)
    return units | depots


def _can_build(board: Board, entities: Entities, kind: int) -> Bool[Array, " n"]:
    stores = entities.stores
    affordable = (stores[:, METAL] >= board.table.build_metal[kind]) & (
        stores[:, POWER] >= board.table.build_power[kind]
    )
    return affordable & (board.room(entities, kind)[entities.team] > 0)


def move(
    board: Board, entities: Entities, fields: Fields, action: Array, unit: Array, depot_at: Array
) -> tuple[Array, ...]:
    """Return row, column and stores after the move, and who moved."""
    row, column = board.cell(entities)
    moving = unit & (action >= NORTH) & (action <= WEST)
    moving = moving & (board.friendly_fire | _goes_first(board, entities, row, column, action, moving, depot_at))
    way = jnp.clip(action - 1, 0, 3)
    row = row + jnp.where(moving, jnp.asarray(ROW_STEP)[way], 0)
    column = column + jnp.where(moving, jnp.asarray(COLUMN_STEP)[way], 0)
    cost = jnp.where(moving, move_cost(board.table, entities.kind, fields.rubble[row, column]), 0.0)
    return row, column, entities.stores.at[:, POWER].add(-cost), moving


def _goes_first(
    board: Board, entities: Entities, row: Array, column: Array, action: Array, moving: Array, depot_at: Array
) -> Bool[Array, " n"]:
    """Of the mates that want the same cell, a heavy before a light, then the most power, then the eldest."""
    way = jnp.clip(action - 1, 0, 3)
    row = row + jnp.where(moving, jnp.asarray(ROW_STEP)[way], 0)
    column = column + jnp.where(moving, jnp.asarray(COLUMN_STEP)[way], 0)
    n_cells = board.teams * board.height * board.width
    cell = jnp.where(moving, (entities.team * board.height + row) * board.width + column, -1)
    heavy = (entities.kind == HEAVY).astype(jnp.float32)
    first = moving
    for rank in (heavy, entities.stores[:, POWER], -entities.uid):
        first = first & (rank == _highest(rank, jnp.where(first, cell, n_cells), n_cells))
    return first | (depot_at[row, column] >= 0)


def collide(
    board: Board, entities: Entities, row: Array, column: Array, power: Array, moving: Array, depot_at: Array
) -> Bool[Array, " n"]:
    """Who is lost where several units meet outside a depot."""
    unit = entities.alive & (entities.kind != DEPOT) & (depot_at[row, column] < 0)
    n_cells = board.width * board.height
    cell = jnp.where(unit, row * board.width + column, n_cells)
    rank = 2 * (entities.kind == HEAVY) + moving
    strong = unit & (rank == _highest(rank.astype(jnp.int32), cell, n_cells))
    winner = strong & (power == _highest(power, jnp.where(strong, cell, n_cells), n_cells))
    n_winners = jnp.zeros(n_cells + 1, jnp.int32).at[cell].add(winner)[cell]
    return unit & ~(winner & (n_winners == 1))


def _highest(values: Shaped[Array, " n"], cell: Int[Array, " n"], n_cells: int) -> Shaped[Array, " n"]:
    """The highest value in each one's cell; cell `n_cells` is nowhere."""
    return jax.ops.segment_max(values, cell, n_cells + 1)[cell]
