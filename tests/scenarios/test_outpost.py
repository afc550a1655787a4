"""Outpost's rules, one by one, on boards set up by hand; and that the game can be won, but not by chance."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from scipy.ndimage import distance_transform_cdt

from scenarios.outpost.board import (
    BUILD_HEAVY,
    BUILD_LIGHT,
    CHARGE,
    DEPOT,
    DIG,
    EAST,
    HEAVY,
    ICE,
    LIGHT,
    METAL,
    N_STORES,
    NORTH,
    ORE,
    POWER,
    SOUTH,
    STAY,
    UNLOAD,
    WATER,
    WEST,
    nearest_marked,
)
from scenarios.outpost.moves import _goes_first
from swarm import RandomPolicy, load, make
from swarm.population.entities import Entities

OVERRIDES = {
    "world.size": [14, 14],
    "world.teams": 2,
    "world.friendly_fire": True,
    "population.depot.initial": 1,
    "population.depot.capacity": 2,
    "population.light.capacity": 5,
    "population.light.initial": 0,
    "population.heavy.capacity": 3,
    "population.heavy.initial": 0,
}
# Night, so that no power comes from the sun, and so that early rewards have a known weight.
NIGHT, STEPS = 40, 256
EARLY = 1.0 + 0.1 * (STEPS - NIGHT) / STEPS

play_step = eqx.filter_jit(lambda simulator, world, action: simulator.step(world, action))
look = eqx.filter_jit(lambda simulator, world: simulator.rules.observe(world))
play_reset = eqx.filter_jit(lambda simulator, key: simulator.reset(key))


@pytest.fixture(scope="module")
def simulator():
    return make("outpost", OVERRIDES)


@pytest.fixture(scope="module")
def blank(simulator):
    """A world to set boards up in."""
    return play_reset(simulator, jax.random.key(0))[0]


def piece(kind, x, y, team=0, **stores):
    return {"kind": kind, "team": team, "x": x, "y": y} | stores


def depot(x, y, team=0, **stores):
    return piece(DEPOT, x, y, team, **({"water": 150.0, "power": 1000.0} | stores))


def light(x, y, team=0, **stores):
    return piece(LIGHT, x, y, team, **({"power": 100.0} | stores))


def heavy(x, y, team=0, **stores):
    return piece(HEAVY, x, y, team, **({"power": 1000.0} | stores))


# Each team has a depot in a corner of its own, out of the way; slots 0 and 1.
HOMES = (depot(1, 1), depot(12, 12, team=1))
COLUMNS = {"ice": ICE, "ore": ORE, "water": WATER, "metal": METAL, "power": POWER}


class Board:
    """A world set up by hand: two depots, then the given pieces, in slots 2, 3, ..."""

    def __init__(self, simulator, blank, *pieces, homes=HOMES, ice=(), ore=(), rubble=(), step=NIGHT):
        self.simulator, self.first = simulator, len(homes)
        pieces, e = (*homes, *pieces), blank.entities
        n = e.alive.shape[0]
        position, stores = np.zeros((n, 2), np.float32), np.zeros((n, 5), np.float32)
        kind, team, uid = np.zeros(n, np.int32), np.zeros(n, np.int32), np.full(n, -1, np.int32)
        for slot, p in enumerate(pieces):
            position[slot], kind[slot], team[slot], uid[slot] = (p["x"], p["y"]), p["kind"], p["team"], slot
            for name, column in COLUMNS.items():
                stores[slot, column] = p.get(name, 0.0)
        entities = eqx.tree_at(
            lambda e: (e.alive, e.uid, e.kind, e.team, e.position, e.stores, e.next_uid),
            e,
            tuple(map(jnp.asarray, (uid >= 0, uid, kind, team, position, stores, np.int32(len(pieces))))),
        )
        maps = {"ice": np.zeros((14, 14), bool), "ore": np.zeros((14, 14), bool)}
        for name, cells in (("ice", ice), ("ore", ore)):
            for x, y in cells:
                maps[name][y, x] = True
        hills = np.zeros((14, 14), np.float32)
        for (x, y), height in dict(rubble).items():
            hills[y, x] = height
        fields = eqx.tree_at(
            lambda f: (f.ice, f.ore, f.rubble),
            blank.fields,
            (jnp.asarray(maps["ice"]), jnp.asarray(maps["ore"]), jnp.asarray(hills)),
        )
        self.world = eqx.tree_at(lambda w: (w.entities, w.fields, w.step), blank, (entities, fields, jnp.int32(step)))

    def play(self, *actions, depots=(STAY, STAY)):
        """Take a step: the pieces' actions, in order; missing ones stay."""
        self.before = self.world
        action = np.zeros(self.world.entities.alive.shape[0], np.int32)
        action[: len(depots)] = depots
        action[self.first : self.first + len(actions)] = actions
        self.world, self.timestep = play_step(self.simulator, self.world, jnp.asarray(action))
        return self

    def alive(self, *numbers):
        return [bool(self.world.entities.alive[self.first + i]) for i in numbers]

    def place(self, number):
        return tuple(self.world.entities.position[self.first + number].tolist())

    def store(self, slot, column):
        return float(self.world.entities.stores[slot, column])

    def gained(self, slot, column):
        """By how much a store changed in the last step; slots, so that depots are 0 and 1 and pieces begin at 2."""
        return self.store(slot, column) - float(self.before.entities.stores[slot, column])

    def legal(self):
        return np.asarray(look(self.simulator, self.world).action_mask)


