"""What is added up over the steps of an episode that is judged."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from swarm.population.hierarchy import reduce_groups
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.rules import AbstractRules
from swarm.simulation.simulator import Simulator
from swarm.simulation.types import TimeStep, World
from training.acting.policy import TeamPolicy
from training.acting.returns import by_team_and_kind, named, named_by_level


class Tally(eqx.Module):
    """Sums over the steps of an episode, of the teams that a policy is judged by.

    Attributes:
        reward: of the entities of each team and kind.
        deaths: of each team and kind.
        steps: agent-steps of each team and kind.
        group_reward: for each level above the entities and each team, sum over steps of the mean reward of its living
            groups, of which the members of other teams are no part.
        groups: for each such level and team, sum over steps of the number of its living groups.
        judged: numbers of the teams.
    """

    reward: Float[Array, "m k"]
    deaths: Float[Array, "m k"]
    steps: Float[Array, "m k"]
    group_reward: Float[Array, "l m"]
    groups: Float[Array, "l m"]
    judged: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def start(cls, simulator: Simulator, policy: AbstractPolicy) -> "Tally":
        """Nothing yet. A policy is judged by all teams, unless it has opponents."""
        n_teams, n_kinds = simulator.rules.n_teams, len(simulator.rules.kinds)
        judged = policy.judged if isinstance(policy, TeamPolicy) else None
        kinds, levels = jnp.zeros((n_teams, n_kinds)), jnp.zeros((len(simulator.levels) - 1, n_teams))
        return cls(kinds, kinds, kinds, levels, levels, tuple(range(n_teams)) if judged is None else judged)

    def add(self, rules: AbstractRules, before: World, timestep: TimeStep, dead: Array) -> "Tally":
        """Count a step: the world before it, and what it returned."""
        n_teams, team = rules.n_teams, before.entities.team
        is_judged = np.isin(np.arange(n_teams), self.judged)
        alive = timestep.valid & jnp.asarray(is_judged)[jnp.where(timestep.valid, team, 0)]

        def total(values: Array) -> Array:
            return by_team_and_kind(values.astype(jnp.float32), alive, before.entities, rules)

        reward, numbers = [], []
        for level in range(1, self.groups.shape[0] + 1):
            of, m = before.hierarchy.ancestor(level), n_teams * before.hierarchy.identity[level - 1].shape[0]
            of = jnp.where(alive & (of >= 0), of * n_teams + team, -1)
            living = reduce_groups(alive, of, m, "any").reshape(-1, n_teams)
            number = jnp.sum(living, axis=0, dtype=jnp.float32)
            earned = jnp.sum(reduce_groups(timestep.reward, of, m, "sum").reshape(-1, n_teams), axis=0)
            reward.append(earned / jnp.maximum(number, 1.0))
            numbers.append(number)
        groups = [jnp.stack(x) if x else jnp.zeros((0, n_teams)) for x in (reward, numbers)]
        new = Tally(total(timestep.reward), total(dead), total(alive), groups[0], groups[1], self.judged)
        return jax.tree.map(jnp.add, self, new)

    def metrics(self, simulator: Simulator, n_steps: Array) -> dict[str, Float[Array, ""]]:
        """By name: `return`, `kind/light/return`, `level/crew/groups` and the like (`training.acting.returns`)."""
        rules, judged = simulator.rules, self.judged
        figures = {"return": self.reward, "deaths": self.deaths, "population": self.steps / n_steps}
        of_groups = {"return": self.group_reward, "groups": self.groups / n_steps}
        by_level = named_by_level(of_groups, simulator.levels[1:], judged)
        return {"return": jnp.sum(self.reward)} | named(figures, rules, judged) | by_level
