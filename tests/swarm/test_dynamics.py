"""Motion: closed forms, sub-steps, limits, gradients, batches."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swarm.core.errors import ConfigError
from swarm.dynamics import Differential, DoubleIntegrator, Motion, SingleIntegrator, Unicycle, VelocityLag
from swarm.population.entities import Entities

pytestmark = pytest.mark.optimised

fixed = settings(deadline=None, derandomize=True, max_examples=40)
N = 4
KIND = jnp.asarray([0, 1, 0, 1], jnp.int32)


def numbers(limit, shape):
    return hnp.arrays(np.float32, shape, elements=st.integers(-8, 8).map(lambda i: i * limit / 8))


def row(*values):
    return jnp.asarray(values, jnp.float32)


def follow(motion, command, parameters):
    """The lag's equation without limits."""
    change = (command - motion.velocity) / parameters["tau"]
    return Motion(motion.velocity, change, jnp.zeros_like(motion.heading))


def drive(motion, command, parameters):
    """The unicycle's."""
    way = command[0] * jnp.stack([jnp.cos(motion.heading), jnp.sin(motion.heading)])
    return Motion(way, jnp.zeros_like(way), command[1])


def differential(field, solver=None, n_substeps=1, **parameters):
    wide = jnp.full((2, 2), 100.0)
    return Differential(field, parameters, -wide, wide, None, solver or diffrax.Heun(), n_substeps)


LAG = VelocityLag(row(1.0, 0.5), row(6.0, 2.0), row(20.0, 3.0))
INTEGRATOR = DoubleIntegrator(row(3.0, 8.0), row(4.0, 2.0))
UNICYCLE = Unicycle(row(-1.0, 0.5), row(4.0, 2.0), row(1.0, 3.0))
UNLIMITED = row(np.inf, np.inf)
EXACT = {
    "single": SingleIntegrator(row(4.0, 2.0)),
    "double": INTEGRATOR,
    "free": DoubleIntegrator(UNLIMITED, UNLIMITED),
    "lag": LAG,
    "lag-free": VelocityLag(row(1.0, 0.5), UNLIMITED, UNLIMITED),
    "unicycle": UNICYCLE,
}
ALL = EXACT | {"differential": differential(follow, diffrax.Tsit5(), 3, tau=row(1.0, 0.5))}
LIMITED = [name for name in ALL if not name.endswith("free")]


@eqx.filter_jit
def steps(dynamics, motion, command, dt, n):
    return jax.lax.fori_loop(0, n, lambda _, m: dynamics.step(m, command, KIND, dt), motion)


def go(dynamics, motion, command, dt, n=1):
    return steps(dynamics, motion, jnp.asarray(command), jnp.float32(dt), jnp.int32(n))


def state(position, velocity, heading):
    return Motion(jnp.asarray(position), jnp.asarray(velocity), jnp.asarray(heading))


def rest(d=2):
    return state(np.zeros((N, d), np.float32), np.zeros((N, d), np.float32), np.zeros(N, np.float32))


def every(*command):
    return jnp.tile(row(*command)[None], (N, 1))


def leaves(motion):
    return np.concatenate([motion.position, motion.velocity, motion.heading[:, None]], axis=1)


def turn_free(found, expected):
    """Difference of two motions; headings that differ by a turn are the same."""
    difference = leaves(found) - leaves(expected)
    difference[:, -1] -= 2 * np.pi * np.round(difference[:, -1] / (2 * np.pi))
    return difference


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("d", [2, 3])
def test_many_small_steps_are_one_large_one(name, d):
    if name == "unicycle" and d == 3:
        pytest.skip("in the plane only")

    @given(numbers(10, (N, d)), numbers(5, (N, d)), numbers(3, (N,)), numbers(10, (N, d)), st.sampled_from([0.1, 3.0]))
    @fixed
    def check(position, velocity, heading, command, dt):
        motion, command = state(position, velocity, heading), jnp.asarray(command)
        once = go(EXACT[name], motion, command, dt)
        for n in (2, 7):
            assert np.abs(turn_free(go(EXACT[name], motion, command, dt / n, n), once)).max() < 2e-4

    check()


