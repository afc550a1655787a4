"""Worlds whose episodes end in a rollout are restarted some at a time: the same experience whatever their number."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.build.scenario_files import load
from swarm.simulation import restart
from training.acting.rollout import collect
from training.algorithms.learner import run_key
from training.config import load_training
from training.runs.build import build_learner

WORLDS, STEPS = 5, 10
SETTINGS = {"training.worlds": WORLDS, "training.rollout": STEPS, "training.minibatches": 1, "world.steps": 4}


@pytest.fixture(scope="module")
def rollouts():
    """Worlds, and experience of episodes that end apart: two restarted at once, and all, as on an accelerator."""
    scenario = load("spread", SETTINGS)
    learner = build_learner(scenario, load_training(scenario))
    learned, actors = learner.init(0)
    apart = jnp.asarray([0, 1, 1, 3, 0], jnp.int32)
    actors = jax.device_put(eqx.tree_at(lambda a: a.world.step, actors, apart), jax.devices()[0])
    stage, key = learner.stage(learned.network), run_key(learned.key, 1)
    assert stage.platform == "cpu"

    def collected(stage):
        return jax.jit(lambda a: collect(stage, a, key, jax.random.fold_in(key, 1), STEPS, 1))(actors)

    limits, restart._LIMITS["cpu"] = restart._LIMITS["cpu"], (2, 2**30)
    by_two = collected(stage)
    restart._LIMITS["cpu"] = limits
    return by_two, collected(dataclasses.replace(stage, platform="cuda"))


def bits(tree):
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(tree)]


def test_worlds_and_experience_are_the_same_bits_however_many_are_restarted_at_once(rollouts):
    for x, y in zip(*(bits(rollout) for rollout in rollouts), strict=True):
        np.testing.assert_array_equal(x, y)


def test_episodes_are_counted_where_they_ended(rollouts):
    actors, experience = rollouts[1]
    ended = np.asarray(experience.rollout.ended)
    # Of 4 steps each, the first shorter by the steps that were taken before.
    first = 3 - np.asarray([0, 1, 1, 3, 0])
    expected = (np.arange(STEPS)[:, None] - first[None]) % 4 == 0
    np.testing.assert_array_equal(ended, expected & (np.arange(STEPS)[:, None] >= first[None]))
    assert experience.sums.count == ended.sum()
    np.testing.assert_array_equal(actors.n_episodes, 1 + ended.sum(axis=0))
    assert experience.sums.metrics["length"] == 4 * ended.sum()
    reward = np.asarray(experience.rollout.reward).sum(axis=2)
    done = np.flip(np.maximum.accumulate(np.flip(ended, 0), 0), 0)
    np.testing.assert_allclose(experience.sums.metrics["return"], reward[done].sum(), rtol=1e-5)
    assert experience.rollout.final_valid[ended].all()
    assert not experience.rollout.final_valid[~ended].any()
