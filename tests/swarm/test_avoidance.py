"""Reciprocal collision avoidance: against a general solver, in closed form, and as swarms that cross."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from swarm.dynamics.avoidance import HalfSpaces, avoid, reciprocal, walls
from swarm.geometry.space import Open
from swarm.neighbors.questions import AllPairs

SPEED = jnp.float32(2.0)
avoiding = eqx.filter_jit(avoid)


def none(n, d):
    return HalfSpaces(jnp.zeros((n, 0, d)), jnp.zeros((n, 0)), jnp.zeros((n, 0), bool))


def random_spaces(seed, n, k, d, low, high):
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(n, k, d))
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    goal = rng.normal(size=(n, d)) * 2
    arrays = goal, normal, rng.uniform(low, high, (n, k))
    return [jnp.asarray(x, jnp.float32) for x in arrays] + [jnp.asarray(rng.random((n, k)) < 0.8)]


@pytest.fixture(scope="module")
def solved():
    return {
        d: jax.jit(lambda goal, spaces, d=d: avoid(goal, jnp.full(len(goal), SPEED), none(len(goal), d), spaces))
        for d in (2, 3)
    }


@pytest.mark.parametrize("d", [2, 3])
def test_the_nearest_velocity_that_all_allow_is_found(solved, d):
    goal, normal, offset, active = random_spaces(d, 40, 5, d, -2.0, 0.3)
    found = np.asarray(solved[d](goal, HalfSpaces(normal, offset, active)), float)
    n_feasible = 0
    for x, g, n, o, a in zip(
        found, *(np.asarray(v, float) for v in (goal, normal, offset)), np.asarray(active), strict=True
    ):
        n, o = n[a], o[a]
        constraints = [
            {"type": "ineq", "fun": lambda v, n=n, o=o: n @ v - o},
            {"type": "ineq", "fun": lambda v: 4 - v @ v},
        ]
        best = minimize(lambda v, g=g: np.sum((v - g) ** 2), np.zeros(d), constraints=constraints, method="SLSQP")
        if best.success and (n @ best.x >= o - 1e-6).all():
            n_feasible += 1
            assert (n @ x >= o - 1e-4).all()
            assert np.linalg.norm(x) <= 2 + 1e-4
            np.testing.assert_allclose(np.linalg.norm(x - g), np.linalg.norm(best.x - g), atol=2e-3)
    assert n_feasible > 25


@pytest.mark.parametrize("d", [2, 3])
def test_where_nothing_is_allowed_the_worst_violation_is_least(solved, d):
    goal, normal, offset, active = random_spaces(10 + d, 40, 5, d, 0.3, 1.2)
    found = np.asarray(solved[d](goal, HalfSpaces(normal, offset, active)), float)
    n_infeasible = 0
    for x, n, o, a in zip(found, *(np.asarray(v, float) for v in (normal, offset)), np.asarray(active), strict=True):
        n, o = n[a], o[a]
        constraints = [
            {"type": "ineq", "fun": lambda v, n=n, o=o: n @ v[:-1] - o + v[-1]},
            {"type": "ineq", "fun": lambda v: 4 - v[:-1] @ v[:-1]},
        ]
        best = minimize(lambda v: v[-1], np.append(np.zeros(d), 2.0), constraints=constraints, method="SLSQP")
        if best.success and best.x[-1] > 1e-3:
            n_infeasible += 1
            assert (o - n @ x).max() == pytest.approx(best.x[-1], abs=5e-3)
    assert n_infeasible > 10


def test_walls_come_first():
    # Somebody pushes me towards the wall by more than there is room.
    hard = eqx.filter_jit(walls)(jnp.asarray([[0.1]]), jnp.asarray([[[0.0, 1.0]]]), jnp.float32(1.0), jnp.float32(0.1))
    soft = HalfSpaces(jnp.asarray([[[0.0, -1.0]]]), jnp.asarray([[1.0]]), jnp.ones((1, 1), bool))
    velocity = avoiding(jnp.asarray([[1.0, 0.0]]), SPEED[None], hard, soft)
    np.testing.assert_allclose(velocity[0, 1], -0.1, atol=1e-5)


@pytest.mark.parametrize("d", [2, 3])
def test_reverse_mode_is_the_slope_of_finite_differences(d):
    """By all arguments, where all is allowed and where it is not; who has no constraint may hold anything."""
    n, k, n_hard = 24, 5, 2
    with jax.enable_x64(True):
        rng = np.random.default_rng(d)
        normal = rng.normal(size=(n, k, d))
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        offset = np.where(np.arange(n)[:, None] % 2, rng.uniform(-2, 0.3, (n, k)), rng.uniform(0.3, 1.2, (n, k)))
        there = rng.random((n, k)) < 0.8
        normal[~there], offset[~there] = np.nan, np.nan
        active = jnp.asarray(there)
        start = tuple(jnp.asarray(x) for x in (rng.normal(size=(n, d)) * 2, np.full(n, 2.0), normal, offset))
        way = tuple(jnp.asarray(rng.normal(size=x.shape)) for x in start)

        @jax.jit
        def chosen(goal, top, normal, offset):
            spaces = HalfSpaces(normal, offset, active)
            hard, soft = (jax.tree.map(lambda x, p=p: x[:, p], spaces) for p in np.split(np.arange(k), [n_hard]))
            return avoid(goal, top, hard, soft)

        @jax.jit
        def slopes(start):
            _, pull = jax.vjp(chosen, *start)
            # Rows do not depend on each other.
            return jax.vmap(lambda axis: pull(jnp.broadcast_to(axis, (n, d))))(jnp.eye(d))

        step = 1e-6
        ahead, back = (chosen(*(x + s * step * v for x, v in zip(start, way, strict=True))) for s in (1, -1))
        found = slopes(start)
        parts = [jnp.where(jnp.isfinite(v), v, 0.0)[None] * g for v, g in zip(way, found, strict=True)]
        along = sum(jnp.sum(part.reshape(d, n, -1), axis=2) for part in parts).T
        assert np.isfinite(np.asarray(along)).all()
        np.testing.assert_allclose(along, (ahead - back) / (2 * step), rtol=1e-5, atol=1e-6)


def test_reverse_mode_goes_through_the_constraints_of_others():
    """On one course, at the same place, overlapping, beside one that is dead: finite, and that of forward mode."""
    place = jnp.asarray([[0.0, 0], [6, 0], [6, 0], [0, 0.5], [-4, 3], [np.nan, np.nan]])
    velocity = jnp.asarray([[1.0, 0], [-1, 0], [-1, 0], [0.3, 0.2], [1, -1], [np.nan, np.nan]])
    alive = jnp.arange(6) < 5
    search = AllPairs(Open(jnp.zeros(2), jnp.ones(2)), jnp.float32(9.0))

    def flown(horizon, velocity):
        near = search.find(place, alive).nearest(3)
        them, reach = near.gather(velocity), jnp.full((6, 3), 1.0)
        spaces = reciprocal(velocity, near.displacement, them, near.valid, reach, horizon, jnp.float32(0.1))
        chosen = avoid(jnp.where(alive[:, None], 1.5 * velocity, 0.0), jnp.full(6, SPEED), none(6, 2), spaces)
        weights = jnp.arange(12.0).reshape(6, 2)
        return jnp.sum(jnp.where(alive[:, None], weights * chosen, 0.0))

    at = jnp.float32(2.5), velocity
    backward = jax.jit(jax.grad(flown, (0, 1)))(*at)
    forward = jax.jit(jax.jacfwd(flown, (0, 1)))(*at)
    for a, b in zip(backward, forward, strict=True):
        rows = alive if a.ndim else ()
        assert np.isfinite(a[rows]).all()
        np.testing.assert_allclose(a[rows], b[rows], rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(backward[0])) > 1e-3 < float(jnp.max(jnp.abs(backward[1][:5])))


def test_two_that_meet_head_on_share_the_effort():
    way = jnp.asarray([[[10.0, 0.0, 0.0]], [[-10.0, 0.0, 0.0]]])
    velocity = jnp.asarray([[1.0, 1e-3, 0.0], [-1.0, -1e-3, 0.0]])
    there, size = jnp.ones((2, 1), bool), jnp.ones((2, 1))

    @jax.jit
    def choose(velocity):
        them = velocity[::-1, None]
        spaces = reciprocal(velocity, way, them, there, size, jnp.float32(10.0), jnp.float32(0.1))
        return avoid(velocity, jnp.full(2, SPEED), none(2, 3), spaces)

    chosen = choose(velocity)
    np.testing.assert_allclose(chosen[0], -chosen[1], atol=1e-5)
    # Together they just pass: the relative velocity touches the cone or its cap.
    relative = np.asarray(chosen[0] - chosen[1], float)
    times = np.linspace(0, 10, 2001)
    nearest = np.linalg.norm(np.asarray([10.0, 0, 0]) - times[:, None] * relative, axis=1).min()
    assert nearest == pytest.approx(1.0, abs=2e-3)


def crossing(n, radius_of_circle, n_steps, jitter=0.0, dt=0.25, radius=1.5, horizon=10.0, k=10, sight=15.0):
    """RVO2's example `Circle`: n agents on a circle go to the opposite point; returns steps and least distance."""
    angle = 2 * np.pi * (np.arange(n) + jitter * np.random.default_rng(0).uniform(-0.5, 0.5, n)) / n
    start = jnp.asarray(radius_of_circle * np.stack([np.cos(angle), np.sin(angle)], 1), jnp.float32)
    search = AllPairs(Open(jnp.zeros(2), jnp.ones(2)), jnp.float32(sight))
    alive, top = jnp.ones(n, bool), jnp.full(n, SPEED)

    @jax.jit
    def run(key):
        def going(carry):
            position, _, _, step = carry
            there = jnp.sum((position + start) ** 2, axis=1) <= radius**2
            return ~jnp.all(there) & (step < n_steps)

        def body(carry):
            position, velocity, least, step = carry
            way = -start - position
            size = jnp.linalg.norm(way, axis=1, keepdims=True)
            wanted = jnp.where(size > 1.0, way / size, way)
            # As the example does, against the deadlock of perfect symmetry.
            a, b = jax.random.uniform(jax.random.fold_in(key, step), (2, n))
            wanted = wanted + 1e-4 * b[:, None] * jnp.stack([jnp.cos(2 * jnp.pi * a), jnp.sin(2 * jnp.pi * a)], 1)
            near = search.find(position, alive).nearest(k)
            spaces = reciprocal(
                velocity,
                near.displacement,
                near.gather(velocity),
                near.valid,
                jnp.full((n, k), 2 * radius),
                jnp.float32(horizon),
                jnp.float32(dt),
            )
            velocity = avoid(wanted, top, none(n, 2), spaces)
            position = position + dt * velocity
            near = search.find(position, alive).nearest(1)
            least = jnp.minimum(least, jnp.min(jnp.where(near.valid, near.distance, jnp.inf)))
            return position, velocity, least, step + 1

        return jax.lax.while_loop(going, body, (start, jnp.zeros((n, 2)), jnp.float32(jnp.inf), jnp.int32(0)))

    _, _, least, step = run(jax.random.key(0))
    return int(step), float(least)


def test_twenty_cross_a_circle():
    # In perfect symmetry so few would stand around the middle for long.
    steps, least = crossing(20, 30.0, 1000, jitter=0.5)
    assert steps < 600
    assert least > 2.8


@pytest.mark.slow
def test_two_hundred_and_fifty_cross_a_circle():
    """RVO2 itself: all arrive in 3,200 to 3,700 steps with least distances of at least 2.0."""
    steps, least = crossing(250, 200.0, 4500)
    print("steps", steps, "least distance", least)
    assert steps <= 3700
    assert least >= 2.0
