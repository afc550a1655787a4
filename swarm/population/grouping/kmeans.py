"""Groups of those who stand close together: k-means for each team."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.geometry.space import AbstractSpace
from swarm.population.entities import Entities
from swarm.population.grouping.nearest import nearest_of
from swarm.population.grouping.rule import AbstractGrouping, Nodes, Previous, groups_of

ITERATIONS = 10
"""When the level is formed; each later grouping goes on from the last with one."""


class Clusters(eqx.Module):
    """Centroids, and whose nearest they are.

    Attributes:
        centre: place of each group.
        used: which groups there are.
        index: group of the nearest centroid of the own team; -1: none.
        square: squared distance to it; infinite where there is none.
    """

    centre: Float[Array, "g d"]
    used: Bool[Array, " g"]
    index: Int[Array, " n"]
    square: Float[Array, " n"]


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
        n = nodes.exists.shape[0]
        before = Previous.none(n, g) if previous is None else previous
        place = jnp.where(nodes.exists[:, None], nodes.position, 0.0)
        nodes = eqx.tree_at(lambda x: x.position, nodes, place)
        if previous is None:
            state = Clusters(jnp.zeros((g, d)), jnp.zeros(g, bool), before.index, jnp.full(n, jnp.inf))
            state = jax.lax.fori_loop(0, self.k, lambda _, state: self._seed(nodes, state), state)
            lasting = jnp.zeros(g, bool)
            state = jax.lax.fori_loop(0, ITERATIONS, lambda _, state: self._move(nodes, state), state)
        else:
            index = jnp.where(nodes.exists, before.index, -1)
            centre, lasting = self._means(nodes, index, self._some_member(nodes, index))
            state = self._seed(nodes, self._assign(nodes, centre, lasting))
        index, groups = groups_of(nodes, state.index, g)
        team = jnp.arange(g, dtype=jnp.int32) // self.k
        identity = before.renew(groups.exists, lasting)
        return index, eqx.tree_at(lambda x: (x.identity, x.team, x.position), groups, (identity, team, state.centre))

    def _move(self, nodes: Nodes, state: Clusters) -> Clusters:
        centre, _ = self._means(nodes, state.index, state.centre)
        return self._assign(nodes, centre, state.used)

    def _assign(self, nodes: Nodes, centre: Float[Array, "g d"], used: Bool[Array, " g"]) -> Clusters:
        team = jnp.arange(centre.shape[0], dtype=jnp.int32) // self.k
        index, square = nearest_of(self.space, nodes.position, nodes.team, centre, team, used)
        return Clusters(centre, used, jnp.where(nodes.exists, index, -1), square)

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

    def _seed(self, nodes: Nodes, state: Clusters) -> Clusters:
        """Start the lowest unused group of each team at the node that is farthest from the used ones."""
        n, m = nodes.exists.shape[0], self.n_teams
        team = jnp.where(nodes.exists, nodes.team, m)

        def lowest(mask: Bool[Array, " n"], values: Int[Array, " n"]) -> Int[Array, " _"]:
            chosen = jnp.where(mask, values, jnp.iinfo(jnp.int32).max)
            return jax.ops.segment_min(chosen, team, m + 1)

        most = jax.ops.segment_max(jnp.where(nodes.exists, state.square, 0.0), team, m + 1)
        farthest = nodes.exists & (state.square == most[team])
        farthest &= nodes.identity == lowest(farthest, nodes.identity)[team]
        node = lowest(farthest, jnp.arange(n, dtype=jnp.int32))[:m]
        unused = ~state.used.reshape(m, self.k)
        seeded = jnp.any(unused, axis=1) & (node < n) & (most[:m] > 0)
        slot = jnp.where(seeded, jnp.arange(m) * self.k + jnp.argmax(unused, axis=1), m * self.k)
        place = nodes.position[jnp.clip(node, 0, n - 1)]
        whose, square = nearest_of(self.space, nodes.position, nodes.team, place, jnp.arange(m), seeded)
        nearer = nodes.exists & (square < state.square)
        return Clusters(
            state.centre.at[slot].set(place, mode="drop"),
            state.used.at[slot].set(True, mode="drop"),
            jnp.where(nearer, slot[jnp.maximum(whose, 0)], state.index).astype(jnp.int32),
            jnp.where(nearer, square, state.square),
        )