@given(numbers(5, (N, 2)), numbers(10, (N, 2)))
@settings(fixed, max_examples=10)
def test_double_integrator_slides_along_its_highest_speed(velocity, command):
    # Against many small steps that cut the velocity back, in double precision.
    limit, cap = np.asarray(INTEGRATOR.acceleration)[KIND], np.asarray(INTEGRATOR.speed)[KIND]

    def cut(v, most):
        size = np.hypot(*v.T)
        return v * np.where(size > most, most / np.maximum(size, 1e-9), 1.0)[:, None]

    x, v, push, n = np.zeros((N, 2)), cut(velocity.astype(float), cap), cut(command.astype(float), limit), 5000
    for _ in range(n):
        x, v = x + (v + push / (2 * n)) / n, cut(v + push / n, cap)
    found = go(INTEGRATOR, state(np.zeros((N, 2), np.float32), velocity, np.zeros(N, np.float32)), command, 1.0)
    np.testing.assert_allclose(found.position, x, atol=2e-3)
    np.testing.assert_allclose(found.velocity, v, atol=2e-3)


def test_double_integrator_goes_from_rest_to_rest():
    free, capped = DoubleIntegrator(row(1.0, 1.0), UNLIMITED), DoubleIntegrator(row(1.0, 1.0), row(2.0, 2.0))
    # 9 m in 2 sqrt(9 / 1) s; with at most 2 m/s in 9 / 2 + 2 / 1 s.
    for dynamics, there, back in ((free, 3.0, 3.0), (capped, 4.5, 2.0)):
        motion = go(dynamics, rest(), every(5.0, 0.0), there)
        motion = go(dynamics, motion, every(-1.0, 0.0), back)
        np.testing.assert_allclose(motion.position, every(9.0, 0.0), atol=1e-5)
        np.testing.assert_allclose(motion.velocity, every(0.0, 0.0), atol=1e-5)


def test_lag_saturates_then_decays():
    dynamics = VelocityLag(row(1.0, 1.0), row(6.0, 6.0), UNLIMITED)
    speeds = [go(dynamics, rest(), every(8.0, 0.0), t).velocity[0, 0] for t in (0.2, 1 / 3, 1.0)]
    # 8 - 6 exp(-(1 - 1/3)) = 4.9195
    np.testing.assert_allclose(speeds, [1.2, 2.0, 8 - 6 * np.exp(-2 / 3)], rtol=1e-6)
    assert abs(speeds[-1] - 4.9195) < 5e-5


def test_unicycle_closes_a_circle():
    speed, turn = 2.0, 0.5
    start = eqx.tree_at(lambda m: m.heading, rest(), jnp.full(N, 0.7))
    period = 2 * np.pi / turn
    wide = Unicycle(row(-9.0, -9.0), row(9.0, 9.0), row(9.0, 9.0))
    quarters = [go(wide, start, every(speed, turn), period * i / 4) for i in range(1, 5)]
    centre = speed / turn * np.asarray([-np.sin(0.7), np.cos(0.7)])
    for motion in quarters:
        np.testing.assert_allclose(np.hypot(*(np.asarray(motion.position) - centre).T), speed / turn, rtol=1e-5)
    np.testing.assert_allclose(quarters[1].position[0], 2 * centre, rtol=1e-5)
    np.testing.assert_allclose(turn_free(quarters[3], start)[:, [0, 1, 4]], 0.0, atol=1e-5)


@given(numbers(5, (N, 2)), numbers(20, (N, 2)), st.sampled_from(["double", "lag"]))
@fixed
def test_limits_hold(velocity, command, name):
    dynamics = EXACT[name]
    limit, cap = np.asarray(dynamics.acceleration)[KIND], np.asarray(dynamics.speed)[KIND]
    slow = velocity * np.minimum(1.0, cap / np.maximum(np.hypot(*velocity.T), 1e-9))[:, None]
    after = go(dynamics, state(velocity, slow.astype(np.float32), np.zeros(N, np.float32)), command, 0.25)
    assert (np.hypot(*np.asarray(after.velocity).T) <= cap * (1 + 1e-5)).all()
    assert (np.hypot(*(np.asarray(after.velocity) - slow).T) <= limit * 0.25 * (1 + 1e-4) + 1e-5).all()


