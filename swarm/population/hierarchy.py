"""Groups of groups: entities at level 0, then any number of levels, each with its own number of slots."""

import functools
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from swarm.population.entities import Entities, counted
from swarm.population.grouping import AbstractGrouping, Nodes, Previous

Operation = Literal["sum", "mean", "max", "min", "any", "count"]


class Hierarchy(eqx.Module):
    """Membership at every level. All methods can be compiled; levels are static.

    Attributes:
        levels: names, lowest first; `levels[0]` are the entities.
        parent: `parent[l]` maps a node of level l to its group at level l + 1; -1: none.
        exists: `exists[l]` marks the living groups of level l + 1.
        identity: `identity[l]` changes when a slot of level l + 1 passes to another group.
        generation: `generation[l]` counts those changes.
        overflow: `overflow[l]` counts what found no slot at level l + 1 since the episode began: nodes or groups of a
            rule, once at each regrouping, and groups to be split off.
        next_uid: entities of this identity or a higher one are younger than this hierarchy.
    """

    levels: tuple[str, ...] = eqx.field(static=True)
    parent: tuple[Int[Array, " _"], ...]
    exists: tuple[Bool[Array, " _"], ...]
    identity: tuple[Int[Array, " _"], ...]
    generation: tuple[Int[Array, " _"], ...]
    overflow: tuple[Int[Array, ""], ...]
    next_uid: Int[Array, ""]

    def n_groups(self, level: int) -> int:
        """Number of slots at a level."""
        return self.parent[0].shape[0] if level == 0 else self.exists[level - 1].shape[0]

    def ancestor(self, level: int, of: int = 0) -> Int[Array, " n"]:
        """Group slot at a level of each node of a level not above it; -1: none."""
        if level == of:
            return jnp.arange(self.n_groups(of), dtype=jnp.int32)

        def climb(index: Array, parent: Array) -> Array:
            return jnp.where(index >= 0, parent[jnp.maximum(index, 0)], -1)

        return functools.reduce(climb, self.parent[of + 1 : level], self.parent[of])

    def reduce(
        self,
        values: Shaped[Array, "n *v"],
        level: int,
        operation: Operation,
        mask: Bool[Array, " n"] | None = None,
        of: int = 0,
    ) -> Shaped[Array, "g *v"]:
        """Reduce the values of each group's members: entities, or the nodes of another level below.

        Nodes outside the mask do not count; empty groups get 0.
        """
        index = self.ancestor(level, of)
        index = index if mask is None else jnp.where(mask, index, -1)
        return reduce_groups(values, index, self.n_groups(level), operation)

    def broadcast(self, values: Shaped[Array, "g *v"], level: int, to: int = 0) -> Shaped[Array, "n *v"]:
        """Give each entity, or node of another level below, the value of its group at a level; 0 where it has none."""
        return broadcast_groups(values, self.ancestor(level, to))

    def split(self, level: int, group: Int[Array, ""] | int, leaving: Bool[Array, " _"]) -> "Hierarchy":
        """Move the masked members of a group into the lowest free slot of its level, under the same parent.

        The new group has a fresh identity and its slot another generation. Nothing happens unless someone leaves and
        someone stays; where no slot is free nothing happens either, and `overflow` counts it. Under the rule `fixed`
        the split lasts; other rules overrule it at the next regrouping.

        Args:
            level: of the group, 1 or higher.
            group: its slot.
            leaving: of the nodes of the level below; those of other groups are ignored.
        """
        below = level - 1
        parent, exists, identity = self.parent[below], self.exists[below], self.identity[below]
        member = (parent == group) & (parent >= 0)
        both = jnp.any(member & leaving) & jnp.any(member & ~leaving)
        slot = jnp.argmin(exists).astype(jnp.int32)
        done = both & ~exists[slot]
        at_slot = done & (jnp.arange(exists.shape[0]) == slot)
        parents = {below: jnp.where(done & member & leaving, slot, parent)}
        if level < len(self.parent):
            parents[level] = jnp.where(at_slot, self.parent[level][group], self.parent[level])
        edited = self._edit(below, parents, exists | at_slot, jnp.where(at_slot, jnp.max(identity) + 1, identity))
        full = self.overflow[below] + (both & exists[slot])
        generation = self.generation[below] + at_slot
        return eqx.tree_at(lambda h: (h.overflow[below], h.generation[below]), edited, (full, generation))

    def merge(self, level: int, a: Int[Array, ""] | int, b: Int[Array, ""] | int) -> "Hierarchy":
        """Move all members of group b into group a of the same level, and free the slot of b.

        Nothing happens unless both live and differ. Under the rule `fixed` the merger lasts. A group above that loses
        its last member by it ends at the next regrouping.
        """
        below = level - 1
        parent, exists = self.parent[below], self.exists[below]
        a, b = jnp.asarray(a, jnp.int32), jnp.asarray(b, jnp.int32)
        slots = jnp.arange(exists.shape[0])
        done = (a != b) & jnp.any(exists & (slots == a)) & jnp.any(exists & (slots == b))
        at_b = done & (slots == b)
        parents = {below: jnp.where(done & (parent == b), a, parent)}
        if level < len(self.parent):
            parents[level] = jnp.where(at_b, -1, self.parent[level])
        return self._edit(below, parents, exists & ~at_b, self.identity[below])

    def _edit(self, below: int, parents: dict[int, Array], exists: Array, identity: Array) -> "Hierarchy":
        parent = tuple(parents.get(level, old) for level, old in enumerate(self.parent))
        where = lambda h: (h.parent, h.exists[below], h.identity[below])  # noqa: E731
        return eqx.tree_at(where, self, (parent, exists, identity))


