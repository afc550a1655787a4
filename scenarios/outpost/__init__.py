"""Outpost: keep depots alive with ice brought by light and heavy units, on a grid with rubble, ore, day and night."""

from typing import Any

from scenarios.outpost.board import Fields
from scenarios.outpost.config import OutpostConfig
from scenarios.outpost.policy import Greedy
from scenarios.outpost.rules import AbstractOutpost
from scenarios.outpost.view import draw
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import World

__all__ = ["Fields", "Outpost", "OutpostConfig"]


class Outpost(AbstractOutpost):
    """The rules of `AbstractOutpost`, with a scripted policy and pictures."""

    def scripted_policy(self) -> AbstractPolicy:
        """The greedy policy."""
        return Greedy(self.board)

    def draw(self, axes: Any, world: World) -> None:
        """Draw the map, the depots with their water, and the units with their cargo."""
        draw(axes, world)
