"""Drones that flock in a walled arena: they follow velocities with lag, and hear of each other late."""

from typing import Any

from scenarios.vasarhelyi.config import VasarhelyiConfig
from scenarios.vasarhelyi.policy import Flock
from scenarios.vasarhelyi.rules import AbstractVasarhelyi, Fields
from scenarios.vasarhelyi.view import draw
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import World

__all__ = ["Fields", "Vasarhelyi", "VasarhelyiConfig"]


class Vasarhelyi(AbstractVasarhelyi):
    """The rules of `AbstractVasarhelyi`, with a scripted policy and pictures."""

    def scripted_policy(self) -> AbstractPolicy:
        """The model of the paper."""
        return Flock(self)

    def draw(self, axes: Any, world: World) -> None:
        """Draw the arena and the drones."""
        draw(axes, world, self)
