"""The same flights in other simulators; skipped where these are not installed.

pip install crazyflow pybullet
SCIPY_ARRAY_API=1 pytest -n 0 -s tests/swarm/test_drone_parity.py
"""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.dynamics import Airframe, Motion, drone_dynamics, load_airframe
from swarm.dynamics.attitude import Held
from swarm.dynamics.quadrotor import Turning
from swarm.population.entities import Entities

SECONDS = 2.0


def runge_kutta(slope, state, command, h=2e-3):
    """One step of the classical method of fourth order under a held command."""

    def moved(by, h):
        return jax.tree.map(lambda a, b: a + h * b, state, by)

    a = slope(state, command)
    b = slope(moved(a, h / 2), command)
    c = slope(moved(b, h / 2), command)
    d = slope(moved(c, h), command)
    return jax.tree.map(lambda s, a, b, c, d: s + h / 6 * (a + 2 * b + 2 * c + d), state, a, b, c, d)


def commands(n, every, seed=0):
    """RPM about the hover speed of a CF2X or attitudes, held for `every` steps."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.uniform(-1, 1, (n // every, 4)), every, axis=0)


def start_of(dynamics, inner):
    motion = dynamics.init(Entities.empty(1, 3, 0))
    place, velocity = jnp.asarray([[0.1, -0.2, 50.0]]), jnp.asarray([[0.5, -0.3, 0.2]])
    return Motion(place, velocity, motion.heading, inner(motion.inner))


@eqx.filter_jit
def track(dynamics, motion, commands, dt):
    def body(motion, command):
        motion = dynamics.step(motion, command[None], jnp.zeros(1, jnp.int32), dt)
        return motion, (motion.position[0], motion.velocity[0], dynamics.attitude(motion)[0])

    return jax.lax.scan(body, motion, commands)[1]


def tilted(inner):
    q = np.asarray([[0.1, -0.05, 0.2, 1.0]])
    q /= np.linalg.norm(q)
    return Turning(jnp.asarray(q), jnp.asarray([[0.3, -0.4, 0.2]]), inner.rotors)


def apart(ours, theirs):
    """Largest distances of positions, velocities and attitudes over the flight: metres, metres per second, degrees."""
    (x, v, q), (x2, v2, q2) = (tuple(map(np.asarray, side)) for side in (ours, theirs))
    turn = 2 * np.degrees(np.arccos(np.clip(np.abs((q * q2).sum(axis=1)), 0, 1)))
    return np.linalg.norm(x - x2, axis=1).max(), np.linalg.norm(v - v2, axis=1).max(), turn.max()


def crazyflow_dynamics():
    # It refuses to be imported after scipy without this.
    if os.environ.get("SCIPY_ARRAY_API") != "1":
        pytest.skip("crazyflow needs the environment variable SCIPY_ARRAY_API=1")
    return pytest.importorskip("crazyflow.dynamics")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cf2x_L250", "cf2x_P250", "cf2x_T350", "cf21B_500"])
def test_rotors_as_in_crazyflow(name):
    """First principles of crazyflow with its own parameters, under Runge-Kutta of order four in steps of 2 ms."""
    crazyflow = crazyflow_dynamics()
    from crazyflow.dynamics.first_principles import dynamics as theirs

    with jax.enable_x64(True):
        p = {k: np.asarray(v) for k, v in crazyflow.load_params("first_principles", name).items()}
        mixing, arm = p["mixing_matrix"], float(p["L"])
        table = load_airframe("cf2x_l250").model_dump()
        table |= {
            "mass": float(p["mass"]),
            "inertia": tuple(np.diag(p["J"])),
            "drag": tuple(-np.diag(p["drag_matrix"])),
        }
        table["rotors"] |= {
            "position": tuple((-arm * mixing[1, i], arm * mixing[0, i]) for i in range(4)),
            "spin": tuple(int(s) for s in mixing[2]),
            "thrust": tuple(p["rpm2thrust"]),
            "torque": tuple(p["rpm2torque"]),
            "thrust_range": (float(p["thrust_min"]), float(p["thrust_max"])),
            "motor_tau": None,
            "motor_rates": tuple(p["rotor_dyn_coef"]),
            "inertia": float(p["prop_inertia"]),
        }
        frame = Airframe.model_validate(table)
        dynamics = drone_dynamics([frame], 2e-3, commands="rotors", control={"rate": 2000.0})
        hover = float(dynamics.hover_speed(jnp.zeros(1, jnp.int32))[0])
        rpm = jnp.asarray(hover * (1 + 0.02 * commands(1000, 50)))
        start = start_of(dynamics, tilted)
        found = track(dynamics, start, rpm, jnp.asarray(2e-3))
        names = ("mass", "L", "prop_inertia", "gravity_vec", "J", "J_inv", "rpm2thrust", "rpm2torque")
        names += ("mixing_matrix", "drag_matrix", "rotor_dyn_coef")
        given = {k: jnp.asarray(p[k]) for k in names}

        def slope(state, command):
            x, q, v, w, r = state
            return theirs(x, q / jnp.linalg.norm(q), v, w, command, r, **given)

        def body(state, command):
            state = runge_kutta(slope, state, command)
            return state, (state[0], state[2], state[1] / jnp.linalg.norm(state[1]))

        inner = start.inner
        state = start.position[0], inner.attitude[0], start.velocity[0], inner.rates[0], inner.rotors[0]
        expected = jax.jit(lambda s: jax.lax.scan(body, s, rpm))(state)[1]
        place, velocity, turn = apart(found, expected)
        print(f" {name}: {place:.2e} m, {velocity:.2e} m/s, {turn:.2e} degrees")
        assert np.ptp(np.asarray(found[0]), axis=0).max() > 0.5
        assert max(place, velocity) < 1e-5
        assert turn < 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cf2x_L250", "cf21B_500"])
def test_identified_attitudes_as_in_crazyflow(name):
    """`so_rpy_rotor_drag` of crazyflow with its own parameters, likewise."""
    crazyflow = crazyflow_dynamics()
    from crazyflow.dynamics.so_rpy_rotor_drag.dynamics import dynamics_euler

    with jax.enable_x64(True):
        p = {k: np.asarray(v) for k, v in crazyflow.load_params("so_rpy_rotor_drag", name).items()}
        table = load_airframe("cf2x_l250").model_dump()
        table |= {
            "mass": float(p["mass"]),
            "inertia": tuple(np.diag(p["J"])),
            "drag": tuple(-np.diag(p["drag_matrix"])),
        }
        table["rotors"]["thrust_range"] = (float(p["thrust_min"]), float(p["thrust_max"]))
        table["attitude"] = {
            "stiffness": tuple(-p["rpy_coef"]),
            "damping": tuple(-p["rpy_rates_coef"]),
            "command": tuple(p["cmd_rpy_coef"]),
            "thrust_tau": 1.0 / float(p["thrust_dyn_coef"]),
            "thrust_gain": float(p["cmd_f_coef"]),
        }
        dynamics = drone_dynamics([Airframe.model_validate(table)], 2e-3, "attitude", "attitude", {"rate": 2000.0})
        rows = commands(1000, 50)
        weight = float(p["mass"]) * 9.81
        rows = jnp.asarray(np.concatenate([0.3 * rows[:, :3], weight * (1 + 0.2 * rows[:, 3:])], axis=1))
        start = start_of(dynamics, lambda inner: Held(inner.angles + 0.1, inner.rates - 0.2, inner.thrust))
        found = track(dynamics, start, rows, jnp.asarray(2e-3))
        names = ("mass", "gravity_vec", "thrust_dyn_coef", "acc_coef", "cmd_f_coef", "rpy_coef", "rpy_rates_coef")
        given = {k: jnp.asarray(p[k]) for k in (*names, "cmd_rpy_coef", "drag_matrix")}

        def slope(state, command):
            return dynamics_euler(state[0], state[1], state[2], state[3], command, state[4], **given)

        def body(state, command):
            state = runge_kutta(slope, state, command)
            return state, (state[0], state[2])

        # Their state is the command's thrust, ours what it amounts to.
        thrust = start.inner.thrust / float(p["cmd_f_coef"])
        state = start.position[0], start.inner.angles[0], start.velocity[0], start.inner.rates[0], thrust
        expected = jax.jit(lambda s: jax.lax.scan(body, s, rows))(state)[1]
        place, velocity, _ = apart(found, (*expected, found[2]))
        print(f" {name}: {place:.2e} m, {velocity:.2e} m/s")
        assert max(place, velocity) < 1e-5


def test_rotors_as_in_bullet():
    """Bullet pushed as gym-pybullet-drones pushes it (`BaseAviary._physics`): a CF2X whose motors follow at once."""
    bullet = pytest.importorskip("pybullet")
    frame = load_airframe("cf2x")
    h, n = 2e-4, int(SECONDS / 2e-4)
    # Low and level enough that Bullet's Euler steps are the only difference.
    rpm = frame.rotors.speed_of_thrust(frame.hover_thrust) * (1 + 0.01 * commands(n, 500))
    client = bullet.connect(bullet.DIRECT)
    try:
        expected = in_bullet(bullet, client, frame, rpm, h)
    finally:
        bullet.disconnect(client)
    table = frame.model_dump()
    table["drag_per_speed"] = (0.0, 0.0, 0.0)
    table["rotors"] |= {"motor_tau": 1e-7, "ground_effect": None}
    with jax.enable_x64(True):
        dynamics = drone_dynamics([Airframe.model_validate(table)], h, commands="rotors", control={"rate": 1.0})
        found = track(dynamics, start_of(dynamics, tilted), jnp.asarray(rpm), jnp.asarray(h))
    place, velocity, turn = apart(found, expected)
    print(f" Bullet: {place:.2e} m, {velocity:.2e} m/s, {turn:.2e} degrees")
    assert max(place, velocity) < 3e-3
    assert turn < 0.03


def in_bullet(bullet, client, frame, rpm, h):
    bullet.setGravity(0, 0, -frame.gravity, physicsClientId=client)
    bullet.setTimeStep(h, physicsClientId=client)
    body = bullet.createMultiBody(frame.mass, -1, -1, [0.1, -0.2, 50.0], physicsClientId=client)
    q = np.asarray([0.1, -0.05, 0.2, 1.0])
    q /= np.linalg.norm(q)
    bullet.resetBasePositionAndOrientation(body, [0.1, -0.2, 50.0], q, physicsClientId=client)
    damping = {"linearDamping": 0.0, "angularDamping": 0.0, "maxJointVelocity": 1e6}
    bullet.changeDynamics(body, -1, localInertiaDiagonal=list(frame.inertia), **damping, physicsClientId=client)
    turn = np.asarray(bullet.getMatrixFromQuaternion(q)).reshape(3, 3)
    rates = turn @ [0.3, -0.4, 0.2]
    bullet.resetBaseVelocity(body, [0.5, -0.3, 0.2], rates, physicsClientId=client)
    rows = []
    for speeds in rpm:
        for (x, y), push in zip(frame.rotors.position, frame.rotors.thrust[2] * speeds**2, strict=True):
            bullet.applyExternalForce(body, -1, [0, 0, push], [x, y, 0], bullet.LINK_FRAME, physicsClientId=client)
        about = float(np.dot(frame.rotors.spin, frame.rotors.torque[2] * speeds**2))
        bullet.applyExternalTorque(body, -1, [0, 0, about], bullet.LINK_FRAME, physicsClientId=client)
        bullet.stepSimulation(physicsClientId=client)
        place, q = bullet.getBasePositionAndOrientation(body, physicsClientId=client)
        rows.append((place, bullet.getBaseVelocity(body, physicsClientId=client)[0], q))
    return tuple(np.asarray(column) for column in zip(*rows, strict=True))
