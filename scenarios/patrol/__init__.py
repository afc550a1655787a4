"""Patrol: drones look at all of a field, share by radio what they have seen, and come back to their base to charge."""

from typing import Any

from scenarios.patrol.config import PatrolConfig
from scenarios.patrol.policy import Frontier
from scenarios.patrol.rules import AbstractPatrol, Fields
from scenarios.patrol.view import draw
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import World

__all__ = ["Fields", "Patrol", "PatrolConfig"]


class Patrol(AbstractPatrol):
    """The rules of `AbstractPatrol`, with a scripted policy and pictures."""

    def scripted_policy(self) -> AbstractPolicy:
        """To the nearest frontier, and back before the battery is empty."""
        return Frontier(self)

    def draw(self, axes: Any, world: World) -> None:
        """Draw the field, the base and the drones."""
        draw(axes, world, self)
