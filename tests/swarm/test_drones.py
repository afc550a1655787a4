"""Drones: figures of known airframes, orders of convergence, conservation, loops, gradients, bits."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from swarm.core.errors import ConfigError
from swarm.core.status import Status
from swarm.dynamics import (
    Air,
    Airframe,
    Differential,
    Motion,
    airframe_names,
    drone_dynamics,
    load_airframe,
    quaternion,
)
from swarm.dynamics.attitude import FirstOrder, SecondOrder
from swarm.dynamics.flight import Forces
from swarm.dynamics.quadrotor import Turning
from swarm.dynamics.quaternion import components, joined
from swarm.dynamics.studies import RotorField, rotor_differential, solve, solve_noisy
from swarm.population.entities import Entities

N = 4
KIND = jnp.asarray([0, 1, 0, 1], jnp.int32)
PAIR = ["cf2x_l250", "cf21b_500"]
STEP = 0.02


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@eqx.filter_jit
def steps(dynamics, motion, command, dt, n, air):
    # A scan within would be compiled for each count: the same command held over n steps is the same flight.
    return jax.lax.fori_loop(0, n, lambda _, m: dynamics.fly(m, command, KIND[: m.heading.shape[0]], dt, air), motion)


def go(dynamics, motion, command, dt, n=1, air=None):
    air = Air.still(motion.position) if air is None else air
    return steps(dynamics, motion, jnp.asarray(command), jnp.asarray(dt, motion.position.dtype), jnp.int32(n), air)


def population(n=N, height=0.0):
    empty = Entities.empty(n, 3, 0)
    place = jnp.zeros((n, 3)).at[:, 2].set(height)
    kinds = jnp.tile(KIND, n // N + 1)[:n]
    return eqx.tree_at(
        lambda e: (e.alive, e.uid, e.kind, e.position), empty, (jnp.ones(n, bool), jnp.arange(n), kinds, place)
    )


def every(*command, n=N):
    return jnp.tile(jnp.asarray([command]), (n, 1))


def tumbling(dynamics, seed=0, spread=0.2):
    """Any attitude, turning, with rotors away from hover."""
    rng = np.random.default_rng(seed)
    rotors = dynamics.init(population()).inner.rotors
    q = rng.normal(size=(N, 4))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    state = Turning(
        jnp.asarray(q, rotors.dtype),
        jnp.asarray(3 * rng.normal(size=(N, 3)), rotors.dtype),
        rotors * jnp.asarray(rng.uniform(1 - spread, 1 + spread, (N, 4)), rotors.dtype),
    )
    place, velocity = (jnp.asarray(rng.normal(size=(N, 3)), rotors.dtype) for _ in range(2))
    heading = quaternion.yaw_of(components(state.attitude))
    return Motion(place + jnp.asarray([0.0, 0.0, 5.0], rotors.dtype)[None], velocity, heading, state)


def plain(dynamics):
    """Everything that is compared, one row for an entity; headings are known from attitudes."""
    return np.concatenate(
        [np.asarray(x).reshape(N, -1) for x in jax.tree.leaves((dynamics.position, dynamics.inner))], 1
    )


# Figures.


def test_hover_and_thrust_of_the_airframes():
    stock, letter = load_airframe("cf2x"), load_airframe("cf2x_l250")
    speed = stock.rotors.speed_of_thrust
    assert speed(stock.hover_thrust) == pytest.approx(14_468.4, abs=0.05)
    assert speed(stock.rotors.thrust_range[1]) == pytest.approx(21_702.6, abs=0.05)
    assert 4 * stock.rotors.thrust_range[1] == pytest.approx(0.59535, abs=5e-6)
    assert letter.hover_thrust == pytest.approx(0.07823, abs=5e-6)
    assert letter.rotors.speed_of_thrust(letter.hover_thrust) == pytest.approx(18_967.8, abs=0.05)
    assert letter.rotors.thrust_range[1] / letter.hover_thrust == pytest.approx(1.534, abs=5e-4)
    dynamics = drone_dynamics(["cf2x", "cf2x_l250"], STEP, commands="rotors")
    np.testing.assert_allclose(dynamics.hover_speed(KIND), [14_468.4, 18_967.8] * 2, rtol=1e-5)
    np.testing.assert_allclose(dynamics.rotors.speed[0, 1], 21_702.6, rtol=1e-5)


def test_every_airframe_hovers_where_it_starts():
    names = airframe_names()
    assert len(names) == 5
    dynamics = drone_dynamics(names, STEP, commands="rotors")
    kinds = jnp.arange(5, dtype=jnp.int32)
    entities = eqx.tree_at(lambda e: e.kind, population(5, height=3.0), kinds)
    start = dynamics.init(entities)
    still = Air.still(start.position)
    run = eqx.filter_jit(lambda m, n: jax.lax.fori_loop(0, n, lambda _, m: fly(m), m))

    def fly(motion):
        return dynamics.fly(motion, start.inner.rotors, kinds, jnp.float32(STEP), still)

    after = run(start, jnp.int32(100))
    # The ground raises the thrust a little at three metres, where its effect is known.
    lifted = 2.0**2 / 2 * 9.81 * 11.36859 * (0.0231348 / 12) ** 2 * (np.asarray(names) == "cf2x")
    np.testing.assert_allclose(after.position[:, 2] - 3.0, lifted, atol=2e-4)
    np.testing.assert_allclose(after.position[:, :2], 0.0, atol=1e-6)
    np.testing.assert_allclose(after.inner.rates, 0.0, atol=1e-5)


def test_a_rotor_follows_with_its_time_constant():
    dynamics = drone_dynamics(["cf2x_l250", "cf2x_l250"], STEP, commands="rotors")
    start = dynamics.init(population())
    for change, t in ((1000.0, 0.145), (-1500.0, 0.29)):
        after = go(dynamics, start, start.inner.rotors + change, t)
        left = np.exp(-t / 0.145207)
        np.testing.assert_allclose(after.inner.rotors - start.inner.rotors, change * (1 - left), rtol=1e-4)


def test_the_identified_steps_of_roll_and_yaw():
    dynamics = drone_dynamics(["cf2x_l250", "cf2x_l250"], STEP, "attitude", "attitude")
    start, command = dynamics.init(population()), every(0.1, 0.0, 0.1, 0.3)
    n, dt = 4000, 2.5e-4

    @eqx.filter_jit
    def record(motion):
        def body(motion, _):
            motion = dynamics.step(motion, command, KIND, jnp.float32(dt))
            return motion, motion.inner.angles[0]

        return jax.lax.scan(body, motion, length=n)[1]

    angles = np.asarray(record(start)) / 0.1
    for axis, omega, zeta, gain in ((0, 15.674, 0.5525, 0.7986), (2, 15.092, 0.849, 1.713)):
        angle = angles[:, axis]
        top = angle.argmax()
        overshoot, peak = angle[top] / gain - 1, (top + 1) * dt
        assert overshoot == pytest.approx(np.exp(-np.pi * zeta / np.sqrt(1 - zeta**2)), abs=5e-4)
        assert peak == pytest.approx(np.pi / (omega * np.sqrt(1 - zeta**2)), abs=5e-3)  # flat at the top
        assert angle[-1] == pytest.approx(gain, abs=5e-4)
        if axis == 0:
            assert overshoot == pytest.approx(0.1246, abs=3e-4)
            assert peak == pytest.approx(0.2405, abs=5e-4)
    # Exact: one large step is many small ones, for any damping.
    far = go(dynamics, start, command, 1.0)
    np.testing.assert_allclose(far.inner.angles[0], angles[-1] * 0.1, atol=1e-5)


@pytest.mark.parametrize("zeta", [0.2, 1.0, 1.0 + 1e-9, 1.7, 6.0])
def test_transitions_are_exponentials_of_matrices(zeta, x64):
    omega, tau = 15.0, 0.07
    for t in (1e-3, 0.1, 2.0):
        shape = jnp.ones((1, 3))
        second = SecondOrder(shape, omega * shape, zeta * shape).transition(jnp.asarray(t))[0, 1]
        expected = scipy.linalg.expm(t * np.asarray([[0.0, 1.0], [-(omega**2), -2 * zeta * omega]]))
        np.testing.assert_allclose(second, expected, rtol=1e-6, atol=1e-9)
        first = FirstOrder(shape, tau * shape).transition(jnp.asarray(t))[0, 0]
        assert first[0, 0] == pytest.approx(np.exp(-t / tau))
        assert first[1, 0] == pytest.approx(-np.exp(-t / tau) / tau)


def test_ground_effect_is_that_of_the_formula():
    dynamics = drone_dynamics(["cf2x", "cf2x"], STEP, commands="rotors")
    body = load_airframe("cf2x").rotors
    for height, expected in ((0.5, None), (0.1, None), (0.01, 4 / 15), (-1.0, 4 / 15)):
        start = dynamics.init(population(height=height))
        change = eqx.filter_vmap(dynamics.derivative)(start, start.inner.rotors, KIND, Air.still(start.position))
        share = body.ground_effect * (body.radius / (4 * height)) ** 2 if expected is None else expected
        np.testing.assert_allclose(change.velocity[:, 2], 9.8 * share, rtol=1e-4)


def test_a_level_drone_drifts_with_the_wind_as_drag_has_it():
    frame = load_airframe("cf2x_l250")
    dynamics = drone_dynamics([frame, frame], STEP, commands="rotors")
    start = dynamics.init(population())
    wind = jnp.tile(jnp.asarray([[3.0, -2.0, 0.0]]), (N, 1))
    after = go(dynamics, start, start.inner.rotors, 0.02, 100, Air(wind, jnp.zeros((N, 3))))
    gone = 1 - np.exp(-frame.drag[0] / frame.mass * 2.0)
    np.testing.assert_allclose(after.velocity, wind * gone, rtol=1e-4, atol=1e-5)
    pushed = go(dynamics, start, start.inner.rotors, 0.5, 1, Air(0 * wind, jnp.full((N, 3), 0.01)))
    assert np.asarray(pushed.velocity[:, 0]) == pytest.approx(0.01 / frame.mass * 0.5, rel=0.15)


# Orders, conservation.


# Position, attitude, rates, rotors.
PARTS = slice(0, 3), slice(3, 7), slice(7, 10), slice(10, 14)


def order_of(make, start, command, expected, counts, span):
    errors = []
    for n in counts:
        found = plain(go(make, start, command, span / n, n))
        scaled = np.abs(found - expected).max(axis=0) / np.abs(expected).max(axis=0)
        errors.append([scaled[part].max() for part in PARTS])
    return np.log2(np.divide(*errors))


@pytest.mark.parametrize(
    ("solver", "order", "counts", "within"),
    [
        (None, 2, (128, 256), 0.1),
        (diffrax.Euler(), 1, (1024, 2048), 0.1),
        (diffrax.Heun(), 2, (256, 512), 0.1),
        # Of order five only where the next power still counts: at finer steps the error is rounding.
        (diffrax.Tsit5(), 5, (24, 48), 0.5),
    ],
    ids=["splitting", "euler", "heun", "tsit5"],
)
def test_rigid_bodies_converge_at_the_order_of_the_solver(solver, order, counts, within, x64):
    dynamics = drone_dynamics(PAIR, STEP, commands="rotors", control={"rate": 1.0})
    start, span = tumbling(dynamics), 0.1
    command = jnp.clip(start.inner.rotors[:, ::-1] * 1.03, 12_000.0, 19_000.0)
    fine = Quiet(rotor_differential(dynamics, diffrax.Tsit5(), 1))
    expected = plain(go(fine, start, command, span / 1024, 1024))
    made = dynamics if solver is None else Quiet(rotor_differential(dynamics, solver, 1))
    slopes = order_of(made, start, command, expected, counts, span)
    # Rotor speeds are exact where the rigid body is split, and no error is left.
    slopes = slopes[:3] if solver is None else slopes
    assert np.abs(slopes - order).max() < within, slopes


@pytest.mark.parametrize(("solver", "order"), [(diffrax.Euler(), 1), (diffrax.Heun(), 2), (diffrax.Tsit5(), 5)])
def test_oscillators_converge_at_the_order_of_the_solver(solver, order, x64):
    def spring(motion, command, parameters):
        return Motion(motion.velocity, -motion.position, jnp.zeros(()))

    wide = jnp.full((1, 3), 9.0)
    dynamics = Differential(spring, jnp.zeros(1), -wide, wide, None, solver)
    start = Motion(jnp.ones((1, 3)), jnp.zeros((1, 3)), jnp.zeros(1))
    errors = []
    for n in (2000, 4000) if order == 1 else (40, 80):
        stepped = eqx.filter_jit(
            lambda motion, h, n: jax.lax.fori_loop(
                0, n, lambda _, m: dynamics.step(m, wide, jnp.zeros(1, jnp.int32), h), motion
            )
        )(start, jnp.float64(1.0 / n), jnp.int32(n))
        errors.append(np.hypot(stepped.position[0, 0] - np.cos(1.0), stepped.velocity[0, 0] + np.sin(1.0)))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.1


class Quiet(eqx.Module):
    """`Differential` under the name that flights have."""

    inner: eqx.Module

    def fly(self, motion, command, kind, dt, air):
        return self.inner.step(motion, command, kind, dt)


def test_identified_attitudes_converge_at_second_order(x64):
    dynamics = drone_dynamics(PAIR, STEP, "attitude", "attitude", {"rate": 1.0})
    start, command = dynamics.init(population()), every(0.3, -0.4, 0.5, 0.4)
    expected = plain(go(dynamics, start, command, 0.5 / 4096, 4096))[:, :3]
    errors = [np.abs(plain(go(dynamics, start, command, 0.5 / n, n))[:, :3] - expected).max() for n in (32, 64)]
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.1


def free(dynamics):
    """Without thrust, torque of the air and drag."""
    zero = jax.tree.map(jnp.zeros_like, (dynamics.rotors.thrust, dynamics.rotors.torque, dynamics.drag))
    return eqx.tree_at(lambda d: (d.rotors.thrust, d.rotors.torque, d.drag), dynamics, zero)


def momentum_and_energy(dynamics, motion):
    """In the world; of the turning body without its rotors' spin."""
    state = motion.inner
    own = np.asarray(dynamics.inertia[KIND] * state.rates)
    spin = np.asarray(
        dynamics.rotors.inertia[KIND] * 2 * np.pi / 60 * (dynamics.rotors.spin[KIND] * state.rotors).sum(1)
    )
    total = tuple(jnp.asarray(x) for x in (own - np.stack([0 * spin, 0 * spin, spin], axis=1)).T)
    world = np.asarray(joined(quaternion.turn(components(state.attitude), total)))
    return world, 0.5 * (own * np.asarray(state.rates)).sum(axis=1)


