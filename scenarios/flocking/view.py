"""Pictures of flocking."""

from typing import Any

import numpy as np

from scenarios.flocking.rules import AbstractFlocking
from swarm.simulation.types import World


def draw(axes: Any, world: World, rules: AbstractFlocking) -> None:
    """Draw an arrow for each bird, seen from above: coloured by heading, or by altitude in three dimensions."""
    entities = world.entities
    alive, size = np.asarray(entities.alive), np.asarray(rules.space.size)
    place, way = entities.position[alive], entities.velocity[alive] / rules.speed
    colour = {"cmap": "hsv", "clim": (-np.pi, np.pi)} if len(size) == 2 else {"cmap": "viridis", "clim": (0.0, size[2])}
    shade = entities.heading[alive] if len(size) == 2 else place[:, 2]
    axes.quiver(*place.T[:2], *way.T[:2], shade, **colour, pivot="mid", scale=45)
    axes.set(xlim=(0, size[0]), ylim=(0, size[1]), xticks=[], yticks=[], aspect="equal")
    axes.set_title(f"step {int(world.step)}", fontsize=9)
