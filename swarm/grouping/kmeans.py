"""Groups of those who stand close together: k-means for each team."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.entities import Entities
from swarm.grouping.nearest import nearest_of
from swarm.grouping.rule import AbstractGrouping, Nodes, Previous, groups_of
from swarm.space import AbstractSpace

FORMING, LATER = 10, 2
"""Iterations when the level is formed, and at each later grouping, which goes on from the last."""


class KMeans(AbstractGrouping):
    """Lloyd's k-means (1982) for each team; the groups of team m have the slots m k to m k + k - 1.

    Seeds are chosen without chance: the node of lowest identity, then again and again the one farthest from all seeds
    (Gonzalez 1985), of equally far ones the lowest identity. Later groupings start from the means of the members where
    they are by then, so that a group goes with its members; of each team the lowest slot without a member, if any, is
    given to a new group, around the node that is farthest from its own. A team on fewer than k places has fewer groups.

    Groups stand at the centroids that decided membership. In a periodic space a mean is right for a group that is
    narrower than half of the box.

    Attributes:
        space: measures distances.
        k: groups for each team.
        n_teams: number of teams.
    """

    has_memory: ClassVar[bool] = True

    space: AbstractSpace
    k: int = eqx.field(static=True)
    n_teams: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """The number k for each team."""
        return self.k * self.n_teams

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Seed or go on, iterate, assign."""
        g, d = self.k * self.n_teams, nodes.position.shape[1]
        before = Previous.none(nodes.exists.shape[0], g) if previous is None else previous
        place = jnp.where(nodes.exists[:, None], nodes.position, 0.0)
        nodes = eqx.tree_at(lambda x: x.position, nodes, place)
        if previous is None:
            start = jnp.zeros((g, d)), jnp.zeros(g, bool)
            centre, used = jax.lax.fori_loop(0, self.k, lambda _, state: self._seed(nodes, *state), start)
            lasting = jnp.zeros(g, bool)
        else:
            index = jnp.where(nodes.exists, before.index, -1)
            centre, lasting = self._means(nodes, index, self._some_member(nodes, index))
            centre, used = self._seed(nodes, centre, lasting)
        for _ in range((FORMING if previous is None else LATER) - 1):
            index, _ = self._assign(nodes, centre, used)
            centre, _ = self._means(nodes, index, centre)
        index, _ = self._assign(nodes, centre, used)
        index, groups = groups_of(nodes, index, g)
        team = jnp.arange(g, dtype=jnp.int32) // self.k
        identity = before.renew(groups.exists, lasting)
        return index, eqx.tree_at(lambda x: (x.identity, x.team, x.position), groups, (identity, team, centre))

    def _assign(
        self, nodes: Nodes, centre: Float[Array, "g d"], used: Bool[Array, " g"]
    ) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
        """Nearest centroid of the own team, and the squared distance to it."""
        team = jnp.arange(centre.shape[0], dtype=jnp.int32) // self.k
        index, square = nearest_of(self.space, nodes.position, nodes.team, centre, team, used)
        return jnp.where(nodes.exists, index, -1), square

    def _some_member(self, nodes: Nodes, index: Int[Array, " n"]) -> Float[Array, "g d"]:
        n, g = index.shape[0], self.k * self.n_teams
        slots = jnp.where(index >= 0, jnp.arange(n), n)
        lowest = jax.ops.segment_min(slots, jnp.where(index >= 0, index, g), g + 1)[:g]
        return nodes.position[jnp.clip(lowest, 0, n - 1)]

    def _means(
        self, nodes: Nodes, index: Int[Array, " n"], around: Float[Array, "g d"]
    ) -> tuple[Float[Array, "g d"], Bool[Array, " g"]]:
        """Means over members, measured from a place near them, which stands where there is none; and who has any."""
        g, member = around.shape[0], index >= 0
        segment = jnp.where(member, index, g)
        way = jnp.where(member[:, None], self.space.displacement(around[jnp.maximum(index, 0)], nodes.position), 0.0)
        count = jax.ops.segment_sum(member.astype(jnp.float32), segment, g + 1)[:g]
        mean = jax.ops.segment_sum(way, segment, g + 1)[:g] / jnp.maximum(count, 1.0)[:, None]
        return self.space.confine(around + mean, jnp.zeros_like(mean))[0], count > 0

    def _seed(
        self, nodes: Nodes, centre: Float[Array, "g d"], used: Bool[Array, " g"]
    ) -> tuple[Float[Array, "g d"], Bool[Array, " g"]]:
        """Start the lowest unused group of each team at the node that is farthest from the used ones."""
        n, m = nodes.exists.shape[0], self.n_teams
        _, square = self._assign(nodes, centre, used)
        team = jnp.where(nodes.exists, nodes.team, m)

        def lowest(mask: Bool[Array, " n"], values: Int[Array, " n"]) -> Int[Array, " m"]:
            chosen = jnp.where(mask, values, jnp.iinfo(jnp.int32).max)
            return jax.ops.segment_min(chosen, team, m + 1)

        most = jax.ops.segment_max(jnp.where(nodes.exists, square, 0.0), team, m + 1)
        farthest = nodes.exists & (square == most[team])
        farthest &= nodes.identity == lowest(farthest, nodes.identity)[team]
        node = lowest(farthest, jnp.arange(n, dtype=jnp.int32))[:m]
        unused = ~used.reshape(m, self.k)
        seeded = jnp.any(unused, axis=1) & (node < n) & (most[:m] > 0)
        slot = jnp.where(seeded, jnp.arange(m) * self.k + jnp.argmax(unused, axis=1), m * self.k)
        centre = centre.at[slot].set(nodes.position[jnp.clip(node, 0, n - 1)], mode="drop")
        return centre, used.at[slot].set(True, mode="drop")
