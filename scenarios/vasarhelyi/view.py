"""Pictures of drones that flock in an arena."""

from typing import Any

import numpy as np

from scenarios.vasarhelyi.rules import AbstractVasarhelyi
from swarm.simulation.types import World


def draw(axes: Any, world: World, rules: AbstractVasarhelyi) -> None:
    """Draw arena and pillars, and an arrow for each drone, coloured by heading."""
    # Imported here: only who draws needs matplotlib, and loading it takes long.
    from matplotlib.patches import Circle, Rectangle

    entities, size = world.entities, np.asarray(rules.size)
    axes.add_patch(Rectangle((0, 0), *size, fill=False, edgecolor="0.4"))
    for (x, y), radius in zip(rules.pillars.centre, rules.pillars.radius, strict=True):
        axes.add_patch(Circle((x, y), radius, color="0.7"))
    place, way = (x[np.asarray(entities.alive)] for x in (entities.position, entities.velocity))
    colour = {"cmap": "hsv", "clim": (-np.pi, np.pi), "pivot": "mid"}
    axes.quiver(*place.T, *way.T, np.arctan2(way[:, 1], way[:, 0]), **colour, scale=90, width=0.006)
    room = 0.08 * size
    axes.set(xlim=(-room[0], size[0] + room[0]), ylim=(-room[1], size[1] + room[1]))
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.set_title(f"{int(world.step) * float(rules.time_step):.0f} s", fontsize=9)
