"""Who touches an obstacle, or another one."""

from jaxtyping import Array, Bool, Float

from swarm.geometry.obstacles import AbstractObstacles, touches
from swarm.neighbors.questions import Neighbors


def crashed(
    found: Neighbors,
    obstacles: AbstractObstacles,
    position: Float[Array, "n d"],
    radius: Float[Array, " n"],
    alive: Bool[Array, " n"],
) -> Bool[Array, " n"]:
    """Which of the living touch an obstacle, or each other; what comes of it is up to the scenario.

    Args:
        found: who is near whom, by a search at least two of the largest radii wide.
        obstacles: what is solid.
        position: metres.
        radius: of each ball, metres.
        alive: who counts.
    """
    gap = found.min(lambda way, distance, mine, theirs: distance - mine - theirs, radius[:, None])[:, 0]
    return alive & ((gap <= 0) | touches(obstacles, position, radius))
