"""Rules that form groups: from the nodes of one level of the hierarchy to the groups of the next.

A rule sees nodes (entities at the lowest level, groups above it) and says which group slot each belongs to. A group
slot has an identity; when the identity changes, the slot has passed to another group.
"""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.entities import Entities
from swarm.errors import ConfigError, nearest


class Nodes(eqx.Module):
    """`g` nodes of one level: what a grouping rule may look at.

    Attributes:
        exists: a living entity, or a group that has a member or a living anchor.
        identity: changes when the slot passes to another entity or group.
        kind: kind of the entity; -1 for groups of mixed kinds.
        team: team of the entity, or of the group's members.
        position: place of the entity or anchor, or the mean over members.
    """

    exists: Bool[Array, " g"]
    identity: Int[Array, " g"]
    kind: Int[Array, " g"]
    team: Int[Array, " g"]
    position: Float[Array, "g d"]

    @classmethod
    def of(cls, entities: Entities) -> "Nodes":
        """Entities as the nodes of level 0."""
        return cls(entities.alive, entities.uid, entities.kind, entities.team, entities.position)


class AbstractGrouping(eqx.Module):
    """A rule that assigns nodes to groups."""

    @abc.abstractmethod
    def n_groups(self, n_nodes: int) -> int:
        """Number of group slots for that many nodes."""

    @abc.abstractmethod
    def __call__(self, nodes: Nodes, entities: Entities) -> tuple[Int[Array, " g"], Nodes]:
        """Return the group slot of each node (-1: none), and the groups as nodes of the next level."""


def _gather(nodes: Nodes, index: Int[Array, " g"], n_groups: int) -> tuple[Int[Array, " g"], Nodes]:
    """Groups of fixed identity that stand at the mean of their members."""
    index = jnp.where(nodes.exists, index, -1)
    segment = jnp.where(index >= 0, index, n_groups)

    def total(values: Array) -> Array:
        return jax.ops.segment_sum(values, segment, n_groups + 1)[:n_groups]

    count = total(nodes.exists.astype(jnp.float32))
    place = total(jnp.where(nodes.exists[:, None], nodes.position, 0.0)) / jnp.maximum(count, 1.0)[:, None]
    team = jax.ops.segment_max(nodes.team, segment, n_groups + 1)[:n_groups]
    slots = jnp.arange(n_groups, dtype=jnp.int32)
    groups = Nodes(count > 0, slots, jnp.full(n_groups, -1, jnp.int32), jnp.where(count > 0, team, 0), place)
    return index, groups


class EachNode(AbstractGrouping):
    """Each node is a group of its own."""

    def n_groups(self, n_nodes: int) -> int:
        """As many as nodes."""
        return n_nodes

    def __call__(self, nodes: Nodes, entities: Entities) -> tuple[Int[Array, " g"], Nodes]:
        """Slot i holds node i."""
        slots = jnp.arange(nodes.exists.shape[0], dtype=jnp.int32)
        return jnp.where(nodes.exists, slots, -1), nodes


class Everyone(AbstractGrouping):
    """One group of all."""

    def n_groups(self, n_nodes: int) -> int:
        """One."""
        return 1

    def __call__(self, nodes: Nodes, entities: Entities) -> tuple[Int[Array, " g"], Nodes]:
        """All in slot 0."""
        return _gather(nodes, jnp.zeros_like(nodes.kind), 1)


class ByKind(AbstractGrouping):
    """One group per kind; nodes of mixed kind are in none."""

    n_kinds: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """As many as kinds."""
        return self.n_kinds

    def __call__(self, nodes: Nodes, entities: Entities) -> tuple[Int[Array, " g"], Nodes]:
        """Slot k holds kind k."""
        return _gather(nodes, nodes.kind, self.n_kinds)


class ByTeam(AbstractGrouping):
    """One group per team."""

    n_teams: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """As many as teams."""
        return self.n_teams

    def __call__(self, nodes: Nodes, entities: Entities) -> tuple[Int[Array, " g"], Nodes]:
        """Slot m holds team m."""
        return _gather(nodes, nodes.team, self.n_teams)


class Modulo(AbstractGrouping):
    """`k` groups by identity modulo k: arbitrary, of even size, stable for life."""

    k: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """The number k."""
        return self.k

    def __call__(self, nodes: Nodes, entities: Entities) -> tuple[Int[Array, " g"], Nodes]:
        """Slot identity mod k."""
        return _gather(nodes, nodes.identity % self.k, self.k)


