"""The scenario file of crossing."""

import pydantic

from scenarios.common.tables import AirTable, Amount, BoxTable, DroneTable, Few, Positive, Weight
from swarm.core.tables import ScenarioConfig, Table
from swarm.dynamics.drones import ControlTable
from swarm.neighbors.search import SearchTable


class WorldTable(BoxTable):
    """Table `world`."""

    size: tuple[float, float, float]
    circle: float = Positive
    jitter: float = Amount
    pillars: int = pydantic.Field(ge=0, le=1024)
    pillar_radius: float = Positive
    arrive: float = Positive


class PopulationTable(Table):
    """Table `population`."""

    drone: DroneTable


class ObservationTable(Table):
    """Table `observation`."""

    others: int = Few
    sight: float = Positive


class RewardTable(Table):
    """Table `reward`."""

    progress: float = Weight
    arrived: float = Weight
    crash: float = Weight
    near: float = Weight
    margin: float = Positive
    time: float = Weight


class OrcaTable(Table):
    """Table `orca`: of the scripted policy."""

    horizon: float = Positive
    wall_horizon: float = Positive
    margin: float = Amount


class CrossingConfig(ScenarioConfig):
    """A scenario file for crossing."""

    world: WorldTable
    population: PopulationTable
    control: ControlTable
    air: AirTable
    observation: ObservationTable
    reward: RewardTable
    orca: OrcaTable
    search: SearchTable = SearchTable()

    @pydantic.model_validator(mode="after")
    def _room(self) -> "CrossingConfig":
        world, drone = self.world, self.population.drone
        if drone.initial < 2:
            raise ValueError("population.drone.initial = 1: nobody to swap places with; at least 2")
        if self.observation.sight <= 2 * drone.radius:
            raise ValueError(
                f"observation.sight = {self.observation.sight:g} is shorter than two radii, "
                f"population.drone.radius = {drone.radius:g}, so that nobody could crash; raise it"
            )
        reach = world.circle + world.jitter + drone.radius
        if 2 * reach > min(world.size[:2]):
            raise ValueError(
                f"world.circle = {world.circle:g} with jitter = {world.jitter:g} does not fit into world.size = "
                f"{list(world.size)}; lower it, or enlarge the world"
            )
        # Chords of the circle, after the worst of jitter on both ends.
        apart = 2 * (world.circle - world.jitter) * 0.5 * 6.2 / drone.initial - 2 * world.jitter
        if apart < 2 * drone.radius:
            raise ValueError(
                f"population.drone.initial = {drone.initial} on a circle of {world.circle:g} m start within each "
                "other's radius; enlarge world.circle, or lower world.jitter or the number"
            )
        if world.pillars and 2 * world.pillar_radius > world.circle - world.jitter - drone.radius:
            raise ValueError(
                f"world.pillar_radius = {world.pillar_radius:g}: pillars would reach the circle where drones start; "
                "lower it"
            )
        return self