@pytest.mark.parametrize("name", LIMITED)
def test_actions_span_the_legal_commands(name):
    dynamics = ALL[name]
    low, middle, high = (dynamics.command(jnp.full((N, 2), x), KIND) for x in (-1.0, 0.0, 1.0))
    assert low.shape == (N, dynamics.n_commands(2))
    np.testing.assert_allclose(middle, (low + high) / 2, atol=1e-6)
    # Each axis reaches what the limits allow, and no more: beyond, nothing changes.
    alone = jnp.asarray([1.0, 0.0])
    edge, beyond = (go(dynamics, rest(), c * alone[None], 0.1) for c in (high, 2 * high))
    np.testing.assert_allclose(leaves(edge), leaves(beyond), atol=1e-6)
    half = go(dynamics, rest(), 0.5 * high * alone[None], 0.1)
    assert (np.abs(leaves(half) - leaves(edge)).max(axis=1) > 1e-3).all() or name.startswith("lag")


@pytest.mark.parametrize(("solver", "order"), [(diffrax.Euler(), 1), (diffrax.Heun(), 2)])
@pytest.mark.parametrize("name", ["lag", "unicycle"])
def test_differential_equations_converge_to_the_closed_form_at_the_order_of_the_solver(name, solver, order):
    field, command = (follow, every(3.0, -2.0)) if name == "lag" else (drive, every(2.0, 1.5))
    exact = (
        VelocityLag(row(1.0, 0.5), UNLIMITED, UNLIMITED) if name == "lag" else Unicycle(-UNLIMITED, *[UNLIMITED] * 2)
    )
    start, dt = eqx.tree_at(lambda m: m.heading, rest(), jnp.full(N, 0.3)), 1.0
    expected = go(exact, start, command, dt)
    errors = []
    for n in (4, 8):
        found = go(differential(field, solver, n, tau=row(1.0, 0.5)), start, command, dt)
        errors.append(np.abs(turn_free(found, expected))[:, :2].max())
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.45
    # A solver of order 5 leaves rounding only.
    if order == 2:
        fine = go(differential(field, diffrax.Tsit5(), 20, tau=row(1.0, 0.5)), start, command, dt)
        np.testing.assert_allclose(turn_free(fine, expected), 0.0, atol=3e-6)


def test_inner_state_is_integrated_and_read_by_the_field():
    # A motor of 0.5 s drives the acceleration: x''' = (u - x'') / 0.5.
    def field(motion, command, parameters):
        change = (command - motion.inner["push"]) / parameters
        return Motion(motion.velocity, motion.inner["push"], jnp.zeros(()), {"push": change})

    wide = jnp.full((2, 2), 9.0)
    start = {"push": jnp.zeros(2)}
    dynamics = Differential(field, row(0.5, 0.5), -wide, wide, start, diffrax.Tsit5(), 8)
    motion = go(dynamics, dynamics.init(Entities.empty(N, 2, 0)), every(1.0, -1.0), 1.0)
    gone = 1 - np.exp(-2.0)
    np.testing.assert_allclose(motion.inner["push"], every(gone, -gone), rtol=1e-5)
    np.testing.assert_allclose(motion.velocity, every(1 - 0.5 * gone, -1 + 0.5 * gone), rtol=1e-5)


def test_differential_needs_a_substep():
    with pytest.raises(ConfigError, match="n_substeps = 0"):
        differential(follow, n_substeps=0)


def values(name, motion, command):
    """What is differentiated: the parameters, too, except with a vector field, which is no array."""
    return (motion, command) if name == "differential" else (motion, command, ALL[name])


def loss(values, dynamics, alive):
    motion, command, dynamics = (*values, dynamics)[:3]
    after = dynamics.step(motion, command, KIND, jnp.float32(0.3))
    shown = [jnp.where(alive[:, None], x, 0.0) for x in (after.position, after.velocity, after.heading[:, None])]
    return sum(jnp.sum(jnp.square(x)) for x in shown)


value = eqx.filter_jit(lambda values, dynamics, alive: loss(values, dynamics, alive))
slope = eqx.filter_jit(lambda values, dynamics, alive: jax.grad(loss)(values, dynamics, alive))
ALIVE = jnp.ones(N, bool)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite_at_rest_and_at_the_limits(name):
    @given(numbers(4, (N, 2)), numbers(8, (N, 2)))
    @settings(fixed, max_examples=20)
    def check(velocity, command):
        # Multiples of 1/2 and 1 hit the limits exactly, and 0.
        motion = state(np.zeros((N, 2), np.float32), velocity, np.zeros(N, np.float32))
        for leaf in jax.tree.leaves(slope(values(name, motion, jnp.asarray(command)), ALL[name], ALIVE)):
            assert np.isfinite(leaf).all()

    check()