class Block(AbstractGrouping):
    """Groups of `size` consecutive identities: entities born together, neighbouring groups.

    Block b has slot b modulo the number of slots; should two living blocks meet in a slot, they are one group.
    """

    size: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """One for each `size` nodes, begun blocks included."""
        return -(-n_nodes // self.size)

    def __call__(self, nodes: Nodes, entities: Entities) -> tuple[Int[Array, " g"], Nodes]:
        """Slot (identity // size) modulo the number of slots; the group's identity is that of its youngest block."""
        n_groups = self.n_groups(nodes.exists.shape[0])
        block = jnp.where(nodes.exists, nodes.identity // self.size, -1)
        index, groups = _gather(nodes, block % n_groups, n_groups)
        segment = jnp.where(nodes.exists, index, n_groups)
        youngest = jax.ops.segment_max(block, segment, n_groups + 1)[:n_groups]
        identity = jnp.where(groups.exists, youngest, groups.identity)
        return index, eqx.tree_at(lambda g: g.identity, groups, identity)


class Quadrant(AbstractGrouping):
    """Four groups by the quadrant of the first two axes around `centre`."""

    centre: Float[Array, " d"]

    def n_groups(self, n_nodes: int) -> int:
        """Four."""
        return 4

    def __call__(self, nodes: Nodes, entities: Entities) -> tuple[Int[Array, " g"], Nodes]:
        """Slot (first axis beyond centre) + 2 (second axis beyond centre)."""
        beyond = (nodes.position > self.centre[None, :]).astype(jnp.int32)
        return _gather(nodes, beyond[:, 0] + 2 * beyond[:, 1], 4)


class NearestAnchor(AbstractGrouping):
    """The group of the nearest living entity of a kind and of the own team (a depot, a leader).

    A group's slot is its anchor's slot among the entities, so groups last as long as their anchor.
    """

    anchor_kind: int = eqx.field(static=True)
    n_slots: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """As many as entity slots."""
        return self.n_slots

    def __call__(self, nodes: Nodes, entities: Entities) -> tuple[Int[Array, " g"], Nodes]:
        """Slot of the nearest anchor; of equally near ones the lowest slot."""
        anchor = entities.is_kind(self.anchor_kind)
        offset = nodes.position[:, None, :] - entities.position[None, :, :]
        mate = anchor[None, :] & (nodes.team[:, None] == entities.team[None, :])
        distance = jnp.where(mate, jnp.sum(offset**2, axis=-1), jnp.inf)
        found = nodes.exists & jnp.any(mate, axis=1)
        index = jnp.where(found, jnp.argmin(distance, axis=1).astype(jnp.int32), -1)
        groups = Nodes(anchor, entities.uid, entities.kind, entities.team, entities.position)
        return index, groups


RULES = ("entity", "global", "kind", "team", "quadrant", "modulo:K", "block:SIZE", "nearest:KIND")


def parse_grouping(
    text: str, *, where: str, kinds: Sequence[str], n_teams: int, n_slots: int, centre: Sequence[float]
) -> AbstractGrouping:
    """Return the rule that a config names: `entity`, `global`, `kind`, `team`, `quadrant`, `modulo:4`, `nearest:depot`.

    Args:
        text: the rule as written.
        where: the file and key it was written at, for the message.
        kinds: names of the scenario's kinds.
        n_teams: number of teams.
        n_slots: number of entity slots.
        centre: centre of the space, for `quadrant`.

    Raises:
        ConfigError: no such rule, or its argument fits nothing.
    """
    name, _, argument = text.partition(":")
    plain = {
        "entity": EachNode,
        "global": Everyone,
        "kind": lambda: ByKind(len(kinds)),
        "team": lambda: ByTeam(n_teams),
        "quadrant": lambda: Quadrant(jnp.asarray(centre, jnp.float32)),
    }
    if name in plain and not argument:
        return plain[name]()
    if name in ("modulo", "block"):
        if not argument.isdecimal() or int(argument) < 1:
            raise ConfigError(f"{where}: {text!r} needs a whole number of at least 1, like '{name}:4'")
        return Modulo(int(argument)) if name == "modulo" else Block(int(argument))
    if name == "nearest":
        if argument not in kinds:
            raise ConfigError(f"{where}: {text!r} names no kind of this scenario{nearest(argument, kinds)}")
        return NearestAnchor(list(kinds).index(argument), n_slots)
    raise ConfigError(f"{where}: unknown grouping {text!r}{nearest(text, RULES)}")
