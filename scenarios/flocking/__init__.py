"""Flocking: birds of constant speed that steer by what they see of their neighbours, in two or three dimensions."""

from typing import Any

from scenarios.flocking.config import FlockingConfig
from scenarios.flocking.policy import Boids, Vicsek
from scenarios.flocking.rules import AbstractFlocking, Fields
from scenarios.flocking.view import draw
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import World

__all__ = ["Fields", "Flocking", "FlockingConfig"]


class Flocking(AbstractFlocking):
    """The rules of `AbstractFlocking`, with a scripted policy and pictures."""

    def scripted_policy(self) -> AbstractPolicy:
        """Boids, or Vicsek's."""
        return Vicsek(self, **self.vicsek) if self.scripted == "vicsek" else Boids(self, **self.boids)

    def draw(self, axes: Any, world: World) -> None:
        """Draw an arrow for each bird."""
        draw(axes, world, self)
