"""Pursuit: scouts and hunters chase prey in the plane, between obstacles."""

from typing import Any

from scenarios.pursuit.config import PursuitConfig
from scenarios.pursuit.policy import Scripted
from scenarios.pursuit.rules import HUNTER, PREY, SCOUT, AbstractPursuit, Fields
from scenarios.pursuit.view import draw
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import World

__all__ = ["HUNTER", "PREY", "SCOUT", "Fields", "Pursuit", "PursuitConfig"]


class Pursuit(AbstractPursuit):
    """The rules of `AbstractPursuit`, with a scripted policy and pictures."""

    def scripted_policy(self) -> AbstractPolicy:
        """Chase, and flee where prey act."""
        return Scripted(self)

    def draw(self, axes: Any, world: World) -> None:
        """Draw obstacles, predators and prey."""
        draw(axes, world, self)
