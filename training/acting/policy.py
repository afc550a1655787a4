"""Trained networks as a policy, and several policies as one."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.rules import AbstractRules
from swarm.simulation.types import Action, Observation, World
from training.networks import Memory, Minds
from training.networks.distributions import AbstractDistribution, distribution_of


class NetworkPolicy(AbstractPolicy):
    """Acts by networks: samples, or takes the likeliest action of each entity.

    Attributes:
        minds: the networks.
        distribution: of the actions.
        deterministic: take the likeliest.
    """

    minds: Minds
    distribution: AbstractDistribution
    deterministic: bool = eqx.field(static=True, default=False)

    @classmethod
    def of(cls, minds: Minds, rules: AbstractRules, *, deterministic: bool = False) -> "NetworkPolicy":
        """Return the policy that suits the actions of some rules."""
        return cls(minds, distribution_of(rules), deterministic)

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Choose for all slots, without a memory."""
        return self.act(world, observation, self.start(world.entities.n_slots), key)[0]

    def start(self, n_slots: int) -> Memory:
        """Remember nothing."""
        return Memory.empty(n_slots, self.minds.width)

    def act(self, world: World, observation: Observation, memory: Memory, key: Key[Array, ""]) -> tuple[Action, Memory]:
        """Choose for all slots; draws follow identity, so capacity and batch do not change them."""
        entities = world.entities
        mind = self.minds.mind(entities.team, observation.alive)
        nowhere, fresh = jnp.full_like(mind, -1), memory.uid != entities.uid
        parameters, _, state = self.minds.step(observation, mind, nowhere, 1, memory.state, fresh)
        mask = observation.action_mask
        if self.deterministic:
            raw = self.distribution.mode(parameters, mask)
        else:
            raw = self.distribution.sample(parameters, mask, entities.keys(key))
        return self.distribution.command(raw), Memory(state, entities.uid)


class TeamPolicy(AbstractPolicy):
    """Each team acts by a policy of its own.

    Attributes:
        policies: the policies.
        of_team: number of each team's policy.
        judged: numbers of the teams whose returns tell how good it is, where the others are opponents; None: all.
    """

    policies: tuple[AbstractPolicy, ...]
    of_team: Int[Array, " m"]
    judged: tuple[int, ...] | None = eqx.field(static=True, default=None)

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Choose for all slots, without a memory."""
        return self.act(world, observation, self.start(world.entities.n_slots), key)[0]

    def start(self, n_slots: int) -> PyTree:
        """The memory of each policy."""
        return tuple(policy.start(n_slots) for policy in self.policies)

    def act(self, world: World, observation: Observation, memory: PyTree, key: Key[Array, ""]) -> tuple[Action, PyTree]:
        """Let every policy choose for all, and take for each team what its own chose."""
        parts = [
            policy.act(world, observation, own, jax.random.fold_in(key, number))
            for number, (policy, own) in enumerate(zip(self.policies, memory, strict=True))
        ]
        whose = self.of_team[jnp.where(world.entities.alive, world.entities.team, 0)]
        action, *others = [action for action, _ in parts]
        for number, other in enumerate(others, start=1):
            action = jnp.where((whose == number).reshape((-1,) + (1,) * (action.ndim - 1)), other, action)
        return action, tuple(memory for _, memory in parts)
