"""The scenario file of pursuit."""

import math
from typing import Literal

import pydantic

from scenarios.common.tables import Amount, Few, Positive, SpaceTable, Weight
from swarm.core.tables import Population, ScenarioConfig, Table
from swarm.neighbors.search import SearchTable


class WorldTable(SpaceTable):
    """Table `world`."""

    size: tuple[float, float]
    edge: Literal["walled", "periodic"]
    obstacles: int = pydantic.Field(ge=0, le=10_000)
    obstacle_radius: tuple[float, float]
    control: Literal["discrete", "continuous"]
    prey: Literal["scripted", "acting"]
    respawn: bool

    @pydantic.model_validator(mode="after")
    def _radii(self) -> "WorldTable":
        least, greatest = self.obstacle_radius
        if not 0 < least <= greatest:
            raise ValueError(f"obstacle_radius = {[least, greatest]}: expected 0 < least <= greatest")
        return self

    @property
    def plots(self) -> tuple[int, int]:
        """Columns and rows of equal plots, at least one for each obstacle, as near to squares as they come."""
        width, height = self.size
        columns = max(1, round(math.sqrt(max(self.obstacles, 1) * width / height)))
        return columns, -(-max(self.obstacles, 1) // columns)


class KindTable(Population):
    """What all kinds have."""

    speed: float = Positive
    acceleration: float = Positive
    lag: float = Positive
    radius: float = Positive
    sight: float = Positive
    strength: float = Positive


class PredatorTable(KindTable):
    """Tables `population.scout` and `population.hunter`."""

    catch: float = Positive


class PreyTable(KindTable):
    """Table `population.prey`."""

    initial: int = pydantic.Field(ge=1)
    panic: float = Positive


class PopulationTable(Table):
    """Table `population`."""

    scout: PredatorTable
    hunter: PredatorTable
    prey: PreyTable


class ObservationTable(Table):
    """Table `observation`."""

    foes: int = Few
    mates: int = Few


class RewardTable(Table):
    """Table `reward`."""

    catch: float = Amount
    assist: float = Positive
    tag: float = pydantic.Field(default=0.0, ge=0.0, le=1e9)
    caught: float = Amount
    time: float = Weight


class PursuitConfig(ScenarioConfig):
    """A scenario file for pursuit."""

    world: WorldTable
    population: PopulationTable
    observation: ObservationTable
    reward: RewardTable
    search: SearchTable

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "PursuitConfig":
        kinds = {name: getattr(self.population, name) for name in ("scout", "hunter", "prey")}
        side, sight = min(self.world.size), max(self.farthest, self.reward.assist)
        if sight > side / 2:
            raise ValueError(
                f"world.size = {list(self.world.size)} is too small: the greatest sight, catch or assist is {sight:g}, "
                f"and a side must be twice as long; enlarge it"
            )
        reach = max(self.population.scout.catch, self.population.hunter.catch)
        if self.reward.assist < reach:
            raise ValueError(
                f"reward.assist = {self.reward.assist:g} is shorter than the greatest catch ({reach:g}), so that "
                "a catch would be nobody's; raise it"
            )
        # Around each obstacle there must be room for a body, so that nobody is squeezed between two.
        columns, rows = self.world.plots
        room = 0.5 * min(self.world.size[0] / columns, self.world.size[1] / rows) - self.gap
        if self.world.obstacles and self.world.obstacle_radius[1] > room:
            raise ValueError(
                f"world.obstacle_radius = {list(self.world.obstacle_radius)}: at most {room:g} for "
                f"{self.world.obstacles} obstacles in {list(self.world.size)}; lower it, or have fewer obstacles"
            )
        for name, kind in kinds.items():
            if kind.speed * self.world.time_step > self.world.obstacle_radius[0]:
                raise ValueError(
                    f"population.{name}.speed = {kind.speed:g} jumps over the smallest obstacle within a step; lower "
                    "world.time_step"
                )
        return self

    @property
    def farthest(self) -> float:
        """How far anybody sees or catches; metres."""
        p = self.population
        return max(p.scout.sight, p.hunter.sight, p.prey.sight, p.scout.catch, p.hunter.catch)

    @property
    def gap(self) -> float:
        """Free way on each side of an obstacle's plot; metres."""
        p = self.population
        return 1.05 * max(p.scout.radius, p.hunter.radius, p.prey.radius)
