"""Pictures of outpost worlds."""

from typing import Any

import numpy as np

from scenarios.outpost.board import DEPOT, HEAVY, ICE, LIGHT, METAL, ORE, POWER, WATER
from swarm.simulation.types import World

TEAMS = ("#1f77b4", "#d62728")
# Diameter in cells, and the cargo at which a disc is drawn full.
SHAPES = {LIGHT: (0.54, 100.0), HEAVY: (0.9, 1000.0)}


def draw(axes: Any, world: World) -> None:
    """Draw the map, the depots with their water, and the units with their cargo.

    Ice is light blue, ore brown, rubble grey (the darker the more). Depots are squares that carry their water; heavy
    units are large, light units small discs, filled with yellow as their cargo fills. Teams are blue and red.
    """
    fields = world.fields
    shade = 1.0 - 0.5 * np.asarray(fields.rubble)[..., None] / 100.0
    image = np.broadcast_to(shade, (*shade.shape[:2], 3)).copy()
    image[np.asarray(fields.ice)] = (0.62, 0.85, 0.95)
    image[np.asarray(fields.ore)] = (0.72, 0.52, 0.36)
    axes.imshow(image, interpolation="nearest")
    # On a large board cells are small, and so are lines and letters.
    scale = min(1.0, 24.0 / max(shade.shape[:2]))
    for team in range(len(fields.delivered)):
        for kind in SHAPES:
            _units(axes, world, kind, team, 1.6 * scale)
        _depots(axes, world, team, max(4.0, 8.0 * scale))
    axes.set_title("\n".join([f"step {int(world.step)}", *_tallies(world)]), fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])


def _units(axes: Any, world: World, kind: int, team: int, line_width: float) -> None:
    """All units of a kind and team as one collection, because thousands of patches would draw for seconds."""
    # Imported here: only who draws needs matplotlib, and loading it takes long.
    from matplotlib.collections import EllipseCollection

    entities = world.entities
    who = np.flatnonzero(entities.alive & (entities.kind == kind) & (entities.team == team))
    diameter, full = SHAPES[kind]
    cargo = np.asarray(entities.stores)[who][:, [ICE, ORE]].sum(axis=1)
    discs = (
        (diameter, "white", TEAMS[team], 3),
        (diameter * np.sqrt(np.minimum(cargo / full, 1.0)), "gold", "none", 4),
    )
    for size, face, edge, order in discs:
        sizes = np.broadcast_to(size, len(who))
        axes.add_collection(
            EllipseCollection(
                sizes,
                sizes,
                np.zeros(len(who)),
                units="xy",
                offsets=np.asarray(entities.position)[who],
                offset_transform=axes.transData,
                facecolor=face,
                edgecolor=edge,
                linewidth=line_width,
                zorder=order,
            )
        )


def _depots(axes: Any, world: World, team: int, font_size: float) -> None:
    # Imported here: only who draws needs matplotlib, and loading it takes long.
    from matplotlib.patches import Rectangle

    entities, colour = world.entities, TEAMS[team]
    for i in np.flatnonzero(entities.alive & (entities.kind == DEPOT) & (entities.team == team)):
        x, y = entities.position[i]
        axes.add_patch(Rectangle((x - 1.5, y - 1.5), 3, 3, facecolor=colour, alpha=0.35, edgecolor=colour))
        water = f"{entities.stores[i, WATER]:.0f}"
        axes.text(x, y, water, ha="center", va="center", fontsize=font_size, weight="bold", zorder=5)


def _tallies(world: World) -> list[str]:
    """A line for each team; what its depots have together."""
    entities, fields = world.entities, world.fields
    lines = []
    for team, name in enumerate(("",) if len(fields.delivered) == 1 else ("blue: ", "red: ")):
        mine = entities.alive & (entities.team == team)
        depots = mine & (entities.kind == DEPOT)
        lines.append(
            f"{name}depots {depots.sum()}  units {mine.sum() - depots.sum()}  lost {fields.lost[team]:.0f}  "
            f"ice {fields.delivered[team]:.0f}  power {entities.stores[depots, POWER].sum():.0f}  "
            f"metal {entities.stores[depots, METAL].sum():.0f}"
        )
    return lines
