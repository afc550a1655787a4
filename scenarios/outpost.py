"""Outpost: keep depots alive with ice brought by light and heavy units, on a grid with rubble, ore, day and night."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from scenarios.outpost_config import OutpostConfig
from swarm.entities import Entities, Spawn, spawn
from swarm.hierarchy import reduce_groups
from swarm.scenario import AbstractPolicy, AbstractRules, Observation, Outcome, World

DEPOT, LIGHT, HEAVY = range(3)
ICE, ORE, WATER, METAL, POWER = range(5)
STAY, NORTH, EAST, SOUTH, WEST, DIG, UNLOAD, CHARGE = range(8)
BUILD_LIGHT, BUILD_HEAVY = 1, 2
N_STORES = 5
ICE_PER_WATER, ORE_PER_METAL = 4.0, 5.0


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
    """

    ice: Bool[Array, "h w"]
    ore: Bool[Array, "h w"]
    rubble: Float[Array, "h w"]
    to_ice: Float[Array, "h w 2"]
    to_ore: Float[Array, "h w 2"]
    delivered: Float[Array, " m"]
    lost: Float[Array, " m"]


class Outpost(AbstractRules):
    """Depots burn water and die without it; units dig ice, which depots turn into water.

    Who: per team, `depot` (3 by 3 cells, immobile), `light` and `heavy` units; all of them act. Depots build units.
    Actions: a unit stays, moves to one of the four neighbouring cells, digs (ice, else ore, else rubble), unloads all
        cargo into the own depot whose cells it stands on, or charges there. A depot waits or builds a unit of a kind.
        Illegal actions are masked, and do nothing when taken all the same.
    Power: a move costs `move + move_rubble * rubble` of the cell entered, digging costs `dig`; units gain `charge` per
        step of sun, depots `power_gain` always. Charging takes what the battery lacks; where several want more than
        the depot has, each gets the same share of its want.
    Collisions: outside depots a cell holds one unit. Where several meet, a heavy beats a light; of the same weight a
        mover beats who stays; of several movers the most power survives, of equals none. Without `friendly_fire` mates
        never meet: none may enter a cell where a mate stands, and of those that want the same cell one goes.
    Observation: maps per team (`_maps`); for each entity its stores, the directions to the nearest and the driest
        depot, to ice and to ore, and three bits of its identity.
    Reward: `delivered` per water's worth (4 ice) delivered, shared by unit and depot, times (2 / (1 + w)) ** `scarcity`
        where w is the depot's water over its initial amount: water is worth most where it is scarce; `mined` per
        water's worth dug; both raised by `early * (steps left) / steps`.
    End: a world is terminated when a team has no depot left, and truncated after `steps`. An episode is a success when
        every depot lives to the end.
    Units of time: a step. Source of the numbers: Lux AI challenge, season 2, without lichen, bidding and factories'
        choice of place.
    """

    Config = OutpostConfig
    kinds = ("depot", "light", "heavy")
    actions: ClassVar[dict[str, tuple[str, ...]]] = {
        "depot": ("wait", "build light", "build heavy"),
        "light": ("stay", "north", "east", "south", "west", "dig", "unload", "charge"),
        "heavy": ("stay", "north", "east", "south", "west", "dig", "unload", "charge"),
    }
    success = "survived"
    headline = "ice_delivered"

    width: int = eqx.field(static=True)
    height: int = eqx.field(static=True)
    teams: int = eqx.field(static=True)
    capacity: tuple[int, ...] = eqx.field(static=True)
    initial: tuple[int, ...] = eqx.field(static=True)
    friendly_fire: Bool[Array, ""]
    n_ice: int = eqx.field(static=True)
    n_ore: int = eqx.field(static=True)
    rubble: Float[Array, ""]
    steps: Float[Array, ""]
    day: Int[Array, ""]
    cycle: Int[Array, ""]
    depot: dict[str, Float[Array, ""]]
    reward: dict[str, Float[Array, ""]]
    table: Kinds

    @classmethod
    def from_config(cls, config: OutpostConfig) -> "Outpost":
        """Build the rules from the validated scenario file."""
        world, population = config.world, config.population
        light, heavy = population.light, population.heavy
        (width, height), everyone = world.size, (population.depot, light, heavy)

        def per_kind(name: str) -> Array:
            return jnp.asarray([0.0, getattr(light, name), getattr(heavy, name)], jnp.float32)

        return cls(
            width=width,
            height=height,
            teams=world.teams,
            capacity=tuple(kind.capacity for kind in everyone),
            initial=tuple(kind.initial for kind in everyone),
            friendly_fire=jnp.asarray(world.friendly_fire),
            n_ice=max(1, round(world.ice * width * height)) if world.ice > 0 else 0,
            n_ore=max(1, round(world.ore * width * height)) if world.ore > 0 else 0,
            rubble=jnp.float32(world.rubble),
            steps=jnp.float32(world.steps),
            day=jnp.int32(world.day),
            cycle=jnp.int32(world.cycle),
            depot={k: jnp.float32(v) for k, v in population.depot if k not in ("capacity", "initial")},
            reward={k: jnp.float32(v) for k, v in config.reward},
            table=Kinds(**{name: per_kind(name) for name in Kinds.__dataclass_fields__}),
        )

    @property
    def n_slots(self) -> int:
        """Slots for every kind of every team."""
        return self.teams * sum(self.capacity)

    @property
    def n_teams(self) -> int:
        """One or two."""
        return self.teams

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the grid."""
        return ((self.width - 1) / 2, (self.height - 1) / 2)

    # Reset

    def reset(self, key: Key[Array, ""]) -> tuple[Entities, Fields]:
        """Draw a map: depots apart from each other, ice and ore in patches, rubble in hills."""
        depot_key, near_key, ice_key, ore_key, rubble_key = jax.random.split(key, 5)
        places = self._place_depots(depot_key)
        entities = self._populate(places)
        taken = self.depot_at(entities) >= 0
        ice = self._patches(ice_key, taken, self.n_ice, self._near_depots(near_key, places))
        ore = self._patches(ore_key, taken | ice, self.n_ore, jnp.zeros(taken.shape))
        hills = _smooth(jax.random.uniform(rubble_key, (self.height, self.width), minval=0.0, maxval=2.0))
        rubble = jnp.clip(jnp.round(hills * self.rubble), 0.0, 100.0)
        nothing = jnp.zeros(self.teams)
        return entities, Fields(
            ice=ice,
            ore=ore,
            rubble=jnp.where(taken | ice | ore, 0.0, rubble),
            to_ice=_offset_to_nearest(ice),
            to_ore=_offset_to_nearest(ore),
            delivered=nothing,
            lost=nothing,
        )

    def _place_depots(self, key: Key[Array, ""]) -> Float[Array, "p 2"]:
        """Put depots one after the other where the map is emptiest, with much chance."""
        rows, columns = jnp.meshgrid(jnp.arange(1.0, self.height - 1), jnp.arange(1.0, self.width - 1), indexing="ij")
        cells = jnp.stack([columns.ravel(), rows.ravel()], axis=1)
        n_depots = self.teams * self.initial[DEPOT]
        # Depots within this distance of each other are never chosen while there is room.
        apart = 0.7 * (self.width * self.height / n_depots) ** 0.5

        def place(clearance: Array, key: Array) -> tuple[Array, Array]:
            score = jnp.minimum(clearance, apart) + 0.25 * apart * jax.random.uniform(key, clearance.shape)
            cell = cells[jnp.argmax(score)]
            return jnp.minimum(clearance, jnp.max(jnp.abs(cells - cell[None]), axis=1)), cell

        far = jnp.full(cells.shape[0], jnp.inf)
        return jax.lax.scan(place, far, jax.random.split(key, n_depots))[1]

    def _populate(self, depots: Float[Array, "p 2"]) -> Entities:
        """Depots first, then units, which start at their team's depots in turn."""
        per_team = self.initial[DEPOT]
        kinds, teams, homes = [], [], []
        for kind in (DEPOT, LIGHT, HEAVY):
            which = jnp.arange(self.teams * self.initial[kind])
            team, number = which % self.teams, which // self.teams
            kinds.append(jnp.full(which.shape, kind))
            teams.append(team)
            homes.append((number % per_team) * self.teams + team)
        kind, team, home = jnp.concatenate(kinds), jnp.concatenate(teams), jnp.concatenate(homes)
        is_depot = kind == DEPOT
        stores = jnp.zeros((kind.shape[0], N_STORES))
        stores = stores.at[:, WATER].set(jnp.where(is_depot, self.depot["water"], 0.0))
        stores = stores.at[:, METAL].set(jnp.where(is_depot, self.depot["metal"], 0.0))
        start = jnp.minimum(self.table.build_power, self.table.battery)[kind]
        stores = stores.at[:, POWER].set(jnp.where(is_depot, self.depot["power"], start))
        wanted = jnp.ones(kind.shape, bool)
        # Units stand on different cells of their depot, lest twins of equal sight take the same way for ever.
        number = jnp.cumsum(~is_depot) - 1
        spread = jnp.stack([number % 3 - 1, number // 3 % 3 - 1], axis=1).astype(jnp.float32)
        place = depots[home] + jnp.where(is_depot[:, None], 0.0, spread)
        births = Spawn(wanted, kind, team, place, jnp.zeros(kind.shape), stores)
        return spawn(Entities.empty(self.n_slots, 2, N_STORES), births)[0]

    def _near_depots(self, key: Key[Array, ""], depots: Float[Array, "p 2"]) -> Float[Array, "h w"]:
        """A bonus around one place 3 to 6 cells from each depot, so that every depot has ice in reach."""
        angle, radius = jax.random.uniform(key, (2, depots.shape[0]))
        way = jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)], axis=1)
        # A place beyond the edge is mirrored at the depot's side of it.
        offset = (3.0 + 3.0 * radius)[:, None] * way
        upper = jnp.asarray([self.width - 1.0, self.height - 1.0])[None]
        inside = (depots + offset >= 0) & (depots + offset <= upper)
        place = depots + jnp.where(inside, offset, -offset)
        rows, columns = jnp.meshgrid(jnp.arange(self.height), jnp.arange(self.width), indexing="ij")
        distance = jnp.hypot(columns[None] - place[:, 0, None, None], rows[None] - place[:, 1, None, None])
        return jnp.max(jnp.maximum(1.0 - distance / 2.0, 0.0), axis=0)

    def _patches(
        self, key: Key[Array, ""], taken: Bool[Array, "h w"], n_cells: int, bonus: Float[Array, "h w"]
    ) -> Bool[Array, "h w"]:
        """Choose the n free cells where smooth noise and bonus are highest; white noise breaks up large patches."""
        smooth_key, white_key = jax.random.split(key)
        noise = _smooth(jax.random.uniform(smooth_key, taken.shape)) + bonus
        noise = noise + 0.3 * jax.random.uniform(white_key, taken.shape)
        best = jax.lax.top_k(jnp.where(taken, -1.0, noise).ravel(), n_cells)[1]
        return jnp.zeros(taken.size, bool).at[best].set(True).reshape(taken.shape) & ~taken

    # Geometry

    def _cell(self, entities: Entities) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
        """Row and column of each entity, inside the grid for dead slots too."""
        place = jnp.where(entities.alive[:, None], entities.position, 0.0).astype(jnp.int32)
        return place[:, 1], place[:, 0]

    def depot_at(self, entities: Entities) -> Int[Array, "h w"]:
        """Slot of the depot that covers a cell; -1: none."""
        row, column = self._cell(entities)
        around = jnp.arange(9)
        rows = jnp.where(entities.is_kind(DEPOT)[:, None], row[:, None] + around[None] // 3 - 1, self.height)
        columns = column[:, None] + around[None] % 3 - 1
        slots = jnp.broadcast_to(jnp.arange(self.n_slots, dtype=jnp.int32)[:, None], rows.shape)
        return jnp.full((self.height, self.width), -1, jnp.int32).at[rows, columns].max(slots, mode="drop")

    def home(self, entities: Entities, row: Array, column: Array, depot_at: Array) -> Int[Array, " n"]:
        """Slot of the own living depot that a unit stands on; -1: none."""
        slot = depot_at[row, column]
        own = (slot >= 0) & (entities.team[slot] == entities.team) & (entities.kind != DEPOT)
        return jnp.where(own & entities.alive, slot, -1)

    def to_depot(self, entities: Entities, detour: Array | float = 0.0) -> Float[Array, "n 2"]:
        """Offset to the centre of the nearest own depot, each `detour` (per slot) farther; 0 where there is none."""
        offset = entities.position[None, :, :] - entities.position[:, None, :]
        own = entities.is_kind(DEPOT)[None, :] & (entities.team[:, None] == entities.team[None, :])
        detour = jnp.broadcast_to(detour, entities.alive.shape)
        distance = jnp.where(own, jnp.max(jnp.abs(offset), axis=2) + detour[None, :], jnp.inf)
        nearest = jnp.argmin(distance, axis=1)
        chosen = jnp.take_along_axis(offset, nearest[:, None, None], axis=1)[:, 0]
        return jnp.where((jnp.any(own, axis=1) & entities.alive)[:, None], chosen, 0.0)

    def _is_day(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        return step % self.cycle < self.day

    # Step

    def _legal(self, entities: Entities, fields: Fields, depot_at: Int[Array, "h w"]) -> Bool[Array, "n 8"]:
        """What each entity may do; dead slots may do nothing at all."""
        row, column = self._cell(entities)
        kind, stores, table = entities.kind, entities.stores, self.table
        unit = entities.alive & (kind != DEPOT)
        power, cargo = stores[:, POWER], stores[:, ICE] + stores[:, ORE]
        rows, columns = row[:, None] + ROW_STEP[None], column[:, None] + COLUMN_STEP[None]
        on_board = (rows >= 0) & (rows < self.height) & (columns >= 0) & (columns < self.width)
        rows, columns = jnp.clip(rows, 0, self.height - 1), jnp.clip(columns, 0, self.width - 1)
        there = depot_at[rows, columns]
        foreign = (there >= 0) & (entities.team[there] != entities.team[:, None])
        mates = jnp.zeros((self.teams, self.height, self.width)).at[entities.team, row, column].add(unit)
        crowded = (mates[entities.team[:, None], rows, columns] > 0) & (there < 0)
        blocked = foreign | (crowded & ~self.friendly_fire)
        cost = move_cost(table, kind[:, None], fields.rubble[rows, columns])
        move = unit[:, None] & on_board & ~blocked & (power[:, None] >= cost)
        home = self.home(entities, row, column, depot_at)
        resource = fields.ice[row, column] | fields.ore[row, column]
        useful = jnp.where(resource, cargo < table.cargo[kind], fields.rubble[row, column] > 0)
        dig = unit & (power >= table.dig[kind]) & useful & (depot_at[row, column] < 0)
        unload = unit & (home >= 0) & (cargo > 0)
        charge = unit & (home >= 0) & (power < table.battery[kind]) & (stores[home, POWER] >= 1.0)
        units = jnp.concatenate([unit[:, None], move, jnp.stack([dig, unload, charge], axis=1)], axis=1)
        depot = entities.is_kind(DEPOT)
        build = [depot & self._can_build(entities, k) for k in (LIGHT, HEAVY)]
        depots = jnp.stack([depot, *build, *[jnp.zeros_like(depot)] * 5], axis=1)
        return units | depots

    def _can_build(self, entities: Entities, kind: int) -> Bool[Array, " n"]:
        stores = entities.stores
        affordable = (stores[:, METAL] >= self.table.build_metal[kind]) & (
            stores[:, POWER] >= self.table.build_power[kind]
        )
        return affordable & (self._room(entities, kind)[entities.team] > 0)

    def _room(self, entities: Entities, kind: int) -> Int[Array, " m"]:
        """How many more of a kind each team may have."""
        team = jnp.where(entities.is_kind(kind), entities.team, -1)
        return self.capacity[kind] - reduce_groups(team, team, self.teams, "count")

    def act(self, world: World, action: Int[Array, " n"], key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Move, collide, dig, unload, charge, refine, burn, build; no chance is involved."""
        entities, fields, table = world.entities, world.fields, self.table
        depot_at = self.depot_at(entities)
        legal = self._legal(entities, fields, depot_at)
        action = jnp.clip(action, 0, self.n_actions - 1)
        action = jnp.where(jnp.take_along_axis(legal, action[:, None], axis=1)[:, 0], action, STAY)
        unit, depot = entities.alive & (entities.kind != DEPOT), entities.is_kind(DEPOT)
        row, column, stores, moving = self._move(entities, fields, action, unit, depot_at)
        crushed = self._collide(entities, row, column, stores[:, POWER], moving, depot_at)
        working = jnp.where(unit & ~crushed, action, STAY)
        stores, rubble, mined = self._dig(fields, row, column, stores, entities.kind, working == DIG)
        home = self.home(entities, row, column, depot_at)
        stores, unloaded, received = self._unload(stores, home, working == UNLOAD)
        # Building comes before charging, since it was found affordable with the power from before the step.
        stores, births, n_refused = self._build(entities, stores, jnp.where(depot, action, 0))
        stores = self._charge(stores, home, entities.kind, working == CHARGE)
        stores = self._refine(stores, depot)
        sun = jnp.where(self._is_day(world.step), table.charge[entities.kind], 0.0)
        charged = jnp.minimum(stores[:, POWER] + sun, jnp.maximum(table.battery[entities.kind], stores[:, POWER]))
        stores = stores.at[:, POWER].set(jnp.where(unit, charged, stores[:, POWER]))
        dry = depot & (stores[:, WATER] < 0)
        dying = crushed | dry
        position = jnp.where(unit[:, None], jnp.stack([column, row], axis=1).astype(jnp.float32), entities.position)
        velocity = jnp.where(entities.alive[:, None], position - entities.position, 0.0)
        by_team = jnp.where(entities.alive, entities.team, -1)
        fields = eqx.tree_at(
            lambda f: (f.rubble, f.delivered, f.lost),
            fields,
            (
                rubble,
                fields.delivered + reduce_groups(unloaded, by_team, self.teams, "sum"),
                fields.lost + reduce_groups(crushed.astype(jnp.float32), by_team, self.teams, "sum"),
            ),
        )
        entities = eqx.tree_at(lambda e: (e.position, e.velocity, e.stores), entities, (position, velocity, stores))
        reward = self._reward(world, mined, unloaded, received, home)
        return entities, fields, Outcome(reward, dying, births, n_refused)

    def _reward(self, world: World, mined: Array, unloaded: Array, received: Array, home: Array) -> Float[Array, " n"]:
        share, early = self.reward["depot_share"], self.reward["early"]
        full = jnp.maximum(world.entities.stores[:, WATER], 0.0) / jnp.maximum(self.depot["water"], 1.0)
        worth = self.reward["delivered"] * (2.0 / (1.0 + full)) ** self.reward["scarcity"]
        own = jnp.where(unloaded > 0, unloaded * worth[home], 0.0)
        delivered = (1.0 - share) * own + jnp.where(received > 0, share * received * worth, 0.0)
        total = delivered + self.reward["mined"] * mined
        return total / ICE_PER_WATER * (1.0 + early * (self.steps - world.step) / self.steps)

    def _move(
        self, entities: Entities, fields: Fields, action: Array, unit: Array, depot_at: Array
    ) -> tuple[Array, ...]:
        """Return row, column and stores after the move, and who moved."""
        row, column = self._cell(entities)
        moving = unit & (action >= NORTH) & (action <= WEST)
        moving = moving & (self.friendly_fire | self._goes_first(entities, row, column, action, moving, depot_at))
        way = jnp.clip(action - 1, 0, 3)
        row = row + jnp.where(moving, jnp.asarray(ROW_STEP)[way], 0)
        column = column + jnp.where(moving, jnp.asarray(COLUMN_STEP)[way], 0)
        cost = jnp.where(moving, move_cost(self.table, entities.kind, fields.rubble[row, column]), 0.0)
        return row, column, entities.stores.at[:, POWER].add(-cost), moving

    def _goes_first(
        self, entities: Entities, row: Array, column: Array, action: Array, moving: Array, depot_at: Array
    ) -> Bool[Array, " n"]:
        """Of the mates that want the same cell, a heavy before a light, then the most power, then the eldest."""
        way = jnp.clip(action - 1, 0, 3)
        row = row + jnp.where(moving, jnp.asarray(ROW_STEP)[way], 0)
        column = column + jnp.where(moving, jnp.asarray(COLUMN_STEP)[way], 0)
        n_cells = self.teams * self.height * self.width
        cell = jnp.where(moving, (entities.team * self.height + row) * self.width + column, -1)
        heavy = (entities.kind == HEAVY).astype(jnp.float32)
        first = moving
        for rank in (heavy, entities.stores[:, POWER], -entities.uid.astype(jnp.float32)):
            best = reduce_groups(rank, jnp.where(first, cell, -1), n_cells, "max")[cell]
            first = first & (rank == best)
        return first | (depot_at[row, column] >= 0)

    def _collide(
        self, entities: Entities, row: Array, column: Array, power: Array, moving: Array, depot_at: Array
    ) -> Bool[Array, " n"]:
        """Who is lost where several units meet outside a depot."""
        unit = entities.alive & (entities.kind != DEPOT) & (depot_at[row, column] < 0)
        cell = jnp.where(unit, row * self.width + column, -1)
        n_cells = self.width * self.height
        rank = 2 * (entities.kind == HEAVY) + moving
        top = reduce_groups(rank.astype(jnp.int32), cell, n_cells, "max")[cell]
        strong = unit & (rank == top)
        most = reduce_groups(power, jnp.where(strong, cell, -1), n_cells, "max")[cell]
        winner = strong & (power == most)
        n_winners = reduce_groups(cell, jnp.where(winner, cell, -1), n_cells, "count")[cell]
        return unit & ~(winner & (n_winners == 1))

    def _dig(
        self, fields: Fields, row: Array, column: Array, stores: Array, kind: Array, digging: Array
    ) -> tuple[Array, Array, Array]:
        """Return stores, rubble, and the ice that each unit mined."""
        space = self.table.cargo[kind] - stores[:, ICE] - stores[:, ORE]
        gain = jnp.where(digging, jnp.minimum(self.table.dig_gain[kind], space), 0.0)
        on_ice, on_ore = fields.ice[row, column], fields.ore[row, column]
        mined, ore = jnp.where(on_ice, gain, 0.0), jnp.where(on_ore & ~on_ice, gain, 0.0)
        spent = jnp.where(digging, self.table.dig[kind], 0.0)
        cleared = jnp.where(digging & ~on_ice & ~on_ore, self.table.dig_rubble[kind], 0.0)
        rubble = jnp.maximum(fields.rubble.at[row, column].add(-cleared), 0.0)
        stores = stores.at[:, ICE].add(mined).at[:, ORE].add(ore).at[:, POWER].add(-spent)
        return stores, rubble, mined

    def _unload(self, stores: Array, home: Array, unloading: Array) -> tuple[Array, Array, Array]:
        """Return stores, the ice that each unit delivered, and the ice that each depot received."""
        given = jnp.where(unloading[:, None], stores[:, : ORE + 1], 0.0)
        received = reduce_groups(given, jnp.where(unloading, home, -1), self.n_slots, "sum")
        return stores.at[:, : ORE + 1].add(received - given), given[:, ICE], received[:, ICE]

    def _charge(self, stores: Array, home: Array, kind: Array, charging: Array) -> Float[Array, "n s"]:
        want = jnp.where(charging, self.table.battery[kind] - stores[:, POWER], 0.0)
        asked = reduce_groups(want, jnp.where(charging, home, -1), self.n_slots, "sum")
        part = jnp.clip(jnp.where(asked > 0, stores[:, POWER] / jnp.maximum(asked, 1.0), 0.0), 0.0, 1.0)
        granted = jnp.floor(jnp.where(charging, want * part[home], 0.0))
        taken = reduce_groups(granted, jnp.where(charging, home, -1), self.n_slots, "sum")
        return stores.at[:, POWER].add(granted - taken)

    def _build(self, entities: Entities, stores: Array, action: Array) -> tuple[Array, Spawn, Array]:
        """Return stores, births in the order of the depots' slots, and how many a full kind refused."""
        wanted, n_refused = jnp.zeros_like(entities.alive), jnp.int32(0)
        for kind, build in ((LIGHT, BUILD_LIGHT), (HEAVY, BUILD_HEAVY)):
            asking = entities.is_kind(DEPOT) & (action == build)
            mates = asking[:, None] & (entities.team[:, None] == jnp.arange(self.teams)[None])
            rank = jnp.take_along_axis(jnp.cumsum(mates, axis=0), entities.team[:, None], axis=1)[:, 0]
            served = asking & (rank <= self._room(entities, kind)[entities.team])
            wanted, n_refused = wanted | served, n_refused + jnp.sum(asking & ~served, dtype=jnp.int32)
        kind = jnp.where(action == BUILD_HEAVY, HEAVY, LIGHT)
        metal = jnp.where(wanted, self.table.build_metal[kind], 0.0)
        power = jnp.where(wanted, self.table.build_power[kind], 0.0)
        stores = stores.at[:, METAL].add(-metal).at[:, POWER].add(-power)
        born = jnp.zeros_like(stores).at[:, POWER].set(jnp.minimum(power, self.table.battery[kind]))
        births = Spawn(wanted, kind, entities.team, entities.position, jnp.zeros_like(entities.heading), born)
        return stores, births, n_refused

    def _refine(self, stores: Array, depot: Array) -> Float[Array, "n s"]:
        """Turn ice into water and ore into metal, gain power, and burn water."""
        ice = jnp.where(depot, jnp.minimum(stores[:, ICE], self.depot["refine_ice"]), 0.0)
        ore = jnp.where(depot, jnp.minimum(stores[:, ORE], self.depot["refine_ore"]), 0.0)
        water = ice / ICE_PER_WATER - jnp.where(depot, self.depot["upkeep"], 0.0)
        power = jnp.where(depot, self.depot["power_gain"], 0.0)
        return stores + jnp.stack([-ice, -ore, water, ore / ORE_PER_METAL, power], axis=1)

    def ended(self, world: World) -> Bool[Array, ""]:
        """A team has no depot left."""
        team = jnp.where(world.entities.is_kind(DEPOT), world.entities.team, -1)
        return jnp.any(reduce_groups(team, team, self.teams, "count") == 0)

    # What is seen

    def observe(self, world: World) -> Observation:
        """Maps for each team and features for each entity."""
        entities, fields = world.entities, world.fields
        depot_at = self.depot_at(entities)
        row, column = self._cell(entities)
        return Observation(
            maps=jax.vmap(lambda team: self._maps(world, depot_at, row, column, team))(jnp.arange(self.teams)),
            view=jnp.where(entities.alive, entities.team, 0),
            cell=jnp.stack([row, column], axis=1),
            own=self._own(world, depot_at, row, column),
            kind=jnp.where(entities.alive, entities.kind, 0),
            alive=entities.alive,
            action_mask=self._legal(entities, fields, depot_at),
        )

    def _maps(self, world: World, depot_at: Array, row: Array, column: Array, team: Array) -> Float[Array, "h w c"]:
        """Ice, ore, rubble; own cells and stores; own and foreign units; sun, time left, and the board itself."""
        entities, fields = world.entities, world.fields
        alive, kind, stores = entities.alive, entities.kind, entities.stores
        own, unit = alive & (entities.team == team), alive & (kind != DEPOT)
        battery, cargo = jnp.maximum(self.table.battery[kind], 1.0), jnp.maximum(self.table.cargo[kind], 1.0)
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
        units = jnp.zeros((self.height, self.width, rows.shape[1])).at[row, column].add(rows)
        depots = jnp.where((covered & mine)[:, :, None], of_depot[depot_at], 0.0)
        left = (self.steps - world.step) / self.steps
        whole = jnp.ones((self.height, self.width))
        layers = [
            fields.ice,
            fields.ore,
            fields.rubble / 100.0,
            covered & mine,
            covered & ~mine,
            whole,
            whole * self._is_day(world.step),
            whole * left,
        ]
        return jnp.concatenate([jnp.stack([x.astype(jnp.float32) for x in layers], axis=2), depots, units], axis=2)

    def _own(self, world: World, depot_at: Array, row: Array, column: Array) -> Float[Array, "n o"]:
        """Stores as shares, where the nearest and the driest depot, ice and ore are, sun, time left, counts."""
        entities, fields, table = world.entities, world.fields, self.table
        stores, kind = entities.stores, entities.kind
        cargo, battery = jnp.maximum(table.cargo[kind], 1.0), jnp.maximum(table.battery[kind], 1.0)
        to_depot, to_ice, to_ore = self.to_depot(entities), fields.to_ice[row, column], fields.to_ore[row, column]
        water = jnp.where(entities.alive, stores[:, WATER], 0.0)
        to_driest = self.to_depot(entities, detour=1000.0 * water)
        steps_home = jnp.maximum(jnp.sum(jnp.maximum(jnp.abs(to_depot) - 1.0, 0.0), axis=1), 0.0)
        per_step = move_cost(table, kind, self.rubble)
        margin = (stores[:, POWER] - steps_home * per_step) / jnp.maximum(10.0 * per_step, 1.0)
        n_own = [
            reduce_groups(x, x, self.teams, "count")[entities.team] / 10.0
            for x in (jnp.where(entities.is_kind(k), entities.team, -1) for k in (LIGHT, HEAVY))
        ]
        unit = [
            stores[:, POWER] / battery,
            stores[:, ICE] / cargo,
            stores[:, ORE] / cargo,
            self.home(entities, row, column, depot_at) >= 0,
            fields.ice[row, column],
            fields.ore[row, column],
            jnp.tanh(margin),
            jnp.tanh(steps_home / 5.0),
            *[jnp.tanh(self._water_at(entities, depot_at, x) / 200.0) for x in (to_depot, to_driest)],
        ]
        depot = [jnp.tanh(stores[:, WATER] / 200.0), stores[:, METAL] / 100.0, jnp.tanh(stores[:, POWER] / 1000.0)]
        # A call sign, by which units in the same place can part.
        unit += [(entities.uid >> bit) % 2 for bit in range(3)]
        everyone = [jnp.full_like(margin, (self.steps - world.step) / self.steps), *n_own]
        sun = jnp.broadcast_to(self._is_day(world.step), margin.shape)
        is_depot = kind == DEPOT
        columns = [jnp.where(is_depot, 0.0, x) for x in unit] + [jnp.where(is_depot, x, 0.0) for x in depot]
        columns += [*everyone, sun.astype(jnp.float32)]
        near = jnp.concatenate([jnp.clip(x / 2.0, -1.0, 1.0) for x in (to_depot, to_driest, to_ice, to_ore)], axis=1)
        far = jnp.concatenate([x / 16.0 for x in (to_depot, to_driest, to_ice, to_ore)], axis=1)
        features = jnp.concatenate([jnp.stack(columns, axis=1), near, far], axis=1)
        return jnp.where(entities.alive[:, None], features, 0.0)

    def _water_at(self, entities: Entities, depot_at: Array, offset: Float[Array, "n 2"]) -> Float[Array, " n"]:
        """Water of the depot at an offset from each entity; 0 where there is none."""
        place = jnp.where(entities.alive[:, None], entities.position + offset, 0.0).astype(jnp.int32)
        slot = depot_at[place[:, 1], place[:, 0]]
        return jnp.where(slot >= 0, entities.stores[slot, WATER], 0.0)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """Whether all depots live; ice delivered, water stored and units lost, per team."""
        entities, fields = world.entities, world.fields
        depot = entities.is_kind(DEPOT)
        n_depots = self.teams * self.initial[DEPOT]
        return {
            "survived": (jnp.sum(depot) >= n_depots).astype(jnp.float32),
            "ice_delivered": jnp.mean(fields.delivered),
            "water": jnp.sum(jnp.where(depot, entities.stores[:, WATER], 0.0)) / self.teams,
            "n_lost": jnp.mean(fields.lost),
        }

    def scripted_policy(self) -> AbstractPolicy:
        """The greedy policy."""
        from scenarios.outpost_greedy import Greedy

        return Greedy(self)

    def draw(self, axes: Any, world: World) -> None:
        """Draw the map, the depots with their water, and the units with their cargo."""
        from scenarios.outpost_view import draw

        draw(axes, world)


# Row and column steps of north, east, south, west. Numpy, because importing must not start a jax backend.
ROW_STEP = np.asarray([-1, 0, 1, 0])
COLUMN_STEP = np.asarray([0, 1, 0, -1])


def move_cost(table: Kinds, kind: Array, rubble: Array) -> Array:
    """Power that a move costs, by kind and by the rubble of the cell entered; whole numbers."""
    return jnp.floor(table.move[kind] + table.move_rubble[kind] * rubble)


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
    rows, columns = jnp.divmod(jnp.arange(height * width), width)
    distance = jnp.abs(rows[None] - rows[:, None]) + jnp.abs(columns[None] - columns[:, None])
    best = jnp.argmin(jnp.where(marked.ravel()[None], distance, 10_000), axis=1)
    offset = jnp.stack([columns[best] - columns, rows[best] - rows], axis=1).reshape(height, width, 2)
    return jnp.where(jnp.any(marked), offset.astype(jnp.float32), 0.0)
