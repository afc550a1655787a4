"""Patrol: what drones see, tell and draw, and how well the scripted policy does."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm import RandomPolicy, make
from swarm.core.errors import ConfigError

reset = eqx.filter_jit(lambda simulator, key: simulator.reset(key))
step = eqx.filter_jit(lambda simulator, world, action: simulator.step(world, action))
PRICES = {"reward.energy": 2.0, "reward.crash": 2.0}
CALM = {"air.wind": [0.0, 0.0], "air.turbulence": False, "radio.loss": 0.0, **PRICES}
SURE = jnp.zeros((4, 2))


@pytest.fixture(scope="module")
def simulator():
    return make("patrol", CALM)


def placed(simulator, places, base=(2.0, 2.0), energy=None):
    """A world with drones at rest at given places of the field, and nothing known."""
    world, _ = reset(simulator, jax.random.key(0))
    position = jnp.concatenate([jnp.asarray(places, jnp.float32), jnp.full((4, 1), 1.5)], axis=1)
    fields = eqx.tree_at(lambda f: f.base, world.fields, jnp.asarray([*base, 1.5]))
    entities = eqx.tree_at(lambda e: e.position, world.entities, position)
    if energy is not None:
        entities = eqx.tree_at(lambda e: e.stores, entities, jnp.asarray(energy, jnp.float32)[:, None])
    return eqx.tree_at(lambda w: (w.entities, w.fields), world, (entities, fields))


APART = [[14.0, 14.0], [14.0, 8.0], [8.0, 14.0], [2.0, 9.0]]


def test_a_drone_sees_the_cells_below_it_and_the_first_to_see_is_paid(simulator):
    world = placed(simulator, APART)
    after, timestep = step(simulator, world, SURE)
    x, y = np.meshgrid(np.arange(16) + 0.5, np.arange(16) + 0.5)
    for number, (px, py) in enumerate(APART):
        seen = np.hypot(x - px, y - py) < 1.2
        np.testing.assert_array_equal(np.asarray(after.fields.known[number]), seen)
    price = 2.0 * 0.2 * 3.6406 / 58.249
    expected = 10.0 * np.asarray(after.fields.known).sum(axis=(1, 2)) / 256 - price
    np.testing.assert_allclose(timestep.reward, expected, atol=1e-3)
    # Seen once, paid once.
    _, again = step(simulator, after, SURE)
    np.testing.assert_allclose(again.reward, -price, atol=1e-3)


def test_news_pass_from_drone_to_drone_to_the_base(simulator):
    # Neighbours in a chain are 4 m apart, out of range of the next but one; the last is near the base.
    world = placed(simulator, [[13.0, 2.0], [9.0, 2.0], [5.0, 2.0], [2.0, 5.0]], base=(2.0, 2.0))
    far = np.zeros((16, 16), bool)
    known = []
    for _ in range(2):
        world, _ = step(simulator, world, SURE)
        far |= np.asarray(world.fields.known[0])
        known.append([bool(world.fields.known[i, 2, 13]) for i in range(4)] + [bool(world.fields.told[2, 13])])
    assert known[0] == [True, True, False, False, False]
    # The third hears it and tells the base in the same step, and the base all who hear that.
    assert known[1] == [True] * 5


def test_flight_draws_what_physics_says_and_the_pad_fills(simulator):
    rules = simulator.rules
    full = float(rules.level.battery.capacity[0])
    world = placed(simulator, [[2.0, 2.0], [14.0, 8.0], [8.0, 14.0], [14.0, 14.0]], energy=[20.0] * 4)
    after, _ = step(simulator, world, SURE)
    charge = np.asarray(after.entities.stores[:, 0])
    np.testing.assert_allclose(charge[1:], 20.0 - 0.2 * float(rules.level.hover[0]), rtol=1e-3)
    np.testing.assert_allclose(charge[0], 20.0 + 0.2 * 7.0 * float(rules.level.hover[0]), rtol=1e-3)
    assert full == pytest.approx(16.0 * float(rules.level.hover[0]))
    assert float(after.fields.spent) == pytest.approx(0.8 * float(rules.level.hover[0]), rel=1e-3)


@pytest.mark.parametrize(
    ("places", "energy", "lost"),
    [
        (APART, [0.5, 50.0, 50.0, 50.0], [0]),  # empty
        ([[14.0, 14.0], [14.2, 14.0], *APART[2:]], None, [0, 1]),  # each other
        ([[15.95, 14.0], *APART[1:]], None, [0]),  # over the edge
        (APART, None, []),
    ],
)
def test_who_crashes_is_lost_with_what_it_has_not_told(simulator, places, energy, lost):
    after, timestep = step(simulator, placed(simulator, places, energy=energy), SURE)
    alive = np.asarray(after.entities.alive)
    np.testing.assert_array_equal(np.flatnonzero(~alive), lost)
    assert not np.asarray(after.fields.known)[~alive][:, 0].any()
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(timestep.reward) < -1.0), lost)


def test_a_drone_keeps_clear_of_others_and_of_the_edge_whatever_it_is_told(simulator):
    world = placed(simulator, [[8.0, 8.0], [10.0, 8.0], [14.0, 14.0], [2.0, 9.0]], energy=[50.0] * 4)
    told = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    nearest = np.inf
    for _ in range(20):
        world, _ = step(simulator, world, told)
        place = np.asarray(world.entities.position)
        nearest = min(nearest, np.linalg.norm(place[0] - place[1]))
    assert bool(world.entities.alive.all())
    # They went where they were told, as far as there was room.
    assert 0.24 < nearest < 0.6
    assert 15.0 < place[2, 0] < 16.0 - 0.12


def test_drones_know_what_the_way_back_would_leave_of_the_battery(simulator):
    level = simulator.rules.level
    world = placed(simulator, APART, energy=[0.8 * float(level.battery.capacity[0])] * 4)
    # 7 m from the base, at 1.5 m/s, hovering 16 s: the way back takes 7 / 1.5 / 16 of the battery, and a third more.
    spare = level.spare(world.entities, jnp.asarray([2.0, 2.0]))
    np.testing.assert_allclose(spare[3], 0.8 - 7.0 / 1.5 / 16.0 * 1.3, rtol=1e-5)


def test_the_scripted_policy_covers_more_than_chance_and_with_a_reserve_loses_nobody():
    # The program of the other tests, for whole episodes; chance crashes nobody but those whose battery is empty.
    simulator = make("patrol", CALM | {"frontier.reserve": 0.15})

    def fly(policy):
        act, ends = eqx.filter_jit(policy.act), []
        for number in range(3):
            world, timestep = reset(simulator, jax.random.key(number))
            memory = policy.start(world.entities.n_slots)
            for _ in range(200):
                key = jax.random.fold_in(world.key, world.step)
                action, memory = act(world, timestep.observation, memory, key)
                world, timestep = step(simulator, world, action)
            ends.append(simulator.rules.metrics(world))
        return jax.tree.map(lambda *x: np.mean(x), *ends)

    frontier, chance = fly(simulator.rules.scripted_policy()), fly(RandomPolicy(2))
    assert frontier["lost"] == 0
    assert frontier["told"] > 0.6
    assert frontier["told"] > 2.5 * chance["told"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"world.cells": [10, 16]}, "a multiple of 4"),
        ({"population.drone.footprint": 0.5}, "cells could never be seen"),
        ({"population.drone.initial": 40, "population.drone.capacity": 40}, "do not fit above a pad"),
        ({"energy.pad": 9.0}, "wider than world.size"),
        ({"energy.efficiency": 1.5}, "efficiency"),
        ({"radio.loss": 1.5}, "radio.loss"),
        ({"radio.range": 0.2}, "shorter than two radii"),
        ({"observation.window": 4}, "an odd number"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as error:
        make("patrol", overrides)
    assert "\n" not in str(error.value)
