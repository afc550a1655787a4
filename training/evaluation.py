"""Playing whole episodes with a policy, on maps that training never sees."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float, Key, PyTree

from swarm.adapters.host import HostRules
from swarm.population.hierarchy import reduce_groups
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.rules import AbstractRules
from swarm.simulation.simulator import Simulator
from swarm.simulation.types import TimeStep, World
from training.policy import TeamPolicy
from training.returns import by_team_and_kind, named, named_by_level

# Training derives its episodes from other folds of the seed's key.
TEST, VALIDATION = 1_000_003, 1_000_033
# Worlds played at once: enough to fill the machine, few enough for any memory.
AT_ONCE = 32


def episode_keys(seed: int, n_episodes: int, stream: int = TEST) -> Key[Array, " e"]:
    """Keys of the evaluation episodes: the same maps for every policy; other streams have other maps."""
    base = jax.random.fold_in(jax.random.key(seed), stream)
    return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.arange(n_episodes))


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
        """By name: `return`, `kind/light/return`, `level/crew/groups` and the like (`training.returns`)."""
        rules, judged = simulator.rules, self.judged
        figures = {"return": self.reward, "deaths": self.deaths, "population": self.steps / n_steps}
        of_groups = {"return": self.group_reward, "groups": self.groups / n_steps}
        by_level = named_by_level(of_groups, simulator.levels[1:], judged)
        return {"return": jnp.sum(self.reward)} | named(figures, rules, judged) | by_level


Carry = tuple[World, TimeStep, PyTree, Tally]


@eqx.filter_jit
def _play(simulator: Simulator, policy: AbstractPolicy, keys: Key[Array, " e"]) -> dict[str, Float[Array, " e"]]:
    def play_one(key: Key[Array, ""]) -> dict[str, Float[Array, ""]]:
        reset_key, act_key = jax.random.split(key)

        def running(carry: Carry) -> Array:
            return ~carry[1].ended

        def step(carry: Carry) -> Carry:
            before, timestep, memory, tally = carry
            key = jax.random.fold_in(act_key, before.step)
            action, memory = policy.act(before, timestep.observation, memory, key)
            world, timestep = simulator.step(before, action)
            same = world.entities.alive & (world.entities.uid == before.entities.uid)
            tally = tally.add(simulator.rules, before, timestep, timestep.valid & ~same)
            return world, timestep, memory, tally

        world, timestep = simulator.reset(reset_key)
        start = (world, timestep, policy.start(world.entities.n_slots), Tally.start(simulator, policy))
        world, _, _, tally = jax.lax.while_loop(running, step, start)
        n_steps = world.step.astype(jnp.float32)
        return simulator.metrics(world) | tally.metrics(simulator, n_steps)

    return jax.vmap(play_one)(keys)


def evaluate(
    simulator: Simulator, policy: AbstractPolicy, *, seed: int, n_episodes: int, stream: int = TEST
) -> dict[str, Float[np.ndarray, " e"]]:
    """Play episodes to their end and return the metrics of each at its end.

    Returns, deaths and groups are those of the teams that the policy is judged by: all, or those that do not have other
    policies act for them (`training.teams.Teams`).

    Raises:
        HostError: a host environment, or the process that steps it, failed.
    """
    if isinstance(simulator.rules, HostRules):
        # Imported here, because it tallies as we do.
        from training.host_episodes import play_episodes

        key = jax.random.fold_in(jax.random.key(seed), stream)
        return play_episodes(simulator, policy, key, n_episodes, min(n_episodes, AT_ONCE))
    keys = episode_keys(seed, n_episodes, stream)
    parts = [_play(simulator, policy, keys[i : i + AT_ONCE]) for i in range(0, n_episodes, AT_ONCE)]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def defined(values: Any) -> Float[np.ndarray, " e"]:
    """Those that are numbers, and not NaN, infinite or None, as a mean over nobody is."""
    values = np.asarray(values, float)
    return values[np.isfinite(values)]


def mean_where_defined(values: Any) -> float | None:
    """Mean of the values that are numbers; None if none is."""
    values = defined(values)
    return float(values.mean()) if values.size else None


def plain(values: Float[np.ndarray, " e"]) -> list[float | None]:
    """Values as JSON has them: None where one is not defined."""
    return [float(x) if np.isfinite(x) else None for x in values]


def summarise(values: Float[np.ndarray, " e"]) -> dict[str, Any]:
    """Mean and its 95 % bootstrap interval (percentile method), from a fixed seed, over where a value is defined."""
    values = defined(values)
    if not values.size:
        return {"mean": None, "low": None, "high": None}
    low, high = interval(values[:, None], np.mean)
    return {"mean": float(values.mean()), "low": float(low[0]), "high": float(high[0])}


def interquartile_mean(values: Float[np.ndarray, "s ..."], axis: int = 0) -> Float[np.ndarray, "..."]:
    """Mean of the middle half (Agarwal et al. 2021)."""
    return scipy.stats.trim_mean(values, 0.25, axis=axis)


def interval(values: Float[np.ndarray, "s m"], statistic: Any) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap interval of a statistic over the first axis; the value itself where it cannot vary."""
    middle = statistic(values, axis=0)
    varies = np.ptp(values, axis=0) > 0
    low, high = middle.astype(float).copy(), middle.astype(float).copy()
    if len(values) > 1 and varies.any():
        found = scipy.stats.bootstrap(
            (values[:, varies],), statistic, axis=0, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low[varies], high[varies] = found.low, found.high
    return low, high
