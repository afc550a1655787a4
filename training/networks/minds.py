"""The networks of a run together: each acts for the teams that are assigned to it."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.simulation.types import Observation
from training.networks.critics import Members
from training.networks.layers import Places
from training.networks.network import Network


class Minds(eqx.Module):
    """Networks, and which of them each team has.

    Attributes:
        networks: of the same shapes.
        of_team: number of each team's network; -1: somebody else acts for it.
        capacities: `AbstractRules.capacities`, so that a network computes no more than it must.
    """

    networks: tuple[Network, ...]
    of_team: tuple[int, ...] = eqx.field(static=True)
    capacities: tuple[tuple[int, ...], ...] | None = eqx.field(static=True)

    @property
    def width(self) -> int:
        """Width of the memory."""
        return self.networks[0].width

    def keep(self, observation: Observation) -> Observation:
        """Return the part of an observation that the networks read."""
        return self.networks[0].keep(observation)

    def mind(self, team: Int[Array, "*b n"], alive: Bool[Array, "*b n"]) -> Int[Array, "*b n"]:
        """Number of the network that acts for each entity; -1: none, or dead."""
        return jnp.where(alive, jnp.asarray(self.of_team, jnp.int32)[jnp.where(alive, team, 0)], -1)

    def step(
        self,
        observation: Observation,
        mind: Int[Array, "*b n"],
        index: Int[Array, "*b n"],
        n_groups: int,
        state: Float[Array, "*b n m"],
        fresh: Bool[Array, "*b n"],
    ) -> tuple[Float[Array, "*b n p"], Float[Array, "*b g v"], Float[Array, "*b n m"]]:
        """Return the parameters of each slot's action, the value of each group slot, and the next memory."""
        parts = [
            network.step(observation, self._members(i, observation, mind == i, index, n_groups), state, fresh)
            for i, network in enumerate(self.networks)
        ]
        parameters, value = self._join(mind, [part[:2] for part in parts])
        return parameters, value, _select(mind, [part[2] for part in parts])

    def unroll(
        self,
        observation: Observation,
        mind: Int[Array, "t *b n"],
        index: Int[Array, "t *b n"],
        n_groups: int,
        state: Float[Array, "*b n m"],
        fresh: Bool[Array, "t *b n"],
    ) -> tuple[Float[Array, "t *b n p"], Float[Array, "t *b g v"]]:
        """The same of `t` successive steps at once; without a memory they may be any steps."""
        parts = [
            network.unroll(observation, self._members(i, observation, mind == i, index, n_groups), state, fresh)
            for i, network in enumerate(self.networks)
        ]
        return self._join(mind, parts)

    def _members(self, number: int, observation: Observation, mine: Array, index: Array, n_groups: int) -> Members:
        places, kind = None, observation.kind
        if self.capacities is not None and number in self.of_team:
            teams = [of_kind for of_kind, mind in zip(self.capacities, self.of_team, strict=True) if mind == number]
            capacities = tuple(sum(of_kind) for of_kind in zip(*teams, strict=True))
            # Where all slots may be of one kind, there is nothing to put in order.
            if len(capacities) > 1 or sum(capacities) < kind.shape[-1]:
                places = Places.of(kind, mine, capacities)
        return Members(kind, observation.alive, jnp.where(mine, index, -1), n_groups, places)

    @staticmethod
    def _join(mind: Array, parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
        """Each entity has the parameters of its network; a group's value is the sum over its members' networks."""
        values = [value for _, value in parts]
        return _select(mind, [parameters for parameters, _ in parts]), sum(values[1:], start=values[0])


def _select(mind: Array, parts: list[Array]) -> Array:
    chosen = parts[0]
    for i, part in enumerate(parts[1:], start=1):
        chosen = jnp.where((mind == i)[..., None], part, chosen)
    return chosen
