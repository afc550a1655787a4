"""Groups of those who can reach each other: connected components of a graph of radius."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from swarm.neighbors.questions import AbstractNeighborSearch, Among, Neighbors
from swarm.population.entities import Entities
from swarm.population.grouping.rule import AbstractGrouping, Nodes, Previous, groups_of


class Components(AbstractGrouping):
    """Nodes of one team joined by a chain of neighbours, each nearer to the next than the radius.

    A component keeps a group slot that any of its members had: that of its lowest such member, unless a component with
    a lower one claims the same slot (the group fell apart). The others take the lowest free slots, in order of their
    lowest member; so their numbers, unlike their members, depend on who has which slot. Components beyond the slots
    are no groups, and are counted as overflow.

    Attributes:
        search: finds neighbours.
        slots: number of group slots; None: one for each node.
    """

    has_memory: ClassVar[bool] = True

    search: AbstractNeighborSearch
    slots: int | None = eqx.field(static=True, default=None)

    def n_groups(self, n_nodes: int) -> int:
        """As given, or as many as nodes."""
        return self.slots or n_nodes

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Find the components, then their slots."""
        n = nodes.exists.shape[0]
        g = self.n_groups(n)
        before = Previous.none(n, g) if previous is None else previous
        near = self.search.find(jax.lax.stop_gradient(nodes.position), nodes.exists)
        root = lowest_reachable(near, Among(jnp.where(nodes.exists, nodes.team, -1), same=True))
        slots = jnp.arange(n, dtype=jnp.int32)
        # Who carries on a group: of each component the lowest member that had one, of each group the lowest of those.
        claims = jnp.where(nodes.exists & (before.index >= 0), slots, n)
        bearer = jax.ops.segment_min(claims, root, n)
        claimed = jnp.where(bearer < n, before.index[jnp.minimum(bearer, n - 1)], g)
        winner = jax.ops.segment_min(bearer, claimed, g + 1)[:g]
        lasting = winner < n
        kept = (claimed < g) & (winner[jnp.minimum(claimed, g - 1)] == bearer)
        new = nodes.exists & (root == slots) & ~kept
        new_rank = jnp.cumsum(new, dtype=jnp.int32) - 1
        free_rank = jnp.cumsum(~lasting, dtype=jnp.int32) - 1
        free = jnp.full(g, g, jnp.int32).at[jnp.where(lasting, g, free_rank)].set(jnp.arange(g), mode="drop")
        opened = jnp.where(new & (new_rank < g), free[jnp.clip(new_rank, 0, g - 1)], g)
        slot = jnp.where(kept, claimed, opened)[root]
        index = jnp.where(nodes.exists & (slot < g), slot, -1)
        exists = lasting.at[opened].set(True, mode="drop")
        index, groups = groups_of(nodes, index, g, before.renew(exists, lasting))
        overflow = jnp.sum(new & (opened == g), dtype=jnp.int32) + near.overflow
        return index, eqx.tree_at(lambda x: x.overflow, groups, overflow)


# The bits of the least float32 that is no subnormal, which processors may take for 0; those up to 2^31 - 2^24 above it
# are the finite ones, in the same order.
_LEAST = np.int32(0x00800000)


def disguised(number: Int[Array, "*v"]) -> Float[Array, "*v"]:
    """Whole numbers from 0 to 2^31 - 2^25 as float32 numbers of the same order, each another one.

    Their values as float32 numbers would be the same from 2^24 on.
    """
    return jax.lax.bitcast_convert_type(number + _LEAST, jnp.float32)


def revealed(number: Float[Array, "*v"]) -> Int[Array, "*v"]:
    """The whole numbers that were `disguised`."""
    return jax.lax.bitcast_convert_type(number, jnp.int32) - _LEAST


def lowest_reachable(near: Neighbors, among: Among) -> Int[Array, " n"]:
    """Lowest slot of each node's connected component; its own where it has no neighbour.

    Min-label propagation with hooking and pointer jumping (Zhang, Azad, Hu 2020, FastSV): a chain of n nodes takes
    about log2 n rounds, each one look at the neighbours. In a batch all worlds wait for the slowest.
    """
    n = among.label.shape[0]
    slots = jnp.arange(n, dtype=jnp.int32)

    def look(state: tuple[Array, Array]) -> tuple[Array, Array]:
        label, _ = state
        seen = near.min(lambda way, distance, mine, theirs: theirs, disguised(label)[:, None], among)[:, 0]
        low = jnp.minimum(label, jnp.where(jnp.isfinite(seen), revealed(seen), n))
        new = jnp.minimum(label.at[label].min(low), low)
        new = new[new]
        new = new[new]
        return new, jnp.any(new != label)

    return jax.lax.while_loop(lambda state: state[1], look, (slots, jnp.ones((), bool)))[0]