@pytest.fixture
def board(simulator, blank):
    return lambda *pieces, **options: Board(simulator, blank, *pieces, **options)


@pytest.fixture
def peaceful(simulator, blank):
    """Boards without friendly fire; a number of the rules, so the compiled step is the same."""
    rules = eqx.tree_at(lambda s: s.rules.board.friendly_fire, simulator, jnp.asarray(False))
    return lambda *pieces, **options: Board(rules, blank, *pieces, **options)


# Collisions


def test_a_heavy_beats_a_light_whoever_moves(board):
    b = board(light(5, 5), heavy(6, 5, team=1)).play(EAST)
    assert b.alive(0, 1) == [False, True]
    b = board(light(5, 5), heavy(7, 5)).play(EAST, WEST)  # mates who enter the same cell are not spared
    assert b.alive(0, 1) == [False, True]
    b = board(light(5, 5), heavy(6, 5, team=1)).play(STAY, WEST)
    assert b.alive(0, 1) == [False, True]
    assert b.place(1) == (5.0, 5.0)
    assert b.timestep.terminated[2]
    assert float(b.world.fields.lost[0]) == 1.0


@pytest.mark.parametrize("make_unit", [light, heavy])
def test_of_the_same_weight_a_mover_beats_who_stays(board, make_unit):
    # Even against more power.
    b = board(make_unit(5, 5, power=60.0), make_unit(6, 5, team=1, power=120.0)).play(EAST)
    assert b.alive(0, 1) == [True, False]


def test_a_digging_unit_stays(board):
    b = board(light(5, 5), light(6, 5, team=1), ice=[(6, 5)]).play(EAST, DIG)
    assert b.alive(0, 1) == [True, False]


def test_of_several_movers_the_most_power_survives(board):
    b = board(light(5, 5, power=50.0), light(7, 5, power=51.0), light(6, 4, power=49.0)).play(EAST, WEST, SOUTH)
    assert b.alive(0, 1, 2) == [False, True, False]


def test_of_movers_with_equal_power_none_survives(board):
    b = board(light(5, 5), light(7, 5, team=1), light(6, 4, power=20.0)).play(EAST, WEST, SOUTH)
    assert b.alive(0, 1, 2) == [False, False, False]


def test_two_lights_of_equal_power_do_not_matter_to_a_heavy(board):
    b = board(light(5, 5), light(7, 5), heavy(6, 4)).play(EAST, WEST, SOUTH)
    assert b.alive(0, 1, 2) == [False, False, True]


def test_nobody_is_lost_on_the_cells_of_a_depot(board):
    around = [(x, y) for x in (0, 1, 2) for y in (0, 1, 2)]
    for x, y in around:
        b = board(light(x, y), light(x, y), heavy(x, y)).play()
        assert b.alive(0, 1, 2) == [True, True, True]
    b = board(light(2, 3), light(2, 3 - 1), heavy(3, 2)).play(NORTH, STAY, WEST)
    assert b.place(0) == b.place(1) == b.place(2) == (2.0, 2.0)
    assert b.alive(0, 1, 2) == [True, True, True]


def test_foes_that_swap_or_follow_each_other_do_not_meet(board):
    b = board(light(5, 5), light(6, 5, team=1)).play(EAST, WEST)
    assert b.alive(0, 1) == [True, True]
    assert (b.place(0), b.place(1)) == ((6.0, 5.0), (5.0, 5.0))
    b = board(light(5, 5), light(6, 5, team=1)).play(EAST, EAST)
    assert b.alive(0, 1) == [True, True]
    # 0 and 1 swap, but 2 enters the cell that 1 enters (0 has left it): those two meet, with equal power.
    b = board(light(5, 5), light(6, 5, team=1), light(5, 4, team=1)).play(EAST, WEST, SOUTH)
    assert b.alive(0, 1, 2) == [True, False, False]


@pytest.mark.parametrize("mate", [light(6, 5), heavy(6, 5)])
def test_without_friendly_fire_nobody_enters_a_cell_that_a_mate_stands_on(peaceful, mate):
    b = peaceful(heavy(5, 5), mate, light(6, 4, team=1))
    legal = b.legal()
    assert not legal[2, EAST]
    assert legal[4, SOUTH]  # a foe may
    # Whether the mate leaves it or not.
    for other in (STAY, EAST):
        b = peaceful(heavy(5, 5), mate).play(EAST, other)
        assert b.place(0) == (5.0, 5.0)
        assert b.gained(2, POWER) == 0.0
        assert b.alive(0, 1) == [True, True]


