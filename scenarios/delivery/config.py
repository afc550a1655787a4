"""The scenario file of delivery."""

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
    Share,
    Weight,
)
from swarm.core.tables import ScenarioConfig, Table
from swarm.dynamics import Airframe, load_airframe
from swarm.dynamics.drones import ControlTable
from swarm.neighbors.search import SearchTable


class WorldTable(FieldTable):
    """Table `world`."""

    pads: int = pydantic.Field(ge=1, le=63)
    reach: float = Positive
    slow: float = Positive

    @property
    def side(self) -> int:
        """Cells a side of the grid that the depot and the pads are drawn from."""
        return next(n for n in range(2, 9) if n * n > self.pads)


class ParcelsTable(Table):
    """Table `parcels`."""

    number: int = pydantic.Field(ge=1, le=10_000)
    initial: int = pydantic.Field(ge=0)
    last: float = Positive
    from_depot: float = Share
    mass: tuple[float, float]
    value: tuple[float, float]
    deadline: float = Positive
    fade: float = Positive

    @pydantic.model_validator(mode="after")
    def _ranges(self) -> "ParcelsTable":
        if self.initial > self.number:
            raise ValueError(f"initial = {self.initial} exceeds number = {self.number}; raise number")
        for name in ("mass", "value"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} = [{low:g}, {high:g}]: expected 0 < least <= greatest")
        return self


class PopulationTable(Table):
    """Table `population`."""

    drone: DroneTable


class ObservationTable(Table):
    """Table `observation`."""

    parcels: int = Few
    others: int = Few
    sight: float = Positive


class RewardTable(Table):
    """Table `reward`."""

    delivered: float = Positive
    picked: float = Weight
    carried: float = Weight
    energy: float = Amount
    crash: float = Weight


class AuctionTable(Table):
    """Table `auction`: of the scripted policy."""

    epsilon: float = Positive
    rounds: int = pydantic.Field(ge=1, le=1_000_000)
    stop: float = Amount
    slip: float = pydantic.Field(ge=0.0, lt=1.0)
    reserve: float = pydantic.Field(ge=0.0, lt=1.0)


class DeliveryConfig(ScenarioConfig):
    """A scenario file for delivery."""

    world: WorldTable
    parcels: ParcelsTable
    population: PopulationTable
    control: ControlTable
    avoidance: AvoidanceTable
    air: AirTable
    energy: EnergyTable
    observation: ObservationTable
    reward: RewardTable
    auction: AuctionTable
    search: SearchTable = SearchTable()

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "DeliveryConfig":
        world, drone, energy = self.world, self.population.drone, self.energy
        if self.observation.sight <= 2 * drone.radius:
            raise ValueError(
                f"observation.sight = {self.observation.sight:g} is shorter than two radii, "
                f"population.drone.radius = {drone.radius:g}, so that nobody could crash; raise it"
            )
        if self.observation.parcels > self.parcels.number:
            raise ValueError(
                f"observation.parcels = {self.observation.parcels} exceeds parcels.number = {self.parcels.number}; "
                "lower it"
            )
        body = drone.body if isinstance(drone.body, Airframe) else load_airframe(drone.body)
        lift = body.rotors.thrust_range[1] * len(body.rotors.spin) / body.gravity - body.mass
        if self.parcels.mass[1] > lift:
            raise ValueError(
                f"parcels.mass = {list(self.parcels.mass)}: population.drone.airframe = {drone.airframe!r} lifts "
                f"{lift:.3g} kg besides itself; lower it"
            )
        if energy.pad < world.reach + 2 * drone.radius:
            raise ValueError(
                f"energy.pad = {energy.pad:g}: no room to charge a drone of radius {drone.radius:g} m beyond "
                f"world.reach = {world.reach:g}, within which parcels are picked up; enlarge the pad"
            )
        if 2 * energy.pad >= min(world.size) / world.side:
            raise ValueError(
                f"world.pads = {world.pads}: {world.side} x {world.side} cells of world.size = {list(world.size)} are "
                f"too small for pads of {energy.pad:g} m each; lower their number, or energy.pad"
            )
        ring = 3.1416 * (world.reach + energy.pad) / drone.initial
        if drone.initial > 1 and ring < 2 * drone.radius + 0.1:
            raise ValueError(
                f"population.drone.initial = {drone.initial} of radius {drone.radius:g} m do not fit around a depot "
                f"with world.reach = {world.reach:g} m and energy.pad = {energy.pad:g} m; enlarge energy.pad, or lower "
                "the number"
            )
        return self
