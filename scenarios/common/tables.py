"""What the scenario files of several scenarios have in common."""

from typing import Annotated

import pydantic

from swarm.core.errors import ConfigError
from swarm.core.tables import Population, Table, validate
from swarm.dynamics import Airframe, load_airframe
from swarm.dynamics.drones import Model

# Limits are far beyond what is of use, and keep single precision and memory from being exceeded by a slip.
Positive = pydantic.Field(gt=1e-9, le=1e9)
Amount = pydantic.Field(ge=0.0, le=1e9)
Weight = pydantic.Field(ge=-1e9, le=1e9)
Share = pydantic.Field(ge=0.0, le=1.0)
Few = pydantic.Field(ge=1, le=1024)
Steps = pydantic.Field(ge=1, le=10**9)
TimeStep = pydantic.Field(ge=1e-6, le=1e4)


def known_airframe(name: str, table: str = "") -> str:
    """Return the name or path of an airframe, whose file is right, and has a table."""
    try:
        frame = load_airframe(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if table and getattr(frame, table) is None:
        raise ValueError(f"{name!r} has no table {table!r}; take an airframe that has, like 'cf2x'")
    return name


class BoxTable(Table):
    """What table `world` holds where space is continuous; metres, seconds."""

    size: tuple[float, ...]
    steps: int = Steps
    time_step: float = TimeStep

    @pydantic.model_validator(mode="after")
    def _sides(self) -> "BoxTable":
        if min(self.size, default=0.0) <= 0:
            raise ValueError(f"size = {list(self.size)}: each side must be longer than 0")
        if not all(1e-3 <= side <= 1e6 for side in self.size):
            raise ValueError(f"size = {list(self.size)}: each side must be from 0.001 to 1,000,000 m")
        return self


class FieldTable(BoxTable):
    """A field that drones fly above, all at one altitude; metres."""

    size: tuple[float, float]
    altitude: float = Positive


class SpaceTable(BoxTable):
    """And where there are maps of it; cells."""

    raster: tuple[int, int]

    @pydantic.model_validator(mode="after")
    def _cells(self) -> "SpaceTable":
        if not all(4 <= cells <= 128 for cells in self.raster):
            raise ValueError(f"raster = {list(self.raster)}: from 4 to 128 cells a side")
        return self


class FactorTable(Table):
    """Of an airframe, by which its numbers are multiplied; the drone's own controller knows the product.

    Attributes:
        mass: of the mass.
        inertia: of the moments of inertia, about all axes; an identified attitude loop holds its own already.
        drag: of the drag, at any speed of the rotors.
    """

    mass: float = pydantic.Field(default=1.0, gt=1e-3, le=1e3)
    inertia: float = pydantic.Field(default=1.0, gt=1e-3, le=1e3)
    drag: float = pydantic.Field(default=1.0, ge=0.0, le=1e3)


class DroneTable(Population):
    """What drones are.

    Attributes:
        initial: at the start.
        airframe: a shipped name or a path, see docs/physics.md.
        factors: of the airframe.
        model: `rotors`: a rigid body; `attitude`, `attitude_lag`: identified attitude loops.
        radius: of the ball that nobody else may enter, metres.
    """

    initial: int = pydantic.Field(ge=1)
    airframe: Annotated[str, pydantic.AfterValidator(known_airframe)]
    factors: FactorTable = FactorTable()
    model: Model
    radius: float = Positive

    @property
    def body(self) -> str | Airframe:
        """The airframe, as it is multiplied.

        Raises:
            ConfigError: there is none, or it becomes impossible.
        """
        factors = self.factors
        if factors == FactorTable():
            return self.airframe
        table = load_airframe(self.airframe).model_dump()
        for name, factor in {"drag_per_speed": factors.drag, **dict(factors)}.items():
            value = table[name]
            table[name] = tuple(factor * x for x in value) if isinstance(value, tuple) else factor * value
        return validate(Airframe, table, f"population.drone.factors: {self.airframe}")


class AirTable(Table):
    """Table `air`.

    Attributes:
        wind: east and north, 6.1 m above the ground; metres per second.
        roughness: of the ground, metres: the wind grows with height; 0: it is the same everywhere.
        turbulence: whether there are eddies, as strong as that wind makes them.
        downwash: airframe whose downwash was measured, which all are taken to have; "": none.
    """

    wind: tuple[float, float] = (0.0, 0.0)
    roughness: float = Amount
    turbulence: bool = False
    downwash: Annotated[str, pydantic.AfterValidator(lambda name: name and known_airframe(name, "downwash"))] = ""

    @pydantic.field_validator("wind")
    @classmethod
    def _blows(cls, wind: tuple[float, float]) -> tuple[float, float]:
        if max(map(abs, wind)) > 1000:
            raise ValueError(f"wind = {list(wind)}: at most 1000 m/s")
        return wind


class AvoidanceTable(Table):
    """Table `avoidance`: how a drone's own controller keeps clear of others, whatever it is told.

    Attributes:
        horizon: seconds without a collision.
        margin: added to the radius, because velocities are not followed at once; metres.
    """

    horizon: float = Positive
    margin: float = Amount


class EnergyTable(Table):
    """Table `energy`: what the airframe does not say of its power (`swarm.dynamics.energy.PowerTable`); the battery.

    Attributes:
        solidity: share of the disc that is blade.
        body_drag: area of the body's drag per area of blade.
        efficiency: power at the shafts per power drawn.
        avionics: watts.
        endurance: seconds of hovering that a full battery lasts.
        first: share of the battery at the start, least and greatest.
        charge: power of the base's pad, in powers of hovering.
        pad: its radius, metres.
    """

    solidity: float = pydantic.Field(gt=0.0, le=1.0)
    body_drag: float = Amount
    efficiency: float = pydantic.Field(gt=0.0, le=1.0)
    avionics: float = Amount
    endurance: float = Positive
    first: tuple[float, float]
    charge: float = Positive
    pad: float = Positive

    @pydantic.field_validator("first")
    @classmethod
    def _share(cls, first: tuple[float, float]) -> tuple[float, float]:
        if not 0 < first[0] <= first[1] <= 1:
            raise ValueError(f"first = {list(first)}: expected 0 < least <= greatest <= 1")
        return first
