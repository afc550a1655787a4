"""From airframes to dynamics: parameters as arrays over kinds, layers of control, and a check that they are stable."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import pydantic
import scipy.linalg
from jaxtyping import Array, Float

from swarm.core.errors import ConfigError
from swarm.core.tables import Table, validate
from swarm.dynamics.airframe import Airframe, AttitudeTable, load_airframes
from swarm.dynamics.attitude import AbstractResponse, AttitudeFlight, FirstOrder, SecondOrder
from swarm.dynamics.control import AttitudeHold, PositionHold, VelocityHold
from swarm.dynamics.flight import AbstractFlight
from swarm.dynamics.ground import Grounded, GroundTable
from swarm.dynamics.quadrotor import RADIANS_PER_RPM, Quadrotor, Rotors

# At sea level (ICAO standard atmosphere), kilograms per cubic metre.
AIR_DENSITY = 1.225

Model = Literal["rotors", "attitude", "attitude_lag"]
Rate = Annotated[float, pydantic.Field(ge=1e-3, le=1e5)]
Gain = Annotated[float, pydantic.Field(gt=1e-6, le=1e6)]
Limit = Annotated[float, pydantic.Field(gt=1e-6, le=1e4)]
Speed = Annotated[float, pydantic.Field(ge=0.0, le=1e4)]
Commands = Literal["rotors", "attitude", "velocity", "position"]


class ControlTable(Table):
    """How a drone is controlled; the defaults suit a Crazyflie.

    Attributes:
        rate: updates of the attitude loop in a second, and sub-steps of the rigid body; at least.
        outer_rate: updates of the velocity loop in a second; at least.
        stiffness: of the attitude about x, y and z, 1/s^2.
        damping: 1/s.
        motor_tau: what lead makes of the motors' time constant where it is longer, seconds.
        velocity_gain: 1/s.
        position_gain: 1/s.
        acceleration: largest that the velocity loop asks for, metres per second squared.
        speed: largest commanded velocity, metres per second; 0: any. An action of 1 is as much (3 m/s where it is 0)
            along its axis, and so fast at most is the way to a commanded position.
        max_tilt: largest roll and pitch, radians.
        low: position and yaw that an action of -1 commands, metres and radians; commands in these units have no limit.
        high: that of an action of 1.
    """

    rate: Rate = 500.0
    outer_rate: Rate = 100.0
    stiffness: tuple[Gain, Gain, Gain] = (400.0, 400.0, 50.0)
    damping: tuple[Gain, Gain, Gain] = (40.0, 40.0, 15.0)
    motor_tau: Limit = 0.02
    velocity_gain: tuple[Gain, Gain, Gain] = (3.0, 3.0, 4.0)
    position_gain: tuple[Gain, Gain, Gain] = (1.0, 1.0, 1.5)
    acceleration: Limit = 6.0
    speed: Speed = 0.0
    max_tilt: float = 0.6
    low: tuple[float, float, float, float] = (-10.0, -10.0, 0.0, -math.pi)
    high: tuple[float, float, float, float] = (10.0, 10.0, 10.0, math.pi)

    @property
    def action_speed(self) -> float:
        """That of an action of 1, metres per second."""
        return self.speed or 3.0

    @pydantic.model_validator(mode="after")
    def _spans(self) -> "ControlTable":
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low = {list(self.low)}, high = {list(self.high)}: each must be lower than the other's")
        if not 0 < self.max_tilt < math.pi / 2:
            raise ValueError(f"max_tilt = {self.max_tilt}: expected radians between 0 and {math.pi / 2:.3f}")
        return self


def drone_dynamics(
    airframes: Sequence[str | Path | Airframe],
    time_step: float,
    model: Model = "rotors",
    commands: Commands = "velocity",
    control: ControlTable | dict[str, object] | None = None,
    ground: GroundTable | dict[str, object] | None = None,
) -> AbstractFlight:
    """Build dynamics of drones.

    Args:
        airframes: of each kind: a shipped name ("cf2x_l250"), a path, or the table itself.
        time_step: of the simulation, seconds; sub-steps and updates of the controllers follow from it.
        model: `rotors`: a rigid body with rotors; `attitude`: the identified attitude loop of second order;
            `attitude_lag`: a lag with the same gain and mean delay.
        commands: what is commanded.
        control: gains, rates and limits.
        ground: that holds drones up and raises the thrust of all near it; None: they fall through, of which
            `AbstractFlight.status` tells, and only airframes whose ground effect was fitted have it.

    Raises:
        ConfigError: a value is impossible, a model lacks its parameters, or the loops are unstable at their rates.
    """
    table = control if isinstance(control, ControlTable) else validate(ControlTable, control or {}, "control")
    if not (math.isfinite(time_step) and time_step > 0):
        raise ConfigError(f"time_step = {time_step}: expected seconds, greater than 0")
    if ground is None:
        return _in_air(load_airframes(airframes), airframes, time_step, model, commands, table)
    solid = ground if isinstance(ground, GroundTable) else validate(GroundTable, ground, "ground")
    frames = [frame.on_ground() for frame in load_airframes(airframes)]
    return Grounded.of(_in_air(frames, airframes, time_step, model, commands, table), solid, len(frames))


def _in_air(
    frames: Sequence[Airframe],
    sources: Sequence[str | Path | Airframe],
    time_step: float,
    model: Model,
    commands: Commands,
    table: ControlTable,
) -> AbstractFlight:
    """Vehicle and layers of control; sources are named in errors."""
    inner, outer = (_count(time_step, rate) for rate in (table.rate, table.outer_rate))
    if commands == "rotors" and model != "rotors":
        raise ConfigError(f'commands = "rotors": model {model!r} has no rotors; choose model = "rotors"')
    if commands == "rotors":
        return quadrotor(frames, inner)
    # The loops nest: updates of the outer one, and within each of these those of the inner one.
    outer = outer if commands in ("velocity", "position") else 1
    inner = -(-inner // outer)
    for frame, source in zip(frames, sources, strict=True):
        _check_stable(frame, source, model, commands, table, time_step, outer, inner)
    vehicle = (
        _attitude_hold(frames, table, inner) if model == "rotors" else attitude_flight(frames, model, table, inner)
    )
    if commands == "attitude":
        return vehicle
    n = len(frames)
    speed, limit = _rows([table.action_speed] * n), _rows([table.speed] * n) if table.speed else None
    limits = _rows([table.acceleration] * n), speed, limit, _rows([table.max_tilt] * n)
    velocity = VelocityHold(vehicle, _rows([table.velocity_gain] * n), *limits, n_updates=outer)
    if commands == "velocity":
        return velocity
    bounds = _rows([table.low] * n), _rows([table.high] * n)
    slow = VelocityHold(vehicle, _rows([table.velocity_gain] * n), *limits, n_updates=1)
    return PositionHold(slow, _rows([table.position_gain] * n), speed, *bounds, n_updates=outer)


def quadrotor(frames: Sequence[Airframe], n_substeps: int) -> Quadrotor:
    """The rigid body of each kind."""
    speeds = [[r.speed_of_thrust(t) for t in r.thrust_range] for r in (frame.rotors for frame in frames)]
    ground = [frame.rotors.ground_effect or 0.0 for frame in frames]
    rotors = Rotors(
        place=_rows([f.rotors.position for f in frames]),
        spin=_rows([f.rotors.spin for f in frames]),
        thrust=_rows([f.rotors.thrust for f in frames]),
        torque=_rows([f.rotors.torque for f in frames]),
        speed=_rows(speeds),
        rates=_rows([f.rotors.rates for f in frames]),
        inertia=_rows([f.rotors.inertia for f in frames]),
        radius=_rows([f.rotors.radius for f in frames]),
        ground_effect=_rows(ground) if any(ground) else None,
    )
    per_rpm = _rows(np.asarray([f.drag_per_speed for f in frames]) * RADIANS_PER_RPM)
    return Quadrotor(
        mass=_rows([f.mass for f in frames]),
        gravity=_rows([f.gravity for f in frames]),
        inertia=_rows([f.inertia for f in frames]),
        drag=_rows([f.drag for f in frames]),
        drag_per_speed=per_rpm,
        rotors=rotors,
        body_drag=_body_drag(frames),
        n_substeps=n_substeps,
    )


def attitude_flight(frames: Sequence[Airframe], model: Model, table: ControlTable, n_substeps: int) -> AttitudeFlight:
    """The identified attitude loop of each kind."""
    tables = [_attitude_of(frame) for frame in frames]
    stiffness, damping, command = (
        np.asarray([getattr(t, name) for t in tables]) for name in ("stiffness", "damping", "command")
    )
    gain, omega = command / stiffness, np.sqrt(stiffness)
    response: AbstractResponse
    if model == "attitude":
        response = SecondOrder(_rows(gain), _rows(omega), _rows(0.5 * damping / omega))
    else:
        response = FirstOrder(_rows(gain), _rows(damping / stiffness))
    n_rotors = len(frames[0].rotors.spin)
    effect = [(f.rotors.ground_effect or 0.0) * (f.rotors.radius / 4) ** 2 for f in frames]
    return AttitudeFlight(
        mass=_rows([f.mass for f in frames]),
        gravity=_rows([f.gravity for f in frames]),
        drag=_rows([f.drag for f in frames]),
        response=response,
        thrust_tau=_rows([t.thrust_tau for t in tables]),
        thrust_gain=_rows([t.thrust_gain for t in tables]),
        max_tilt=_rows([table.max_tilt] * len(frames)),
        thrust_range=_rows([[n_rotors * x for x in f.rotors.thrust_range] for f in frames]),
        ground_effect=_rows(effect) if any(effect) else None,
        body_drag=_body_drag(frames),
        n_substeps=n_substeps,
    )


def _body_drag(frames: Sequence[Airframe]) -> Float[Array, "kinds 3"] | None:
    """Half of the air's density times the areas, kilograms per metre."""
    areas = [f.drag_area for f in frames]
    return _rows(0.5 * AIR_DENSITY * np.asarray(areas)) if np.any(areas) else None


