"""Power and batteries against the published figures and closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from swarm.core.errors import ConfigError
from swarm.dynamics import load_airframe
from swarm.dynamics.energy import Battery, Charge, Pads, PowerTable, RotorPower
from swarm.geometry.space import Open, Periodic

pytestmark = pytest.mark.optimised

# Zeng, Xu, Zhang 2019, table I: 20 N, 300 rad/s at 0.4 m.
ZENG = {"mass": 20 / 9.81, "disc_area": 0.503, "tip_speed": 120.0, "solidity": 0.05, "body_drag": 0.6}
RHO, N = 1.225, 5


def published(v, weight=20.0):
    """Eq. 12, in double precision."""
    profile = 0.012 / 8 * RHO * 0.05 * 0.503 * 120**3
    induced = 1.1 * weight**1.5 / np.sqrt(2 * RHO * 0.503)
    v0 = np.sqrt(weight / (2 * RHO * 0.503))
    fall = np.sqrt(np.sqrt(1 + v**4 / (4 * v0**4)) - v**2 / (2 * v0**2))
    return profile * (1 + 3 * v**2 / 120**2) + induced * fall + 0.5 * 0.6 * RHO * 0.05 * 0.503 * v**3


def sinking(v, climb, weight=20.0):
    """And with a speed upward: Leishman's fit for rotors in their own wake, weaker in level flight."""
    v0 = np.sqrt(weight / (2 * RHO * 0.503))
    x = np.maximum(np.minimum(climb, 0) / v0, -1.5)
    saved = v0 * (x - 1.125 * x - 1.372 * x**2 - 1.718 * x**3 - 0.655 * x**4)
    share = (np.sqrt(1 + v**4 / (4 * v0**4)) - v**2 / (2 * v0**2)) ** 2
    by_height = np.where(climb < 0, climb + share * (saved - climb), climb)
    profile = 0.012 / 8 * RHO * 0.05 * 0.503 * 120**3 * (1 + 3 * v**2 / 120**2)
    return np.maximum(published(v, weight) + weight * by_height, profile)


@eqx.filter_jit
def drawn(power, velocity, kind, payload):
    return power.of_flight(velocity, kind, payload)


def at_speeds(power, speeds, payload=0.0):
    n = len(speeds)
    velocity = jnp.zeros((n, 3)).at[:, 0].set(jnp.asarray(speeds) * 0.6).at[:, 1].set(jnp.asarray(speeds) * -0.8)
    return drawn(power, velocity, jnp.zeros(n, jnp.int32), jnp.full(n, payload))


def test_power_is_that_of_the_paper():
    speeds = np.linspace(0, 60, 601)
    found = np.asarray(at_speeds(RotorPower.of([ZENG]), speeds))
    np.testing.assert_allclose(found, published(speeds), rtol=3e-6)
    # What the paper reads off its figure 2: 168.5 W at hovering, the longest flight at 10.2 m/s, the farthest at 18.3.
    np.testing.assert_allclose(found[0], 79.86 + 88.63, atol=0.02)
    assert speeds[found.argmin()] == pytest.approx(10.2, abs=0.15)
    assert speeds[1:][(found[1:] / speeds[1:]).argmin()] == pytest.approx(18.3, abs=0.15)
    best = scipy.optimize.minimize_scalar(lambda v: published(v) / v, bounds=(1, 60), method="bounded").x
    assert speeds[1:][(found[1:] / speeds[1:]).argmin()] == pytest.approx(best, abs=0.1)


