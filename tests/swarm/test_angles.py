"""Angles: whole turns change nothing, the nearest turn is taken, and every layer of every drone keeps to that."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.dynamics import drone_dynamics, quaternion
from swarm.dynamics.control import _off
from swarm.dynamics.quaternion import components
from swarm.geometry.angles import OPPOSITE, nearest_turn, wrapped
from swarm.population.entities import Entities

STEP, SECONDS = 0.02, 6.0
FULL = 2 * np.pi
LEVELS = [(m, c) for m in ("rotors", "attitude", "attitude_lag") for c in ("attitude", "velocity", "position")]


def back(angle):
    """In [-pi, pi), in double precision."""
    return (np.asarray(angle, np.float64) + np.pi) % FULL - np.pi


@pytest.mark.parametrize("turns", [0, 1, -1, 7, -100, 1000])
def test_an_angle_is_the_same_after_whole_turns(turns):
    exact = np.concatenate([np.linspace(-3.1, 3.1, 63), [3.14159, -3.14159, 1e-6, 0.0]])
    given = (exact + FULL * turns).astype(np.float32)
    found = np.asarray(wrapped(jnp.asarray(given)))
    np.testing.assert_allclose(back(found - given.astype(float)), 0.0, atol=3e-7)
    assert (np.abs(found) <= np.pi + 3e-7).all()
    if turns == 0:
        np.testing.assert_array_equal(found, given)
    np.testing.assert_array_equal(jax.vmap(jax.grad(wrapped))(jnp.asarray(given)), 1.0)


def test_the_edges_of_an_angle():
    edges = [np.nextafter(np.float32(k * np.pi), np.float32(s * 99)) for k in range(-9, 10) for s in (-1, 1)]
    edges = np.asarray([*edges, *(np.float32(k * np.pi) for k in range(-9, 10))])
    found = np.asarray(wrapped(jnp.asarray(edges)))
    assert (np.abs(found) <= np.pi + 3e-7).all()
    np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * edges.astype(float)), atol=1e-6)


@pytest.mark.parametrize("start_turns", [0, -3, 20])
@pytest.mark.parametrize("goal_turns", [0, 5, -20])
def test_the_nearest_turn_is_shorter_than_half_and_from_the_opposite_to_the_left(start_turns, goal_turns):
    start = np.repeat(np.linspace(-3.1, 3.1, 9), 7)
    way = np.tile([0.0, 1.0, -1.0, 3.0, -3.0, np.pi - 10 * OPPOSITE, 10 * OPPOSITE - np.pi], 9)
    turn = jax.jit(nearest_turn)
    found = turn(jnp.float32(start + FULL * start_turns), jnp.float32(start + way + FULL * goal_turns))
    np.testing.assert_allclose(found, way, atol=3e-5)
    for half in (np.pi, -np.pi, 3 * np.pi):
        found = turn(jnp.float32(start + FULL * start_turns), jnp.float32(start + half + FULL * goal_turns))
        np.testing.assert_allclose(found, np.pi, atol=2 * OPPOSITE)


def test_the_error_of_an_attitude_is_lees_where_that_grows_and_never_fades_at_the_opposite():
    rng = np.random.default_rng(0)
    goal = rng.normal(size=(64, 4))
    goal = components(jnp.asarray(goal / np.linalg.norm(goal, axis=1, keepdims=True), jnp.float32))
    off = jax.jit(lambda turn: jnp.stack(_off(quaternion.product(goal, turn), goal)))

    def turned(axis, angle):
        parts = [np.sin(angle / 2) * x for x in axis]
        return tuple(jnp.full(64, x, jnp.float32) for x in (*parts, np.cos(angle / 2)))

    tilt = (0.6, -0.8, 0.0)
    for axis in (tilt, (0.0, 0.0, 1.0)):
        for angle in (0.0, 0.3, 1.5, -1.5):
            np.testing.assert_allclose(
                off(turned(axis, angle)).T, np.tile(np.sin(angle) * np.asarray(axis), (64, 1)), atol=2e-6
            )
        for angle in (2.0, 3.0, -3.0):
            np.testing.assert_allclose(
                off(turned(axis, angle)).T, np.tile(np.sign(angle) * np.asarray(axis), (64, 1)), atol=3e-6
            )
    # Exactly opposite: to the left, whichever sign; upside down about any axis, but the turn waits.
    for half in (np.pi, -np.pi):
        np.testing.assert_allclose(off(turned((0.0, 0.0, 1.0), half)).T, np.tile([0.0, 0.0, -1.0], (64, 1)), atol=1e-6)
        over = np.asarray(off(turned(tilt, half)))
        np.testing.assert_allclose(np.hypot(over[0], over[1]), 1.0, atol=1e-5)
        np.testing.assert_allclose(over[2], 0.0, atol=1e-5)
    slopes = jax.jit(jax.grad(lambda q: jnp.sum(jnp.stack(_off(quaternion.product(goal, q), goal)))))
    for angle in (0.0, 1.0, np.pi):
        assert all(np.isfinite(x).all() for x in slopes(turned(tilt, angle)))


# Where each drone looks at first, the yaws that it is told to go through, and the turn that this should be. All end
# where the identified loops hold what is commanded.
FLIGHTS = {
    "to the left through pi": (3.0, [3.0, 3.3], 0.3),
    "to the right through -pi": (-3.0, [-3.0, -3.3], -0.3),
    "through pi, told in the other turn": (3.0, [3.0 - FULL, 3.3 - FULL], 0.3),
    "through pi, told many turns on": (3.0, [3.0 + 6 * FULL, 3.3 + 6 * FULL], 0.3),
    "a turn and a half, smoothly": (1.0, [1.0, 1.0 + 1.5 * FULL], 1.5 * FULL),
    "two turns back, smoothly": (-2.5, [-2.5, -2.5 - 2 * FULL], -2 * FULL),
    "opposite": (0.0, [np.pi], np.pi),
    "opposite, to the right": (0.0, [-np.pi], np.pi),
    "opposite, many turns on": (0.0, [9 * np.pi], np.pi),
    "opposite, from elsewhere": (1.0, [1.0 + np.pi], np.pi),
    "opposite, across": (-1.0, [-1.0 - np.pi], np.pi),
    "just this side": (0.0, [np.pi - 0.01], np.pi - 0.01),
    "just that side": (0.0, [np.pi + 0.01], 0.01 - np.pi),
    "a whole turn": (2.5, [2.5 + FULL], 0.0),
    "many whole turns": (-2.5, [-2.5 - 40 * FULL], 0.0),
    "across": (2.5, [-2.5], FULL - 5.0),
    "across, back": (-2.5, [2.5], 5.0 - FULL),
    "a heading in another turn": (2.7 + 3 * FULL, [2.7, 3.0], 0.3),
}
N = len(FLIGHTS)
PLACE = jnp.asarray([4000.0, -300.0, 50.0])
KIND = jnp.zeros(N, jnp.int32)


def told():
    """Yaws [t, n]: as long as the way takes at 2.5 rad/s, then held."""
    t = STEP * (1 + np.arange(int(SECONDS / STEP)))
    spans = [max(1.0, abs(yaws[-1] - yaws[0]) / 2.5) for _, yaws, _ in FLIGHTS.values()]
    columns = [np.interp(t, np.linspace(0, s, len(y)), y) for s, (_, y, _) in zip(spans, FLIGHTS.values(), strict=True)]
    return np.stack(columns, axis=1)


@eqx.filter_jit
def flown(dynamics, motion, before, after, yaws):
    """Headings [t, n] and the last motion; a command is what comes before the yaw, the yaw, and what comes after."""

    def body(motion, yaw):
        command = jnp.concatenate([before, yaw[:, None], after], axis=1)
        motion = dynamics.step(motion, command, KIND, jnp.float32(STEP))
        return motion, motion.heading

    return jax.lax.scan(body, motion, yaws)[::-1]


@pytest.mark.parametrize(("model", "commands"), LEVELS)
def test_every_layer_follows_a_yaw_the_shorter_way(model, commands):
    dynamics = drone_dynamics(["cf2x_l250"], STEP, model, commands)
    start = np.asarray([first for first, _, _ in FLIGHTS.values()])
    entities = eqx.tree_at(
        lambda e: (e.alive, e.position, e.heading),
        Entities.empty(N, 3, 0),
        (jnp.ones(N, bool), jnp.tile(PLACE, (N, 1)), jnp.asarray(start, jnp.float32)),
    )
    plant, none = dynamics.plant(KIND), jnp.zeros((N, 0))
    before, after = {
        "attitude": (jnp.zeros((N, 2)), (plant.mass * plant.gravity)[:, None]),
        "velocity": (jnp.zeros((N, 3)), none),
        "position": (jnp.tile(PLACE, (N, 1)), none),
    }[commands]
    yaws = told()
    found, last = flown(dynamics, dynamics.init(entities), before, after, jnp.asarray(yaws, jnp.float32))
    found = np.asarray(found)
    turn = back(np.diff(np.concatenate([back(start)[None], found]), axis=0))
    off = back(found[-1] - yaws[-1])
    if commands == "position":
        # Here a float32 has steps of 0.24 mm.
        np.testing.assert_allclose(last.position, np.tile(PLACE, (N, 1)), atol=0.01)
    for i, (name, (_, _, way)) in enumerate(FLIGHTS.items()):
        assert abs(off[i]) < 0.01, (name, off[i])
        assert turn[:, i].sum() == pytest.approx(way, abs=0.02), name
        # Hardly a detour, and no faster than a drone turns.
        assert np.abs(turn[:, i]).sum() < abs(way) * 1.02 + 0.1, name
        assert np.abs(turn[:, i]).max() / STEP < (32.0 if abs(way) > 1.2 else 1.5), name
