"""Whole episodes of host environments, to judge policies by."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from swarm.adapters.host import HostRules, advance, begin
from swarm.adapters.workers import Steps, Workers
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.simulator import Simulator
from swarm.simulation.types import Action, Observation, World
from training.acting.tally import Tally
from training.execution.host import entropy_of, select


def play_episodes(
    simulator: Simulator, policy: AbstractPolicy, key: Key[Array, ""], n_episodes: int, n_worlds: int
) -> dict[str, Float[np.ndarray, " e"]]:
    """Play episodes to their end and return the metrics of each at its end.

    Each world plays its share of them, so that short ones do not count for more.

    Raises:
        HostError: an environment, or the process that steps it, failed.
    """
    rules = simulator.rules
    assert isinstance(rules, HostRules)
    workers = Workers(rules.task, entropy_of(key), [(i, 0) for i in range(n_worlds)])
    left = np.asarray([len(range(i, n_episodes, n_worlds)) for i in range(n_worlds)])
    found: list[dict[str, Any]] = []
    try:
        scene = _begin(simulator, policy, workers.reset())
        t = 0
        while left.any():
            action, memory = _act(policy, scene, key, jnp.int32(t))
            steps = workers.step(np.asarray(action))
            scene, metrics = _go_on(simulator, policy, scene, memory, steps)
            counted = steps.ended & (left > 0)
            left -= counted
            found += [{k: np.asarray(v)[i] for k, v in metrics.items()} for i in np.flatnonzero(counted)]
            t += 1
    finally:
        workers.close()
    return {name: np.asarray([episode[name] for episode in found]) for name in found[0]}


class _Scene(eqx.Module):
    """Episodes of a host environment that are being played; leading axis b."""

    world: World
    observation: Observation
    memory: PyTree
    tally: Tally


@eqx.filter_jit
def _begin(simulator: Simulator, policy: AbstractPolicy, steps: Steps) -> _Scene:
    def one(steps: Steps) -> _Scene:
        world, timestep = begin(simulator, steps)
        memory = policy.start(world.entities.n_slots)
        return _Scene(world, timestep.observation, memory, Tally.start(simulator, policy))

    return jax.vmap(one)(steps)


@eqx.filter_jit
def _act(policy: AbstractPolicy, scene: _Scene, key: Key[Array, ""], t: Int[Array, ""]) -> tuple[Action, PyTree]:
    keys = jax.random.split(jax.random.fold_in(key, t), scene.observation.alive.shape[0])
    return jax.vmap(policy.act)(scene.world, scene.observation, scene.memory, keys)


@eqx.filter_jit
def _go_on(
    simulator: Simulator, policy: AbstractPolicy, scene: _Scene, memory: PyTree, steps: Steps
) -> tuple[_Scene, dict[str, Float[Array, " b"]]]:
    """Go on, in a new episode where one ended; and the metrics of each episode after the step."""

    def one(scene: _Scene, memory: PyTree, steps: Steps) -> tuple[_Scene, Array, dict[str, Array]]:
        final, following, timestep = advance(simulator, scene.world, steps)
        tally = scene.tally.add(simulator.rules, scene.world, timestep, timestep.terminated)
        metrics = simulator.metrics(final) | tally.metrics(simulator, final.step.astype(jnp.float32))
        scene = _Scene(following, simulator.rules.observe(following), memory, tally)
        return scene, timestep.ended, metrics

    went_on, ended, metrics = jax.vmap(one)(scene, memory, steps)
    return select(ended, _begin(simulator, policy, steps), went_on), metrics
