"""Pictures of outpost worlds."""

from typing import Any

import numpy as np

from scenarios.outpost_board import DEPOT, HEAVY, ICE, METAL, ORE, POWER, WATER
from swarm.scenario import World

TEAMS = ("#1f77b4", "#d62728")


def draw(axes: Any, world: World) -> None:
    """Draw the map, the depots with their water, and the units with their cargo.

    Ice is light blue, ore brown, rubble grey (the darker the more). Depots are squares that carry their water; heavy
    units are large, light units small discs, filled with yellow as their cargo fills.
    """
    from matplotlib.patches import Circle, Rectangle

    entities, fields = world.entities, world.fields
    shade = 1.0 - 0.5 * np.asarray(fields.rubble)[..., None] / 100.0
    image = np.broadcast_to(shade, (*shade.shape[:2], 3)).copy()
    image[np.asarray(fields.ice)] = (0.62, 0.85, 0.95)
    image[np.asarray(fields.ore)] = (0.72, 0.52, 0.36)
    axes.imshow(image, interpolation="nearest")
    for i in np.flatnonzero(entities.alive):
        x, y = entities.position[i]
        stores, colour = entities.stores[i], TEAMS[entities.team[i]]
        if entities.kind[i] == DEPOT:
            axes.add_patch(Rectangle((x - 1.5, y - 1.5), 3, 3, facecolor=colour, alpha=0.35, edgecolor=colour))
            axes.text(x, y, f"{stores[WATER]:.0f}", ha="center", va="center", fontsize=8, weight="bold", zorder=5)
            continue
        radius = 0.45 if entities.kind[i] == HEAVY else 0.27
        full = 1000.0 if entities.kind[i] == HEAVY else 100.0
        axes.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=colour, lw=1.6, zorder=3))
        cargo = min(1.0, float(stores[ICE] + stores[ORE]) / full) ** 0.5
        axes.add_patch(Circle((x, y), radius * cargo, facecolor="gold", edgecolor="none", zorder=4))
    depots = entities.alive & (entities.kind == DEPOT)
    axes.set_title(
        f"step {int(world.step)}   ice {fields.delivered.sum():.0f}   "
        f"power {entities.stores[depots, POWER].sum():.0f}   metal {entities.stores[depots, METAL].sum():.0f}",
        fontsize=9,
    )
    axes.set_xticks([])
    axes.set_yticks([])
