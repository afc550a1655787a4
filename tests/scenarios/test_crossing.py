"""Crossing: who swaps with whom, what a crash is, what is paid, and how well the scripted policy does."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm import make
from swarm.core.errors import ConfigError
from swarm.simulation.policy import AbstractPolicy

reset = eqx.filter_jit(lambda simulator, key: simulator.reset(key))
step = eqx.filter_jit(lambda simulator, world, action: simulator.step(world, action))
FEW = {
    "population.drone.capacity": 6,
    "population.drone.initial": 6,
    "world.pillars": 2,
    "observation.others": 3,
    "population.drone.model": "attitude_lag",
    "air.turbulence": False,
    "air.wind": [0.0, 0.0],
}


class Straight(AbstractPolicy):
    """To the goal, whoever is in the way."""

    def __call__(self, world, observation, key):
        way = jnp.where(world.entities.alive[:, None], world.fields.goal - world.entities.position, 0.0)
        return jnp.clip(way, -1.0, 1.0)


@pytest.fixture(scope="module")
def simulator():
    return make("crossing", FEW)


def placed(simulator, places, velocity=0.0):
    """A world with drones at given places; the others hover along a side."""
    world, _ = reset(simulator, jax.random.key(0))
    n = simulator.rules.n_slots
    position = np.stack([np.linspace(0.5, 7.5, n), np.full(n, 0.4), np.full(n, 1.5)], axis=1)
    position[: len(places)] = places
    new = jnp.asarray(position, jnp.float32), jnp.full((n, 3), velocity, jnp.float32)
    fields = eqx.tree_at(lambda f: f.pillars.centre, world.fields, jnp.asarray([[4.0, 4.0], [2.0, 6.0]]))
    entities = eqx.tree_at(lambda e: (e.position, e.velocity), world.entities, new)
    return eqx.tree_at(lambda w: (w.entities, w.fields), world, (entities, fields))


def test_everybody_goes_to_where_another_one_started(simulator):
    world, _ = reset(simulator, jax.random.key(3))
    start, goal = np.asarray(world.fields.start), np.asarray(world.fields.goal)
    np.testing.assert_array_equal(np.sort(start, axis=0), np.sort(goal, axis=0))
    assert np.linalg.norm((goal - start)[:, :2], axis=1).min() > 2 * (3.0 - 0.15) - 0.2
    away = np.linalg.norm(np.asarray(world.fields.pillars.centre) - 4.0, axis=1)
    assert (away + 0.25 < 3.0 - 0.15 - 0.12).all()


@pytest.mark.parametrize(
    ("places", "lost"),
    [
        ([[2.0, 2.0, 1.0], [2.2, 2.0, 1.0]], [0, 1]),  # each other
        ([[2.0, 2.0, 1.0], [2.3, 2.0, 1.0]], []),
        ([[4.0, 4.3, 1.0]], [0]),  # the pillar, 0.25 + 0.12 away
        ([[4.0, 4.45, 1.0]], []),
        ([[2.0, 2.0, 0.1]], [0]),  # the ground
        ([[2.0, 2.0, 2.95]], [0]),  # the ceiling
        ([[7.95, 2.0, 1.0]], [0]),  # a side
    ],
)
def test_who_touches_is_lost(simulator, places, lost):
    world = placed(simulator, places)
    after, timestep = step(simulator, world, jnp.zeros((6, 3)))
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(after.entities.alive)), lost)
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(timestep.reward) < -1.5), lost)
    assert float(simulator.rules.metrics(after)["lost"]) == pytest.approx(len(lost) / 6)


def test_a_way_pays_its_progress_once_and_its_end_once(simulator):
    world = placed(simulator, [[2.0, 2.0, 1.5]])
    goal = world.fields.goal.at[0].set(jnp.asarray([3.0, 2.0, 1.5]))
    fields = eqx.tree_at(lambda f: (f.goal, f.start), world.fields, (goal, world.fields.start.at[0].set(goal[0] - 1.0)))
    world = eqx.tree_at(lambda w: w.fields, world, fields)
    paid, arrived = [], []
    for _ in range(30):
        action = Straight()(world, None, None) * jnp.asarray([1.0, 0, 0, 0, 0, 0])[:, None]
        world, timestep = step(simulator, world, action)
        paid.append(float(timestep.reward[0]))
        arrived.append(int(world.fields.arrived[0]))
    at = arrived[-1]
    assert 8 < at < 20
    assert arrived[: at - 1] == [-1] * (at - 1)
    assert set(arrived[at - 1 :]) == {at}
    rest = 1.0 - np.linalg.norm(np.asarray(world.entities.position[0] - world.fields.goal[0])) / np.sqrt(3.0)
    covered = rest - 1.0 + 1.0 / np.sqrt(3.0)
    assert sum(paid) == pytest.approx(covered + 1.0 - 0.005 * (at - 1), abs=2e-3)


@pytest.fixture(scope="module")
def flown(simulator):
    """Eight episodes by the scripted policy, and straight ahead; stepped by the program of the other tests."""

    def fly(policy):
        act, ends = eqx.filter_jit(lambda *args: policy(*args)), []
        for number in range(8):
            world, timestep = reset(simulator, jax.random.key(number))
            while not timestep.ended:
                world, timestep = step(simulator, world, act(world, timestep.observation, world.key))
            ends.append(simulator.rules.metrics(world))
        return jax.tree.map(lambda *x: np.mean(x), *ends)

    return fly(simulator.rules.scripted_policy()), fly(Straight())


def test_reciprocal_avoidance_brings_more_across_than_flying_straight_ahead(flown):
    avoided, straight = flown
    assert avoided["crossed"] > 0.85
    assert avoided["lost"] < 0.6 * straight["lost"]
    assert avoided["promptness"] > straight["promptness"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"population.drone.initial": 1, "population.drone.capacity": 1}, "nobody to swap places with"),
        ({"population.drone.initial": 80, "population.drone.capacity": 80}, "start within each other's radius"),
        ({"observation.sight": 0.2}, "nobody could crash"),
        ({"world.circle": 3.9}, "does not fit into world.size"),
        ({"world.pillar_radius": 1.6}, "would reach the circle"),
        ({"population.drone.airframe": "cf2y"}, "cf2x"),
        ({"population.drone.model": "rotors", "control.rate": 4.0, "control.outer_rate": 2.0}, "unstable"),
        ({"air.downwash": "cf2x_l250"}, "downwash"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as error:
        make("crossing", overrides)
    assert "\n" not in str(error.value)
