"""Airframes as data files: what a drone weighs, where its rotors are, how its attitude loop was identified.

Nothing here imports jax.
"""

import functools
import importlib.resources
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from swarm.core.errors import ConfigError, nearest
from swarm.core.files import read_bytes
from swarm.core.tables import Table, validate
from swarm.core.toml import parse_toml
from swarm.core.values import shown

Positive = Annotated[float, pydantic.Field(gt=0.0)]
Amount = Annotated[float, pydantic.Field(ge=0.0)]
Share = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Three = tuple[float, float, float]


class RotorTable(Table):
    """Table `rotors` of an airframe.

    Attributes:
        position: of each rotor forward and left of the centre of mass, metres.
        spin: of each rotor, 1 or -1: sense about the upward axis of the torque that the air exerts on the body.
        thrust: of a rotor, by powers of its speed, newtons per RPM^i.
        torque: likewise, newton metres per RPM^i.
        thrust_range: smallest and largest thrust of one rotor, newtons.
        motor_tau: time constant of the lag of a rotor's speed, seconds. It or `motor_rates`.
        motor_rates: a, b speeding up, a, b slowing down of speed' = a (c - speed) + b (c^2 - speed^2); 1/s, 1/s/RPM.
        inertia: of a rotor and its motor, kilogram square metres.
        radius: metres.
        ground_effect: factor of (radius / (4 height))^2 in the gain of thrust near the ground, which is at z = 0, as
            it was fitted. Where it was not there is none but with `drone_dynamics(..., ground=...)`: that of theory.
    """

    position: tuple[tuple[float, float], ...]
    spin: tuple[Literal[-1, 1], ...]
    thrust: Three
    torque: Three
    thrust_range: tuple[Amount, Positive]
    motor_tau: Positive | None = None
    motor_rates: tuple[Amount, Amount, Amount, Amount] | None = None
    inertia: Amount = 0.0
    radius: Positive
    ground_effect: Amount | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        """`motor_rates`, also where `motor_tau` is given."""
        if self.motor_rates is not None:
            return self.motor_rates
        rate = 1.0 / self.motor_tau if self.motor_tau else math.inf
        return rate, 0.0, rate, 0.0

    def speed_of_thrust(self, thrust: float) -> float:
        """RPM of one rotor with a thrust in newtons: the larger root."""
        c, b, a = self.thrust
        return (math.sqrt(max(b * b - 4.0 * a * (c - thrust), 0.0)) - b) / (2.0 * a)

    @pydantic.model_validator(mode="after")
    def _possible(self) -> "RotorTable":
        if len(self.position) < 4 or len(self.spin) != len(self.position):
            raise ValueError(f"{len(self.position)} positions, {len(self.spin)} spins: expected one of each, 4 or more")
        if self.thrust[2] <= 0:
            raise ValueError(f"thrust = {list(self.thrust)}: the last one, newtons per RPM^2, must be greater than 0")
        low, high = self.thrust_range
        if low >= high:
            raise ValueError(f"thrust_range = {[low, high]}: expected the smaller one first")
        if (self.motor_tau is None) == (self.motor_rates is None):
            raise ValueError("motor_tau (seconds) or motor_rates: expected exactly one of them")
        if self.motor_rates is not None and not (any(self.motor_rates[:2]) and any(self.motor_rates[2:])):
            raise ValueError(f"motor_rates = {list(self.motor_rates)}: a rotor must follow both up and down")
        return self


class AttitudeTable(Table):
    """Table `attitude`: angle'' = -stiffness angle - damping angle' + command command, for roll, pitch, yaw.

    Attributes:
        stiffness: 1/s^2.
        damping: 1/s.
        command: 1/s^2.
        thrust_tau: lag of the thrust, seconds.
        thrust_gain: thrust that is held per commanded thrust.
    """

    stiffness: tuple[Positive, Positive, Positive]
    damping: tuple[Positive, Positive, Positive]
    command: tuple[Positive, Positive, Positive]
    thrust_tau: Positive
    thrust_gain: Positive


class DownwashTable(Table):
    """Table `downwash`: force -strength (radius / 4 dz)^2 exp(-(dxy / (spread dz + width))^2 / 2) on who is below.

    Attributes:
        strength: newtons.
        spread: metres per metre below.
        width: metres.
    """

    strength: Positive
    spread: float
    width: float


