"""The tables of a battle scenario file."""

import itertools
from typing import Literal

import numpy as np
import pydantic

from scenarios.battle.layout import KINDS, layout
from scenarios.common.tables import Amount, Positive, Share, SpaceTable, Weight
from swarm.core.tables import Population, ScenarioConfig, Table
from swarm.neighbors.search import SearchTable


class WorldTable(SpaceTable):
    """Table `world`."""

    size: tuple[float, float]
    edge: Literal["walled", "open"]
    squad: int = pydantic.Field(ge=1)
    place: float = Positive
    crowd: int = pydantic.Field(ge=1)
    gap: float = Amount
    policy: Literal["squads", "focus"]

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "WorldTable":
        if max(self.size) / self.place > 8192:
            raise ValueError(f"place = {self.place:g} is too small for size = {list(self.size)}; at most 8192 a side")
        return self


class KindTable(Population):
    """Tables `population.infantry`, `population.archer` and `population.cavalry`; numbers are per army."""

    wave: int = pydantic.Field(ge=0)
    share: tuple[float, float]
    health: float = Positive
    speed: float = Amount
    sensing: float = Positive
    reach: float = Positive
    damage: float = Amount
    accuracy: float = Share
    cooldown: int = pydantic.Field(ge=1)

    @pydantic.model_validator(mode="after")
    def _sane(self) -> "KindTable":
        if not all(0 <= part <= 1 for part in self.share):
            raise ValueError(f"share = {list(self.share)}: the part of each army must be from 0 to 1")
        if self.reach > self.sensing:
            raise ValueError(f"reach = {self.reach:g} exceeds sensing = {self.sensing:g}; nobody hits the unseen")
        return self


class PopulationTable(Table):
    """Table `population`."""

    infantry: KindTable
    archer: KindTable
    cavalry: KindTable


class WavesTable(Table):
    """Table `waves`."""

    every: int = pydantic.Field(ge=1)
    count: int = pydantic.Field(ge=0, le=1_000_000)


class RewardTable(Table):
    """Table `reward`."""

    dealt: float = Weight
    kill: float = Weight
    taken: float = Weight
    death: float = Weight


class BattleConfig(ScenarioConfig):
    """A scenario file for battle."""

    world: WorldTable
    population: PopulationTable
    waves: WavesTable
    reward: RewardTable
    search: SearchTable

    def squads(self, army: int, column: Literal["initial", "wave"]) -> tuple[int, ...]:
        """Number of squads of each kind that an army has at the start, or that a wave brings it."""
        tables = [getattr(self.population, kind) for kind in KINDS]
        return tuple(round(getattr(t, column) * t.share[army] / self.world.squad) for t in tables)

    @pydantic.model_validator(mode="after")
    def _whole_squads(self) -> "BattleConfig":
        size = self.world.squad
        for kind in KINDS:
            table = getattr(self.population, kind)
            for column in ("initial", "wave"):
                for part in table.share:
                    number = getattr(table, column) * part
                    if abs(number / size - round(number / size)) > 1e-6:
                        raise ValueError(
                            f"population.{kind}.{column} = {getattr(table, column)} times share {part:g} is "
                            f"{number:g}, not a whole number of squads of world.squad = {size}"
                        )
            if table.wave > table.capacity:
                raise ValueError(f"population.{kind}.wave = {table.wave} exceeds capacity = {table.capacity}")
        if not all(sum(self.squads(army, "initial")) for army in (0, 1)):
            raise ValueError(
                f"population: an army begins without a squad of world.squad = {size}; raise initial or share of a kind"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _room_for_armies(self) -> "BattleConfig":
        world, size = self.world, np.asarray(self.world.size)
        columns: tuple[tuple[Literal["initial", "wave"], float | None], ...]
        columns = (("initial", 0.5 * world.gap), ("wave", None))
        for column, front in columns:
            squads = (self.squads(0, column), self.squads(1, column))
            place = layout(squads, world.squad, world.place, world.size, front).position
            if place.size and not np.all((place >= 0) & (place <= size[None])):
                need = size + 2 * np.max(np.maximum(-place, place - size[None]), axis=0)
                raise ValueError(
                    f"world.size = {list(self.world.size)} has no room for the {column} armies, which need "
                    f"{np.maximum(need, size).round(1).tolist()}; enlarge it or lower population, place or gap"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _levels_of_the_policy(self) -> "BattleConfig":
        levels = self.groups.get("levels")
        levels = levels if isinstance(levels, list) else []
        if self.world.policy == "squads" and ("squad", "wing") not in itertools.pairwise(levels[1:]):
            raise ValueError(
                f'world.policy = "squads" needs "wing" right above "squad" in groups.levels = {levels}; '
                'add them, or take world.policy = "focus"'
            )
        return self
