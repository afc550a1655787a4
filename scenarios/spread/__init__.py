"""Spread: agents cover landmarks without colliding, as in simple_spread of the multi-agent particle environments."""

from typing import Any

from scenarios.spread.config import SpreadConfig
from scenarios.spread.policy import Cover
from scenarios.spread.rules import AbstractSpread, Fields
from scenarios.spread.view import draw
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import World

__all__ = ["Fields", "Spread", "SpreadConfig"]


class Spread(AbstractSpread):
    """The rules of `AbstractSpread`, with a scripted policy and pictures."""

    def scripted_policy(self) -> AbstractPolicy:
        """The best assignment."""
        return Cover.of(self)

    def draw(self, axes: Any, world: World) -> None:
        """Draw agents and landmarks."""
        draw(axes, world, self)