def reduce_groups(
    values: Shaped[Array, "n *v"], index: Int[Array, " n"], n_groups: int, operation: Operation
) -> Shaped[Array, "g *v"]:
    """Reduce values by group slot. Index -1 belongs nowhere; an empty group gets 0 (False for `any`)."""
    segment = jnp.where(index >= 0, index, n_groups)
    member = (index >= 0).reshape(index.shape + (1,) * (values.ndim - 1))

    def segments(function, chosen: Array) -> Array:
        return function(chosen, segment, n_groups + 1)[:n_groups]

    def counted() -> Array:
        count = segments(jax.ops.segment_sum, jnp.ones_like(index))
        return count.reshape(count.shape + (1,) * (values.ndim - 1))

    def or_zero(reduced: Array) -> Array:
        return jnp.where(counted() > 0, reduced, jnp.zeros_like(reduced))

    chosen = jnp.where(member, values, jnp.zeros_like(values))
    match operation:
        case "sum":
            return segments(jax.ops.segment_sum, chosen)
        case "mean":
            return segments(jax.ops.segment_sum, chosen) / jnp.maximum(counted(), 1).astype(values.dtype)
        case "max":
            return or_zero(segments(jax.ops.segment_max, chosen))
        case "min":
            return or_zero(segments(jax.ops.segment_min, chosen))
        case "any":
            return segments(jax.ops.segment_max, chosen.astype(jnp.int32)) > 0
        case "count":
            return jnp.broadcast_to(counted(), (n_groups, *values.shape[1:]))


def broadcast_groups(values: Shaped[Array, "g *v"], index: Int[Array, " n"]) -> Shaped[Array, "n *v"]:
    """Give each entity the value of its group slot; 0 for index -1."""
    member = (index >= 0).reshape(index.shape + (1,) * (values.ndim - 1))
    return jnp.where(member, values[jnp.maximum(index, 0)], jnp.zeros((), values.dtype))


def form(levels: tuple[str, ...], groupings: tuple[AbstractGrouping, ...], entities: Entities) -> Hierarchy:
    """Build the hierarchy of a new episode; `groupings[l]` forms level l + 1 from level l."""
    nodes, parents, groups = Nodes.of(entities), [], []
    for grouping in groupings:
        parent, nodes = grouping(nodes, entities)
        parents.append(parent)
        groups.append(nodes)
    return Hierarchy(
        levels=levels,
        parent=tuple(parents),
        exists=tuple(g.exists for g in groups),
        identity=tuple(g.identity for g in groups),
        generation=tuple(jnp.zeros_like(g.identity) for g in groups),
        overflow=tuple(g.overflow for g in groups),
        next_uid=entities.next_uid,
    )


def regroup(hierarchy: Hierarchy, groupings: tuple[AbstractGrouping, ...], entities: Entities) -> Hierarchy:
    """Apply the rules to the population as it is now; a slot whose group is another one gets a new generation.

    Each rule sees how its level stood, splits and mergers included, without the memberships of nodes that are gone. A
    slot without a living group keeps the identity of its last one, so that a generation marks a passing on.
    """
    nodes = Nodes.of(entities)
    # A slot keeps its entity for life, so who is alive and not younger was there.
    same = entities.alive & (entities.uid < hierarchy.next_uid)
    parents, groups, identities = [], [], []
    for grouping, parent, exists, identity in zip(
        groupings, hierarchy.parent, hierarchy.exists, hierarchy.identity, strict=True
    ):
        parent, nodes = grouping(nodes, entities, Previous(jnp.where(same, parent, -1), identity))
        same = nodes.exists & exists & (nodes.identity == identity)
        parents.append(parent)
        groups.append(nodes)
        identities.append(jnp.where(nodes.exists, nodes.identity, identity))
    old = hierarchy
    return Hierarchy(
        levels=old.levels,
        parent=tuple(parents),
        exists=tuple(g.exists for g in groups),
        identity=tuple(identities),
        generation=tuple(
            n + (new != was) for n, new, was in zip(old.generation, identities, old.identity, strict=True)
        ),
        overflow=tuple(counted(n, g.overflow) for n, g in zip(old.overflow, groups, strict=True)),
        next_uid=entities.next_uid,
    )
