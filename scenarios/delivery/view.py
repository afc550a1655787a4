"""Pictures of deliveries."""

from typing import Any

import numpy as np

from scenarios.delivery.rules import AbstractDelivery
from swarm.simulation.types import World


def draw(axes: Any, world: World, rules: AbstractDelivery) -> None:
    """Draw the depot blue, waiting parcels as squares (red when late), and drones coloured by battery.

    A dotted line leads from a drone that carries a parcel to its destination.
    """
    # Imported here: only who draws needs matplotlib, and loading it takes long.
    from matplotlib.patches import Circle

    entities, fields, (width, height) = world.entities, world.fields, rules.level.size
    parcels, places = fields.parcels, np.asarray(fields.places)
    for number, place in enumerate(places):
        axes.add_patch(Circle(tuple(place), float(rules.reach), fill=False, color="0.4", lw=0.8))
        if number == 0:
            axes.add_patch(Circle(tuple(place), float(rules.level.pad), color="tab:blue", alpha=0.3))
    now = rules.seconds(world.step)
    waiting = np.flatnonzero(np.asarray(parcels.waiting(now)))
    rank = np.asarray([np.sum(parcels.origin[waiting[:i]] == parcels.origin[j]) for i, j in enumerate(waiting)])
    if len(waiting):
        spot = places[parcels.origin[waiting]] + np.stack([0.5 * rank - 0.6, np.full(len(rank), 1.1)], axis=1)
        age = (now - parcels.seconds[waiting]) / rules.orders.deadline
        axes.scatter(*spot.T, c=age, cmap="YlOrRd", vmin=0, vmax=1.5, marker="s", s=22, edgecolors="k", lw=0.4)
    alive, load = np.asarray(entities.alive), np.asarray(fields.load)
    place = entities.position[alive]
    for drone in np.flatnonzero(alive & (load >= 0)):
        goal = places[parcels.destination[load[drone]]]
        axes.plot(*np.stack([entities.position[drone, :2], goal]).T, color="0.5", lw=0.7, ls=":")
    charge = entities.stores[alive, 0] / rules.level.battery.capacity[entities.row[alive]]
    edge = ["k" if x else "0.6" for x in load[alive] >= 0]
    axes.scatter(*place[:, :2].T, c=charge, cmap="RdYlGn", vmin=0, vmax=1, s=50, edgecolors=edge, zorder=3)
    axes.quiver(*place[:, :2].T, *entities.velocity[alive, :2].T, scale=40, width=0.004, zorder=3)
    axes.set(xlim=(0, width), ylim=(0, height), xticks=[], yticks=[], aspect="equal")
    axes.set_title(f"{float(now):.0f} s   {int(np.sum(parcels.delivered >= 0))} delivered", fontsize=9)