def test_payload_climb_efficiency_and_avionics():
    heavy = at_speeds(RotorPower.of([ZENG]), [0.0, 15.0], payload=1.0)
    np.testing.assert_allclose(heavy, published(np.asarray([0.0, 15.0]), 20 + 9.81), rtol=3e-6)
    # By kind: plain, and one that turns half of 10 W less into thrust; up, level, down, and faster than it can use.
    power = RotorPower.of([ZENG, ZENG | {"efficiency": 0.5, "avionics": 10.0}])
    velocity = jnp.asarray([[0.0, 0.0, v] for v in (2.0, 0.0, -2.0, -50.0)])
    hover = published(0.0)
    for kind, turn in ((0, lambda p: p), (1, lambda p: p / 0.5 + 10)):
        found = drawn(power, velocity, jnp.full(4, kind), jnp.zeros(4))
        expected = (hover + 40, hover, sinking(0.0, -2.0), sinking(0.0, -50.0))
        np.testing.assert_allclose(found, [turn(p) for p in expected], rtol=3e-6)
    level = drawn(power, velocity[:, :2], jnp.zeros(4, jnp.int32), jnp.zeros(4))
    np.testing.assert_allclose(level, hover, rtol=3e-6)


def test_descent_hardly_spares_power_and_never_fills_the_battery():
    v, climb = (x.ravel() for x in np.meshgrid(np.linspace(0.0, 25.0, 51), np.linspace(-30.0, 5.0, 71)))
    velocity = jnp.asarray(np.stack([v, 0 * v, climb], axis=1), jnp.float32)
    found = drawn(RotorPower.of([ZENG]), velocity, jnp.zeros(len(v), jnp.int32), jnp.zeros(len(v)))
    np.testing.assert_allclose(found, sinking(v, climb), rtol=2e-5)
    # Straight down: hardly less until the wake is left behind, and nothing more to be had by diving on.
    v0, hover, straight = np.sqrt(20 / (2 * RHO * 0.503)), published(0.0), v == 0
    slow = straight & (climb <= 0) & (climb >= -v0)
    assert (np.asarray(found)[slow] > hover - 0.19 * 20 * v0).all()
    assert (np.asarray(found)[straight] > hover - 0.42 * 20 * v0).all()
    # A Crazyflie; W v_z alone would leave 7 % of the power of hovering.
    rest = {"solidity": 0.16, "body_drag": 0.5, "efficiency": 0.17, "avionics": 0.5}
    small = RotorPower.of([PowerTable.of_airframe(load_airframe("cf2x"), rest)])
    still, fast = drawn(small, jnp.asarray([[0.0, 0.0, 0.0], [0.0, 0.0, -5.0]]), jnp.zeros(2, jnp.int32), jnp.zeros(2))
    assert 0.7 * still < fast < still


def test_an_airframe_says_its_part():
    table = PowerTable.of_airframe(load_airframe("cf2x"), {"solidity": 0.16, "body_drag": 0.5, "efficiency": 0.2})
    assert table.disc_area == pytest.approx(4 * np.pi * 0.0231348**2)
    assert table.tip_speed == pytest.approx(14468.4 / 60 * 2 * np.pi * 0.0231348, rel=1e-4)
    ideal = 4 * (0.027 * 9.8 / 4) ** 1.5 / np.sqrt(2 * RHO * np.pi * 0.0231348**2)
    profile = 0.012 / 8 * RHO * 0.16 * table.disc_area * table.tip_speed**3
    np.testing.assert_allclose(at_speeds(RotorPower.of([table]), [0.0]), (1.1 * ideal + profile) / 0.2, rtol=1e-3)


def flown(power, battery, velocity, kind, energy, n_steps):
    def body(energy, _):
        draw = power.of_flight(velocity, kind, jnp.zeros_like(energy))
        energy = battery.step(energy, kind, draw, jnp.zeros_like(energy), jnp.float32(0.5))
        return energy, battery.flat(energy)

    return jax.lax.scan(body, energy, length=n_steps)


def test_a_drone_hovers_as_long_as_its_battery_lasts():
    power, battery = RotorPower.of([ZENG]), Battery.of([10_000.0])
    kind = jnp.zeros(2, jnp.int32)
    velocity = jnp.asarray([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0]])
    energy, flat = jax.jit(lambda e: flown(power, battery, velocity, kind, e, 200))(battery.capacity[kind])
    lasts = 0.5 * (1 + np.asarray(flat).argmax(axis=0))
    np.testing.assert_allclose(lasts, 10_000 / published(np.asarray([0.0, 10.0])), atol=0.5)
    np.testing.assert_array_equal(energy, 0.0)


