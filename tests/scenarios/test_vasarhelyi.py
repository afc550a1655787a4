"""Drones that flock in an arena: the model against a loop over its equations, what drones know, and that they flock."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scenarios.common import order
from scenarios.vasarhelyi.policy import braking_curve
from swarm import make
from swarm.core.errors import ConfigError
from swarm.geometry.space import Open
from swarm.neighbors.questions import AllPairs

FEW = {
    "world.size": [150.0, 150.0],
    "world.pillars": [[75.0, 75.0, 8.0]],
    "population.drone.capacity": 36,
    "population.drone.initial": 36,
    "radio.heard": 35,
}
N_STEPS, DELAY = 400, 5


@pytest.fixture(scope="module")
def simulator():
    return make("vasarhelyi", FEW)


@eqx.filter_jit
def _fly(simulator, policy, keys):
    def one(key):
        world, timestep = simulator.reset(key)

        def body(carry, step_key):
            world, timestep = carry
            action = policy(world, timestep.observation, step_key)
            world, timestep = simulator.step(world, action)
            return (world, timestep), (world, timestep, action, simulator.rules.metrics(world))

        _, history = jax.lax.scan(body, (world, timestep), jax.random.split(key, N_STEPS))
        return history

    return jax.vmap(one)(keys)


def fly(simulator):
    return _fly(simulator, simulator.rules.scripted_policy(), jax.random.split(jax.random.key(3), 2))


@pytest.fixture(scope="module")
def flown(simulator):
    """Two worlds under the model."""
    return fly(simulator)


def late(values):
    """Mean over worlds and the last 200 steps."""
    return float(np.mean(values[:, -200:]))


def without_pillar(simulator, **flock):
    far = eqx.tree_at(lambda s: s.rules.pillars.centre, simulator, jnp.full((1, 2), -1000.0, jnp.float32))
    return eqx.tree_at(lambda s: s.rules.flock, far, far.rules.flock | flock)


def test_drones_flock_from_rest_and_nobody_collides(simulator):
    metrics = fly(without_pillar(simulator))[3]
    assert late(metrics["correlation"]) > 0.8
    assert 2.0 < late(metrics["speed"]) < 4.5
    assert float(np.max(metrics["collisions"])) == 0.0
    assert float(np.min(metrics["least"])) > 3.0
    assert float(np.max(metrics["outside"])) == 0.0


def test_without_alignment_there_is_no_order(simulator):
    assert late(fly(without_pillar(simulator, c_frict=jnp.float32(0.0)))[3]["correlation"]) < 0.3


def test_drones_know_what_others_measured_a_delay_ago(flown):
    worlds, _, _, _ = flown
    own, letters = np.asarray(worlds.fields.own[0]), jax.tree.map(lambda x: np.asarray(x[0]), worlds.fields.letters)
    t = 100
    known = letters.sender[t] >= 0
    assert known.any(axis=1).all()
    assert (letters.age[t][known] == DELAY).all()
    np.testing.assert_array_equal(letters.message[t][known], own[t - DELAY][letters.sender[t][known]])
    error = own[t] - np.concatenate([worlds.entities.position[0, t], worlds.entities.velocity[0, t]], axis=1)
    assert 0.3 < error[:, :2].std() < 1.2
    assert 0.04 < error[:, 2:].std() < 0.1


def curve(r, a, p):
    return 0.0 if r <= 0 else r * p if r * p < a / p else np.sqrt(2 * a * r - a**2 / p**2)


def test_commands_are_those_of_the_equations(simulator, flown):
    worlds, _, actions, _ = flown
    f, t = {k: float(v) for k, v in simulator.rules.flock.items()}, 150
    own, message, sender = (
        np.asarray(x[0, t], float)
        for x in (worlds.fields.own, worlds.fields.letters.message, worlds.fields.letters.sender)
    )
    for i in range(36):
        (x, v), wanted = (own[i, :2], own[i, 2:]), np.zeros(2)
        wanted += f["v_flock"] * v / np.linalg.norm(v)
        for (xj, vj), known in zip(message[i].reshape(-1, 2, 2), sender[i] >= 0, strict=True):
            if known:
                r, dv = np.linalg.norm(x - xj), np.linalg.norm(v - vj)
                wanted += f["p_rep"] * max(f["r0_rep"] - r, 0.0) * (x - xj) / r
                allowed = max(f["v_frict"], curve(r - f["r0_frict"], f["a_frict"], f["p_frict"]))
                wanted += f["c_frict"] * max(dv - allowed, 0.0) * (vj - v) / dv
        walls = [(x[0], [1, 0]), (x[1], [0, 1]), (150 - x[0], [-1, 0]), (150 - x[1], [0, -1])]
        out = (x - 75.0) / np.linalg.norm(x - 75.0)
        for r, normal in [*walls, (np.linalg.norm(x - 75.0) - 8.0, out)]:
            shill = f["v_shill"] * np.asarray(normal) - v
            beyond = max(np.linalg.norm(shill) - curve(r - f["r0_shill"], f["a_shill"], f["p_shill"]), 0.0)
            wanted += beyond * shill / np.linalg.norm(shill)
        wanted *= min(1.0, 8.0 / np.linalg.norm(wanted)) / 8.0
        np.testing.assert_allclose(actions[0, t + 1, i], wanted, atol=2e-4)


def test_the_braking_curve_is_smooth_and_brakes_with_the_acceleration():
    a, p = jnp.float32(3.0), jnp.float32(2.0)
    r = jnp.asarray([-1.0, 0.0, 0.5, 0.75, 2.0, 10.0])
    expected = [0.0, 0.0, 1.0, 1.5, np.sqrt(12.0 - 2.25), np.sqrt(60.0 - 2.25)]
    np.testing.assert_allclose(braking_curve(r, a, p), expected, rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda r: braking_curve(r, a, p)))(r)
    # dv/dt = v dv/dr.
    np.testing.assert_allclose((slope * braking_curve(r, a, p))[3:], 3.0, rtol=1e-5)


def test_correlation_is_within_clusters():
    place = jnp.asarray([[0.0, 0], [1, 0], [2, 0], [50, 0], [51, 0], [99, 99], [0, 1]])
    direction = jnp.asarray([[1.0, 0], [1, 0], [0, 1], [-1, 0], [-1, 0], [0, 1], [jnp.nan, 5]])
    alive = jnp.asarray([True] * 6 + [False])
    found = AllPairs(Open(jnp.zeros(2), jnp.full(2, 100.0)), jnp.float32(1.5)).find(place, alive)
    # Of the three that make a chain: (1 + 0) / 2 twice, and 0; of the two 1 each; alone 0.
    assert float(jax.jit(order.correlation)(found, direction, alive)) == pytest.approx((0.5 + 0.5 + 0 + 1 + 1 + 0) / 6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"radio.delay": 0.5}, "no whole number of steps"),
        ({"radio.heard": 3}, "less than observation.others"),
        ({"population.drone.speed": 3.0}, "less than flock.v_flock"),
        ({"world.size": [50.0, 50.0]}, "enlarge the world"),
        ({"world.pillars": [[1.0, 1.0, 0.0]]}, "a radius above 0"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as error:
        make("vasarhelyi", overrides)
    assert "\n" not in str(error.value)
