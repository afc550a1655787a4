"""Pictures of patrol."""

from typing import Any

import numpy as np

from scenarios.patrol.rules import AbstractPatrol
from swarm.simulation.types import World


def draw(axes: Any, world: World, rules: AbstractPatrol) -> None:
    """Draw cells grey when seen, green when told; the pad, and drones with footprints, coloured by battery."""
    # Imported here: only who draws needs matplotlib, and loading it takes long.
    from matplotlib.patches import Circle

    entities, fields, (width, height) = world.entities, world.fields, rules.level.size
    shade = np.where(fields.told, 2.0, np.where(fields.seen, 1.0, 0.0))
    extent = (0.0, float(width), 0.0, float(height))
    axes.imshow(shade, origin="lower", extent=extent, cmap="Greens", vmin=0, vmax=5)
    axes.add_patch(Circle(tuple(fields.base[:2]), float(rules.level.pad), color="tab:blue", alpha=0.4))
    alive = np.asarray(entities.alive)
    place = entities.position[alive]
    for x, y, _ in place:
        axes.add_patch(Circle((x, y), float(rules.footprint), fill=False, color="0.3", lw=0.6))
    charge = entities.stores[alive, 0] / rules.level.battery.capacity[entities.row[alive]]
    axes.scatter(*place[:, :2].T, c=charge, cmap="RdYlGn", vmin=0, vmax=1, s=45, edgecolors="k", zorder=3)
    axes.quiver(*place[:, :2].T, *entities.velocity[alive, :2].T, scale=30, width=0.004, zorder=3)
    axes.set(xlim=(0, width), ylim=(0, height), xticks=[], yticks=[], aspect="equal")
    axes.set_title(f"step {int(world.step)}   told {float(np.mean(fields.told)):.2f}", fontsize=9)