MILLISECOND = jnp.float32(1e-3)


@jax.jit
def by_milliseconds(energy, load, n_steps, swing):
    """Joules after steps of 1 ms under a load, and its swing of 30 %; negative loads charge."""
    battery, kind = Battery.of([3330.0, 30_000.0, 1000.0, 5e5]), jnp.arange(4)

    def body(i, energy):
        watts = load * (1.0 + swing * 0.3 * jnp.sin(1e-3 * i.astype(jnp.float32) * (1.0 + kind)))
        return battery.step(energy, kind, jnp.maximum(watts, 0.0), jnp.maximum(-watts, 0.0), MILLISECOND)

    return jax.lax.fori_loop(0, n_steps, body, energy)


def drawn_of(load, n_steps, swing):
    i = np.arange(n_steps)[:, None]
    return 1e-3 * np.sum(np.asarray(load, float) * (1 + swing * 0.3 * np.sin(1e-3 * i * (1 + np.arange(4)))), axis=0)


def check_small_steps(n_steps):
    load, start = jnp.asarray([0.7, 7.9, 0.25, -120.0]), jnp.asarray([3330.0, 30_000.0, 1000.0, 3e4])
    for swing in (0.0, 1.0):
        exact = drawn_of(load, n_steps, swing)
        charge = by_milliseconds(Charge.of(start), load, n_steps, swing)
        held = np.asarray(charge.energy, float) + np.asarray(charge.rest, float)
        np.testing.assert_allclose(np.asarray(start, float) - held, exact, rtol=1e-6)
        np.testing.assert_array_equal(charge.energy, charge.energy + charge.rest)
        # Plain numbers, to the last digit of what they hold: half a unit, and what rounding to it leaves at random.
        plain = np.asarray(start, float) - np.asarray(by_milliseconds(start, load, n_steps, swing), float)
        digit = np.spacing(np.asarray(start))
        np.testing.assert_array_less(np.abs(plain - exact), digit * (3.0 + swing * n_steps**0.5))


def test_many_small_steps_draw_what_they_should():
    check_small_steps(60_000)


@pytest.mark.slow
def test_an_hour_of_milliseconds_draws_what_it_should():
    check_small_steps(3_600_000)


def test_a_charge_stays_between_empty_and_full_and_has_a_slope():
    battery, kind = Battery.of([10.0]), jnp.zeros(3, jnp.int32)

    def after(drawn, start, charge):
        energy = battery.step(Charge.of(start) if charge else start, kind, drawn, jnp.zeros(3), jnp.float32(0.5))
        return energy.energy if charge else energy

    start, drawn = jnp.asarray([10.0, 5.0, 1.0]), jnp.asarray([-4.0, 3.0, 4.0])
    for charge in (False, True):
        np.testing.assert_array_equal(after(drawn, start, charge), [10.0, 3.5, 0.0])
        slopes = jax.grad(lambda d, s, c=charge: after(d, s, c)[1], (0, 1))(drawn, start)
        np.testing.assert_allclose(slopes, [[0, -0.5, 0], [0, 1, 0]], rtol=1e-6)


