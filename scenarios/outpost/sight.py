"""Sight of outpost: maps for each team, and what each entity knows of itself."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scenarios.outpost.board import DEPOT, HEAVY, ICE, LIGHT, METAL, ORE, POWER, WATER, Board, move_cost
from scenarios.outpost.moves import legal_actions
from swarm.population.entities import Entities
from swarm.simulation.types import Observation, World


def observe(board: Board, world: World) -> Observation:
    """Maps for each team and features for each entity."""
    entities, fields = world.entities, world.fields
    depot_at = board.depot_at(entities)
    row, column = board.cell(entities)
    return Observation(
        maps=jax.vmap(lambda team: _maps(board, world, depot_at, row, column, team))(jnp.arange(board.teams)),
        view=jnp.where(entities.alive, entities.team, 0),
        cell=jnp.stack([row, column], axis=1),
        own=_own(board, world, depot_at, row, column),
        kind=jnp.where(entities.alive, entities.kind, 0),
        alive=entities.alive,
        action_mask=legal_actions(board, entities, fields, depot_at),
    )


def _maps(board: Board, world: World, depot_at: Array, row: Array, column: Array, team: Array) -> Float[Array, "h w c"]:
    """Ice, ore, rubble; own cells and stores; own and foreign units; sun, time left, and the board itself."""
    entities, fields = world.entities, world.fields
    alive, kind, stores = entities.alive, entities.kind, entities.stores
    own, unit = alive & (entities.team == team), alive & (kind != DEPOT)
    battery, cargo = jnp.maximum(board.table.battery[kind], 1.0), jnp.maximum(board.table.cargo[kind], 1.0)
    covered, mine = depot_at >= 0, entities.team[depot_at] == team
    of_depot = jnp.stack([jnp.tanh(stores[:, WATER] / 200.0), jnp.tanh(stores[:, POWER] / 1000.0)], axis=1)
    rows = jnp.stack(
        [
            own & (kind == LIGHT),
            own & (kind == HEAVY),
            ~own & (kind == LIGHT),
            ~own & (kind == HEAVY),
            jnp.where(own, stores[:, POWER] / battery, 0.0),
            jnp.where(own, (stores[:, ICE] + stores[:, ORE]) / cargo, 0.0),
        ],
        axis=1,
    )
    rows = jnp.where(unit[:, None], rows.astype(jnp.float32), 0.0)
    units = jnp.zeros((board.height, board.width, rows.shape[1])).at[row, column].add(rows)
    depots = jnp.where((covered & mine)[:, :, None], of_depot[depot_at], 0.0)
    left = (board.steps - world.step) / board.steps
    whole = jnp.ones((board.height, board.width))
    layers = [
        fields.ice,
        fields.ore,
        fields.rubble / 100.0,
        covered & mine,
        covered & ~mine,
        whole,
        whole * board.is_day(world.step),
        whole * left,
    ]
    return jnp.concatenate([jnp.stack([x.astype(jnp.float32) for x in layers], axis=2), depots, units], axis=2)


def _own(board: Board, world: World, depot_at: Array, row: Array, column: Array) -> Float[Array, "n o"]:
    """Stores as shares, where the nearest and the driest depot, ice and ore are, sun, time left, counts."""
    entities, fields, table = world.entities, world.fields, board.table
    stores, kind = entities.stores, entities.kind
    cargo, battery = jnp.maximum(table.cargo[kind], 1.0), jnp.maximum(table.battery[kind], 1.0)
    to_depot, to_ice, to_ore = board.to_depot(entities), fields.to_ice[row, column], fields.to_ore[row, column]
    water = jnp.where(entities.alive, stores[:, WATER], 0.0)
    to_driest = board.to_depot(entities, detour=1000.0 * water)
    steps_home = jnp.maximum(jnp.sum(jnp.maximum(jnp.abs(to_depot) - 1.0, 0.0), axis=1), 0.0)
    per_step = move_cost(table, kind, board.rubble)
    margin = (stores[:, POWER] - steps_home * per_step) / jnp.maximum(10.0 * per_step, 1.0)
    n_own = [board.count(entities, k)[entities.team] / 10.0 for k in (LIGHT, HEAVY)]
    unit = [
        stores[:, POWER] / battery,
        stores[:, ICE] / cargo,
        stores[:, ORE] / cargo,
        board.home(entities, row, column, depot_at) >= 0,
        fields.ice[row, column],
        fields.ore[row, column],
        jnp.tanh(margin),
        jnp.tanh(steps_home / 5.0),
        *[jnp.tanh(_water_at(entities, depot_at, x) / 200.0) for x in (to_depot, to_driest)],
    ]
    depot = [jnp.tanh(stores[:, WATER] / 200.0), stores[:, METAL] / 100.0, jnp.tanh(stores[:, POWER] / 1000.0)]
    # A call sign, by which units in the same place can part.
    unit += [(entities.uid >> bit) % 2 for bit in range(3)]
    everyone = [jnp.full_like(margin, (board.steps - world.step) / board.steps), *n_own]
    sun = jnp.broadcast_to(board.is_day(world.step), margin.shape)
    is_depot = kind == DEPOT
    columns = [jnp.where(is_depot, 0.0, x) for x in unit] + [jnp.where(is_depot, x, 0.0) for x in depot]
    columns += [*everyone, sun.astype(jnp.float32)]
    near = jnp.concatenate([jnp.clip(x / 2.0, -1.0, 1.0) for x in (to_depot, to_driest, to_ice, to_ore)], axis=1)
    far = jnp.concatenate([x / 16.0 for x in (to_depot, to_driest, to_ice, to_ore)], axis=1)
    features = jnp.concatenate([jnp.stack(columns, axis=1), near, far], axis=1)
    return jnp.where(entities.alive[:, None], features, 0.0)


def _water_at(entities: Entities, depot_at: Array, offset: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Water of the depot at an offset from each entity; 0 where there is none."""
    place = jnp.where(entities.alive[:, None], entities.position + offset, 0.0).astype(jnp.int32)
    slot = depot_at[place[:, 1], place[:, 0]]
    return jnp.where(slot >= 0, entities.stores[slot, WATER], 0.0)
