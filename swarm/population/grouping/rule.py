"""What a grouping rule is, and what it may look at."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.population.entities import Entities


class Nodes(eqx.Module):
    """`g` nodes of one level: what a grouping rule may look at.

    Attributes:
        exists: a living entity, or a group that has a member or a living anchor.
        identity: changes when the slot passes to another entity or group.
        kind: kind of the entity; -1 for groups of mixed kinds.
        team: team of the entity, or of the group's members.
        position: place of the entity or anchor, or the mean over members.
        overflow: how many the rule that formed these could not serve for want of slots or room.
    """

    exists: Bool[Array, " g"]
    identity: Int[Array, " g"]
    kind: Int[Array, " g"]
    team: Int[Array, " g"]
    position: Float[Array, "g d"]
    overflow: Int[Array, ""]

    @classmethod
    def of(cls, entities: Entities) -> "Nodes":
        """Entities as the nodes of level 0."""
        e = entities
        return cls(e.alive, e.uid, e.kind, e.team, e.position, jnp.int32(0))


class Previous(eqx.Module):
    """How a level stood until now: as its rule left it, or as a split or merge did since.

    Attributes:
        index: group slot of each node; -1: none, or another node held the slot, or nobody.
        identity: of the groups; a slot without a living one keeps that of its last, -1: never used.
    """

    index: Int[Array, " n"]
    identity: Int[Array, " g"]

    @classmethod
    def none(cls, n_nodes: int, n_groups: int) -> "Previous":
        """No group yet."""
        return cls(jnp.full(n_nodes, -1, jnp.int32), jnp.full(n_groups, -1, jnp.int32))

    def renew(self, exists: Bool[Array, " g"], lasting: Bool[Array, " g"]) -> Int[Array, " g"]:
        """Identities of the groups there are now: fresh ones, in order of slots, for those that are not `lasting`.

        They continue the highest ever given, so they are never reused and do not depend on the number of slots.
        """
        opened = exists & ~lasting
        return jnp.where(opened, jnp.max(self.identity) + jnp.cumsum(opened, dtype=jnp.int32), self.identity)


class AbstractGrouping(eqx.Module):
    """A rule that assigns nodes to groups.

    Attributes:
        has_memory: whether it looks at `previous`. Such a rule can form a level; applied alone it forgets.
    """

    has_memory: ClassVar[bool] = False

    @abc.abstractmethod
    def n_groups(self, n_nodes: int) -> int:
        """Number of group slots for that many nodes."""

    @abc.abstractmethod
    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Return the group slot of each node (-1: none), and the groups as nodes of the next level.

        Args:
            nodes: the level to group.
            entities: the population.
            previous: how the level stood until now; None when it is formed.
        """


def groups_of(
    nodes: Nodes, index: Int[Array, " n"], n_groups: int, identity: Int[Array, " g"] | None = None
) -> tuple[Int[Array, " n"], Nodes]:
    """Groups that stand at the mean of their members; of fixed identity where none is given."""
    index = jnp.where(nodes.exists, index, -1)
    segment = jnp.where(index >= 0, index, n_groups)

    def total(values: Array) -> Array:
        return jax.ops.segment_sum(values, segment, n_groups + 1)[:n_groups]

    count = total(nodes.exists.astype(jnp.float32))
    place = total(jnp.where(nodes.exists[:, None], nodes.position, 0.0)) / jnp.maximum(count, 1.0)[:, None]
    team = jax.ops.segment_max(nodes.team, segment, n_groups + 1)[:n_groups]
    identity = jnp.arange(n_groups, dtype=jnp.int32) if identity is None else identity
    mixed = jnp.full(n_groups, -1, jnp.int32)
    return index, Nodes(count > 0, identity, mixed, jnp.where(count > 0, team, 0), place, jnp.int32(0))
