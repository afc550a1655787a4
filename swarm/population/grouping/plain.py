"""Rules that need no more than a node's own kind, team, identity or place."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from swarm.population.entities import Entities
from swarm.population.grouping.rule import AbstractGrouping, Nodes, Previous, groups_of


class EachNode(AbstractGrouping):
    """Each node is a group of its own."""

    def n_groups(self, n_nodes: int) -> int:
        """As many as nodes."""
        return n_nodes

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Slot i holds node i."""
        slots = jnp.arange(nodes.exists.shape[0], dtype=jnp.int32)
        return jnp.where(nodes.exists, slots, -1), eqx.tree_at(lambda n: n.overflow, nodes, jnp.int32(0))


class Everyone(AbstractGrouping):
    """One group of all."""

    def n_groups(self, n_nodes: int) -> int:
        """One."""
        return 1

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """All in slot 0."""
        return groups_of(nodes, jnp.zeros_like(nodes.kind), 1)


class ByKind(AbstractGrouping):
    """One group per kind; nodes of mixed kind are in none."""

    n_kinds: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """As many as kinds."""
        return self.n_kinds

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Slot k holds kind k."""
        return groups_of(nodes, nodes.kind, self.n_kinds)


class ByTeam(AbstractGrouping):
    """One group per team."""

    n_teams: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """As many as teams."""
        return self.n_teams

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Slot m holds team m."""
        return groups_of(nodes, nodes.team, self.n_teams)


class Modulo(AbstractGrouping):
    """`k` groups by identity modulo k: arbitrary, of even size, stable for life."""

    k: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """The number k."""
        return self.k

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Slot identity mod k."""
        return groups_of(nodes, nodes.identity % self.k, self.k)


class Block(AbstractGrouping):
    """Groups of `size` consecutive identities: entities born together, neighbouring groups.

    Block b has slot b modulo the number of slots; should two living blocks meet in a slot, they are one group.
    """

    size: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """One for each `size` nodes, begun blocks included."""
        return -(-n_nodes // self.size)

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Slot (identity // size) modulo the number of slots; the group's identity is its youngest block."""
        n_groups = self.n_groups(nodes.exists.shape[0])
        block = nodes.identity // self.size
        slot = block % n_groups
        segment = jnp.where(nodes.exists, slot, n_groups)
        youngest = jax.ops.segment_max(block, segment, n_groups + 1)[:n_groups]
        return groups_of(nodes, slot, n_groups, jnp.maximum(youngest, -1))


class Quadrant(AbstractGrouping):
    """Four groups by the quadrant of the first two axes around `centre`."""

    centre: Float[Array, " d"]

    def n_groups(self, n_nodes: int) -> int:
        """Four."""
        return 4

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Slot (first axis beyond centre) + 2 (second axis beyond centre)."""
        beyond = (nodes.position > self.centre[None, :]).astype(jnp.int32)
        return groups_of(nodes, beyond[:, 0] + 2 * beyond[:, 1], 4)
