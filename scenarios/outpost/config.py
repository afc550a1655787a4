"""The tables of an outpost scenario file."""

from typing import Literal

import pydantic

from scenarios.common.tables import Amount, Positive, Share, Steps, Weight
from swarm.core.tables import Population, ScenarioConfig, Table


class WorldTable(Table):
    """Table `world`."""

    size: tuple[int, int]
    steps: int = Steps
    teams: Literal[1, 2]
    friendly_fire: bool
    ice: float = Share
    ore: float = Share
    rubble: float = pydantic.Field(ge=0.0, le=100.0)
    day: int = pydantic.Field(ge=0)
    cycle: int = pydantic.Field(ge=1)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "WorldTable":
        if not all(8 <= side <= 128 for side in self.size):
            raise ValueError(f"size = {list(self.size)}: each side must be from 8 to 128 cells")
        if self.ice + self.ore > 0.5:
            raise ValueError(f"ice + ore = {self.ice + self.ore:g}: at most half of the cells; lower one of them")
        if self.day > self.cycle:
            raise ValueError(f"day = {self.day} is longer than cycle = {self.cycle}; lower day")
        return self


class DepotTable(Population):
    """Table `population.depot`."""

    initial: int = pydantic.Field(ge=1)
    water: float = Amount
    power: float = Amount
    metal: float = Amount
    upkeep: float = Amount
    power_gain: float = Amount
    refine_ice: float = Amount
    refine_ore: float = Amount


class UnitTable(Population):
    """Tables `population.light` and `population.heavy`."""

    build_metal: float = Amount
    build_power: float = Amount
    cargo: float = Positive
    battery: float = Positive
    charge: float = Amount
    move: float = Amount
    move_rubble: float = Amount
    dig: float = Amount
    dig_gain: float = Amount
    dig_rubble: float = Amount

    @pydantic.model_validator(mode="after")
    def _charged(self) -> "UnitTable":
        for name in ("build_power", "move", "dig"):
            if getattr(self, name) > self.battery:
                raise ValueError(f"{name} = {getattr(self, name):g} exceeds battery = {self.battery:g}; raise battery")
        return self


class PopulationTable(Table):
    """Table `population`."""

    depot: DepotTable
    light: UnitTable
    heavy: UnitTable


class RewardTable(Table):
    """Table `reward`."""

    delivered: float = Weight
    depot_share: float = Share
    scarcity: float = Amount
    mined: float = Weight
    early: float = Weight


class OutpostConfig(ScenarioConfig):
    """A scenario file for outpost."""

    world: WorldTable
    population: PopulationTable
    reward: RewardTable

    @pydantic.model_validator(mode="after")
    def _room_for_depots(self) -> "OutpostConfig":
        (width, height), n_depots = self.world.size, self.population.depot.initial * self.world.teams
        if n_depots * 25 > (width - 2) * (height - 2):
            raise ValueError(
                f"world.size = [{width}, {height}] has no room for {n_depots} depots; "
                "enlarge it or lower population.depot.initial"
            )
        return self