@pytest.mark.parametrize(
    ("first", "second", "goes"),
    [
        (light(5, 5, power=150.0), heavy(7, 5, power=100.0), 1),  # the heavy, whatever its power
        (light(5, 5, power=150.0), light(7, 5, power=100.0), 0),  # the most power
        (light(5, 5), light(7, 5), 0),  # the eldest
    ],
)
def test_without_friendly_fire_one_of_the_mates_that_want_a_cell_goes(peaceful, first, second, goes):
    b = peaceful(first, second).play(EAST, WEST)
    assert b.alive(0, 1) == [True, True]
    assert b.place(goes) == (6.0, 5.0)
    assert b.place(1 - goes) == ((5.0, 5.0), (7.0, 5.0))[1 - goes]
    assert b.gained(2 + 1 - goes, POWER) == 0.0  # who waits pays nothing


def test_without_friendly_fire_foes_still_collide(peaceful):
    b = peaceful(light(5, 5), heavy(7, 5, team=1)).play(EAST, WEST)
    assert b.alive(0, 1) == [False, True]


STEPS_OF = {STAY: (0, 0), NORTH: (0, -1), EAST: (1, 0), SOUTH: (0, 1), WEST: (-1, 0)}


def reference_step(pieces, actions, friendly_fire):
    """Where units stand after a step on open ground, and which live: section by section, a cell at a time."""
    stand = [(p["x"], p["y"]) for p in pieces]
    want = [(x + STEPS_OF[a][0], y + STEPS_OF[a][1]) for (x, y), a in zip(stand, actions, strict=True)]
    if not friendly_fire:
        for i, p in enumerate(pieces):
            mates = [j for j, q in enumerate(pieces) if j != i and q["team"] == p["team"]]
            rank = [(q["kind"] == HEAVY, q["power"], -j) for j, q in enumerate(pieces)]
            rivals = [j for j in mates if actions[j] != STAY and want[j] == want[i] and rank[j] > rank[i]]
            # A rival that may not go itself, because a mate stands there, stops the others by the same reason.
            if actions[i] != STAY and (any(stand[j] == want[i] for j in mates) or rivals):
                actions = [*actions[:i], STAY, *actions[i + 1 :]]
    place = [w if a != STAY else s for s, w, a in zip(stand, want, actions, strict=True)]
    cost = {LIGHT: 1.0, HEAVY: 20.0}
    power = [p["power"] - (cost[p["kind"]] if a != STAY else 0.0) for p, a in zip(pieces, actions, strict=True)]
    lives = []
    for i, cell in enumerate(place):
        met = [j for j in range(len(pieces)) if place[j] == cell]
        heaviest = [j for j in met if pieces[j]["kind"] == max(pieces[k]["kind"] for k in met)]
        movers = [j for j in heaviest if actions[j] != STAY] or heaviest
        strongest = [j for j in movers if power[j] == max(power[k] for k in movers)]
        lives.append(strongest == [i])
    return place, lives


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), friendly_fire=st.booleans())
def test_collisions_are_those_of_the_rules_looked_up_cell_by_cell(simulator, blank, data, friendly_fire):
    cells = data.draw(st.lists(st.tuples(st.integers(5, 7), st.integers(5, 7)), min_size=2, max_size=7, unique=True))
    pieces, room = [], {(LIGHT, 0): 5, (LIGHT, 1): 5, (HEAVY, 0): 3, (HEAVY, 1): 3}
    for x, y in cells:
        which = data.draw(st.sampled_from([k for k, left in room.items() if left]))
        room[which] -= 1
        pieces.append(piece(which[0], x, y, team=which[1], power=float(data.draw(st.integers(60, 63)))))
    actions = [data.draw(st.sampled_from(list(STEPS_OF))) for _ in cells]
    rules = eqx.tree_at(lambda s: s.rules.board.friendly_fire, simulator, jnp.asarray(friendly_fire))
    b = Board(rules, blank, *pieces).play(*actions)
    place, lives = reference_step(pieces, actions, friendly_fire)
    everyone = range(len(pieces))
    assert b.alive(*everyone) == lives
    assert [b.place(i) for i in everyone] == place
    lost = [sum(not alive and p["team"] == m for p, alive in zip(pieces, lives, strict=True)) for m in (0, 1)]
    assert b.world.fields.lost.tolist() == lost
    if not friendly_fire and len({p["team"] for p in pieces}) == 1:
        assert all(lives)


