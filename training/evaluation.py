"""Playing whole episodes with a policy, on maps that training never sees."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

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


@eqx.filter_jit
def _play(simulator: Simulator, policy: AbstractPolicy, keys: Key[Array, " e"]) -> dict[str, Float[Array, " e"]]:
    def play_one(key: Key[Array, ""]) -> dict[str, Float[Array, ""]]:
        reset_key, act_key = jax.random.split(key)

        def running(carry: tuple[World, TimeStep, PyTree, Array]) -> Array:
            return ~carry[1].ended

        def step(carry: tuple[World, TimeStep, PyTree, Array]) -> tuple[World, TimeStep, PyTree, Array]:
            world, timestep, memory, total = carry
            key = jax.random.fold_in(act_key, world.step)
            action, memory = policy.act(world, timestep.observation, memory, key)
            world, timestep = simulator.step(world, action)
            return world, timestep, memory, total + jnp.sum(timestep.reward)

        world, timestep = simulator.reset(reset_key)
        start = (world, timestep, policy.start(world.entities.n_slots), jnp.zeros(()))
        world, _, _, total = jax.lax.while_loop(running, step, start)
        return simulator.metrics(world) | {"return": total}

    return jax.vmap(play_one)(keys)


def evaluate(
    simulator: Simulator, policy: AbstractPolicy, *, seed: int, n_episodes: int, stream: int = TEST
) -> dict[str, Float[np.ndarray, " e"]]:
    """Play episodes to their end and return the metrics of each at its end."""
    keys = episode_keys(seed, n_episodes, stream)
    parts = [_play(simulator, policy, keys[i : i + _BATCH]) for i in range(0, n_episodes, _BATCH)]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def summarise(values: Float[np.ndarray, " e"], n_resamples: int = 2000) -> dict[str, Any]:
    """Mean and its 95 % bootstrap interval (percentile method), from a fixed seed."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (n_resamples, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}
