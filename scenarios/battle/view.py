"""Pictures of battles."""

from typing import Any

import numpy as np

from scenarios.battle.rules import HEALTH, AbstractBattle
from swarm.simulation.types import World

ARMIES = ("#1f5fb4", "#c8281e")
MARKERS = ("s", "^", "D")


def draw(axes: Any, world: World, rules: AbstractBattle) -> None:
    """Draw both armies: infantry are squares, archers triangles, cavalry diamonds, paler as they weaken.

    Thin lines join the members of a squad to its middle.
    """
    # Imported here: only who draws needs matplotlib, and loading it takes long.
    from matplotlib.colors import to_rgb

    entities, table = world.entities, rules.table
    health = np.asarray(entities.stores[:, HEALTH]) / np.asarray(table.health)[np.asarray(entities.kind)]
    alive, position = np.asarray(entities.alive), np.asarray(entities.position)
    (left, bottom), (width, height) = np.asarray(rules.space.lower), np.asarray(rules.space.size)
    size = float(np.clip(3000.0 * float(rules.place) ** 2 / width / height * 12.0, 0.5, 14.0))
    squads = np.asarray(world.hierarchy.parent[0])
    for army, colour in enumerate(ARMIES):
        own = alive & (np.asarray(entities.team) == army)
        for squad in np.unique(squads[own & (squads >= 0)]):
            members = position[own & (squads == squad)]
            ends = np.stack([members, np.broadcast_to(members.mean(axis=0), members.shape)], axis=1)
            axes.plot(*ends.transpose(2, 1, 0), color=colour, lw=0.3, alpha=0.35, zorder=1)
        for kind, marker in enumerate(MARKERS):
            chosen = own & (np.asarray(entities.kind) == kind)
            opacity = 0.25 + 0.75 * np.clip(health[chosen], 0.0, 1.0)
            shades = [(*to_rgb(colour), part) for part in opacity]
            axes.scatter(*position[chosen].T, s=size, marker=marker, c=shades, linewidths=0, zorder=2)
    axes.set(xlim=(left, left + width), ylim=(bottom, bottom + height), xticks=[], yticks=[], aspect="equal")
    numbers = [int((alive & (np.asarray(entities.team) == army)).sum()) for army in (0, 1)]
    (blue, red), fallen = numbers, np.asarray(world.fields.fallen).astype(int)
    title = f"step {int(world.step)}   blue {blue} (lost {fallen[0]})   red {red} (lost {fallen[1]})"
    axes.set_title(title, fontsize=9)