class Airframe(Table):
    """A file of `swarm/dynamics/data`, or one of your own.

    Attributes:
        mass: kilograms.
        gravity: metres per second squared, as the identification took it.
        inertia: about the axes of the body, which must be principal ones, kilogram square metres.
        drag: along the axes of the body, newton seconds per metre.
        drag_per_speed: the same for each rad/s that the rotors turn in sum.
        drag_area: drag coefficient times area seen along the axes of the body, square metres: drag that stays when the
            rotors stand still, in the square of the speed; 0 where `drag` holds without them.
        rotors: where and what they are.
        attitude: the attitude loop, where it was identified.
        downwash: on drones below, where it was measured.
    """

    mass: Positive
    gravity: Positive = 9.81
    inertia: tuple[Positive, Positive, Positive]
    drag: tuple[Amount, Amount, Amount] = (0.0, 0.0, 0.0)
    drag_per_speed: tuple[Amount, Amount, Amount] = (0.0, 0.0, 0.0)
    drag_area: tuple[Amount, Amount, Amount] = (0.0, 0.0, 0.0)
    rotors: RotorTable
    attitude: AttitudeTable | None = None
    downwash: DownwashTable | None = None

    @property
    def hover_thrust(self) -> float:
        """Of one rotor, newtons."""
        return self.mass * self.gravity / len(self.rotors.spin)

    def on_ground(self) -> "Airframe":
        """With the ground effect of theory where none was fitted: 1, by Cheeseman and Bennett 1955 to first order."""
        if self.rotors.ground_effect is not None:
            return self
        return self.model_copy(update={"rotors": self.rotors.model_copy(update={"ground_effect": 1.0})})

    @pydantic.model_validator(mode="after")
    def _possible(self) -> "Airframe":
        small, middle, large = sorted(self.inertia)
        if large > (1.0 + 1e-9) * (small + middle):
            raise ValueError(
                f"inertia = {list(self.inertia)}: no body has a moment larger than the others' sum; check the units"
            )
        low, high = self.rotors.thrust_range
        if not low < self.hover_thrust < high:
            raise ValueError(
                f"rotors.thrust_range = {[low, high]}: hovering takes {self.hover_thrust:.4g} N of each rotor, which "
                "must lie between; check mass and thrust"
            )
        return self


def airframe_names() -> list[str]:
    """Names of the airframes that come with the package."""
    return sorted(p.name[:-5] for p in _shipped().iterdir() if p.name.endswith(".toml"))


@functools.cache
def _shipped() -> Any:
    return importlib.resources.files("swarm.dynamics") / "data"


def load_airframe(source: str | Path) -> Airframe:
    """Read and check an airframe.

    Args:
        source: a shipped one's name ("cf2x", "cf2x_l250", ...) or the path of a TOML file.

    Raises:
        ConfigError: there is none, or a value is impossible; the message names it and a remedy.
    """
    path = Path(source)
    if path.suffix == ".toml":
        try:
            text = read_bytes(path).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: cannot be read: {error}; shipped airframes: {', '.join(airframe_names())}"
            ) from None
        return validate(Airframe, parse_toml(text, str(path)), str(path))
    if source not in airframe_names():
        hint = nearest(str(source), airframe_names())
        raise ConfigError(f"{shown(source)}: no such airframe{hint} (a file must end in .toml)")
    label = f"{source}.toml"
    return validate(Airframe, parse_toml((_shipped() / label).read_text("utf-8"), label), label)


def load_airframes(sources: Sequence[str | Path | Airframe]) -> list[Airframe]:
    """One for each kind; all with the same number of rotors. Arguments and errors as for `load_airframe`."""
    frames = [source if isinstance(source, Airframe) else load_airframe(source) for source in sources]
    if not frames:
        raise ConfigError("airframes: none given; expected one for each kind")
    if len({len(frame.rotors.spin) for frame in frames}) > 1:
        counts = [len(frame.rotors.spin) for frame in frames]
        raise ConfigError(f"airframes: {counts} rotors: kinds of one dynamics need the same number")
    return frames
