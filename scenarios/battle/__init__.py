"""Battle: two armies of infantry, archers and cavalry in squads and wings, with reinforcements, in the plane."""

from typing import Any

import jax.numpy as jnp

from scenarios.battle.config import BattleConfig
from scenarios.battle.policy import FocusFire, Squads
from scenarios.battle.rules import HEALTH, N_MOVES, N_SEEN, WAIT, AbstractBattle, Fields
from scenarios.battle.view import draw
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import World

__all__ = ["HEALTH", "N_MOVES", "N_SEEN", "WAIT", "Battle", "BattleConfig", "Fields"]


class Battle(AbstractBattle):
    """The rules of `AbstractBattle`, with a scripted policy and pictures."""

    def scripted_policy(self) -> AbstractPolicy:
        """Squads that manoeuvre, or everybody for himself with focused fire, as the scenario file says."""
        return Squads(self, retreat=jnp.float32(0.4)) if self.policy == "squads" else FocusFire(self)

    def draw(self, axes: Any, world: World) -> None:
        """Draw both armies."""
        draw(axes, world, self)
