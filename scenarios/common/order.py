"""Order parameters of flocks: numbers that say how a crowd flies, whatever made it do so."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from swarm.geometry.space import Periodic, length
from swarm.geometry.vectors import dot, norm
from swarm.neighbors.questions import Among, Neighbors
from swarm.population.grouping.components import lowest_reachable


def mean(values: Float[Array, " n"], alive: Bool[Array, " n"]) -> Float[Array, ""]:
    """Mean over the living; 0 of none."""
    return jnp.sum(jnp.where(alive, values, 0.0)) / jnp.maximum(jnp.sum(alive), 1)


def polarisation(direction: Float[Array, "n d"], alive: Bool[Array, " n"]) -> Float[Array, ""]:
    """Length of the mean unit velocity (Vicsek et al. 1995, eq. 4): 1 when all fly the same way."""
    return length([mean(component, alive) for component in direction.T])


def milling(
    space: Periodic, position: Float[Array, "n d"], direction: Float[Array, "n d"], alive: Bool[Array, " n"]
) -> Float[Array, ""]:
    """Length of the mean of (unit way from the centre) x (unit velocity) (Couzin et al. 2002): 1 when all circle it.

    In a periodic box the centre along each axis is the mean angle on the circle that the axis is (Bai, Breen 2008), and
    ways are the shortest.
    """
    angle = 2 * jnp.pi * (position - space.lower[None]) / space.size[None]
    turn = [jnp.arctan2(mean(jnp.sin(a), alive), mean(jnp.cos(a), alive)) / (2 * jnp.pi) for a in angle.T]
    way = space.displacement((space.lower + jnp.stack(turn) * space.size)[None], position)
    distance = norm(way)
    outward = (way / jnp.where(distance > 0, distance, 1.0)[:, None]).T
    u = direction.T
    axes = [(0, 1)] if len(u) == 2 else [(1, 2), (2, 0), (0, 1)]
    return length([mean(outward[i] * u[j] - outward[j] * u[i], alive) for i, j in axes])


def nearest_distance(near: Neighbors, alive: Bool[Array, " n"]) -> Float[Array, ""]:
    """Mean distance to the nearest neighbour, over those who have one within the radius; 0 if nobody has; metres."""
    none = jnp.zeros((alive.shape[0], 0))
    nearest = near.min(lambda way, distance, mine, theirs: distance[None], none)[:, 0]
    seen = alive & jnp.isfinite(nearest)
    return mean(jnp.where(seen, nearest, 0.0), seen)


def cluster_count(near: Neighbors, alive: Bool[Array, " n"]) -> Float[Array, ""]:
    """Number of sets joined by chains of neighbours, a lone one included."""
    root = lowest_reachable(jax.lax.stop_gradient(near), Among(jnp.where(alive, 0, -1), same=True))
    return jnp.sum(alive & (root == jnp.arange(alive.shape[0])), dtype=jnp.float32)


def correlation(near: Neighbors, direction: Float[Array, "n d"], alive: Bool[Array, " n"]) -> Float[Array, ""]:
    """Mean over entities of the mean cosine with the others of their cluster (Vasarhelyi et al. 2018); 0 for lone ones.

    Args:
        near: clusters are joined by chains of neighbours.
        direction: unit velocities; 0 for who stands still, and for the dead.
        alive: who counts.
    """
    n = alive.shape[0]
    root = lowest_reachable(jax.lax.stop_gradient(near), Among(jnp.where(alive, 0, -1), same=True))
    rows = jnp.where(alive[:, None], jnp.concatenate([jnp.ones((n, 1)), direction], axis=1), 0.0)
    sums = jax.ops.segment_sum(rows, root, n)[root]
    others = (sums - rows)[:, 1:]
    return mean(dot(direction, others) / jnp.maximum(sums[:, 0] - 1.0, 1.0), alive)
