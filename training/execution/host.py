"""Experience of host environments: their processes step, one compiled program chooses, another takes in what followed.

A rollout is of the same form as that of `collect` (`training.acting.rollout`), so that whoever learns cannot tell them
apart.
"""

import threading
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from swarm.adapters.host import HostRules, advance, begin
from swarm.adapters.workers import Steps, Workers
from swarm.simulation.types import TimeStep, World
from training.acting.rollout import (
    Actors,
    EpisodeSums,
    Experience,
    Rollout,
    Stage,
    decide,
    last,
    no_episodes,
    outcome,
    start_others,
)
from training.algorithms.learner import AbstractLearner, Learned, put, rollout_key, run_key
from training.networks import Memory
from training.networks.normalise import ValueScale


class HostCollector:
    """Steps the worlds of one actor; call it again and again, and close it when it is over.

    Environments cannot be saved: whoever takes up a checkpoint begins new episodes, and keeps the counts.
    """

    def __init__(self, learner: AbstractLearner, learned: Learned, device: Any) -> None:
        """Prepare to collect.

        Args:
            learner: its settings and its stage.
            learned: the key of the run, and the form of the networks, whose parameters each call brings.
            device: where to choose.
        """
        self._learner = learner
        static = eqx.filter(learned.network, eqx.is_inexact_array, inverse=True)
        self._static, self._key = put((static, learned.key), device)
        self._workers: Workers | None = None
        self._begun: Actors | None = None
        self._stopping = threading.Event()

    def prepare(self, arrays: PyTree, draw: Int[Array, " 3"], actors: Actors, scale: ValueScale | None = None) -> None:
        """Start the environments and compile all that a rollout needs, by a step that leaves nothing behind."""
        stage = self._learner.stage(eqx.combine(arrays, self._static), scale)
        begun, steps = self._begin(stage, actors)
        row, _, state, others = _decide(stage, begun, self._key, draw, jnp.int32(0))
        jax.block_until_ready((_take_in(stage, begun, row, state, others, steps), _last(stage, begun)))
        self._begun = begun

    def __call__(
        self, arrays: PyTree, draw: Int[Array, " 3"], actors: Actors, scale: ValueScale | None = None
    ) -> tuple[Actors, Experience]:
        """Step for a rollout.

        Args:
            arrays: parameters, on the device.
            draw: three numbers that name this rollout among all of the run.
            actors: the worlds as the last call left them.
            scale: of the values that the networks say, on the device; None: they are in units of reward.

        Raises:
            HostError: an environment, or the process that steps it, failed.
        """
        stage, config = self._learner.stage(eqx.combine(arrays, self._static), scale), self._learner.config
        if self._workers is None:
            self.prepare(arrays, draw, actors, scale)
        if self._begun is not None:
            actors, self._begun = self._begun, None
        assert self._workers is not None
        sums, rows, states = jax.tree.map(np.asarray, no_episodes(stage, actors)), [], []
        part = config.rollout // self._learner.n_parts
        for t in range(config.rollout):
            if t % part == 0:
                states.append(actors.memory.state)
            row, action, state, others = _decide(stage, actors, self._key, draw, jnp.int32(t))
            steps = self._workers.step(np.asarray(action))
            actors, row, metrics = _take_in(stage, actors, row, state, others, steps)
            sums = _tally(sums, metrics, steps.ended)
            rows.append(row)
        # Stacked on the host: a program of so many arguments takes longer to compile than to run.
        rollout = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *jax.device_get(rows))
        sums = jax.tree.map(jnp.asarray, sums)
        return actors, Experience(rollout, jnp.stack(states), _last(stage, actors), actors.index, sums)

    def stop(self) -> None:
        """End a wait for the environments, from any thread, once and for all."""
        self._stopping.set()

    def close(self) -> None:
        """End the processes."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _begin(self, stage: Stage, actors: Actors) -> tuple[Actors, Steps]:
        rules = stage.simulator.rules
        assert isinstance(rules, HostRules)
        index, n_episodes = np.asarray(actors.index), np.asarray(actors.n_episodes)
        entropy = entropy_of(run_key(self._key, 1))
        worlds = list(zip(index.tolist(), n_episodes.tolist(), strict=True))
        self._workers = Workers(rules.task, entropy, worlds, self._stopping)
        steps = self._workers.reset()
        return _start(stage, actors, steps), steps


def entropy_of(key: Key[Array, ""]) -> list[int]:
    """A random key as the whole numbers that seeds of environments derive from."""
    return [int(x) for x in np.ravel(jax.random.key_data(key))]


@eqx.filter_jit
def _start(stage: Stage, actors: Actors, steps: Steps) -> Actors:
    """Begin an episode in every world."""
    world, timestep = jax.vmap(lambda s: begin(stage.simulator, s))(steps)
    memory = _nothing(stage, actors)
    no_return = jnp.zeros_like(actors.episode_return)
    return Actors(world, timestep, actors.index, actors.n_episodes, no_return, memory, _strangers(stage, actors))


@eqx.filter_jit
def _decide(
    stage: Stage, actors: Actors, key: Key[Array, ""], draw: Int[Array, " 3"], t: Int[Array, ""]
) -> tuple[Rollout, Any, Array, PyTree]:
    return decide(stage, actors, jax.random.fold_in(rollout_key(key, draw), t))


@eqx.filter_jit
def _take_in(
    stage: Stage, actors: Actors, row: Rollout, state: Float[Array, "b n m"], others: PyTree, steps: Steps
) -> tuple[Actors, Rollout, dict[str, Float[Array, " b"]]]:
    """Bootstrap whom the step cut off, and go on, in a new episode where one ended.

    Returns:
        The worlds, the row of experience, and each episode's metrics after the step.
    """
    final, following, timestep = jax.vmap(lambda w, s: advance(stage.simulator, w, s))(actors.world, steps)
    ended, memory = timestep.ended, Memory(state, actors.world.entities.uid)
    reward = jnp.where(row.mind >= 0, timestep.reward, 0.0)
    value, lives = _bootstrap(stage, final, following, memory, timestep)
    # As everywhere: a slot that passed on has nothing to do with the trajectory before it.
    lives &= jax.vmap(stage.grouping)(final).identity == row.membership.identity
    episode_return = actors.episode_return + jax.vmap(stage.earned)(actors.world.entities, reward)
    metrics = jax.vmap(stage.simulator.metrics)(final) | jax.vmap(stage.returns)(episode_return)
    begun, first = jax.vmap(lambda s: begin(stage.simulator, s))(steps)
    observation = jax.vmap(stage.simulator.rules.observe)(following)
    went_on = following, observation, actors.n_episodes, episode_return, memory, others
    nobody = _nothing(stage, actors), _strangers(stage, actors)
    anew = begun, first.observation, actors.n_episodes + 1, jnp.zeros_like(episode_return), *nobody
    world, observation, n_episodes, episode_return, memory, others = select(ended, anew, went_on)
    timestep = eqx.tree_at(lambda t: t.observation, timestep, observation)
    actors = Actors(world, timestep, actors.index, n_episodes, episode_return, memory, others)
    return actors, outcome(row, reward, stage.scale.restore(value, lives), lives, ended), metrics


def _bootstrap(
    stage: Stage, final: World, following: World, memory: Memory, timestep: TimeStep
) -> tuple[Float[Array, "b g v"], Bool[Array, "b g"]]:
    """Value each group at the last observation of those who were cut off; and whether its trajectory ends so."""
    observation = timestep.observation
    members, mind = jax.vmap(stage.members)(final, observation.alive)
    going_on, _ = jax.vmap(stage.members)(following, following.entities.alive & ~timestep.ended[:, None])
    cut = jax.vmap(lambda m, mask: m.any(mask & (m.index >= 0)))(members, timestep.truncated)
    # Another life in the slot of who was cut off does not carry the trajectory on.
    same = going_on.identity == members.identity
    lives = cut & ~(jax.vmap(lambda m: m.any(m.index >= 0))(going_on) & same)

    def value() -> Array:
        fresh = memory.uid != final.entities.uid
        return stage.minds.step(observation, mind, members.index, members.n_groups, memory.state, fresh)[1]

    nothing = jnp.zeros(jax.eval_shape(value).shape)
    return jax.lax.cond(jnp.any(lives), value, lambda: nothing), lives


def _nothing(stage: Stage, actors: Actors) -> Memory:
    """The memory of worlds in which nobody remembers anything."""
    n = actors.memory.uid.shape[1]
    return jax.vmap(lambda _: Memory.empty(n, stage.minds.width))(actors.index)


def _strangers(stage: Stage, actors: Actors) -> PyTree:
    """The memory of those that do not learn, before an episode."""
    return jax.vmap(lambda _: start_others(stage, actors.memory.uid.shape[1]))(actors.index)


_last = eqx.filter_jit(last)


def select(mask: Bool[Array, " b"], yes: PyTree, no: PyTree) -> PyTree:
    """Choose between two batches of worlds, world by world."""
    return jax.tree.map(lambda x, y: jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, y), yes, no)


def _tally(sums: EpisodeSums, metrics: dict[str, Array], ended: Bool[np.ndarray, " b"]) -> EpisodeSums:
    """Count the episodes that ended."""
    if not ended.any():
        return sums
    count = sums.count + np.float32(ended.sum())
    values = {name: np.asarray(x)[ended] for name, x in metrics.items()}
    known = {name: np.isfinite(x) for name, x in values.items()}
    numbers = {name: sums.defined[name] + np.float32(x.sum()) for name, x in known.items()}
    totals = {name: x.sum(where=known[name]) for name, x in values.items()}
    totals = {name: sums.metrics[name] + total for name, total in totals.items()}
    return eqx.tree_at(lambda s: (s.count, s.metrics, s.defined), sums, (count, totals, numbers))