@pytest.mark.parametrize("name", LIMITED)
def test_gradients_are_those_of_finite_differences(name):
    rng = np.random.default_rng(1)
    motion = state(*(rng.normal(size=s).astype(np.float32) for s in ((N, 2), (N, 2), (N,))))
    command = jnp.asarray(3 * rng.normal(size=(N, 2)), jnp.float32)
    way = jnp.asarray(rng.normal(size=(N, 2)), jnp.float32)
    exact = jnp.sum(slope(values(name, motion, command), ALL[name], ALIVE)[1] * way)
    step = 1e-2
    ends = [value(values(name, motion, command + sign * step * way), ALL[name], ALIVE) for sign in (1, -1)]
    np.testing.assert_allclose(exact, (ends[0] - ends[1]) / (2 * step), rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("name", LIMITED)
def test_the_dead_may_hold_anything(name):
    rng = np.random.default_rng(2)
    motion = state(*(rng.normal(size=s).astype(np.float32) for s in ((N, 2), (N, 2), (N,))))
    command = jnp.asarray(3 * rng.normal(size=(N, 2)), jnp.float32)
    alive = jnp.asarray([True, False, True, True])
    garbled, bad = jax.tree.map(lambda x: x.at[1].set(jnp.nan), (motion, command))
    for clean, dirty in zip(
        jax.tree.leaves(go(ALL[name], motion, command, 0.3)),
        jax.tree.leaves(go(ALL[name], garbled, bad, 0.3)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(clean)[alive], np.asarray(dirty)[alive])
    # Read from a population, they leave no trace in the gradients of shared parameters either.
    entities = eqx.tree_at(lambda e: e.alive, Entities.empty(N, 2, 0), alive)
    clean, dirty = (
        slope(values(name, Motion.of(m.into(entities)), command), ALL[name], alive) for m in (motion, garbled)
    )
    for one, other in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(one).all()


@pytest.mark.parametrize("name", LIMITED)
def test_alone_and_in_a_batch_the_bits_are_the_same(name):
    rng = np.random.default_rng(3)
    shapes = ((5, N, 2), (5, N, 2), (5, N))
    motions = state(*(3 * rng.normal(size=s).astype(np.float32) for s in shapes))
    commands = jnp.asarray(5 * rng.normal(size=(5, N, 2)), jnp.float32)

    def some(motion, command):
        return jax.lax.fori_loop(0, 3, lambda _, m: ALL[name].step(m, command, KIND, jnp.float32(0.2)), motion)

    together = jax.jit(jax.vmap(some))(motions, commands)
    alone = jax.jit(some)
    for b in range(5):
        single = alone(*jax.tree.map(lambda x, b=b: x[b], (motions, commands)))
        for one, many in zip(jax.tree.leaves(single), jax.tree.leaves(together), strict=True):
            np.testing.assert_array_equal(one, many[b])


def test_motion_goes_into_the_population_and_back():
    entities = eqx.tree_at(lambda e: e.alive, Entities.empty(N, 2, 0), ALIVE)
    motion = state(*(np.full(s, i + 1.0, np.float32) for i, s in enumerate(((N, 2), (N, 2), (N,)))))
    again = Motion.of(motion.into(entities))
    assert eqx.tree_equal(motion, again)


@pytest.mark.parametrize("name", list(ALL))
def test_a_command_is_limited_where_it_says_so(name):
    """In one of two components, of one entity, by one percent."""
    dynamics, alone = ALL[name], jnp.arange(N) == 1
    ones, limited = jnp.ones((N, 1)), eqx.filter_jit(dynamics.limited)
    zero = dynamics.command(jnp.zeros((N, 2)), KIND)
    for column in (0, 1):
        for sign in (-1.0, 1.0):
            action = jnp.zeros((N, 2)).at[:, column].set(sign)
            edge = jnp.where(jnp.isfinite(zero), dynamics.command(action, KIND), 1e9 * sign * ones)
            assert not limited(edge, KIND).any()
            beyond = jnp.where(alone[:, None], edge + sign * 0.01 * jnp.abs(edge), edge)
            np.testing.assert_array_equal(limited(beyond, KIND), alone & (name in LIMITED))
