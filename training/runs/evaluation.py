"""Playing whole episodes with a policy, on maps that training never sees."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from swarm.adapters.host import HostRules
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.simulator import Simulator
from swarm.simulation.types import TimeStep, World
from training.acting.tally import Tally
from training.execution.host_episodes import play_episodes

# Training derives its episodes from other folds of the seed's key.
TEST, VALIDATION = 1_000_003, 1_000_033
# Worlds played at once: enough to fill the machine, few enough for any memory.
AT_ONCE = 32


def episode_keys(seed: int, n_episodes: int, stream: int = TEST) -> Key[Array, " e"]:
    """Keys of the evaluation episodes: the same maps for every policy; other streams have other maps."""
    base = jax.random.fold_in(jax.random.key(seed), stream)
    return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.arange(n_episodes))


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
        key = jax.random.fold_in(jax.random.key(seed), stream)
        return play_episodes(simulator, policy, key, n_episodes, min(n_episodes, AT_ONCE))
    keys = episode_keys(seed, n_episodes, stream)
    parts = [_play(simulator, policy, keys[i : i + AT_ONCE]) for i in range(0, n_episodes, AT_ONCE)]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