def test_pads_fill_those_on_them_up_to_the_capacity():
    space = Periodic(jnp.zeros(2), jnp.full(2, 10.0))
    pads = Pads.of(jnp.asarray([[0.5, 5.0], [5.0, 5.0]]), radius=1.0, power=100.0, efficiency=0.8)
    place = jnp.asarray([[9.8, 5.0], [5.0, 5.9], [7.5, 5.0], [5.0, 5.0], [np.nan, np.nan]])
    alive = jnp.asarray([True, True, True, False, False])
    supplied = pads.supply(space, place, alive)
    np.testing.assert_allclose(supplied, [80.0, 80.0, 0.0, 0.0, 0.0])
    battery = Battery.of([50.0, 1000.0])
    kind = jnp.asarray([0, 1, 1, 0, 0])
    energy = battery.step(jnp.full(5, 20.0), kind, jnp.full(5, 10.0), supplied, jnp.float32(1.0))
    np.testing.assert_allclose(energy, [50.0, 90.0, 10.0, 10.0, 10.0])
    np.testing.assert_allclose(battery.share(energy, kind), [1.0, 0.09, 0.01, 0.2, 0.2], rtol=1e-6)
    assert battery.flat(battery.step(energy, kind, jnp.full(5, 10.0), jnp.zeros(5), jnp.float32(1.0))).tolist() == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_the_slope_of_energy_by_velocity_is_that_of_finite_differences():
    power, battery = RotorPower.of([ZENG]), Battery.of([1e5])
    kind, velocity = jnp.zeros(3, jnp.int32), jnp.asarray([[0.0, 0.0, 0.0], [8.0, -3.0, 1.0], [20.0, 5.0, -1.0]])

    @jax.jit
    @jax.grad
    def slope(velocity):
        return jnp.sum(flown(power, battery, velocity, kind, battery.capacity[kind], 4)[0])

    rows = np.asarray(velocity, np.float64)
    level = np.linalg.norm(rows[:, :2], axis=1)
    by_speed = -2.0 * (published(level + 1e-5) - published(np.maximum(level - 1e-5, 0))) / 2e-5
    way = rows[:, :2] / np.maximum(level, 1e-9)[:, None]
    # The third sinks: there the speed forward counts for the wake, too.
    up, ahead = np.full(3, -2.0 * 20), by_speed
    ahead[2] = -2.0 * (sinking(level + 1e-5, rows[:, 2]) - sinking(level - 1e-5, rows[:, 2]))[2] / 2e-5
    up[2] = -2.0 * (sinking(level, rows[:, 2] + 1e-5) - sinking(level, rows[:, 2] - 1e-5))[2] / 2e-5
    expected = np.concatenate([ahead[:, None] * way, up[:, None]], axis=1)
    np.testing.assert_allclose(slope(velocity), expected, rtol=1e-4, atol=1e-4)


def test_capacity_batch_and_the_dead_change_no_bit():
    power, battery = RotorPower.of([ZENG, ZENG | {"mass": 3.0}]), Battery.of([2e3, 3e3])
    pads = Pads.of(jnp.zeros((1, 3)), 2.0, 50.0)
    rng = np.random.default_rng(0)

    def run(place, velocity, alive):
        kind = jnp.arange(len(alive)) % 2
        supplied = pads.supply(Open(jnp.zeros(3), jnp.ones(3)), place, alive)
        draw = power.of_flight(velocity, kind, 0.1 * jnp.arange(len(alive)))
        return battery.step(battery.capacity[kind], kind, draw, supplied, jnp.float32(0.7))

    place, velocity = (rng.normal(size=(2 * N, 3)).astype(np.float32) * 3 for _ in range(2))
    place[N:] = velocity[N:] = np.nan
    alive = np.arange(2 * N) < N
    alone = jax.jit(run)(place[:N], velocity[:N], alive[:N])
    np.testing.assert_array_equal(alone, jax.jit(run)(place, velocity, alive)[:N])
    batch = jax.tree.map(lambda x: jnp.stack([x[::-1], x]), (place[:N], velocity[:N], alive[:N]))
    np.testing.assert_array_equal(alone, jax.jit(jax.vmap(run))(*batch)[1])


@pytest.mark.parametrize(("change", "key"), [({"mass": 0}, "mass"), ({"solidity": 2}, "solidity"), ({"tip": 1}, "tip")])
def test_an_impossible_table_is_refused(change, key):
    with pytest.raises(ConfigError, match=f"power.*{key}"):
        RotorPower.of([ZENG | change])


def test_impossible_batteries_and_pads_are_refused():
    with pytest.raises(ConfigError, match="greater than 0"):
        Battery.of([100.0, 0.0])
    with pytest.raises(ConfigError, match="no tables"):
        RotorPower.of([])
    for numbers in ((0, 1, 1), (1, -1, 1), (1, 1, 1.2), (1, 1, 0)):
        with pytest.raises(ConfigError, match="expected a radius"):
            Pads.of(jnp.zeros((1, 2)), *numbers)