def test_units_stacked_on_a_depot_meet_when_it_dies(peaceful):
    # Even mates: the cells are open ground from then on. The one that leaves is safe.
    homes = (depot(1, 1, water=0.0), HOMES[1], depot(5, 12))
    b = peaceful(light(1, 1, power=50.0), light(1, 1, power=60.0), light(1, 1), homes=homes).play()
    assert b.alive(0, 1, 2) == [True, True, True]
    assert not b.world.entities.alive[0]
    b.play(STAY, STAY, SOUTH)
    assert b.alive(0, 1, 2) == [False, True, True]


def test_no_unit_enters_a_foreign_depot(board):
    # From all sides, and a heavy no more than a light.
    around = [((x, y), a) for k in (11, 12, 13) for (x, y), a in (((k, 10), SOUTH), ((10, k), EAST))]
    for make_unit in (light, heavy):
        for (x, y), action in around:
            b = board(make_unit(x, y)).play(action)
            assert b.place(0) == (x, y)
            assert b.gained(2, POWER) == 0.0
    b = board(light(10, 12, team=1)).play(EAST)
    assert b.place(0) == (11.0, 12.0)


def test_who_is_crushed_does_no_work_any_more(board):
    b = board(light(5, 5), heavy(6, 5, team=1), ice=[(5, 5)]).play(DIG, WEST)
    assert b.alive(0, 1) == [False, True]
    assert float(b.timestep.reward[2]) == 0.0
    assert float(b.world.entities.stores[2, ICE]) == 0.0


# Moving, digging, unloading, charging


@pytest.mark.parametrize(
    ("action", "place"), [(STAY, (5, 5)), (NORTH, (5, 4)), (EAST, (6, 5)), (SOUTH, (5, 6)), (WEST, (4, 5))]
)
def test_each_move_leads_to_its_cell(board, action, place):
    assert board(light(5, 5)).play(action).place(0) == place


@pytest.mark.parametrize(
    ("unit", "rubble", "cost"),
    [
        (light(5, 5), 0.0, 1.0),
        (light(5, 5), 19.0, 1.0),  # floor(1 + 0.95)
        (light(5, 5), 60.0, 4.0),  # 1 + 0.05 * 60
        (heavy(5, 5), 0.0, 20.0),
        (heavy(5, 5), 60.0, 80.0),  # 20 + 60
    ],
)
def test_a_move_costs_power_by_the_rubble_of_the_cell_entered(board, unit, rubble, cost):
    b = board(unit, rubble={(6, 5): rubble, (5, 5): 99.0}).play(EAST)
    assert b.gained(2, POWER) == -cost


@pytest.mark.parametrize(("unit", "sun"), [(light(5, 5), 1.0), (heavy(5, 5), 10.0)])
def test_units_gain_power_by_day_only_and_never_beyond_their_battery(board, unit, sun):
    assert board(unit, step=29).play().gained(2, POWER) == sun
    assert board(unit, step=30).play().gained(2, POWER) == 0.0
    assert board(unit, step=50).play().gained(2, POWER) == sun
    battery = 150.0 if unit["kind"] == LIGHT else 3000.0
    assert board(unit | {"power": battery}, step=0).play().gained(2, POWER) == 0.0


@pytest.mark.parametrize(("unit", "gain", "cost"), [(light(5, 5), 2.0, 5.0), (heavy(5, 5), 20.0, 60.0)])
def test_digging_takes_power_and_gives_ice_or_ore_or_clears_rubble(board, unit, gain, cost):
    for place, column in (("ice", ICE), ("ore", ORE)):
        b = board(unit, **{place: [(5, 5)]}).play(DIG)
        assert b.gained(2, column) == gain
        assert b.gained(2, POWER) == -cost
    b = board(unit, rubble={(5, 5): 50.0}).play(DIG)
    assert float(b.world.fields.rubble[5, 5]) == 50.0 - gain  # clears as much as it would gain
    assert b.gained(2, POWER) == -cost
    assert b.gained(2, ICE) == b.gained(2, ORE) == 0.0
    b = board(unit, rubble={(5, 5): 1.0}).play(DIG)
    assert float(b.world.fields.rubble[5, 5]) == 0.0


def test_digging_fills_the_hold_and_no_more(board):
    b = board(light(5, 5, ice=60.0, ore=39.0), ice=[(5, 5)]).play(DIG)
    assert b.gained(2, ICE) == 1.0
    assert not b.legal()[2, DIG]


@pytest.mark.parametrize(("ice", "refined"), [(40.0, 40.0), (400.0, 100.0)])
def test_unloaded_ice_becomes_water_four_to_one_up_to_the_depots_rate(board, ice, refined):
    b = board(heavy(2, 2, ice=ice)).play(UNLOAD)
    assert b.store(2, ICE) == 0.0
    assert b.gained(0, WATER) == refined / 4.0 - 1.0  # less the upkeep
    assert b.store(0, ICE) == ice - refined
    assert b.gained(1, WATER) == -1.0
    assert b.world.fields.delivered.tolist() == [ice, 0.0]


