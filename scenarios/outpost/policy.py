"""The scripted policy of outpost."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from scenarios.outpost.board import (
    BUILD_HEAVY,
    BUILD_LIGHT,
    CHARGE,
    COLUMN_STEP,
    DEPOT,
    DIG,
    ICE,
    LIGHT,
    NORTH,
    ORE,
    POWER,
    ROW_STEP,
    STAY,
    UNLOAD,
    WATER,
    WEST,
    Board,
    move_cost,
    nearest_marked,
)
from swarm.population.hierarchy import reduce_groups
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import Observation, World


class Greedy(AbstractPolicy):
    """Each unit goes to the nearest free ice, digs until full or until its power just brings it home, and returns.

    Home is the nearest depot, where ten water in store count as one cell of way, so that a dry depot comes first.
    Every third light unit digs ore; depots build whatever they can pay, heavies first. Units avoid each other: none
    enters an occupied cell, and of several that want a cell the lowest identity goes.

    Of two teams, who carries little goes home where there is power, and nobody turns straight back, lest units go to
    and fro behind a foreign depot. A single team plays without these, because published results are compared with it.
    """

    board: Board

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Int[Array, " n"]:
        """Choose for all slots."""
        board, entities = self.board, world.entities
        kind, stores, legal, table = entities.kind, entities.stores, observation.action_mask, board.table
        unit = entities.alive & (kind != DEPOT)
        row, column = board.cell(entities)
        at_home = board.home(entities, row, column, board.depot_at(entities)) >= 0
        to_depot = board.to_depot(entities, detour=0.1 * jnp.maximum(stores[:, WATER], 0.0))
        cargo, power = stores[:, ICE] + stores[:, ORE], stores[:, POWER]
        if board.teams > 1:
            to_power = board.to_depot(entities, detour=0.01 * jnp.maximum(1000.0 - power, 0.0))
            to_depot = jnp.where((cargo < 0.2 * table.cargo[kind])[:, None], to_power, to_depot)
        steps_home = jnp.sum(jnp.maximum(jnp.abs(to_depot) - 1.0, 0.0), axis=1)
        reserve = (steps_home + 1.0) * move_cost(table, kind, 1.5 * board.rubble) + table.dig[kind]
        returning = (cargo >= table.cargo[kind]) | ((power < reserve) & ~at_home)
        occupied = jnp.zeros((board.height, board.width)).at[row, column].add(unit.astype(jnp.float32))
        target, on_target = self._resource(world, row, column, occupied)
        goal = jnp.where(returning[:, None], entities.position + to_depot, target)
        move = self._move(world, observation, goal, occupied)
        low = power < jnp.asarray([0.0, 0.8, 0.2])[kind] * table.battery[kind]
        action = jnp.where(on_target & ~returning & legal[:, DIG], DIG, move)
        action = jnp.where(at_home & low & legal[:, CHARGE], CHARGE, action)
        action = jnp.where(legal[:, UNLOAD], UNLOAD, action)
        build = jnp.where(legal[:, BUILD_HEAVY], BUILD_HEAVY, jnp.where(legal[:, BUILD_LIGHT], BUILD_LIGHT, STAY))
        return jnp.where(unit, action, build).astype(jnp.int32)

    def _resource(self, world: World, row: Array, column: Array, occupied: Array) -> tuple[Array, Array]:
        """Return the cell (x, y) of the nearest resource that no other unit stands on, and who stands on theirs."""
        board, entities, fields = self.board, world.entities, world.fields
        wants_ore = (entities.kind == LIGHT) & (entities.uid % 3 == 0) & jnp.any(fields.ore)
        resources = jnp.stack([fields.ice, fields.ore])
        free = jax.vmap(nearest_marked)(resources & (occupied == 0)[None])
        which = wants_ore.astype(jnp.int32)
        there = resources[which, row, column]
        best = jnp.where(there, row * board.width + column, jnp.maximum(free[which, row, column], 0))
        rows, columns = jnp.divmod(best, board.width)
        return jnp.stack([columns, rows], axis=1).astype(jnp.float32), there

    def _move(self, world: World, observation: Observation, goal: Array, occupied: Array) -> Int[Array, " n"]:
        """Step to the neighbouring cell nearest to the goal, counting rubble, unless it is taken or claimed."""
        board, entities = self.board, world.entities
        row, column = board.cell(entities)
        rows = jnp.clip(row[:, None] + ROW_STEP[None], 0, board.height - 1)
        columns = jnp.clip(column[:, None] + COLUMN_STEP[None], 0, board.width - 1)
        distance = jnp.abs(goal[:, 1, None] - rows) + jnp.abs(goal[:, 0, None] - columns)
        safe = board.depot_at(entities)[rows, columns] >= 0
        taken = (occupied[rows, columns] > 0) & ~safe
        score = distance + 0.015 * world.fields.rubble[rows, columns]
        possible = observation.action_mask[:, NORTH : WEST + 1] & ~taken
        if board.teams > 1:
            came = entities.velocity[:, :, None]
            possible &= ~((came[:, 0] == -COLUMN_STEP[None]) & (came[:, 1] == -ROW_STEP[None]))
        score = jnp.where(possible, score, jnp.inf)
        way = jnp.argmin(score, axis=1)
        here = jnp.abs(goal[:, 1] - row) + jnp.abs(goal[:, 0] - column)
        go = jnp.isfinite(jnp.min(score, axis=1)) & (here > 0) & entities.alive & (entities.kind != DEPOT)
        cell = jnp.take_along_axis(rows * board.width + columns, way[:, None], axis=1)[:, 0]
        claim = reduce_groups(entities.uid, jnp.where(go, cell, -1), board.width * board.height, "min")[cell]
        mine = (claim == entities.uid) | jnp.take_along_axis(safe, way[:, None], axis=1)[:, 0]
        return jnp.where(go & mine, way + 1, STAY)
