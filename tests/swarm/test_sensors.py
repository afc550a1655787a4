"""Instruments: moments and correlations against closed forms, rate and latency, identities, bits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.comms.links import Loss
from swarm.core.errors import ConfigError
from swarm.dynamics import Motion, drone_dynamics, quaternion
from swarm.dynamics.air import gauss_markov
from swarm.dynamics.quaternion import components, joined
from swarm.geometry.obstacles import Balls, Boxes, Union
from swarm.geometry.space import Open
from swarm.neighbors.questions import AllPairs
from swarm.population.entities import Entities
from swarm.sensing.exact import camera_rays, into_world, scan_rays, visible
from swarm.sensing.instruments import Ranging, Sensor, gps, imu, inertial, rtk

N, T = 6, 24
MANY = 20_000


def entities_of(uid):
    n = uid.shape[0]
    return eqx.tree_at(lambda e: (e.alive, e.uid), Entities.empty(n, 3, 0), (uid >= 0, uid))


def watched(sensor, uid, truth, key):
    """Readings over the steps of uid [t, n] and truth [t, n, q]."""

    def step(track, row):
        t, uid, truth = row
        return sensor.step(track, entities_of(uid), truth, jax.random.fold_in(key, t))

    start = sensor.init(entities_of(uid[0]))
    return jax.lax.scan(step, start, (jnp.arange(uid.shape[0]), uid, truth))[1]


watch = eqx.filter_jit(watched)


def test_samples_are_held_between_and_late():
    # Entity 9 takes over slot 1 in step 7. The truth is the number of the step, and tells the quantity.
    uid = jnp.asarray([[0, 1]] * 7 + [[0, 9]] * (T - 7))
    truth = jnp.broadcast_to(jnp.arange(float(T))[:, None, None] + jnp.asarray([[[0.0, 100.0]]]), (T, 2, 2))
    period, latency = 4, 2
    readings = watch(Sensor.of(2, 0.05, 5.0, latency=latency), uid, truth, jax.random.key(0))
    for slot, born in ((0, 0), (1, 0), (1, 7)):
        for t in range(born, 7 if slot and not born else T):
            then = born + (t - latency - born) // period * period
            value = [then, then + 100] if then >= born else [0, 0]
            assert readings.value[t, slot].tolist() == value
            assert int(readings.age[t, slot]) == (t - then if then >= born else -1)
    np.testing.assert_array_equal(readings.valid, readings.age >= 0)


def test_errors_have_the_moments_and_the_correlation_of_their_closed_form():
    bias, drift, noise, tau = 0.5, 2.0, 0.3, 0.4
    sensor = Sensor.of(1, 0.1, 5.0, bias, drift, tau, noise)
    uid = jnp.broadcast_to(jnp.arange(MANY), (6, MANY))
    error = np.asarray(watch(sensor, uid, jnp.zeros((6, MANY, 1)), jax.random.key(1)).value[..., 0])
    np.testing.assert_array_equal(error[0::2], error[1::2])
    np.testing.assert_allclose(np.mean(error, axis=1), 0.0, atol=5 * 2.1 / MANY**0.5)
    np.testing.assert_allclose(np.var(error, axis=1), bias**2 + drift**2 + noise**2, rtol=0.05)
    for lag in (1, 2):
        expected = bias**2 + drift**2 * np.exp(-lag * 0.2 / tau)
        assert np.mean(error[0] * error[2 * lag]) == pytest.approx(expected, rel=0.06)


def test_an_imu_walks_at_random_as_its_density_says():
    dt, n, t = 0.01, 4_000, 100
    density = 0.02
    sensor = imu(dt, 100.0, density, 0.0, 0.0, 2 * density, 0.0, 0.0)
    uid = jnp.broadcast_to(jnp.arange(n), (t, n))
    total = dt * np.asarray(watch(sensor, uid, jnp.zeros((t, n, 6)), jax.random.key(2)).value).sum(axis=0)
    np.testing.assert_allclose(total.std(axis=0), [density] * 3 + [2 * density] * 3, rtol=0.05)


def test_the_largest_allan_deviation_of_its_drift_is_the_instability():
    sensor = imu(0.01, 100.0, gyro_instability=3e-3, drift_time=(5.0, 5.0))
    tau = np.linspace(0.1, 40, 4000)
    ratio = tau / 5.0
    # IEEE Std 952-1997, annex C, Markov noise.
    bracket = 1 - (3 - 4 * np.exp(-ratio) + np.exp(-2 * ratio)) / (2 * ratio)
    allan = float(sensor.drift[0]) * np.sqrt(2 / ratio * bracket)
    assert allan.max() == pytest.approx(3e-3, rel=1e-3)
    assert float(sensor.drift_rate[0]) == pytest.approx(0.01 / 5.0)


def test_a_gps_drifts_in_position_and_not_in_velocity():
    sensor = gps(0.01, latency=1)
    assert int(sensor.period) == 20
    np.testing.assert_allclose(sensor.drift, [2.1, 2.1, 3.15, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(sensor.noise, [0.1, 0.1, 0.15, 0.05, 0.05, 0.05], rtol=1e-6)
    # Half of the time within 2.5 m: that is what the drift was taken from.
    assert 2.1 * np.sqrt(2 * np.log(2)) == pytest.approx(2.5, abs=0.03)
    assert gps(0.1, n_dimensions=2).noise.shape == (4,)


def errors_of_worlds(sensor, n_worlds, n_receivers, n_steps):
    """Readings of receivers at rest at 0 [world, time, receiver, quantity]."""
    uid = jnp.broadcast_to(jnp.arange(n_receivers), (n_steps, n_receivers))
    truth = jnp.zeros((n_steps, n_receivers, sensor.noise.shape[0]))

    @jax.jit
    @jax.vmap
    def run(key):
        return watched(sensor, uid, truth, key).value

    return np.asarray(run(jax.random.split(jax.random.key(5), n_worlds)))


def test_receivers_under_one_sky_have_most_of_their_drift_in_common():
    # Steps of 2 s, a sample in each second one; a correlation time of 8 s.
    sensor = gps(2.0, 0.25, drift_time=8.0)
    error = errors_of_worlds(sensor, 8_000, 2, 5)
    np.testing.assert_allclose(error.var(axis=(0, 2))[0, :3], [2.1**2 + 0.1**2] * 2 + [1.5**2 * 4.42], rtol=0.06)
    between = error[:, :, 0] - error[:, :, 1]
    # 0.84 m along each axis, where independent receivers have 3 m.
    np.testing.assert_allclose(
        between.std(axis=0)[0, :3], np.sqrt(2 * (0.08 * 2.1**2 + 0.01)) * np.asarray([1, 1, 1.5]), rtol=0.04
    )
    assert np.mean(error[:, 0, 0, 0] * error[:, 4, 1, 0]) == pytest.approx(0.92 * 2.1**2 * np.exp(-1), rel=0.08)
    # The velocity has nothing in common.
    assert abs(np.mean(error[:, 0, 0, 3] * error[:, 0, 1, 3])) < 5 * 0.05**2 / 8_000**0.5
    # Nor have axes, or worlds.
    assert abs(np.mean(error[:, 0, 0, 0] * error[:, 0, 0, 1])) < 5 * 2.1**2 / 8_000**0.5


def test_independent_receivers_and_those_of_a_base_station():
    apart = errors_of_worlds(gps(0.2, common=0.0), 4_000, 2, 1)[:, 0]
    assert np.std(apart[:, 0, 0] - apart[:, 1, 0]) == pytest.approx(np.sqrt(2) * 2.1, rel=0.05)
    fixed = errors_of_worlds(rtk(0.2), 8_000, 2, 1)[:, 0]
    # Half of the time within a centimetre, level and upward.
    level = np.median(np.hypot(fixed[:, :, 0], fixed[:, :, 1]))
    assert level == pytest.approx(0.01, rel=0.06)
    assert np.median(np.abs(fixed[:, :, 2])) == pytest.approx(0.01, rel=0.06)
    with pytest.raises(ConfigError, match=r"common = 1\.5: expected shares"):
        gps(0.2, common=1.5)


def test_a_drift_keeps_its_time_and_its_variance_at_small_steps():
    """Of 2e-7 time constants, where exp(-r) has one digit left: after 200,000 of them, and from without noise."""
    r, n = jnp.float32(2e-7), 200_000
    kept = jax.jit(
        lambda: jax.lax.fori_loop(0, n, lambda i, x: gauss_markov(x, jnp.zeros(64), r), jnp.linspace(1, 2, 64))
    )()
    np.testing.assert_allclose((kept / np.linspace(1, 2, 64)).mean(), np.exp(-0.04), rtol=5e-3)


@pytest.fixture(scope="module")
def flown():
    """A drone of each kind at rest, and turning at 1 rad/s about an axis while it falls freely."""
    flight = drone_dynamics(["cf2x_l250"], 0.02, commands="rotors")
    blank = Entities.empty(2, 3, 0)
    rest = flight.init(eqx.tree_at(lambda e: (e.alive, e.heading), blank, (jnp.ones(2, bool), jnp.asarray([0.0, 1.0]))))
    return flight, rest


def test_inertial_truth_is_that_of_rest_of_free_fall_and_of_a_turn(flown):
    flight, rest = flown
    dt, kind = 0.02, jnp.zeros(2, jnp.int32)
    still = inertial(flight, rest, rest, kind, jnp.float32(dt))
    np.testing.assert_allclose(still, [[0, 0, 0, 0, 0, 9.81]] * 2, atol=1e-5)
    turn = joined(quaternion.product(components(rest.inner.attitude), (jnp.zeros(2), *_about_y(1.0 * dt))))
    # The other sign is the same attitude.
    fallen = eqx.tree_at(
        lambda m: (m.velocity, m.inner.attitude), rest, (rest.velocity.at[:, 2].add(-9.81 * dt), -turn)
    )
    found = inertial(flight, rest, fallen, kind, jnp.float32(dt))
    np.testing.assert_allclose(found, [[0, 1, 0, 0, 0, 0]] * 2, atol=1e-4)
    # Pushed by 2 m/s^2 along the world's x while turned by 1 radian about z, and pitched midway by 0.01.
    pushed = eqx.tree_at(lambda m: m.velocity, fallen, rest.velocity.at[:, 0].add(2.0 * dt))
    force = np.asarray(inertial(flight, rest, pushed, kind, jnp.float32(dt)))[1, 3:]
    np.testing.assert_allclose(np.linalg.norm(force), np.hypot(2.0, 9.81), rtol=1e-5)
    np.testing.assert_allclose(force[1], -2.0 * np.sin(1.0), rtol=1e-4)
    np.testing.assert_allclose(force[0], 2.0 * np.cos(1.0) * np.cos(0.01) - 9.81 * np.sin(0.01), rtol=1e-4)
    slope = jax.grad(
        lambda v: jnp.sum(
            inertial(flight, rest, Motion(rest.position, v, rest.heading, rest.inner), kind, jnp.float32(dt))
        )
    )
    assert jnp.isfinite(slope(rest.velocity)).all()


def _about_y(angle):
    return jnp.full(2, np.sin(angle / 2)), jnp.zeros(2), jnp.full(2, np.cos(angle / 2))


RANGING = Ranging.of(0.1, 0.02, Loss.of(0.2))
measure = eqx.filter_jit(lambda *arguments: RANGING.measure(*arguments))


def test_ranges_have_their_noise_and_their_gaps():
    distance = jnp.broadcast_to(jnp.asarray([1.0, 20.0, 0.0]), (MANY, 3))
    valid = jnp.ones((MANY, 3), bool).at[:, 2].set(False)
    found, measured = measure(distance, valid, entities_of(jnp.arange(MANY)), jax.random.key(0))
    assert not measured[:, 2].any()
    assert not found[~measured].any()
    np.testing.assert_allclose(measured[:, :2].mean(axis=0), 0.8, atol=5 * 0.4 / MANY**0.5)
    for column, (true, scale) in enumerate(((1.0, 0.12), (20.0, 0.5))):
        error = np.asarray(found[:, column])[np.asarray(measured[:, column])] - true
        assert abs(error.mean()) < 5 * scale / MANY**0.5
        assert error.std() == pytest.approx(scale, rel=0.03)


@pytest.mark.usefixtures("optimised")
def test_readings_depend_on_neither_capacity_nor_batch_nor_slot_and_the_dead_are_inert():
    # A common drift, independent ones, and centimetres.
    sensors = gps(0.1, latency=1), gps(0.1, latency=1, common=0.0), rtk(0.1, latency=1)
    rng = np.random.default_rng(0)
    uid = np.repeat(np.arange(N)[None], T, axis=0)
    uid[10:, 2] = 70
    truth = rng.normal(size=(T, N, 6)).astype(np.float32)
    wide_uid, wide = np.full((T, 2 * N), -1), np.full((T, 2 * N, 6), np.nan, np.float32)
    wide_uid[:, :N], wide[:, :N] = uid, truth
    key, order = jax.random.key(3), rng.permutation(N)
    uid, wide_uid = (jnp.asarray(x, jnp.int32) for x in (uid, wide_uid))

    @jax.jit
    def run(sensor, uid, truth, key):
        readings = watched(sensor, uid, truth, key)
        k = truth[0, :, :3]
        return readings, RANGING.measure(jnp.abs(k), k > -1, entities_of(uid[0]), key)

    many = jax.jit(jax.vmap(run, in_axes=(None, 0, 0, 0)))
    for sensor in sensors:
        alone = run(sensor, uid, truth, key)
        double = run(sensor, wide_uid, wide, key)
        batch = many(sensor, *(jnp.stack([x, x]) for x in (uid, truth)), jnp.stack([key, key]))
        moved = run(sensor, uid[:, order], truth[:, order], key)
        back = np.argsort(order)
        for other, slots in ((double, np.arange(N)), (moved, back)):
            for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(other), strict=True):
                # Readings have the axis of time first, ranges have not.
                np.testing.assert_array_equal(a, b[:, slots] if a.shape[0] == T else b[slots])
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1]), alone, batch)
        # The newborn has errors of its own, and who stays keeps them.
        drawn = np.asarray(alone[0].value - truth)
        assert abs(drawn[12, 2, :2] - drawn[9, 2, :2]).max() > 0.05 * float(sensor.drift[0])


@pytest.mark.usefixtures("optimised")
def test_what_is_seen_depends_on_neither_capacity_nor_batch():
    rng = np.random.default_rng(1)
    solid = Union(
        (
            Balls(jnp.asarray(rng.uniform(0, 6, (4, 3)), jnp.float32), jnp.full(4, 0.7)),
            Boxes(jnp.asarray([[3.0, 3.0, -1.0]]), jnp.asarray([[4.0, 4.0, 1.2]])),
        )
    )
    rays = camera_rays(3, 4, 1.5)

    def run(place, attitude, alive):
        found = AllPairs(Open(jnp.zeros(3), jnp.ones(3)), jnp.float32(5.0)).find(place, alive).nearest(3)
        ways = into_world(rays, attitude)
        mask = visible(found, place, ways[:, 5], 1.2, jnp.float32(4.0), solid)
        return scan_rays(solid, place, ways, alive, jnp.float32(6.0)), mask

    place, attitude = np.full((2 * N, 3), np.nan, np.float32), np.full((2 * N, 4), np.nan, np.float32)
    place[:N] = rng.uniform(0, 6, (N, 3))
    attitude[:N] = rng.normal(size=(N, 4))
    attitude[:N] /= np.linalg.norm(attitude[:N], axis=1, keepdims=True)
    alive = np.arange(2 * N) < N
    ranges, mask = alone = jax.jit(run)(place[:N], attitude[:N], alive[:N])
    assert 0 < mask.sum() < mask.size
    assert (ranges < 1).any()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:N]), alone, jax.jit(run)(place, attitude, alive))
    batch = (np.stack([x[:N][::-1], x[:N]]) for x in (place, attitude, alive))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1]), alone, jax.jit(jax.vmap(run))(*batch))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 200.0}, "rate = 200 Hz: a sample every 0.5 steps.* choose 100 Hz"),
        ({"rate": 30.0}, "choose 25 Hz or 33.3333 Hz"),
        ({"rate": 0.0}, "greater than 0"),
        ({"noise": -1.0}, "noise = -1.0"),
        ({"bias": [1.0, 2.0]}, "expected one number or 3"),
        ({"drift_time": 0.0}, "drift_time = 0.0.*greater than 0"),
        ({"drift": np.nan}, "drift = nan"),
        ({"latency": -1}, "latency = -1"),
    ],
)
def test_impossible_sensors_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Sensor.of(3, 0.01, **{"rate": 100.0} | changes)


def test_impossible_ranging_is_refused():
    with pytest.raises(ConfigError, match="noise = -1"):
        Ranging.of(-1.0)