def _attitude_of(frame: Airframe) -> AttitudeTable:
    if frame.attitude is None:
        raise ConfigError(
            'airframe: table "attitude" missing: its attitude loop was not identified; choose model = "rotors", or an '
            "airframe like cf2x_l250"
        )
    return frame.attitude


def _attitude_hold(frames: Sequence[Airframe], table: ControlTable, n_updates: int) -> AttitudeHold:
    n = len(frames)
    return AttitudeHold(
        vehicle=quadrotor(frames, 1),
        stiffness=_rows([table.stiffness] * n),
        damping=_rows([table.damping] * n),
        lead=_rows([_lead(frame, table) for frame in frames]),
        mixer=_rows([_mixer(frame) for frame in frames]),
        max_tilt=_rows([table.max_tilt] * n),
        thrust_range=_rows([f.rotors.thrust_range for f in frames]),
        n_updates=n_updates,
    )


def _count(time_step: float, rate: float) -> int:
    """Parts of a step that come at least that often in a second."""
    return max(1, math.ceil(time_step * rate - 1e-9))


def _rows(values: object) -> Float[Array, "..."]:
    return jnp.asarray(np.asarray(values, float), jnp.result_type(float))


def _motor_tau(frame: Airframe) -> float:
    """Of small changes about the hover speed, the slower of up and down; seconds."""
    up_a, up_b, down_a, down_b = frame.rotors.rates
    speed = frame.rotors.speed_of_thrust(frame.hover_thrust)
    return 1.0 / min(up_a + 2 * up_b * speed, down_a + 2 * down_b * speed)