@pytest.mark.parametrize("spinning", ["rotors held", "rotors change"])
def test_without_torque_momentum_and_energy_stay_over_ten_thousand_steps(spinning, x64):
    dynamics = drone_dynamics(["cf2x_t350", "cf21b_500"], STEP, commands="rotors", control={"rate": 1.0})
    start, dynamics = tumbling(dynamics), free(dynamics)
    command = start.inner.rotors if spinning == "rotors held" else start.inner.rotors[:, ::-1]
    # As the energy is that of the body alone, it is constant while the rotors keep their speeds.
    momentum, energy = momentum_and_energy(dynamics, start)
    motion, worst = start, 0.0
    for _ in range(10):
        motion = go(dynamics, motion, command, 2e-3, 1000)
        new_momentum, new_energy = momentum_and_energy(dynamics, motion)
        assert np.abs(new_momentum - momentum).max() < 1e-10 * np.abs(momentum).max()
        worst = max(worst, np.abs(new_energy / energy - 1).max())
    assert spinning == "rotors change" or worst < 1e-3
    assert np.abs(np.asarray(motion.inner.rates) - np.asarray(start.inner.rates)).max() > 0.1


def test_ballistic_flight_keeps_its_energy_over_ten_thousand_steps(x64):
    dynamics = drone_dynamics(PAIR, STEP, commands="rotors", control={"rate": 1.0})
    start, dynamics = tumbling(dynamics), free(dynamics)

    def energy(motion):
        return 0.5 * np.square(motion.velocity).sum(axis=1) + 9.81 * np.asarray(motion.position[:, 2])

    after = go(dynamics, start, start.inner.rotors, 1e-3, 10_000)
    t, (place, velocity) = 10.0, map(np.asarray, (start.position, start.velocity))
    parabola = place + t * velocity + t**2 / 2 * np.asarray([0.0, 0.0, -9.81])
    np.testing.assert_allclose(after.position, parabola, rtol=1e-9)
    np.testing.assert_allclose(energy(after), energy(start), atol=1e-9 * (9.81 * t) ** 2)


