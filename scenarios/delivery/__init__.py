"""Delivery: drones bring parcels from a depot and between pads, against time, and come back to the depot to charge."""

from typing import Any

from scenarios.delivery.config import DeliveryConfig
from scenarios.delivery.policy import Auction
from scenarios.delivery.rules import N_OF_PARCEL, N_OWN, AbstractDelivery, Fields
from scenarios.delivery.view import draw
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import World

__all__ = ["N_OF_PARCEL", "N_OWN", "Delivery", "DeliveryConfig", "Fields"]


class Delivery(AbstractDelivery):
    """The rules of `AbstractDelivery`, with a scripted policy and pictures."""

    def scripted_policy(self) -> AbstractPolicy:
        """Parcels by auction, and back before the battery is empty."""
        return Auction(self)

    def draw(self, axes: Any, world: World) -> None:
        """Draw it from above."""
        draw(axes, world, self)