@pytest.mark.parametrize(("ore", "refined"), [(25.0, 25.0), (80.0, 50.0)])
def test_unloaded_ore_becomes_metal_five_to_one_up_to_the_depots_rate(board, ore, refined):
    b = board(light(2, 2, ore=ore)).play(UNLOAD)
    assert b.gained(0, METAL) == refined / 5.0
    assert b.store(0, ORE) == ore - refined


def test_charging_takes_what_the_battery_lacks(board):
    b = board(light(1, 0, power=30.0)).play(CHARGE)
    assert b.gained(2, POWER) == 120.0
    assert b.gained(0, POWER) == -120.0 + 50.0  # 50 is the depot's own gain


def test_a_depot_short_of_power_gives_each_the_same_share_of_its_want(board):
    # Wants 100 and 2900, and 300 to give: a tenth of each.
    homes = (depot(1, 1, power=300.0), HOMES[1])
    b = board(light(0, 0, power=50.0), heavy(2, 0, power=100.0), homes=homes).play(CHARGE, CHARGE)
    assert b.gained(2, POWER) == 10.0
    assert b.gained(3, POWER) == 290.0
    assert b.store(0, POWER) == 50.0


# Depots


def test_a_depot_without_ice_dies_at_step_151(board):
    b = board(step=0)
    for _ in range(150):
        b.play()
    assert b.world.entities.alive.tolist()[:2] == [True, True]
    assert b.store(0, WATER) == 0.0
    assert not bool(b.timestep.world_terminated)
    b.play()
    assert int(b.world.step) == 151
    assert b.world.entities.alive.tolist()[:2] == [False, False]
    assert bool(b.timestep.world_terminated)


def test_a_depot_needs_3400_ice_to_live_1000_steps(board):
    # (1000 - 150) water at 4 ice each; with four ice less it lives a step less. Both have enough at the start.
    b = board(homes=(depot(1, 1, ice=3400.0), depot(12, 12, team=1, ice=3396.0)), step=0)
    action = jnp.zeros(b.world.entities.alive.shape[0], jnp.int32)
    lived = np.zeros(2, int)
    for _ in range(1001):
        b.world, _ = play_step(b.simulator, b.world, action)
        lived += np.asarray(b.world.entities.alive[:2])
    assert lived.tolist() == [1000, 999]
    assert b.store(0, ICE) == b.store(1, ICE) == 0.0


def test_each_unit_serves_the_depot_it_stands_on(board):
    homes = (depot(1, 1), HOMES[1], depot(5, 12))
    b = board(light(2, 2, ice=40.0), light(5, 11, ice=80.0), homes=homes).play(UNLOAD, UNLOAD)
    assert [b.gained(slot, WATER) for slot in (0, 1, 2)] == [9.0, -1.0, 19.0]
    assert b.timestep.reward[2] > b.timestep.reward[0] > 0.0


def test_the_world_ends_when_a_team_loses_its_last_depot(board):
    homes = (depot(1, 1, water=1.0), depot(12, 12, team=1), depot(5, 12, water=3.0))
    b = board(light(8, 8), homes=homes)
    ended = []
    for _ in range(4):
        b.play()
        ended.append((b.world.entities.alive.tolist()[:3], bool(b.timestep.world_terminated)))
    assert ended == [
        ([True, True, True], False),
        ([False, True, True], False),
        ([False, True, True], False),
        ([False, True, False], True),
    ]
    # Everybody's task ends, so the unit that lives on is terminated too.
    assert bool(b.timestep.terminated[3])
    assert not bool(b.timestep.world_truncated)


@pytest.mark.parametrize(
    ("build", "metal", "power", "kind", "start"),
    [(BUILD_LIGHT, 10.0, 50.0, LIGHT, 50.0), (BUILD_HEAVY, 100.0, 500.0, HEAVY, 500.0)],
)
def test_building_costs_metal_and_power_and_the_newborn_stands_on_the_depot(board, build, metal, power, kind, start):
    b = board(homes=(depot(1, 1, metal=105.0), HOMES[1])).play(depots=(build, STAY))
    assert b.gained(0, METAL) == -metal
    assert b.gained(0, POWER) == -power + 50.0
    e = b.world.entities
    assert bool(e.alive[2])
    assert (int(e.kind[2]), int(e.team[2]), int(e.uid[2])) == (kind, 0, 2)
    assert e.position[2].tolist() == [1.0, 1.0]
    assert b.store(2, POWER) == start
    # It acts from the next step on.
    assert not bool(b.timestep.valid[2])
    assert bool(b.timestep.observation.alive[2])