# Loops.


def test_attitude_is_regained_from_upside_down():
    dynamics = drone_dynamics(PAIR, STEP, commands="attitude")
    start = dynamics.init(population())
    state = start.inner
    over = jnp.tile(jnp.asarray([[np.sin(1.4), 0.0, 0.0, np.cos(1.4)]], jnp.float32), (N, 1))  # roll of 160 degrees
    start = eqx.tree_at(lambda m: m.inner, start, Turning(over, state.rates + 2.0, state.rotors))
    weight = np.asarray(dynamics.plant(KIND).mass * dynamics.plant(KIND).gravity)
    command = jnp.concatenate([every(0.2, -0.1, 0.4), jnp.asarray(weight)[:, None]], axis=1)
    after = go(dynamics, start, command, STEP, 150)
    angles = np.stack(quaternion.to_angles(components(after.inner.attitude)), axis=1)
    np.testing.assert_allclose(angles, every(0.2, -0.1, 0.4), atol=2e-3)


@pytest.mark.parametrize("model", ["rotors", "attitude", "attitude_lag"])
def test_every_level_takes_velocities_and_positions(model):
    velocity = drone_dynamics(PAIR, STEP, model)
    flown = go(velocity, velocity.init(population()), every(1.0, -0.5, 0.4, 0.5), STEP, 200)
    # The drag in still air is known to the controller but for the tilt.
    np.testing.assert_allclose(flown.velocity, every(1.0, -0.5, 0.4), atol=0.02)
    if model == "rotors":
        np.testing.assert_allclose(flown.heading, 0.5, atol=0.01)
    position = drone_dynamics(PAIR, STEP, model, "position")
    flown = go(position, position.init(population()), every(2.0, -1.0, 3.0, 0.0), STEP, 500)
    np.testing.assert_allclose(flown.position, every(2.0, -1.0, 3.0), atol=0.02)
    np.testing.assert_allclose(flown.velocity, 0.0, atol=0.01)


