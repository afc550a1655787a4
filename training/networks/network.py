"""One network: encoders, an optional memory, an actor for every entity and a critic for every group."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from swarm.core.errors import ConfigError
from swarm.simulation.rules import AbstractRules
from swarm.simulation.types import Observation
from training.config import NetworkTable
from training.networks.critics import AbstractCritic, GroupCritic, LocalCritic, Members, WorldCritic
from training.networks.encoders import AbstractEncoder, AttentionEncoder, EntityEncoder, MapEncoder, without_maps
from training.networks.layers import KindHead, Places
from training.networks.memory import Recurrence


class Network(eqx.Module):
    """Acts for entities and values groups.

    An entity's features are those of the encoders, its own row, and what the memory makes of both. Actor and critic
    have two layers each.

    Attributes:
        encoders: read the observation.
        recurrence: the memory; None: without.
        actor: parameters of the action's distribution.
        critic: values of groups.
    """

    encoders: tuple[AbstractEncoder, ...]
    recurrence: Recurrence | None
    actor: KindHead
    critic: AbstractCritic

    @classmethod
    def build(
        cls,
        table: NetworkTable,
        rules: AbstractRules,
        observation: Observation,
        *,
        n_parameters: int,
        n_values: int,
        key: Key[Array, ""],
    ) -> "Network":
        """Build by the table `network`.

        Args:
            table: sizes and parts.
            rules: of the scenario, for its kinds and sets.
            observation: of one world, for its sizes.
            n_parameters: of the distribution of an entity's action.
            n_values: streams of reward.
            key: of the random start.

        Raises:
            ConfigError: the scenario does not show what an encoder reads.
        """
        first_key, actor_key, critic_key = jax.random.split(key, 3)
        encoders = _encoders(table, rules, observation, first_key)
        n_features = sum(e.n_features for e in encoders) + observation.own.shape[-1]
        recurrence = Recurrence(n_features, table.memory, jax.random.fold_in(key, 3)) if table.memory else None
        n_features, n_kinds = n_features + table.memory, len(rules.kinds)
        # A small output gain starts the policy near uniform, and the values near 0: random values would drown the rare
        # first rewards in the advantages, and the policy would walk at random until they are unlearned.
        actor = KindHead(n_features, table.hidden, n_kinds, n_parameters, 0.01, actor_key)
        match table.critic:
            case "local":
                critic = LocalCritic(n_features, table.hidden, n_kinds, n_values, critic_key)
            case "world":
                critic = WorldCritic(n_features, table.hidden, n_kinds, n_values, critic_key)
            case "group":
                critic = GroupCritic(n_features, table.hidden, n_values, critic_key)
        return cls(encoders, recurrence, actor, critic)

    @property
    def width(self) -> int:
        """Width of the memory."""
        return 0 if self.recurrence is None else self.recurrence.cell.hidden_size

    def keep(self, observation: Observation) -> Observation:
        """Return the part of an observation that this network reads."""
        return observation if any(isinstance(e, MapEncoder) for e in self.encoders) else without_maps(observation)

    def step(
        self,
        observation: Observation,
        members: Members,
        state: Float[Array, "*b n m"],
        fresh: Bool[Array, "*b n"],
    ) -> tuple[Float[Array, "*b n p"], Float[Array, "*b g v"], Float[Array, "*b n m"]]:
        """Return the parameters of each slot's action, the value of each group slot, and the next memory."""
        if self.recurrence is None:
            return (*self._without_memory(observation, members), state)
        features = self._features(observation)
        state = self.recurrence(features, state, fresh)
        return (*self._heads(jnp.concatenate([features, state], axis=-1), members), state)

    def unroll(
        self,
        observation: Observation,
        members: Members,
        state: Float[Array, "*b n m"],
        fresh: Bool[Array, "t *b n"],
    ) -> tuple[Float[Array, "t *b n p"], Float[Array, "t *b g v"]]:
        """The same of `t` successive steps at once; without a memory they may be any steps."""
        if self.recurrence is None:
            return self._without_memory(observation, members)
        features = self._features(observation)
        states = self.recurrence.unroll(features, state, fresh)
        return self._heads(jnp.concatenate([features, states], axis=-1), members)

    def _without_memory(self, observation: Observation, members: Members) -> tuple[Array, Array]:
        """Encoders read nobody but those whom the network acts for, unless the critic sees others, too."""
        if members.places is None or self.critic.sees_world:
            return self._heads(self._features(observation), members)
        return self._heads_in_places(self._features(_in_places(observation, members.places)), members, None)

    def _features(self, observation: Observation) -> Float[Array, "*b n f"]:
        return jnp.concatenate([*(encode(observation) for encode in self.encoders), observation.own], axis=-1)

    def _heads(self, features: Float[Array, "*b n f"], members: Members) -> tuple[Array, Array]:
        """Parameters and values from the features of all slots."""
        world = self.critic.look(features, members)
        if members.places is not None:
            features = members.places.rows(features)
        return self._heads_in_places(features, members, world)

    def _heads_in_places(
        self, features: Float[Array, "*b m f"], members: Members, world: Float[Array, "*b 1 s"] | None
    ) -> tuple[Array, Array]:
        """The same from the features of places, if there are any, which is where each kind stands by itself."""
        placed = members.in_places()
        parameters = self.actor(features, placed.kind, placed.blocks)
        if members.places is not None:
            parameters = members.places.back(parameters)
        return parameters, self.critic(features, placed, world)


def _in_places(observation: Observation, places: Places) -> Observation:
    """What encoders read of those who have a place."""

    def parts(o: Observation) -> tuple:
        return o.own, o.view, o.cell

    def take(x: Array | None) -> Array | None:
        return None if x is None else places.take(x, 0)

    rows = tuple(take(x) for x in parts(observation))
    return eqx.tree_at(parts, observation, rows, is_leaf=lambda x: x is None)


def _encoders(
    table: NetworkTable, rules: AbstractRules, observation: Observation, key: Key[Array, ""]
) -> tuple[AbstractEncoder, ...]:
    n_own = observation.own.shape[-1]

    def build(name: str, key: Key[Array, ""]) -> AbstractEncoder:
        if name == "map":
            if observation.maps is None:
                raise ConfigError(_blind(name, rules, "no maps", ("entity", "attention")))
            return MapEncoder(observation.maps.shape[-1], table.channels, table.dilations, key)
        if name == "entity":
            return EntityEncoder(n_own, table.hidden, key)
        if not rules.sets:
            raise ConfigError(_blind(name, rules, "no sets of things", ("map", "entity")))
        return AttentionEncoder(n_own, list(rules.sets.values()), table.hidden, key)

    keys = [key, *(jax.random.fold_in(key, i) for i in range(1, len(table.encoders)))]
    return tuple(build(name, k) for name, k in zip(table.encoders, keys, strict=False))


def _blind(name: str, rules: AbstractRules, what: str, others: Sequence[str]) -> str:
    return (
        f"training.network.encoders: {name!r} finds {what} in the observation of {type(rules).__name__}; "
        f"use {' or '.join(repr(o) for o in others)}"
    )


def n_parameters(network: eqx.Module) -> int:
    """Number of trained numbers."""
    return sum(x.size for x in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
