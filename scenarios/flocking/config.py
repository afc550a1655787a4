"""What a scenario file of flocking holds."""

from typing import Literal

import pydantic

from scenarios.common.tables import Amount, Positive, SpaceTable, Weight
from swarm.core.tables import Population, ScenarioConfig, Table
from swarm.neighbors.search import SearchTable


class WorldTable(SpaceTable):
    """Table `world`.

    Attributes:
        control: `discrete` turns, or `continuous` commands.
        scripted: which policy is the scripted one.
    """

    control: Literal["discrete", "continuous"] = "discrete"
    scripted: Literal["boids", "vicsek"] = "boids"

    @pydantic.model_validator(mode="after")
    def _usable(self) -> "WorldTable":
        if len(self.size) not in (2, 3):
            raise ValueError(f"size = {list(self.size)}: expected two or three sides")
        if self.scripted == "vicsek" and self.control != "continuous":
            raise ValueError('scripted = "vicsek" needs exact headings: set control = "continuous"')
        return self


class BirdTable(Population):
    """Table `population.bird`."""

    initial: int = pydantic.Field(ge=1)
    speed: float = Positive
    turn_rate: float = Positive
    radius: float = Positive
    spacing: float = Positive
    crowding: float = Amount

    @pydantic.model_validator(mode="after")
    def _seen(self) -> "BirdTable":
        for name, distance in (("spacing", self.spacing), ("crowding", self.crowding)):
            if distance > self.radius:
                raise ValueError(f"{name} = {distance:g} is farther than a bird sees: at most radius ({self.radius:g})")
        return self


class PopulationTable(Table):
    """Table `population`."""

    bird: BirdTable


class RewardTable(Table):
    """Table `reward`."""

    alignment: float = Weight
    crowding: float = Weight


class BoidsTable(Table):
    """Table `boids`: weights of the three urges."""

    separation: float = pydantic.Field(default=2.0, ge=-1e9, le=1e9)
    alignment: float = pydantic.Field(default=1.0, ge=-1e9, le=1e9)
    cohesion: float = pydantic.Field(default=0.3, ge=-1e9, le=1e9)


class VicsekTable(Table):
    """Table `vicsek`.

    Attributes:
        noise: width of the interval of angles that is drawn from; radians.
    """

    noise: float = pydantic.Field(default=1.0, ge=0.0, le=6.283186)


class FlockingConfig(ScenarioConfig):
    """A scenario file for flocking."""

    world: WorldTable
    population: PopulationTable
    reward: RewardTable
    boids: BoidsTable = BoidsTable()
    vicsek: VicsekTable = VicsekTable()
    search: SearchTable = SearchTable()

    @pydantic.model_validator(mode="after")
    def _sight_fits(self) -> "FlockingConfig":
        radius, side = self.population.bird.radius, min(self.world.size)
        if radius > side / 2:
            raise ValueError(
                f"population.bird.radius = {radius:g} exceeds half of the shorter side of world.size ({side:g}), "
                "beyond which a neighbour would be seen on two sides; lower it or enlarge the world"
            )
        return self