@pytest.mark.parametrize("commands", ["rotors", "attitude", "velocity", "position"])
def test_actions_span_the_legal_commands(commands):
    dynamics = drone_dynamics(PAIR, STEP, commands=commands)
    low, high = (dynamics.command(jnp.full((N, 4), x), KIND) for x in (-1.0, 1.0))
    assert low.shape == (N, dynamics.n_commands(3))
    assert (np.asarray(low) < np.asarray(high)).all()
    start = dynamics.init(population())
    n = 2 if commands == "attitude" else 3
    edge, beyond = (go(dynamics, start, c, STEP) for c in (high, high.at[:, :n].multiply(2.0)))
    # Beyond, nothing changes where a drone has limits.
    if commands in ("rotors", "attitude"):
        np.testing.assert_allclose(plain(edge), plain(beyond), rtol=1e-5)


@pytest.mark.parametrize("model", ["rotors", "attitude", "attitude_lag"])
def test_velocities_and_places_have_no_limit_but_one_that_is_set(model):
    def reached(commands, command, n, **control):
        dynamics = drone_dynamics(PAIR, STEP, model, commands, control)
        return go(dynamics, dynamics.init(population()), every(*command), STEP, n)

    np.testing.assert_allclose(reached("velocity", (4.0, -2.5, 1.0, 0.0), 300).velocity[:, 0], 4.0, atol=0.15)
    slow = reached("velocity", (4.0, -3.0, 0.0, 0.0), 300, speed=2.0)
    np.testing.assert_allclose(slow.velocity, every(1.6, -1.2, 0.0), atol=0.02)
    far = (24.0, -12.0, 15.0, 0.0)
    np.testing.assert_allclose(reached("position", far, 900, speed=4.0).position, every(*far[:3]), atol=0.02)


