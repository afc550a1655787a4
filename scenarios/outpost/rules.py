"""The rules of outpost."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from scenarios.common.alike import numbers
from scenarios.outpost.board import (
    BUILD_HEAVY,
    BUILD_LIGHT,
    CHARGE,
    DEPOT,
    DIG,
    HEAVY,
    ICE,
    ICE_PER_WATER,
    LIGHT,
    METAL,
    ORE,
    ORE_PER_METAL,
    POWER,
    STAY,
    UNLOAD,
    WATER,
    Board,
    Fields,
    Kinds,
)
from scenarios.outpost.config import OutpostConfig
from scenarios.outpost.map import draw_map
from scenarios.outpost.moves import collide, legal_actions, move
from scenarios.outpost.sight import observe
from swarm.population.entities import Entities, Spawn
from swarm.population.hierarchy import reduce_groups
from swarm.simulation.rules import AbstractRules
from swarm.simulation.types import Observation, Outcome, Start, World


class AbstractOutpost(AbstractRules):
    """Depots burn water and die without it; units dig ice, which depots turn into water.

    Who: per team, `depot` (3 by 3 cells, immobile), `light` and `heavy` units; all of them act. Depots build units.
    Actions: a unit stays, moves to one of the four neighbouring cells, digs (ice, else ore, else rubble), unloads all
        cargo into the own depot whose cells it stands on, or charges there. A depot waits or builds a unit of a kind.
        Illegal actions are masked, and do nothing when taken all the same. A team has no more of a kind than its
        capacity: where more depots build it in one step than there is room for, those of the lowest slots do, and the
        others keep their metal and are counted (`n_refused`).
    Power: a move costs `move + move_rubble * rubble` of the cell entered, digging costs `dig`; units gain `charge` per
        step of sun, depots `power_gain` always. Charging takes what the battery lacks; where several want more than
        the depot has, each gets the same share of its want.
    Collisions: outside depots a cell holds one unit. Where several meet, a heavy beats a light; of the same weight a
        mover beats who stays; of several movers the most power survives, of equals none. Without `friendly_fire` mates
        do not meet: none may enter a cell where a mate stands, and of those that want the same cell one goes. Only
        where a depot dies do mates meet, because the units on its cells then stand on open ground.
    Observation: maps per team (`sight._maps`); for each entity its stores, the directions to the nearest and
        the driest depot, to ice and to ore, and three bits of its identity.
    Reward: `delivered` per water's worth (4 ice) delivered, shared by unit and depot, times (2 / (1 + w)) ** `scarcity`
        where w is the depot's water over its initial amount: water is worth most where it is scarce; `mined` per
        water's worth dug; both raised by `early * (steps left) / steps`.
    End: a world is terminated when a team has no depot left, and truncated after `steps`. An episode is a success when
        every depot lives to the end; of two teams, the metrics also say so for each.
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

    board: Board
    depot: dict[str, Float[Array, ""]]
    reward: dict[str, Float[Array, ""]]

    @classmethod
    def from_config(cls, config: OutpostConfig) -> "AbstractOutpost":
        """Build the rules from the validated scenario file."""
        world, population = config.world, config.population
        light, heavy = population.light, population.heavy
        (width, height), everyone = world.size, (population.depot, light, heavy)

        def per_kind(name: str) -> Array:
            return jnp.asarray([0.0, getattr(light, name), getattr(heavy, name)], jnp.float32)

        board = Board(
            width=width,
            height=height,
            teams=world.teams,
            capacity=tuple(kind.capacity for kind in everyone),
            initial=tuple(kind.initial for kind in everyone),
            n_ice=max(1, round(world.ice * width * height)) if world.ice > 0 else 0,
            n_ore=max(1, round(world.ore * width * height)) if world.ore > 0 else 0,
            friendly_fire=jnp.asarray(world.friendly_fire),
            rubble=jnp.float32(world.rubble),
            steps=jnp.float32(world.steps),
            day=jnp.int32(world.day),
            cycle=jnp.int32(world.cycle),
            table=Kinds(**{name: per_kind(name) for name in Kinds.__dataclass_fields__}),
        )
        return cls(
            board=board,
            depot=numbers(population.depot, but=("capacity", "initial")),
            reward=numbers(config.reward),
        )

    @property
    def n_slots(self) -> int:
        """Slots for every kind of every team."""
        return self.board.n_slots

    @property
    def n_teams(self) -> int:
        """One or two."""
        return self.board.teams

    @property
    def capacities(self) -> tuple[tuple[int, ...], ...]:
        """The same for each team."""
        return (self.board.capacity,) * self.board.teams

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the grid."""
        return ((self.board.width - 1) / 2, (self.board.height - 1) / 2)

    def reset(self, key: Key[Array, ""]) -> Start:
        """Draw a map."""
        return Start(*draw_map(self.board, self.depot, key))

    def act(self, world: World, action: Int[Array, " n"], key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Move, collide, dig, unload, charge, refine, burn, build; no chance is involved."""
        board, entities, fields, table = self.board, world.entities, world.fields, self.board.table
        depot_at = board.depot_at(entities)
        legal = legal_actions(board, entities, fields, depot_at)
        action = jnp.where(jnp.take_along_axis(legal, action[:, None], axis=1)[:, 0], action, STAY)
        unit, depot = entities.alive & (entities.kind != DEPOT), entities.is_kind(DEPOT)
        row, column, stores, moving = move(board, entities, fields, action, unit, depot_at)
        crushed = collide(board, entities, row, column, stores[:, POWER], moving, depot_at)
        working = jnp.where(unit & ~crushed, action, STAY)
        stores, rubble, mined = self._dig(fields, row, column, stores, entities.kind, working == DIG)
        home = board.home(entities, row, column, depot_at)
        stores, unloaded, received = self._unload(stores, home, working == UNLOAD)
        # Building comes before charging, since it was found affordable with the power from before the step.
        stores, births, refused = self._build(entities, stores, jnp.where(depot, action, 0))
        stores = self._charge(stores, home, entities.kind, working == CHARGE)
        stores = self._refine(stores, depot)
        sun = jnp.where(board.is_day(world.step), table.charge[entities.kind], 0.0)
        charged = jnp.minimum(stores[:, POWER] + sun, jnp.maximum(table.battery[entities.kind], stores[:, POWER]))
        stores = stores.at[:, POWER].set(jnp.where(unit, charged, stores[:, POWER]))
        dry = depot & (stores[:, WATER] < 0)
        dying = crushed | dry
        position = jnp.where(unit[:, None], jnp.stack([column, row], axis=1).astype(jnp.float32), entities.position)
        velocity = jnp.where(entities.alive[:, None], position - entities.position, 0.0)
        by_team = jnp.where(entities.alive, entities.team, -1)
        fields = eqx.tree_at(
            lambda f: (f.rubble, f.delivered, f.lost, f.refused),
            fields,
            (
                rubble,
                fields.delivered + reduce_groups(unloaded, by_team, board.teams, "sum"),
                fields.lost + reduce_groups(crushed.astype(jnp.float32), by_team, board.teams, "sum"),
                fields.refused + reduce_groups(refused.astype(jnp.float32), by_team, board.teams, "sum"),
            ),
        )
        entities = eqx.tree_at(lambda e: (e.position, e.velocity, e.stores), entities, (position, velocity, stores))
        reward = self._reward(world, mined, unloaded, received, home)
        return entities, fields, Outcome(reward, dying, births)

    def _reward(self, world: World, mined: Array, unloaded: Array, received: Array, home: Array) -> Float[Array, " n"]:
        share, early = self.reward["depot_share"], self.reward["early"]
        full = jnp.maximum(world.entities.stores[:, WATER], 0.0) / jnp.maximum(self.depot["water"], 1.0)
        worth = self.reward["delivered"] * (2.0 / (1.0 + full)) ** self.reward["scarcity"]
        own = jnp.where(unloaded > 0, unloaded * worth[home], 0.0)
        delivered = (1.0 - share) * own + jnp.where(received > 0, share * received * worth, 0.0)
        total = delivered + self.reward["mined"] * mined
        return total / ICE_PER_WATER * (1.0 + early * (self.board.steps - world.step) / self.board.steps)

    def _dig(
        self, fields: Fields, row: Array, column: Array, stores: Array, kind: Array, digging: Array
    ) -> tuple[Array, Array, Array]:
        """Return stores, rubble, and the ice that each unit mined."""
        space = self.board.table.cargo[kind] - stores[:, ICE] - stores[:, ORE]
        gain = jnp.where(digging, jnp.minimum(self.board.table.dig_gain[kind], space), 0.0)
        on_ice, on_ore = fields.ice[row, column], fields.ore[row, column]
        mined, ore = jnp.where(on_ice, gain, 0.0), jnp.where(on_ore & ~on_ice, gain, 0.0)
        spent = jnp.where(digging, self.board.table.dig[kind], 0.0)
        cleared = jnp.where(digging & ~on_ice & ~on_ore, self.board.table.dig_rubble[kind], 0.0)
        rubble = jnp.maximum(fields.rubble.at[row, column].add(-cleared), 0.0)
        stores = stores.at[:, ICE].add(mined).at[:, ORE].add(ore).at[:, POWER].add(-spent)
        return stores, rubble, mined

    def _unload(self, stores: Array, home: Array, unloading: Array) -> tuple[Array, Array, Array]:
        """Return stores, the ice that each unit delivered, and the ice that each depot received."""
        given = jnp.where(unloading[:, None], stores[:, : ORE + 1], 0.0)
        received = reduce_groups(given, jnp.where(unloading, home, -1), self.n_slots, "sum")
        return stores.at[:, : ORE + 1].add(received - given), given[:, ICE], received[:, ICE]

    def _charge(self, stores: Array, home: Array, kind: Array, charging: Array) -> Float[Array, "n s"]:
        want = jnp.where(charging, self.board.table.battery[kind] - stores[:, POWER], 0.0)
        asked = reduce_groups(want, jnp.where(charging, home, -1), self.n_slots, "sum")
        part = jnp.clip(jnp.where(asked > 0, stores[:, POWER] / jnp.maximum(asked, 1.0), 0.0), 0.0, 1.0)
        granted = jnp.floor(jnp.where(charging, want * part[home], 0.0))
        taken = reduce_groups(granted, jnp.where(charging, home, -1), self.n_slots, "sum")
        return stores.at[:, POWER].add(granted - taken)

    def _build(self, entities: Entities, stores: Array, action: Array) -> tuple[Array, Spawn, Array]:
        """Return stores, births in the order of the depots' slots, and who asked for more than there is room for."""
        wanted, refused = jnp.zeros_like(entities.alive), jnp.zeros_like(entities.alive)
        for kind, build in ((LIGHT, BUILD_LIGHT), (HEAVY, BUILD_HEAVY)):
            asking = entities.is_kind(DEPOT) & (action == build)
            mates = asking[:, None] & (entities.team[:, None] == jnp.arange(self.board.teams)[None])
            rank = jnp.take_along_axis(jnp.cumsum(mates, axis=0), entities.team[:, None], axis=1)[:, 0]
            served = asking & (rank <= self.board.room(entities, kind)[entities.team])
            wanted, refused = wanted | served, refused | (asking & ~served)
        kind = jnp.where(action == BUILD_HEAVY, HEAVY, LIGHT)
        metal = jnp.where(wanted, self.board.table.build_metal[kind], 0.0)
        power = jnp.where(wanted, self.board.table.build_power[kind], 0.0)
        stores = stores.at[:, METAL].add(-metal).at[:, POWER].add(-power)
        born = jnp.zeros_like(stores).at[:, POWER].set(jnp.minimum(power, self.board.table.battery[kind]))
        facing, builder = jnp.zeros_like(entities.heading), jnp.arange(self.n_slots)
        births = Spawn(wanted, kind, entities.team, entities.position, facing, born, builder)
        return stores, births, refused

    def _refine(self, stores: Array, depot: Array) -> Float[Array, "n s"]:
        """Turn ice into water and ore into metal, gain power, and burn water."""
        ice = jnp.where(depot, jnp.minimum(stores[:, ICE], self.depot["refine_ice"]), 0.0)
        ore = jnp.where(depot, jnp.minimum(stores[:, ORE], self.depot["refine_ore"]), 0.0)
        water = ice / ICE_PER_WATER - jnp.where(depot, self.depot["upkeep"], 0.0)
        power = jnp.where(depot, self.depot["power_gain"], 0.0)
        return stores + jnp.stack([-ice, -ore, water, ore / ORE_PER_METAL, power], axis=1)

    def ended(self, world: World) -> Bool[Array, ""]:
        """A team has no depot left."""
        return jnp.any(self.board.count(world.entities, DEPOT) == 0)

    def observe(self, world: World) -> Observation:
        """Maps for each team and features for each entity."""
        return observe(self.board, world)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """Whether all depots live; ice delivered, water stored, units lost and units refused, per team.

        With two teams also of each, as `survived_team_0` and so on, and how many depots each still has.
        """
        entities, fields, teams = world.entities, world.fields, self.board.teams
        depot = entities.is_kind(DEPOT)
        team = jnp.where(depot, entities.team, -1)
        n_depot = self.board.count(entities, DEPOT)
        survived = n_depot >= self.board.initial[DEPOT]
        water = jnp.where(depot, entities.stores[:, WATER], 0.0)
        metrics = {
            "survived": jnp.all(survived).astype(jnp.float32),
            "ice_delivered": jnp.mean(fields.delivered),
            "water": jnp.sum(water) / teams,
            "n_lost": jnp.mean(fields.lost),
            "n_refused": jnp.mean(fields.refused),
        }
        if teams == 1:
            return metrics
        of_each = {
            "survived": survived,
            "ice_delivered": fields.delivered,
            "water": reduce_groups(water, team, teams, "sum"),
            "n_lost": fields.lost,
            "n_refused": fields.refused,
            "n_depot": n_depot,
        }
        return metrics | {
            f"{name}_team_{m}": values[m].astype(jnp.float32) for name, values in of_each.items() for m in range(teams)
        }
