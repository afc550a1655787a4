"""The scenario file of patrol."""

import pydantic

from scenarios.common.tables import (
    AirTable,
    Amount,
    AvoidanceTable,
    DroneTable,
    EnergyTable,
    Few,
    FieldTable,
    Positive,
    Weight,
)
from swarm.core.tables import ScenarioConfig, Table
from swarm.dynamics.drones import ControlTable
from swarm.neighbors.search import SearchTable


class WorldTable(FieldTable):
    """Table `world`."""

    cells: tuple[int, int]

    @pydantic.model_validator(mode="after")
    def _blocks(self) -> "WorldTable":
        if not all(4 <= cells <= 64 and cells % 4 == 0 for cells in self.cells):
            raise ValueError(f"cells = {list(self.cells)}: from 4 to 64 a side, a multiple of 4")
        return self


class PatrolDroneTable(DroneTable):
    """Table `population.drone`."""

    footprint: float = Positive


class PopulationTable(Table):
    """Table `population`."""

    drone: PatrolDroneTable


class RadioTable(Table):
    """Table `radio`."""

    range: float = Positive
    loss: float = pydantic.Field(ge=0.0, le=1.0)


class ObservationTable(Table):
    """Table `observation`."""

    others: int = Few
    window: int = pydantic.Field(ge=1, le=15)
    spacing: float = Positive

    @pydantic.field_validator("window")
    @classmethod
    def _odd(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError(f"window = {window}: an odd number, so that the drone is in the middle")
        return window


class RewardTable(Table):
    """Table `reward`."""

    seen: float = Weight
    told: float = Weight
    energy: float = Amount
    crash: float = Weight


class FrontierTable(Table):
    """Table `frontier`: of the scripted policy."""

    reserve: float = pydantic.Field(ge=0.0, lt=1.0)
    full: float = pydantic.Field(gt=0.0, le=1.0)
    spread: float = Amount
    crowd: float = Amount


class PatrolConfig(ScenarioConfig):
    """A scenario file for patrol."""

    world: WorldTable
    population: PopulationTable
    control: ControlTable
    avoidance: AvoidanceTable
    air: AirTable
    energy: EnergyTable
    radio: RadioTable
    observation: ObservationTable
    reward: RewardTable
    frontier: FrontierTable
    search: SearchTable = SearchTable()

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "PatrolConfig":
        world, drone = self.world, self.population.drone
        if self.radio.range <= 2 * drone.radius:
            raise ValueError(
                f"radio.range = {self.radio.range:g} is shorter than two radii, population.drone.radius = "
                f"{drone.radius:g}, within which others are looked for; raise it"
            )
        if 2 * self.energy.pad > min(world.size):
            raise ValueError(
                f"energy.pad = {self.energy.pad:g} is wider than world.size = {list(world.size)}; lower it"
            )
        room = 3.1416 * (0.8 * self.energy.pad) ** 2 / (2 * drone.radius + 0.1) ** 2
        if drone.initial > room / 2:
            raise ValueError(
                f"population.drone.initial = {drone.initial} of radius {drone.radius:g} m do not fit above a pad of "
                f"{self.energy.pad:g} m; enlarge energy.pad, or lower the number"
            )
        widest = max(side / n for side, n in zip(world.size, world.cells, strict=True))
        if drone.footprint < 0.71 * widest:
            raise ValueError(
                f"population.drone.footprint = {drone.footprint:g} is less than half the diagonal of a cell "
                f"({widest:g} m wide): cells could never be seen; raise it, or world.cells"
            )
        return self