# Studies.


@pytest.mark.slow
def test_adaptive_solutions_of_rigid_bodies_are_those_of_small_steps_and_have_gradients(x64):
    dynamics = drone_dynamics(PAIR, STEP, commands="rotors", control={"rate": 1.0})
    start, times = tumbling(dynamics), jnp.asarray([0.0, 0.05, 0.1])
    command = jnp.clip(start.inner.rotors[:, ::-1], 12_000.0, 19_000.0)
    field, one = RotorField(dynamics), jax.tree.map(lambda x: x[1], start)

    @eqx.filter_jit
    def height(command):
        track = solve(lambda t, m: field(m, command, KIND[1]), one, times, tolerance=1e-9)
        return track.position[-1, 2], track

    (_, track), slope = jax.value_and_grad(height, has_aux=True)(command[1])
    stepped = go(dynamics, start, command, 0.1 / 2048, 2048)
    np.testing.assert_allclose(track.position[-1], stepped.position[1], atol=1e-7)
    np.testing.assert_allclose(track.inner.attitude[-1], stepped.inner.attitude[1], atol=1e-6)
    way = jnp.asarray([1.0, -2.0, 0.5, 1.5])
    ends = [height(command[1] + h * way)[0] for h in (1.0, -1.0)]
    np.testing.assert_allclose(slope @ way, (ends[0] - ends[1]) / 2, rtol=1e-5)


def test_adaptive_solutions_are_those_of_the_closed_form_and_have_gradients(x64):
    start = Motion(jnp.zeros(1), jnp.ones(1), jnp.zeros(()))

    def way(tau):
        def field(t, motion):
            return Motion(motion.velocity, -motion.velocity / tau, jnp.zeros(()))

        return solve(field, start, jnp.asarray([0.0, 0.5, 2.0]), tolerance=1e-9).position[:, 0]

    tau = jnp.float64(0.7)
    track, slope = eqx.filter_jit(lambda tau: (way(tau), jax.jacrev(way)(tau)))(tau)
    t = np.asarray([0.0, 0.5, 2.0])
    np.testing.assert_allclose(track, tau * (1 - np.exp(-t / tau)), atol=1e-8)
    np.testing.assert_allclose(slope, 1 - np.exp(-t / tau) * (1 + t / tau), atol=1e-7)


def test_brownian_forcing_has_the_variance_of_the_closed_form(x64):
    # dv = -v / tau dt + s dW: variance s^2 tau / 2 (1 - exp(-2 t / tau)).
    tau, noise = 0.5, jnp.asarray([0.3, 0.0, 0.6])
    times = jnp.asarray([0.0, 0.4, 0.8])
    still = Motion(jnp.zeros(3), jnp.zeros(3), jnp.zeros(()))

    def field(t, motion):
        return Motion(motion.velocity, -motion.velocity / tau, jnp.zeros(()))

    run = eqx.filter_jit(jax.vmap(lambda key: solve_noisy(field, noise, still, times, key, 0.1).velocity))
    found = np.asarray(run(jax.random.split(jax.random.key(0), 4000)))
    expected = np.square(noise) * tau / 2 * (1 - np.exp(-2 * np.asarray(times)[:, None] / tau))
    np.testing.assert_allclose(found.var(axis=0)[1:], expected[1:], rtol=0.07, atol=1e-12)
    assert np.abs(found.mean(axis=0)).max() < 0.03


# Gradients and bits.

LEVELS = [("rotors", c) for c in ("rotors", "attitude", "velocity", "position")] + [("attitude", "velocity")]


def some(*quick):
    """Cases of all levels; slow but for these, which pass through the others' code, too."""
    marks = ((), (pytest.mark.slow,))
    return [pytest.param(level, id="-".join(level), marks=marks[level not in quick]) for level in LEVELS]


def built(level):
    return drone_dynamics(PAIR, STEP, *level)


def some_command(dynamics, level, seed=4):
    rng = np.random.default_rng(seed)
    return dynamics.command(jnp.asarray(0.6 * rng.uniform(-1, 1, (N, 4)), float), KIND)


@pytest.mark.parametrize("level", some(("rotors", "attitude"), ("attitude", "velocity")))
def test_gradients_are_those_of_finite_differences(level, x64):
    dynamics = built(level)
    start, command = dynamics.init(population(height=2.0)), some_command(dynamics, level)
    rng = np.random.default_rng(5)
    weights = jnp.asarray(rng.normal(size=(N, 3)))

    @eqx.filter_jit
    def loss(dynamics, command):
        motion = jax.lax.fori_loop(0, 5, lambda _, m: dynamics.step(m, command, KIND, jnp.float64(STEP)), start)
        return jnp.sum(weights * (motion.position + motion.velocity))

    slopes = eqx.filter_jit(jax.grad(loss, argnums=(0, 1)))(dynamics, command)
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(leaf).all()
    way = command * jnp.asarray(rng.normal(size=(N, 4)))
    ends = [loss(dynamics, command + h * way) for h in (1e-6, -1e-6)]
    np.testing.assert_allclose(jnp.sum(slopes[1] * way), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7)
    ends = [loss(jax.tree.map(lambda x, h=h: x * (1 + h), dynamics), command) for h in (1e-7, -1e-7)]
    along = sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (slopes[0], dynamics)), strict=True))
    np.testing.assert_allclose(along, (ends[0] - ends[1]) / 2e-7, rtol=1e-4, atol=1e-6)


