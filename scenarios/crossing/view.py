"""Pictures of crossing."""

from typing import Any

from scenarios.crossing.rules import AbstractCrossing
from swarm.simulation.types import World


def draw(axes: Any, world: World, rules: AbstractCrossing) -> None:
    """Draw it from above: pillars grey, goals as crosses, drones coloured by height, with their velocities."""
    # Imported here: only who draws needs matplotlib, and loading it takes long.
    from matplotlib.patches import Circle

    entities, fields = world.entities, world.fields
    for (x, y), radius in zip(fields.pillars.centre, fields.pillars.radius, strict=True):
        axes.add_patch(Circle((x, y), radius, color="0.7"))
    alive, top = entities.alive, float(rules.size[2])
    waiting = alive & (fields.arrived < 0)
    axes.scatter(*fields.goal[waiting, :2].T, marker="+", c=fields.goal[waiting, 2], vmin=0, vmax=top, s=40)
    place = entities.position[alive]
    axes.scatter(*place[:, :2].T, c=place[:, 2], vmin=0, vmax=top, s=45, edgecolors="k", linewidths=0.6)
    axes.quiver(*place[:, :2].T, *entities.velocity[alive, :2].T, scale=30, width=0.004, zorder=3)
    axes.set(xlim=(0, rules.size[0]), ylim=(0, rules.size[1]), xticks=[], yticks=[], aspect="equal")
    n_arrived, n_lost = int((alive & (fields.arrived >= 0)).sum()), rules.initial - int(alive.sum())
    axes.set_title(f"step {int(world.step)}   arrived {n_arrived}   lost {n_lost}", fontsize=9)
