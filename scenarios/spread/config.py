"""The scenario file of spread."""

from typing import Literal

import pydantic

from scenarios.common.tables import Amount, Few, Positive, Share, SpaceTable
from swarm.core.tables import Population, ScenarioConfig, Table


class WorldTable(SpaceTable):
    """Table `world`."""

    size: tuple[float, float]
    landmarks: int = pydantic.Field(ge=1, le=10_000)
    control: Literal["discrete", "continuous"]


class AgentTable(Population):
    """Table `population.agent`."""

    # Each is compared with each.
    capacity: int = pydantic.Field(ge=1, le=10_000)
    initial: int = pydantic.Field(ge=1)
    radius: float = Positive
    acceleration: float = Positive
    damping: float = Share
    contact_force: float = Amount
    contact_margin: float = Positive


class PopulationTable(Table):
    """Table `population`."""

    agent: AgentTable


class ObservationTable(Table):
    """Table `observation`."""

    landmarks: int = Few
    others: int = pydantic.Field(ge=0, le=1024)


class RewardTable(Table):
    """Table `reward`."""

    local_ratio: float = Share


class SpreadConfig(ScenarioConfig):
    """A scenario file for spread."""

    world: WorldTable
    population: PopulationTable
    observation: ObservationTable
    reward: RewardTable

    @pydantic.model_validator(mode="after")
    def _seen_exist(self) -> "SpreadConfig":
        if self.observation.landmarks > self.world.landmarks:
            raise ValueError(
                f"observation.landmarks = {self.observation.landmarks} exceeds "
                f"world.landmarks = {self.world.landmarks}; lower it"
            )
        return self