# Two levels are quick tests, one of two kinds and one of one.
QUICK = (("rotors", "velocity"), PAIR), (("attitude", "velocity"), PAIR[:1])
SOME_OF_KINDS = [
    pytest.param(level, names, id="-".join([*level, *names]), marks=() if (level, names) in QUICK else pytest.mark.slow)
    for level in LEVELS
    for names in (PAIR, PAIR[:1])
]


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("level", "names"), SOME_OF_KINDS)
def test_batch_capacity_and_the_dead_change_no_bit(level, names):
    dynamics = drone_dynamics(names, STEP, *level)
    command = some_command(dynamics, level)
    start = dynamics.init(population(height=1.0))
    air = Air(jnp.ones((N, 3)), jnp.full((N, 3), 1e-3))

    def fly(motion, command, kind, air):
        return jax.lax.fori_loop(0, 3, lambda _, m: dynamics.fly(m, command, kind, jnp.float32(STEP), air), motion)

    def wider(x):
        return jnp.concatenate([x, jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0)])

    whole = start, command, KIND, air
    alone = jax.jit(fly)(*whole)
    double = jax.jit(fly)(*jax.tree.map(wider, whole))
    worlds = [jax.tree.map(lambda x, i=i: jnp.roll(x, i, axis=0), whole) for i in range(5)]
    together = jax.jit(jax.vmap(fly))(*jax.tree.map(lambda *x: jnp.stack(x), *worlds))
    for one, more, many in zip(*map(jax.tree.leaves, (alone, double, together)), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, more[:N])
        for i in range(5):
            np.testing.assert_array_equal(np.roll(one, i, axis=0), many[i])


# Bad input.


