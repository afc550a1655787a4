"""Groups that last: who is in one stays in it, and newborns fill the ranks."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from swarm.population.entities import Entities
from swarm.population.grouping.rule import AbstractGrouping, Nodes, Previous, groups_of


class Fixed(AbstractGrouping):
    """Groups of up to `size` nodes of one team; members stay for life, so splits and merges last.

    Who has no group (a newborn, or one there was no room for) joins in order of slots, which is the order of birth
    within a step: first the groups of its team with fewer than `size` members, lowest slot first; when those are full,
    new groups in the lowest free slots, shared out team by team. The first groups are formed by the same rule in order
    of identity: consecutive ones together. A group without a member frees its slot.

    Attributes:
        size: a group takes no newborn beyond that many members; merged ones may have more.
        n_teams: number of teams.
        slots: number of group slots; None: as many as can ever be needed without splits.
    """

    has_memory: ClassVar[bool] = True

    size: int = eqx.field(static=True)
    n_teams: int = eqx.field(static=True)
    slots: int | None = eqx.field(static=True, default=None)

    def n_groups(self, n_nodes: int) -> int:
        """As given, or full groups of all nodes for each team."""
        return self.slots or self.n_teams * max(1, -(-n_nodes // self.size))

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Keep members; let the others join."""
        n = nodes.exists.shape[0]
        g = self.n_groups(n)
        before = Previous.none(n, g) if previous is None else previous
        index = jnp.where(nodes.exists, before.index, -1)
        segment = jnp.where(index >= 0, index, g)
        count = jax.ops.segment_sum(jnp.ones_like(index), segment, g + 1)[:g]
        team = jnp.clip(jax.ops.segment_max(nodes.team, segment, g + 1)[:g], 0, self.n_teams - 1)
        lasting, joining = count > 0, nodes.exists & (index < 0)
        node_team = jnp.clip(nodes.team, 0, self.n_teams - 1)
        # Sorting is dear, and at later times slots are in order of birth.
        order = jnp.argsort(jnp.where(joining, nodes.identity, jnp.iinfo(jnp.int32).max)) if previous is None else None
        rank, wanted = _ranks(joining, node_team, self.n_teams, order)
        group_of_place, room = self._openings(count, team, wanted, n)
        served = joining & (rank < room[node_team])
        place = jnp.where(served, (jnp.cumsum(wanted) - wanted)[node_team] + rank, 0)
        index = jnp.where(served, group_of_place[place], index)
        exists = jax.ops.segment_sum(jnp.ones_like(index), jnp.where(index >= 0, index, g), g + 1)[:g] > 0
        index, groups = groups_of(nodes, index, g, before.renew(exists, lasting))
        overflow = jnp.sum(joining & ~served, dtype=jnp.int32)
        return index, eqx.tree_at(lambda x: x.overflow, groups, overflow)

    def _openings(
        self, count: Int[Array, " g"], team: Int[Array, " g"], wanted: Int[Array, " m"], n: int
    ) -> tuple[Int[Array, " n"], Int[Array, " m"]]:
        """Offer places: which group each of the n has, those of team 0 first, and how much room a team has."""
        lasting = count > 0
        teams = jnp.arange(self.n_teams)
        vacant = jnp.where(lasting, jnp.maximum(self.size - count, 0), 0)
        of_team = jnp.where(team[:, None] == teams[None, :], vacant[:, None], 0)
        vacant_of_team = jnp.sum(of_team, axis=0, dtype=jnp.int32)
        first = jnp.sum(jnp.where(of_team > 0, jnp.cumsum(of_team, axis=0) - of_team, 0), axis=1)
        # New groups of team t get the free slots of rank last[t - 1] to last[t] - 1.
        needed = -(-jnp.maximum(wanted - vacant_of_team, 0) // self.size)
        last = jnp.cumsum(needed)
        free_rank = jnp.cumsum(~lasting, dtype=jnp.int32) - 1
        new_team = jnp.sum(free_rank[:, None] >= last[None, :], axis=1)
        opened = ~lasting & (new_team < self.n_teams)
        team = jnp.where(opened, jnp.minimum(new_team, self.n_teams - 1), team)
        new_first = vacant_of_team[team] + self.size * (free_rank - (last - needed)[team])
        first, room = jnp.where(opened, new_first, first), jnp.where(opened, self.size, vacant)
        taken = (room > 0) & (first < wanted[team])
        begin = jnp.where(taken, (jnp.cumsum(wanted) - wanted)[team] + first, n)
        # A place belongs to the group whose places began last before it.
        group_of_begin = jnp.zeros(n, jnp.int32).at[begin].set(jnp.arange(count.shape[0]), mode="drop")
        begin_of_place = jax.lax.cummax(jnp.zeros(n, jnp.int32).at[begin].set(begin, mode="drop"))
        return group_of_begin[begin_of_place], jax.ops.segment_sum(room, team, self.n_teams)


def _ranks(
    joining: Bool[Array, " n"], team: Int[Array, " n"], n_teams: int, order: Int[Array, " n"] | None
) -> tuple[Int[Array, " n"], Int[Array, " m"]]:
    """Rank of each who joins among those of its team, by slot or in an order of slots, and how many they are."""
    mine = joining[:, None] & (team[:, None] == jnp.arange(n_teams)[None, :])
    if order is None:
        rank = jnp.cumsum(mine, axis=0, dtype=jnp.int32)
    else:
        rank = jnp.zeros(mine.shape, jnp.int32).at[order].set(jnp.cumsum(mine[order], axis=0, dtype=jnp.int32))
    return jnp.take_along_axis(rank, team[:, None], axis=1)[:, 0] - 1, jnp.sum(mine, axis=0, dtype=jnp.int32)