def test_a_full_kind_cannot_be_built_and_a_request_too_many_costs_nothing(board):
    homes = tuple(depot(x, y, team, metal=100.0) for x, y, team in ((1, 1, 0), (12, 12, 1), (12, 1, 0)))
    four = [light(4 + i, 7) for i in range(4)]
    b = board(*four, light(8, 9), homes=homes)
    legal = b.legal()
    assert not legal[0, BUILD_LIGHT]  # team 0 has 5 of 5
    assert legal[1, BUILD_LIGHT]  # team 1 has none
    assert legal[0, BUILD_HEAVY]
    # Room for one and two that want it: the first is served, the other refused, counted, and keeps its metal.
    b = board(*four, homes=homes)
    assert b.legal()[[0, 2], BUILD_LIGHT].tolist() == [True, True]
    b.play(depots=(BUILD_LIGHT, STAY, BUILD_LIGHT))
    assert int(b.world.entities.is_kind(LIGHT, 0).sum()) == 5
    assert [b.gained(slot, METAL) for slot in (0, 2)] == [-10.0, 0.0]
    assert b.gained(2, POWER) == 50.0
    # That a kind has so many at most is a rule of the game, and no want of room.
    np.testing.assert_array_equal(b.world.fields.refused, [1.0, 0.0])
    assert int(b.world.n_overflow) == 0
    assert int(b.world.status) == 0


def test_charging_and_building_never_spend_more_power_than_the_depot_has(board):
    homes = (depot(1, 1, metal=100.0, power=500.0), HOMES[1])
    b = board(heavy(0, 0, power=0.0), homes=homes).play(CHARGE, depots=(BUILD_HEAVY, STAY))
    e = b.world.entities
    total = float(jnp.sum(jnp.where(e.alive & (e.team == 0), e.stores[:, POWER], 0.0)))
    assert total == 550.0  # 500 and the depot's gain; power is passed on, not made
    assert b.store(0, POWER) >= 0.0


# Masks


def test_masks_forbid_what_the_rules_do_not_allow(board):
    units = {
        "in the corner": (light(13, 0), {NORTH, EAST, DIG, UNLOAD, CHARGE}),
        "beside a foreign depot": (light(10, 12), {EAST, DIG, UNLOAD, CHARGE}),
        "without power": (light(5, 5, power=0.0), {NORTH, EAST, SOUTH, WEST, DIG, UNLOAD, CHARGE}),
        "with power for some": (heavy(5, 8, power=30.0), {EAST, DIG, UNLOAD, CHARGE}),
        "at home, empty and full of power": (light(2, 2, power=150.0), {DIG, UNLOAD, CHARGE}),
        "at home, laden": (light(0, 2, ice=3.0), {WEST, DIG}),
        "on ice, full": (light(8, 3, ice=50.0, ore=50.0), {DIG, UNLOAD, CHARGE}),
        "on ice": (light(9, 5), {UNLOAD, CHARGE}),
        "on rubble, with too little power to dig": (light(3, 9, power=4.0), {DIG, UNLOAD, CHARGE}),
    }
    b = board(*[unit for unit, _ in units.values()], ice=[(8, 3), (9, 5)], rubble={(6, 8): 20.0, (3, 9): 9.0})
    legal = b.legal()
    for slot, (name, (_, forbidden)) in enumerate(units.items(), start=2):
        assert set(np.flatnonzero(~legal[slot])) == forbidden, name
    assert not legal[2 + len(units) :].any()  # dead slots


def test_an_illegal_action_does_nothing(board):
    units = [light(13, 0), light(10, 12), light(5, 5, power=0.0), light(2, 2, power=150.0), light(8, 3), heavy(9, 9)]
    b = board(*units, rubble={(8, 3): 5.0})
    stays = board(*units, rubble={(8, 3): 5.0}).play()
    legal = b.legal()
    n_tried = 0
    for action in range(-1, 9):
        within = int(np.clip(action, 0, 7))
        illegal = ~legal[:, within]
        n_tried += illegal[:8].sum()
        actions = jnp.where(jnp.asarray(illegal), action, STAY).astype(jnp.int32)
        world, timestep = play_step(b.simulator, b.world, actions)
        for x, y in zip(
            jax.tree.leaves((world.entities, world.fields)),
            jax.tree.leaves((stays.world.entities, stays.world.fields)),
            strict=True,
        ):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(timestep.reward, stays.timestep.reward)
    assert n_tried > 20


# Reward


@pytest.mark.parametrize(("water", "worth"), [(150.0, 1.0), (300.0, 4 / 9), (75.0, 16 / 9), (0.0, 4.0)])
def test_a_delivery_is_paid_half_to_the_unit_and_half_to_the_depot_more_when_it_is_dry(board, water, worth):
    # 40 ice are 10 water; its worth is (2 / (1 + w))^2, w being the depot's water over the initial 150.
    homes = (depot(1, 1, water=water), HOMES[1])
    b = board(light(2, 2, ice=40.0), light(7, 7), homes=homes).play(UNLOAD)
    half = 0.5 * 10.0 * worth * EARLY
    np.testing.assert_allclose(b.timestep.reward[:4], [half, 0.0, half, 0.0], rtol=1e-5)


