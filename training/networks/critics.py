"""Values of groups: from local values, from all members of a group at once, or with the whole world in view.

A critic returns `v` values per group slot: one for each stream of reward (`training.credit`).
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from swarm.population.hierarchy import reduce_groups
from training.networks.layers import KindHead, Linear, Perceptron, Places

_GAIN = 0.01
N_HEADS = 4


class Members(eqx.Module):
    """What a critic knows of the entities [*b n] besides their features.

    Attributes:
        kind: their kinds.
        alive: who lives.
        index: group slot of each whose value counts; -1: none.
        n_groups: number of group slots.
        places: where those whom the network acts for stand, by kind; None: not known.
    """

    kind: Int[Array, "*b n"]
    alive: Bool[Array, "*b n"]
    index: Int[Array, "*b n"]
    n_groups: int = eqx.field(static=True)
    places: Places | None

    def in_places(self) -> "Members":
        """Those who have a place, in the order of the places."""
        if self.places is None:
            return self
        take = self.places.take
        return Members(self.places.kind, take(self.alive, False), take(self.index, -1), self.n_groups, self.places)

    @property
    def blocks(self) -> tuple[int, ...] | None:
        """How many places each kind has."""
        return None if self.places is None else self.places.capacities

    def total(self, values: Float[Array, "*b n v"]) -> Float[Array, "*b g v"]:
        """Sum over the members of each group."""
        return _group_sum(values, self.index, self.n_groups)


class AbstractCritic(eqx.Module):
    """Values groups.

    Attributes:
        sees_world: it reads the features of all the living, not of the members alone.
    """

    sees_world: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(
        self, features: Float[Array, "*b n f"], members: Members, world: Float[Array, "*b 1 s"] | None
    ) -> Float[Array, "*b g v"]:
        """Return the values of all group slots; 0 where nobody belongs.

        Args:
            features: in the order of the places, where there are any.
            members: likewise.
            world: what `look` told.
        """

    def look(self, features: Float[Array, "*b n f"], members: Members) -> Float[Array, "*b 1 s"] | None:
        """What there is to know of the whole world, from the features of all slots."""
        return None


class LocalCritic(AbstractCritic):
    """A value for each entity from its own features; a group's is the sum over its members."""

    head: KindHead

    def __init__(self, n_in: int, hidden: int, n_kinds: int, n_values: int, key: Key[Array, ""]) -> None:
        self.head = KindHead(n_in, hidden, n_kinds, n_values, _GAIN, key)

    def __call__(
        self, features: Float[Array, "*b n f"], members: Members, world: Float[Array, "*b 1 s"] | None
    ) -> Float[Array, "*b g v"]:
        """Sum local values."""
        return members.total(self.head(features, members.kind, members.blocks))


class WorldCritic(AbstractCritic):
    """A value for each entity from its own features and a summary of all the living; a group's is their sum."""

    sees_world = True

    pool: "AttentionPool"
    head: KindHead

    def __init__(self, n_in: int, hidden: int, n_kinds: int, n_values: int, key: Key[Array, ""]) -> None:
        pool_key, head_key = jax.random.split(key)
        self.pool = AttentionPool(n_in, hidden, pool_key)
        self.head = KindHead(n_in + hidden + 1, hidden, n_kinds, n_values, _GAIN, head_key)

    def look(self, features: Float[Array, "*b n f"], members: Members) -> Float[Array, "*b 1 s"]:
        """Summarise all the living."""
        return self.pool(features, jnp.where(members.alive, 0, -1), 1)

    def __call__(
        self, features: Float[Array, "*b n f"], members: Members, world: Float[Array, "*b 1 s"] | None
    ) -> Float[Array, "*b g v"]:
        """Sum values that each entity has in view of the world."""
        if world is None:
            raise ValueError("look at the world first")
        summary = jnp.broadcast_to(world, (*features.shape[:-1], world.shape[-1]))
        features = jnp.concatenate([features, summary], axis=-1)
        return members.total(self.head(features, members.kind, members.blocks))


class GroupCritic(AbstractCritic):
    """One value for a group from a summary of its members."""

    pool: "AttentionPool"
    head: Perceptron

    def __init__(self, n_in: int, hidden: int, n_values: int, key: Key[Array, ""]) -> None:
        pool_key, head_key = jax.random.split(key)
        self.pool = AttentionPool(n_in, hidden, pool_key)
        self.head = Perceptron(hidden + 1, hidden, n_values, _GAIN, head_key)

    def __call__(
        self, features: Float[Array, "*b n f"], members: Members, world: Float[Array, "*b 1 s"] | None
    ) -> Float[Array, "*b g v"]:
        """Summarise, then value."""
        summary = self.pool(features, members.index, members.n_groups)
        return jnp.where(summary[..., -1:] > 0, self.head(summary), 0.0)


class AttentionPool(eqx.Module):
    """Summary of the members of each group: means weighted by attention with learned queries, and log(1 + number).

    Each head weighs members by the softmax over its group of a linear score (Lee et al. 2019, with seeds of one row).
    """

    score: Linear
    value: Linear

    def __init__(self, n_in: int, hidden: int, key: Key[Array, ""]) -> None:
        score_key, value_key = jax.random.split(key)
        self.score = Linear(n_in, N_HEADS, 1.0, score_key)
        self.value = Linear(n_in, hidden, 2**0.5, value_key)

    def __call__(
        self, features: Float[Array, "*b n f"], index: Int[Array, "*b n"], n_groups: int
    ) -> Float[Array, "*b g o"]:
        """Summarise; an empty group gets 0."""
        score, value = self.score(features), jax.nn.relu(self.value(features))
        member = index >= 0
        # Any constant of the world cancels in the softmax; its greatest score keeps the exponentials finite.
        top = jnp.max(jnp.where(member[..., None], score, -jnp.inf), axis=-2, keepdims=True)
        top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
        # Scores far below the world's best would all round to 0 in a group of their own; 60 is exp's safe range.
        weight = jnp.exp(jnp.maximum(score - top, -60.0))
        heads = value.reshape(*value.shape[:-1], N_HEADS, -1)
        weighted = (weight[..., None] * heads).reshape(value.shape)
        rows = jnp.concatenate([weighted, weight, jnp.ones_like(weight[..., :1])], axis=-1)
        rows = _group_sum(jnp.where(member[..., None], rows, 0.0), index, n_groups)
        total, norm, number = jnp.split(rows, [value.shape[-1], value.shape[-1] + N_HEADS], axis=-1)
        norm = jnp.repeat(jnp.where(number > 0, norm, 1.0), value.shape[-1] // N_HEADS, axis=-1)
        return jnp.concatenate([total / norm, jnp.log1p(number)], axis=-1)


def _group_sum(values: Float[Array, "*b n v"], index: Int[Array, "*b n"], n_groups: int) -> Float[Array, "*b g v"]:
    *batch, n, v = values.shape
    total = jax.vmap(lambda x, i: reduce_groups(x, i, n_groups, "sum"))(values.reshape(-1, n, v), index.reshape(-1, n))
    return total.reshape(*batch, n_groups, v)
