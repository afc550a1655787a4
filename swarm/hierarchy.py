"""Groups of groups: entities at level 0, then any number of levels, each with its own number of slots."""

import functools
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from swarm.entities import Entities
from swarm.grouping import AbstractGrouping, Nodes

Operation = Literal["sum", "mean", "max", "min", "any", "count"]


class Hierarchy(eqx.Module):
    """Membership at every level.

    Attributes:
        levels: names, lowest first; `levels[0]` are the entities.
        parent: `parent[l]` maps a node of level l to its group at level l + 1; -1: none.
        exists: `exists[l]` marks the living groups of level l + 1.
        identity: `identity[l]` changes when a slot of level l + 1 passes to another group.
        generation: `generation[l]` counts those changes.
    """

    levels: tuple[str, ...] = eqx.field(static=True)
    parent: tuple[Int[Array, " _"], ...]
    exists: tuple[Bool[Array, " _"], ...]
    identity: tuple[Int[Array, " _"], ...]
    generation: tuple[Int[Array, " _"], ...]

    def n_groups(self, level: int) -> int:
        """Number of slots at a level."""
        return self.parent[0].shape[0] if level == 0 else self.exists[level - 1].shape[0]

    def ancestor(self, level: int) -> Int[Array, " n"]:
        """Group slot of each entity at a level; -1: none."""
        if level == 0:
            return jnp.arange(self.parent[0].shape[0], dtype=jnp.int32)

        def climb(index: Array, parent: Array) -> Array:
            return jnp.where(index >= 0, parent[jnp.maximum(index, 0)], -1)

        return functools.reduce(climb, self.parent[1:level], self.parent[0])

    def reduce(
        self, values: Shaped[Array, "n *v"], level: int, operation: Operation, mask: Bool[Array, " n"]
    ) -> Shaped[Array, "g *v"]:
        """Reduce the values of each group's members. Entities outside the mask do not count; empty groups get 0."""
        index = jnp.where(mask, self.ancestor(level), -1)
        return reduce_groups(values, index, self.n_groups(level), operation)

    def broadcast(self, values: Shaped[Array, "g *v"], level: int) -> Shaped[Array, "n *v"]:
        """Give each entity the value of its group at a level; 0 where it has none."""
        return broadcast_groups(values, self.ancestor(level))


def reduce_groups(
    values: Shaped[Array, "n *v"], index: Int[Array, " n"], n_groups: int, operation: Operation
) -> Shaped[Array, "g *v"]:
    """Reduce values by group slot. Index -1 belongs nowhere; an empty group gets 0 (False for `any`)."""
    segment = jnp.where(index >= 0, index, n_groups)
    member = (index >= 0).reshape(index.shape + (1,) * (values.ndim - 1))
    count = jax.ops.segment_sum(jnp.ones_like(index), segment, n_groups + 1)[:n_groups]
    count = count.reshape(count.shape + (1,) * (values.ndim - 1))

    def segments(function, chosen: Array) -> Array:
        reduced = function(chosen, segment, n_groups + 1)[:n_groups]
        return jnp.where(count > 0, reduced, jnp.zeros_like(reduced))

    chosen = jnp.where(member, values, jnp.zeros_like(values))
    match operation:
        case "sum":
            return segments(jax.ops.segment_sum, chosen)
        case "mean":
            return segments(jax.ops.segment_sum, chosen) / jnp.maximum(count, 1).astype(values.dtype)
        case "max":
            return segments(jax.ops.segment_max, chosen)
        case "min":
            return segments(jax.ops.segment_min, chosen)
        case "any":
            return segments(jax.ops.segment_max, chosen.astype(jnp.int32)) > 0
        case "count":
            return jnp.broadcast_to(count, (n_groups, *values.shape[1:]))


def broadcast_groups(values: Shaped[Array, "g *v"], index: Int[Array, " n"]) -> Shaped[Array, "n *v"]:
    """Give each entity the value of its group slot; 0 for index -1."""
    member = (index >= 0).reshape(index.shape + (1,) * (values.ndim - 1))
    return jnp.where(member, values[jnp.maximum(index, 0)], jnp.zeros((), values.dtype))


def form(levels: tuple[str, ...], groupings: tuple[AbstractGrouping, ...], entities: Entities) -> Hierarchy:
    """Build the hierarchy of a new episode; `groupings[l]` forms level l + 1 from level l."""
    parent, groups = _apply(groupings, entities)
    generation = tuple(jnp.zeros_like(g.identity) for g in groups)
    return Hierarchy(levels, parent, tuple(g.exists for g in groups), tuple(g.identity for g in groups), generation)


def regroup(hierarchy: Hierarchy, groupings: tuple[AbstractGrouping, ...], entities: Entities) -> Hierarchy:
    """Apply the rules to the population as it is now; a slot whose group is another one gets a new generation.

    A slot without a living group keeps the identity of its last one, so that a generation marks a passing on.
    """
    parent, groups = _apply(groupings, entities)
    identity = tuple(jnp.where(g.exists, g.identity, old) for g, old in zip(groups, hierarchy.identity, strict=True))
    generation = tuple(
        count + (new != old) for count, new, old in zip(hierarchy.generation, identity, hierarchy.identity, strict=True)
    )
    return Hierarchy(hierarchy.levels, parent, tuple(g.exists for g in groups), identity, generation)


def _apply(
    groupings: tuple[AbstractGrouping, ...], entities: Entities
) -> tuple[tuple[Int[Array, " _"], ...], tuple[Nodes, ...]]:
    nodes, parents, levels = Nodes.of(entities), [], []
    for grouping in groupings:
        parent, nodes = grouping(nodes, entities)
        parents.append(parent)
        levels.append(nodes)
    return tuple(parents), tuple(levels)