def _lead(frame: Airframe, table: ControlTable) -> float:
    return max(1.0, _motor_tau(frame) / table.motor_tau)


def _mixer(frame: Airframe) -> np.ndarray:
    """Thrust of each rotor per thrust and torques; the torque about z per thrust is that at the hover speed."""
    speed = frame.rotors.speed_of_thrust(frame.hover_thrust)
    torque = sum(c * speed**i for i, c in enumerate(frame.rotors.torque))
    place, spin = np.asarray(frame.rotors.position), np.asarray(frame.rotors.spin)
    made = np.stack([np.ones_like(place[:, 0]), place[:, 1], -place[:, 0], spin * torque / frame.hover_thrust])
    if np.linalg.matrix_rank(made) < 4:
        raise ConfigError("airframe: rotors.position and rotors.spin: these rotors cannot make each torque by itself")
    return np.linalg.pinv(made)


def _check_stable(
    frame: Airframe,
    source: object,
    model: Model,
    commands: Commands,
    table: ControlTable,
    time_step: float,
    outer: int,
    inner: int,
) -> None:
    """Raise where the loops, linear about hovering, diverge with their updates held in between."""

    def radius(step: float) -> float:
        return max(
            np.abs(
                np.linalg.eigvals(_monodromy(frame, model, commands, table, axis, step / (outer * inner), inner))
            ).max()
            for axis in (0, 2)
        )

    bound = 1.0 + 1e-7
    if radius(time_step) <= bound:
        return
    largest = _largest(lambda step: radius(step) <= bound, time_step)
    name = source if isinstance(source, str | Path) else "airframe"
    remedy = (
        f"the largest stable one is {largest:.4g} s; lower it, or raise control.rate and control.outer_rate"
        if largest > 0
        else "unstable at any; lower control.stiffness or control.velocity_gain, or raise control.damping"
    )
    raise ConfigError(
        f"{name}: time_step = {time_step:g} s with {outer * inner} updates of the attitude "
        f"and {outer} of the velocity in a step, model = {model!r}: the control loop is unstable; {remedy}"
    )


