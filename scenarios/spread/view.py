"""Pictures of spread."""

from typing import Any

from scenarios.spread.rules import AbstractSpread
from swarm.simulation.types import World


def draw(axes: Any, world: World, rules: AbstractSpread) -> None:
    """Draw agents as discs and landmarks as black dots; agents that touch others are red."""
    # Imported here: only who draws needs matplotlib, and loading it takes long.
    from matplotlib.patches import Circle

    entities, touched = world.entities, world.fields.contact[:, 2]
    radius = float(rules.agent["radius"])
    for x, y, n_touched in zip(*entities.position[entities.alive].T, touched[entities.alive], strict=True):
        axes.add_patch(Circle((x, y), radius, color="tab:red" if n_touched > 0 else "tab:green", alpha=0.6))
    axes.scatter(*world.fields.landmark.T, s=12, color="black", zorder=3)
    half = 0.6 * float(rules.space.size.max())
    axes.set(xlim=(-half, half), ylim=(-half, half), xticks=[], yticks=[], aspect="equal")
    axes.set_title(f"step {int(world.step)}   return per agent {float(world.fields.score):.1f}", fontsize=9)
