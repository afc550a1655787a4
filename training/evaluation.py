"""Playing whole episodes with a policy, on maps that training never sees."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float, Key, PyTree

from swarm.adapters.host import HostRules
from swarm.hierarchy import reduce_groups
from swarm.scenario import AbstractPolicy, TimeStep, World
from swarm.simulator import Simulator

# Training derives its episodes from other folds of the seed's key.
TEST, VALIDATION = 1_000_003, 1_000_033
# Worlds played at once: enough to fill the machine, few enough for any memory.
_BATCH = 32


def episode_keys(seed: int, n_episodes: int, stream: int = TEST) -> Key[Array, " e"]:
    """Keys of the evaluation episodes: the same maps for every policy; other streams have other maps."""
    base = jax.random.fold_in(jax.random.key(seed), stream)
    return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.arange(n_episodes))


class Tally(eqx.Module):
    """Sums over the steps of an episode.

    Attributes:
        reward: of the entities of each kind.
        deaths: of each kind.
        steps: agent-steps of each kind.
        group_reward: for each level above the entities, sum over steps of the mean reward of its living groups.
        groups: for each such level, sum over steps of the number of its living groups.
    """

    reward: Float[Array, " kinds"]
    deaths: Float[Array, " kinds"]
    steps: Float[Array, " kinds"]
    group_reward: Float[Array, " levels"]
    groups: Float[Array, " levels"]

    @classmethod
    def start(cls, simulator: Simulator) -> "Tally":
        """Nothing yet."""
        kinds, levels = jnp.zeros(len(simulator.rules.kinds)), jnp.zeros(len(simulator.levels) - 1)
        return cls(kinds, kinds, kinds, levels, levels)

    def add(self, before: World, timestep: TimeStep, dead: Array) -> "Tally":
        """Count a step: the world before it, and what it returned."""
        alive, kind, n_kinds = timestep.valid, before.entities.kind, self.reward.shape[0]
        index = jnp.where(alive, kind, -1)

        def by_kind(values: Array) -> Array:
            return reduce_groups(values.astype(jnp.float32), index, n_kinds, "sum")

        reward, numbers = [], []
        for level in range(1, self.groups.shape[0] + 1):
            of, m = before.hierarchy.ancestor(level), before.hierarchy.identity[level - 1].shape[0]
            of = jnp.where(alive, of, -1)
            number = jnp.sum(reduce_groups(alive, of, m, "any"), dtype=jnp.float32)
            total = jnp.sum(reduce_groups(timestep.reward, of, m, "sum"))
            reward.append(total / jnp.maximum(number, 1.0))
            numbers.append(number)
        groups = [jnp.stack(x) if x else jnp.zeros(0) for x in (reward, numbers)]
        new = Tally(by_kind(timestep.reward), by_kind(dead), by_kind(alive), groups[0], groups[1])
        return jax.tree.map(jnp.add, self, new)

    def metrics(self, simulator: Simulator, n_steps: Array) -> dict[str, Float[Array, ""]]:
        """By name: `kind/light/return`, `level/crew/groups` and the like."""
        named = {}
        for k, name in enumerate(simulator.rules.kinds):
            named[f"kind/{name}/return"] = self.reward[k]
            named[f"kind/{name}/deaths"] = self.deaths[k]
            named[f"kind/{name}/population"] = self.steps[k] / n_steps
        for i, name in enumerate(simulator.levels[1:]):
            named[f"level/{name}/return"] = self.group_reward[i]
            named[f"level/{name}/groups"] = self.groups[i] / n_steps
        return named


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
            tally = tally.add(before, timestep, timestep.valid & ~same)
            return world, timestep, memory, tally

        world, timestep = simulator.reset(reset_key)
        start = (world, timestep, policy.start(world.entities.n_slots), Tally.start(simulator))
        world, _, _, tally = jax.lax.while_loop(running, step, start)
        n_steps = world.step.astype(jnp.float32)
        return simulator.metrics(world) | {"return": jnp.sum(tally.reward)} | tally.metrics(simulator, n_steps)

    return jax.vmap(play_one)(keys)


def evaluate(
    simulator: Simulator, policy: AbstractPolicy, *, seed: int, n_episodes: int, stream: int = TEST
) -> dict[str, Float[np.ndarray, " e"]]:
    """Play episodes to their end and return the metrics of each at its end.

    Raises:
        HostError: a host environment, or the process that steps it, failed.
    """
    if isinstance(simulator.rules, HostRules):
        # Imported here, because it tallies as we do.
        from training.host_episodes import play_episodes

        key = jax.random.fold_in(jax.random.key(seed), stream)
        return play_episodes(simulator, policy, key, n_episodes, min(n_episodes, _BATCH))
    keys = episode_keys(seed, n_episodes, stream)
    parts = [_play(simulator, policy, keys[i : i + _BATCH]) for i in range(0, n_episodes, _BATCH)]
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
