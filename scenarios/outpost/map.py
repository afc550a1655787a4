"""New episodes of outpost: depots apart from each other, ice and ore in patches, rubble in hills."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from scenarios.outpost.board import DEPOT, HEAVY, LIGHT, METAL, N_STORES, POWER, WATER, Board, Fields, nearest_marked
from swarm.population.entities import Entities, Spawn, spawn


def draw_map(board: Board, depot: dict[str, Float[Array, ""]], key: Key[Array, ""]) -> tuple[Entities, Fields]:
    """Draw a map and put everybody on it; a new depot has what `depot` says (`water`, `power`, `metal`)."""
    depot_key, near_key, ice_key, ore_key, rubble_key = jax.random.split(key, 5)
    places = _place_depots(board, depot_key)
    entities = _populate(board, depot, places)
    taken = board.depot_at(entities) >= 0
    ice = _patches(ice_key, taken, board.n_ice, _near_depots(board, near_key, places))
    ore = _patches(ore_key, taken | ice, board.n_ore, jnp.zeros(taken.shape))
    hills = _smooth(jax.random.uniform(rubble_key, (board.height, board.width), minval=0.0, maxval=2.0))
    rubble = jnp.clip(jnp.round(hills * board.rubble), 0.0, 100.0)
    nothing = jnp.zeros(board.teams)
    return entities, Fields(
        ice=ice,
        ore=ore,
        rubble=jnp.where(taken | ice | ore, 0.0, rubble),
        to_ice=_offset_to_nearest(ice),
        to_ore=_offset_to_nearest(ore),
        delivered=nothing,
        lost=nothing,
        refused=nothing,
    )


def _place_depots(board: Board, key: Key[Array, ""]) -> Float[Array, "p 2"]:
    """Put depots one after the other where the map is emptiest, with much chance."""
    rows, columns = jnp.meshgrid(jnp.arange(1.0, board.height - 1), jnp.arange(1.0, board.width - 1), indexing="ij")
    cells = jnp.stack([columns.ravel(), rows.ravel()], axis=1)
    n_depots = board.teams * board.initial[DEPOT]
    # Depots within this distance of each other are never chosen while there is room.
    apart = 0.7 * (board.width * board.height / n_depots) ** 0.5

    def place(clearance: Array, key: Array) -> tuple[Array, Array]:
        score = jnp.minimum(clearance, apart) + 0.25 * apart * jax.random.uniform(key, clearance.shape)
        cell = cells[jnp.argmax(score)]
        return jnp.minimum(clearance, jnp.max(jnp.abs(cells - cell[None]), axis=1)), cell

    far = jnp.full(cells.shape[0], jnp.inf)
    return jax.lax.scan(place, far, jax.random.split(key, n_depots))[1]


def _populate(board: Board, depot: dict[str, Array], depots: Float[Array, "p 2"]) -> Entities:
    """Depots first, then units, which start at their team's depots in turn."""
    per_team = board.initial[DEPOT]
    kinds, teams, homes = [], [], []
    for kind in (DEPOT, LIGHT, HEAVY):
        which = jnp.arange(board.teams * board.initial[kind])
        team, number = which % board.teams, which // board.teams
        kinds.append(jnp.full(which.shape, kind))
        teams.append(team)
        homes.append((number % per_team) * board.teams + team)
    kind, team, home = jnp.concatenate(kinds), jnp.concatenate(teams), jnp.concatenate(homes)
    is_depot = kind == DEPOT
    stores = jnp.zeros((kind.shape[0], N_STORES))
    stores = stores.at[:, WATER].set(jnp.where(is_depot, depot["water"], 0.0))
    stores = stores.at[:, METAL].set(jnp.where(is_depot, depot["metal"], 0.0))
    start = jnp.minimum(board.table.build_power, board.table.battery)[kind]
    stores = stores.at[:, POWER].set(jnp.where(is_depot, depot["power"], start))
    wanted = jnp.ones(kind.shape, bool)
    # Units stand on different cells of their depot, lest twins of equal sight take the same way for ever.
    number = jnp.cumsum(~is_depot) - 1
    spread = jnp.stack([number % 3 - 1, number // 3 % 3 - 1], axis=1).astype(jnp.float32)
    place = depots[home] + jnp.where(is_depot[:, None], 0.0, spread)
    births = Spawn(wanted, kind, team, place, jnp.zeros(kind.shape), stores)
    return spawn(Entities.empty(board.n_slots, 2, N_STORES, builders=True), births)[0]


def _near_depots(board: Board, key: Key[Array, ""], depots: Float[Array, "p 2"]) -> Float[Array, "h w"]:
    """A bonus around one place 3 to 6 cells from each depot, so that every depot has ice in reach."""
    angle, radius = jax.random.uniform(key, (2, depots.shape[0]))
    way = jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)], axis=1)
    # A place beyond the edge is mirrored at the depot's side of it.
    offset = (3.0 + 3.0 * radius)[:, None] * way
    upper = jnp.asarray([board.width - 1.0, board.height - 1.0])[None]
    inside = (depots + offset >= 0) & (depots + offset <= upper)
    place = depots + jnp.where(inside, offset, -offset)
    rows, columns = jnp.meshgrid(jnp.arange(board.height), jnp.arange(board.width), indexing="ij")
    distance = jnp.hypot(columns[None] - place[:, 0, None, None], rows[None] - place[:, 1, None, None])
    return jnp.max(jnp.maximum(1.0 - distance / 2.0, 0.0), axis=0)


def _patches(
    key: Key[Array, ""], taken: Bool[Array, "h w"], n_cells: int, bonus: Float[Array, "h w"]
) -> Bool[Array, "h w"]:
    """Choose the n free cells where smooth noise and bonus are highest; white noise breaks up large patches."""
    smooth_key, white_key = jax.random.split(key)
    noise = _smooth(jax.random.uniform(smooth_key, taken.shape)) + bonus
    noise = noise + 0.3 * jax.random.uniform(white_key, taken.shape)
    best = jax.lax.top_k(jnp.where(taken, -1.0, noise).ravel(), n_cells)[1]
    return jnp.zeros(taken.size, bool).at[best].set(True).reshape(taken.shape) & ~taken


def _smooth(noise: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """Mean over a 3 by 3 window, twice, edges repeated."""
    for _ in range(2):
        padded = jnp.pad(noise, 1, mode="edge")
        rows = padded[:-2] + padded[1:-1] + padded[2:]
        noise = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9.0
    return noise


def _offset_to_nearest(marked: Bool[Array, "h w"]) -> Float[Array, "h w 2"]:
    """Offset (x, y) from each cell to the nearest marked one by steps; 0 where none is marked."""
    height, width = marked.shape
    rows, columns = jnp.divmod(nearest_marked(marked), width)
    offset = jnp.stack([columns - jnp.arange(width)[None], rows - jnp.arange(height)[:, None]], axis=2)
    return jnp.where(jnp.any(marked), offset.astype(jnp.float32), 0.0)