@pytest.mark.parametrize(("step", "early"), [(0, 1.1), (STEPS // 2, 1.05)])
def test_without_scarcity_rewards_are_those_published(simulator, blank, step, early):
    plain = eqx.tree_at(lambda s: s.rules.reward["scarcity"], simulator, jnp.float32(0.0))
    homes = (depot(1, 1, water=900.0), HOMES[1])
    b = Board(plain, blank, light(2, 2, ice=40.0), heavy(5, 5), homes=homes, ice=[(5, 5)], step=step).play(UNLOAD, DIG)
    np.testing.assert_allclose(b.timestep.reward[:4], np.asarray([5.0, 0.0, 5.0, 0.5]) * early, rtol=1e-5)


def test_each_of_two_units_is_paid_for_its_own_and_the_depot_for_both(board):
    b = board(light(2, 2, ice=40.0), light(0, 0, ice=20.0)).play(UNLOAD, UNLOAD)
    expected = np.asarray([7.5, 0.0, 5.0, 2.5]) * EARLY
    np.testing.assert_allclose(b.timestep.reward[:4], expected, rtol=1e-5)


def test_mined_ice_is_paid_a_tenth_and_ore_and_rubble_nothing(board):
    b = board(heavy(5, 5), heavy(7, 7), heavy(9, 9), ice=[(5, 5)], ore=[(7, 7)], rubble={(9, 9): 50.0})
    b.play(DIG, DIG, DIG)
    np.testing.assert_allclose(b.timestep.reward[2:5], [0.1 * 20.0 / 4.0 * EARLY, 0.0, 0.0], rtol=1e-5)


# Numbers, sizes, metrics


def test_the_shipped_numbers_are_those_of_the_published_game():
    config = load("outpost").config
    world, depot_, light_, heavy_ = config.world, *(getattr(config.population, k) for k in ("depot", "light", "heavy"))
    assert (world.day, world.cycle) == (30, 50)
    assert (depot_.water, depot_.power, depot_.upkeep, depot_.power_gain, depot_.refine_ice) == (150, 1000, 1, 50, 100)
    names = ("build_metal", "build_power", "cargo", "battery", "charge", "move", "move_rubble")
    names = (*names, "dig", "dig_gain", "dig_rubble")
    assert [getattr(light_, name) for name in names] == [10, 50, 100, 150, 1, 1, 0.05, 5, 2, 2]
    assert [getattr(heavy_, name) for name in names] == [100, 500, 1000, 3000, 10, 20, 1, 60, 20, 20]
    reward = config.reward
    assert (reward.delivered, reward.depot_share, reward.mined, reward.early) == (1, 0.5, 0.1, 0.1)


def test_metrics_tell_the_teams_apart(board):
    homes = (depot(1, 1, water=90.0), depot(12, 12, team=1, water=0.0), depot(5, 12, water=10.0))
    b = board(light(2, 2, ice=40.0), light(8, 8), heavy(9, 8, team=1), homes=homes).play(UNLOAD, STAY, WEST)
    metrics = {name: float(value) for name, value in b.simulator.metrics(b.world).items()}
    assert metrics["survived"] == 0.0
    assert (metrics["ice_delivered"], metrics["n_lost"]) == (20.0, 0.5)  # means over the teams
    of_each = {
        name: (metrics[f"{name}_team_0"], metrics[f"{name}_team_1"]) for name in ("survived", "n_depot", "water")
    }
    assert of_each == {"survived": (1.0, 0.0), "n_depot": (2.0, 0.0), "water": (90.0 + 10.0 - 2.0 + 10.0, 0.0)}
    assert (metrics["ice_delivered_team_0"], metrics["ice_delivered_team_1"]) == (40.0, 0.0)
    assert (metrics["n_lost_team_0"], metrics["n_lost_team_1"]) == (1.0, 0.0)
    assert metrics["water"] == metrics["water_team_0"] / 2


def test_the_eldest_goes_first_among_the_sixteen_millionth_too():
    """Single precision does not tell the numbers 2^24 and 2^24 + 1 apart."""
    board = make("outpost").rules.board
    entities = Entities.empty(3, 2, N_STORES)
    where = lambda e: (e.uid, e.alive, e.kind)  # noqa: E731
    young = jnp.asarray([2**24 + 1, 2**24, 2**24 + 2], jnp.int32)
    entities = eqx.tree_at(where, entities, (young, jnp.ones(3, bool), jnp.full(3, LIGHT, jnp.int32)))
    # From the north and the south into the same cell, and one by itself.
    row, column, action = jnp.asarray([3, 5, 8]), jnp.asarray([4, 4, 4]), jnp.asarray([SOUTH, NORTH, NORTH])
    nowhere = jnp.full((board.height, board.width), -1, jnp.int32)
    first = _goes_first(board, entities, row, column, action, jnp.ones(3, bool), nowhere)
    assert first.tolist() == [False, True, True]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(shape=st.sampled_from([(3, 5), (8, 8)]), share=st.sampled_from([0.0, 0.04, 0.3, 1.0]), seed=st.integers(0, 99))
@example(shape=(128, 128), share=0.0002, seed=0)  # the largest board: distance and index together fit a number
def test_the_nearest_cell_is_that_of_all_pairs(shape, share, seed):
    marked = np.random.default_rng(seed).random(shape) < share
    found = np.asarray(nearest_marked(jnp.asarray(marked)))
    if not marked.any():
        assert (found == -1).all()
        return
    rows, columns = np.indices(shape)
    distance = np.abs(found // shape[1] - rows) + np.abs(found % shape[1] - columns)
    np.testing.assert_array_equal(distance, distance_transform_cdt(~marked, metric="taxicab"))
    assert marked.ravel()[found].all()
    if marked.size < 100:  # of equally near ones the lowest
        y, x = np.nonzero(marked)
        steps = np.abs(y[None, None] - rows[..., None]) + np.abs(x[None, None] - columns[..., None])
        np.testing.assert_array_equal(found, np.flatnonzero(marked)[np.argmin(steps, axis=2)])


CROWD = {
    "world.size": [64, 64],
    "world.teams": 2,
    "population.depot.capacity": 6,
    "population.depot.initial": 6,
    "population.light.capacity": 800,
    "population.light.initial": 800,
    "population.heavy.capacity": 200,
    "population.heavy.initial": 200,
}


def largest(function, *arguments):
    """Size of the largest array that a function makes."""
    sizes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(variable.aval.size for variable in equation.outvars if hasattr(variable.aval, "size"))
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return max(sizes)


def test_nothing_grows_with_the_square_of_units_or_cells():
    simulator = make("outpost", CROWD)
    rules, key = simulator.rules, jax.random.key(0)
    world = jax.eval_shape(simulator.reset, key)[0]
    action = jax.ShapeDtypeStruct((rules.n_slots,), jnp.int32)
    observation = jax.eval_shape(rules.observe, world)
    n_cells, n = 64 * 64, rules.n_slots
    assert n == 2 * 1006
    for function, arguments in (
        (rules.reset, (key,)),
        (rules.act, (world, action, key)),
        (rules.observe, (world,)),
        (rules.scripted_policy(), (world, observation, key)),
    ):
        assert largest(function, *arguments) <= 32 * max(n, n_cells)


def test_a_picture_shows_the_units_and_depots_of_both_teams(board):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    b = board(light(5, 5), light(6, 5), heavy(7, 7, team=1))
    b.simulator.rules.draw(axes, jax.tree.map(np.asarray, eqx.tree_at(lambda w: w.key, b.world, None)))
    assert sorted(len(c.get_offsets()) for c in axes.collections) == [0, 0, 0, 0, 1, 1, 2, 2]  # discs and their cargo
    assert len(axes.patches) == 2
    assert [line.split(":")[0] for line in axes.get_title().split("\n")[1:]] == ["blue", "red"]


# The game as a whole


def test_greedy_finds_the_way_round_a_foreign_depot(peaceful):
    # Full, and exactly behind it: every step aside is a step away from home.
    b = peaceful(light(10, 6, ice=100.0), homes=(depot(2, 6), depot(6, 6, team=1)))
    policy, simulator = b.simulator.rules.scripted_policy(), b.simulator
    choose = eqx.filter_jit(lambda world: policy(world, simulator.rules.observe(world), jax.random.key(0)))
    for _ in range(14):
        b.world, _ = play_step(simulator, b.world, choose(b.world))
    assert b.world.fields.delivered.tolist() == [100.0, 0.0]


@pytest.fixture(scope="module")
def survival():
    """Share of 16 default worlds in which every depot lives to the end, by policy."""
    simulator = make("outpost")
    greedy, random = simulator.rules.scripted_policy(), RandomPolicy()

    # One program for both, since compiling takes longer than playing.
    def episode(is_greedy, key):
        world, timestep = simulator.reset(key)
        n_depots = jnp.sum(world.entities.is_kind(DEPOT))

        def body(carry, step_key):
            world, timestep = carry
            actions = [policy(world, timestep.observation, step_key) for policy in (greedy, random)]
            return simulator.step(world, jnp.where(is_greedy, *actions)), None

        (world, _), _ = jax.lax.scan(body, (world, timestep), jax.random.split(key, STEPS))
        return jnp.sum(world.entities.is_kind(DEPOT)) == n_depots

    keys = jax.random.split(jax.random.key(1), 16)
    play = jax.jit(lambda kinds: jax.vmap(lambda kind: jax.vmap(lambda key: episode(kind, key))(keys))(kinds))
    greedy_share, random_share = play(jnp.asarray([True, False])).mean(axis=1).tolist()
    return {"greedy": greedy_share, "random": random_share}


def test_greedy_keeps_every_depot_alive_in_most_worlds(survival):
    assert survival["greedy"] >= 0.75


def test_random_actions_keep_hardly_any_depot_alive(survival):
    assert survival["random"] <= 0.1