def _largest(stable: Callable[[float], bool], unstable: float) -> float:
    """Bisect for the edge of stability; 0: nothing down to a hundred-thousandth is stable."""
    low, high = 1e-5 * unstable, unstable
    if not stable(low):
        return 0.0
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


def _monodromy(
    frame: Airframe, model: Model, commands: Commands, table: ControlTable, axis: int, h: float, inner: int
) -> np.ndarray:
    """One update of the velocity loop about hovering, along x (by pitch) or about z (by yaw), split as `fly` does it.

    State: position, velocity, angle, rate, angular acceleration by the motors; held: motor, attitude, velocity command.
    """
    x, v, angle, rate, push, motor, goal, way = range(8)
    flow, kick, tick_inner, tick_outer = np.zeros((8, 8)), np.eye(8), np.eye(8), np.eye(8)
    body = 1 if axis == 0 else 2
    flow[x, v] = 1.0
    kick[v, angle] = h * frame.gravity if axis == 0 else 0.0
    flow[angle, rate] = 1.0
    if model == "rotors":
        lead, tau = _lead(frame, table), _motor_tau(frame)
        kick[rate, push] = h
        flow[push, push], flow[push, motor] = -1.0 / tau, 1.0 / tau
        tick_inner[motor] = 0.0
        tick_inner[motor, push] = 1.0 - lead
        tick_inner[motor, angle] = -lead * table.stiffness[body]
        tick_inner[motor, goal] = lead * table.stiffness[body]
        tick_inner[motor, rate] = -lead * table.damping[body]
    else:
        loop = _attitude_of(frame)
        k, d = loop.stiffness[body], loop.damping[body]
        if model == "attitude_lag":
            flow[angle, rate] = 0.0
            flow[angle, angle], flow[angle, goal] = -k / d, k / d
        else:
            flow[rate, angle], flow[rate, goal], flow[rate, rate] = -k, k, -d
    if axis == 0 and commands in ("velocity", "position"):
        tick_outer[way] = 0.0
        if commands == "position":
            tick_outer[way, x] = -table.position_gain[axis]
        tick_outer[goal] = (table.velocity_gain[axis] / frame.gravity) * (tick_outer[way] - np.eye(8)[v])
    half = scipy.linalg.expm(0.5 * h * flow)
    held = half @ kick @ half @ tick_inner
    # What nothing closes a loop around (the position under a velocity command) is no matter of stability.
    kept = [v, angle, rate, push, motor, goal, way] if axis == 0 else [angle, rate, push, motor]
    kept = [x, *kept] if axis == 0 and commands == "position" else kept
    kept = kept if axis or commands != "attitude" else [angle, rate, push, motor]
    return (np.linalg.matrix_power(held, inner) @ tick_outer)[np.ix_(kept, kept)]