def changed(**values):
    table = load_airframe("cf2x_l250").model_dump(mode="json")
    for key, value in values.items():
        *parents, last = key.split("__")
        place = table
        for parent in parents:
            place = place[parent]
        place[last] = value
    return table


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mass": 0.0}, r"mass = 0\.0: input should be greater than 0"),
        ({"mass": 0.5}, r"rotors\.thrust_range = .*hovering takes 1\.226 N.*check mass"),
        ({"inertia": [1e-5, 1e-5, 3e-5]}, r"inertia = .*larger than the others' sum; check the units"),
        ({"rotors__motor_tau": -0.1}, r"rotors\.motor_tau = -0\.1: input should be greater than 0"),
        ({"rotors__motor_tau": None}, r"motor_tau \(seconds\) or motor_rates: expected exactly one"),
        ({"rotors__spin": [1, 1, -1]}, r"4 positions, 3 spins"),
        ({"rotors__thrust": [0.0, 1e-6, 0.0]}, r"newtons per RPM\^2, must be greater than 0"),
        ({"rotors__mas": 1.0}, r"unknown key 'rotors\.mas'"),
    ],
)
def test_impossible_airframes_are_refused_in_one_line(values, message, tmp_path):
    import tomli_w

    table = {k: v for k, v in changed(**values).items() if v is not None}
    table["rotors"] = {k: v for k, v in table["rotors"].items() if v is not None}
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(table))
    with pytest.raises(ConfigError, match=message) as raised:
        load_airframe(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_impossible_loops_are_refused_in_one_line():
    def build(*args, **kwargs):
        return lambda: drone_dynamics(*args, **kwargs)

    flat = Airframe(**changed(rotors__position=[[0.03, 0.0], [-0.03, 0.0], [0.02, 0.0], [-0.02, 0.0]]))
    slow = {"rate": 15.0, "outer_rate": 15.0}
    for wrong, message in (
        (build(["cf2x_l25"], STEP), r"no such airframe; did you mean 'cf2x_l250'"),
        (build([], STEP), "none given"),
        (build(["cf2x"], 0.0), r"time_step = 0\.0: expected seconds"),
        (build(["cf2x"], STEP, "attitude"), "attitude loop was not identified"),
        (build(["cf2x_l250"], STEP, "attitude", "rotors"), "has no rotors"),
        (build([flat], STEP), "cannot make each torque"),
        (build(["cf2x"], STEP, control={"max_tilt": 2.0}), "max_tilt = 2.0"),
        (build(["cf2x"], STEP, control={"stifness": [1.0] * 3}), "unknown key 'stifness'; did you mean 'stiffness'"),
        (build(["cf2x"], 1 / 15, control=slow), r"cf2x: time_step = 0\.0666667 s .* unstable; the largest stable one"),
        (build(["cf2x_l250"], STEP, control={"damping": [2.0] * 3}), "unstable at any"),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            wrong()
        assert "\n" not in str(raised.value)


def test_the_largest_stable_step_is_where_the_simulation_diverges():
    table = {"rate": 1e-3, "outer_rate": 1e-3}
    with pytest.raises(ConfigError) as raised:
        drone_dynamics(["cf2x", "cf2x"], 1.0, commands="attitude", control=table)
    largest = float(str(raised.value).split("largest stable one is ")[1].split(" s")[0])
    dynamics = drone_dynamics(["cf2x", "cf2x"], 0.99 * largest, commands="attitude", control=table)
    start = dynamics.init(population(height=100.0))
    off = eqx.tree_at(lambda m: m.inner.rates, start, start.inner.rates + jnp.asarray([[0.01, 0.0, 0.0]]))
    weight = float(dynamics.plant(KIND).mass[0] * 9.8)
    calm, wild = (
        np.abs(go(dynamics, off, every(0.0, 0.0, 0.0, weight), share * largest, 300).inner.rates[:, 0]).max()
        for share in (0.97, 1.03)
    )
    assert calm < 1e-2 < 0.5 < wild


# Edges: falling, the ground, limits.

VEHICLES = [("rotors", "rotors"), ("attitude", "attitude"), ("attitude_lag", "attitude")]


@pytest.mark.parametrize(("model", "commands"), VEHICLES)
def test_every_airframe_falls_at_a_terminal_velocity(model, commands):
    names = airframe_names() if model == "rotors" else [n for n in airframe_names() if load_airframe(n).attitude]
    frames = [load_airframe(name) for name in names]
    dynamics = drone_dynamics(names, STEP, model, commands, {"rate": 50.0})
    n = len(names)
    kinds = jnp.arange(n, dtype=jnp.int32)
    entities = eqx.tree_at(lambda e: e.kind, population(n, height=1000.0), kinds)
    low = dynamics.command(jnp.full((n, 4), -1.0), kinds)
    command = low if commands == "rotors" else low.at[:, :3].set(0.0)

    @jax.jit
    def fall(motion):
        def body(motion, _):
            motion = dynamics.step(motion, command, kinds, jnp.float32(STEP))
            return motion, motion.velocity[:, 2]

        return jax.lax.scan(body, motion, length=1500)[1]

    speed = -np.asarray(fall(dynamics.init(entities)))
    np.testing.assert_allclose(speed[-1], speed[-250], rtol=0.01)
    for frame, found in zip(frames, speed[-1], strict=True):
        weight = frame.mass * frame.gravity - len(frame.rotors.spin) * frame.rotors.thrust_range[0]
        linear, square = frame.drag[2], 0.5 * 1.225 * frame.drag_area[2]
        root = np.sqrt(linear**2 + 4 * square * weight)
        # Of a v + b v^2 = weight; the rotors of models of the attitude gain some percent of thrust.
        assert found == pytest.approx(2 * weight / (linear + root), rel=1e-3 if model == "rotors" else 0.05)
        assert found < 30.0


def test_drag_of_the_body_is_of_second_order_and_stable_for_any_step(x64):
    """Falling at one attitude: v = -v_t tanh(g t / v_t)."""
    g, b = 9.81, 0.1
    zero = jnp.zeros(())
    forces = Forces(zero, (zero,) * 3, (jnp.asarray(b),) * 3, (zero, zero, jnp.asarray(-g)), (zero,) * 3)
    level = zero, zero, zero, zero + 1.0

    @jax.jit
    def kicked(n, h):
        return jax.lax.fori_loop(0, n, lambda _, v: forces.kick(level, v, h), (zero, zero, zero))[2]

    def fallen(n, span=1.0):
        return float(kicked(jnp.int64(n), jnp.float64(span / n)))

    terminal = np.sqrt(g / b)
    errors = [abs(fallen(n) + terminal * np.tanh(g / terminal)) for n in (20, 40)]
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.1
    assert -10 * terminal < fallen(50, 1e4) < 0.0
    still = jax.jit(jax.grad(lambda v: forces.kick(level, (zero, zero, v), jnp.asarray(0.01))[2]))(zero)
    assert still == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(("model", "commands"), VEHICLES)
def test_the_ground_lifts_every_airframe(model, commands):
    names = airframe_names() if model == "rotors" else [n for n in airframe_names() if load_airframe(n).attitude]
    dynamics = drone_dynamics(names, STEP, model, commands, {"rate": 50.0}, {"height": 0.01})
    n, dt = len(names), jnp.float32(1e-3)
    kinds = jnp.arange(n, dtype=jnp.int32)
    fly = eqx.filter_jit(lambda m: dynamics.step(m, hover, kinds, dt))
    for height in (0.03, 0.2):
        entities = eqx.tree_at(lambda e: e.kind, population(n, height=height), kinds)
        start = dynamics.init(entities)
        if commands == "rotors":
            hover = start.inner.rotors
        else:
            hover = dynamics.vehicle.aim(jnp.zeros((n, 3)), start.inner.thrust, kinds)
        gain = np.asarray(fly(start).velocity[:, 2] / dt)
        for name, found in zip(names, gain, strict=True):
            frame = load_airframe(name).on_ground()
            share = min(frame.rotors.ground_effect * (frame.rotors.radius / 4 / height) ** 2, 4 / 15)
            assert share > 0
            assert found == pytest.approx(frame.gravity * share, rel=0.02, abs=2e-3)


def test_the_ground_holds_drones_up_where_it_is_asked_to_and_is_reported_where_not():
    dropped = every(0.0, 0.0, 0.0, 0.0)
    free = drone_dynamics(PAIR, STEP, "attitude", "attitude")
    ground = {"height": 0.1, "friction": 0.5}
    held = drone_dynamics(PAIR, STEP, "attitude", "attitude", ground=ground)
    start = free.init(population(height=2.0))
    start = eqx.tree_at(lambda m: m.velocity, start, start.velocity.at[:, 0].set(2.0))
    alive, nobody = jnp.ones(N, bool), jnp.zeros(N, bool)
    status = jax.jit(lambda m, alive: free.status(m, hover, KIND, alive))
    hover = free.aim(jnp.zeros((N, 3)), start.inner.thrust, KIND)
    assert status(start, alive) == 0
    through = go(free, start, dropped, STEP, 150)
    assert status(through, alive) == Status.BELOW_GROUND
    assert status(through, nobody) == 0
    rest = go(held, start, dropped, STEP, 400)
    assert status(rest, alive) == 0
    np.testing.assert_allclose(rest.position[:, 2], 0.1)
    np.testing.assert_allclose(rest.velocity, 0.0, atol=1e-6)
    # It starts as from the air, and an upward thrust takes it off.
    climbing = hover.at[:, 3].multiply(1.3)
    assert (np.asarray(go(held, rest, climbing, STEP, 100).position[:, 2]) > 0.5).all()


@pytest.mark.parametrize("restitution", [0.0, 0.5])
def test_contact_is_that_of_a_sliding_and_bouncing_body(restitution):
    ground = {"height": 0.5, "friction": 0.4, "restitution": restitution}
    held, kind = drone_dynamics(PAIR[:1], STEP, "attitude", ground=ground), jnp.zeros(1, jnp.int32)
    dt, n = 1e-3, 1500
    start = Motion(jnp.asarray([[0.0, 0.0, 0.5]]), jnp.asarray([[3.0, 0.0, -4.0 * restitution]]), jnp.zeros(1))

    @jax.jit
    def run(motion):
        def body(motion, _):
            velocity = motion.velocity - dt * jnp.asarray([[0.0, 0.0, 9.81]])
            motion = held.touch(Motion(motion.position + dt * velocity, velocity, motion.heading), kind)
            return motion, motion.position[0]

        return jax.lax.scan(body, motion, length=n)[1]

    path = np.asarray(run(start))
    if restitution == 0:
        # Coulomb: it slides v^2 / (2 mu g) far.
        assert path[-1, 0] == pytest.approx(9.0 / (2 * 0.4 * 9.81), abs=5e-3)
        np.testing.assert_allclose(path[:, 2], 0.5)
    else:
        # Newton: up again at half of 2 m/s, and slower along by mu times the change upward.
        assert path[:, 2].max() - 0.5 == pytest.approx(1.0 / (2 * 9.81), abs=5e-3)
        assert path[100, 0] == pytest.approx(0.1 * (3.0 - 0.4 * 3.0), abs=0.01)
    assert path[:, 2].min() >= 0.5


@pytest.mark.parametrize(
    ("model", "commands"),
    [("rotors", "rotors")]
    + [(m, c) for m in ("rotors", "attitude", "attitude_lag") for c in ("attitude", "velocity", "position")],
)
def test_a_command_is_limited_where_it_says_so_and_nowhere_else(model, commands):
    dynamics = drone_dynamics(PAIR, STEP, model, commands, {"speed": 2.0})
    low, high = (dynamics.command(jnp.full((N, 4), x), KIND) for x in (-1.0, 1.0))
    legal = [low.at[:, 1:3].multiply(0.0), high.at[:, 1:3].multiply(0.0)] if commands == "velocity" else [low, high]
    limited = eqx.filter_jit(dynamics.limited)
    status = jax.jit(lambda c, alive: dynamics.status(start, c, KIND, alive))
    start = dynamics.init(population(height=1.0))
    for command in legal:
        assert not limited(command, KIND).any()
    columns = {"rotors": range(4), "attitude": (0, 1, 3), "velocity": range(3), "position": ()}[commands]
    middle = 0.5 * (low + high)
    for column in range(4):
        for edge, sign in ((high, 1.0), (low, -1.0)):
            beyond = middle.at[1, column].set(edge[1, column] + 0.1 * sign * jnp.abs(edge[1, column]))
            expected = np.arange(N) == (1 if column in columns else -1)
            np.testing.assert_array_equal(limited(beyond, KIND), expected)
            bits = [int(status(beyond, jnp.asarray(alive))) for alive in (np.ones(N, bool), np.arange(N) != 1)]
            assert bits == [Status.COMMAND_LIMITED if column in columns else 0, 0]
