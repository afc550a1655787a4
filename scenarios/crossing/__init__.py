"""Crossing: drones swap places through each other in three dimensions, among pillars, in wind."""

from typing import Any

from scenarios.crossing.config import CrossingConfig
from scenarios.crossing.policy import Orca
from scenarios.crossing.rules import AbstractCrossing, Fields
from scenarios.crossing.view import draw
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import World

__all__ = ["Crossing", "CrossingConfig", "Fields"]


class Crossing(AbstractCrossing):
    """The rules of `AbstractCrossing`, with a scripted policy and pictures."""

    def scripted_policy(self) -> AbstractPolicy:
        """Optimal reciprocal collision avoidance."""
        return Orca(self)

    def draw(self, axes: Any, world: World) -> None:
        """Draw it from above."""
        draw(axes, world, self)
