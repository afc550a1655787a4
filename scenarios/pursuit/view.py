"""Pictures of pursuit."""

from typing import Any

from scenarios.pursuit.rules import AbstractPursuit
from swarm.simulation.types import World


def draw(axes: Any, world: World, rules: AbstractPursuit) -> None:
    """Draw obstacles grey, scouts blue, hunters violet with the reach of their catch, prey orange."""
    # Imported here: only who draws needs matplotlib, and loading it takes long.
    from matplotlib.patches import Circle

    for (x, y), radius in zip(world.fields.obstacles.centre, world.fields.obstacles.radius, strict=True):
        axes.add_patch(Circle((x, y), radius, color="0.7"))
    entities, colours = world.entities, ("tab:blue", "tab:purple", "tab:orange")
    for kind, colour in enumerate(colours):
        mine = entities.alive & (entities.kind == kind)
        for x, y in entities.position[mine]:
            axes.add_patch(Circle((x, y), float(rules.table["radius"][kind]), color=colour, zorder=3))
            axes.add_patch(Circle((x, y), float(rules.table["catch"][kind]), color=colour, alpha=0.2, lw=0))
        way = entities.velocity[mine]
        axes.quiver(*entities.position[mine].T, *way.T, color=colour, scale=100, width=0.004, zorder=3)
    (left, bottom), (right, top) = rules.space.lower, rules.space.upper
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    axes.set_title(f"step {int(world.step)}   caught {int(world.fields.caught)}", fontsize=9)
