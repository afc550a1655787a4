"""The scale of the values: right for any mean, the same over devices, and never between two numbers compared."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from swarm.build.scenario_files import load
from training.algorithms.reductions import AXIS, mean_and_variance
from training.config import load_training
from training.networks.normalise import ValueScale
from training.runs.build import build_learner

TARGETS = [(0.0, 1.0), (100.0, 1.0), (3e3, 1.0), (-3e3, 1.0), (1e4, 1.0), (1e5, 10.0), (1e5, 100.0), (0.0, 1e5)]


@jax.jit
def moments(x, mask):
    """Over eight devices, each with a share of the worlds."""
    return jax.vmap(lambda x, m: mean_and_variance(x, m), axis_name=AXIS, in_axes=(1, 1))(
        x.reshape(x.shape[0], 8, -1, *x.shape[2:]), mask.reshape(x.shape[0], 8, -1, *x.shape[2:])
    )


@pytest.mark.parametrize(("mean", "deviation"), TARGETS)
def test_a_deviation_is_right_beside_any_mean(mean, deviation):
    rng = np.random.default_rng(0)
    scale, update = ValueScale.start(1), jax.jit(ValueScale.update)
    for _ in range(20):
        x = rng.normal(mean, deviation, (16, 8, 32, 1)).astype(np.float32)
        mask = rng.random(x.shape) < 0.7
        x = np.where(mask, x, np.nan)
        found = moments(jnp.asarray(x), jnp.asarray(mask))
        # Each device has the moments of all, as double precision has them.
        np.testing.assert_allclose(found[0], np.full((8, 1), np.nanmean(x, dtype=float)), atol=2e-3 * deviation)
        np.testing.assert_allclose(found[1], np.full((8, 1), np.nanvar(x, dtype=float)), rtol=2e-3)
        scale = update(scale, found[0][0], found[1][0])
        assert float(scale.scale[0]) == pytest.approx(deviation, rel=0.03)
    assert float(scale.offset[0]) == pytest.approx(mean, abs=0.03 * deviation)


def test_a_mean_of_many_numbers_is_right():
    x = np.random.default_rng(0).normal(3e3, 1.0, (1024, 8, 128, 1)).astype(np.float32)
    mean, variance = moments(jnp.asarray(x), jnp.ones(x.shape, bool))
    assert float(mean[0, 0]) == pytest.approx(np.mean(x, dtype=float), abs=1e-3)
    assert float(variance[0, 0]) == pytest.approx(np.var(x, dtype=float), rel=1e-3)


def test_the_scale_is_that_of_all_that_was_seen_with_weights_that_fade():
    rng = np.random.default_rng(1)
    parts = [rng.normal(m, d, 4096) for m, d in zip((3.0, -1.0, 8.0, 2.5), (1.0, 0.1, 4.0, 2.0), strict=True)]
    scale = ValueScale.start(1)
    for part in parts:
        scale = scale.update(*(jnp.asarray([f(part)], jnp.float32) for f in (np.mean, np.var)))
    weights = np.repeat(0.99 ** np.arange(3, -1, -1), 4096)
    whole = np.concatenate(parts)
    mean = np.average(whole, weights=weights)
    assert float(scale.offset[0]) == pytest.approx(mean, rel=1e-5)
    assert float(scale.scale[0]) == pytest.approx(np.sqrt(np.average((whole - mean) ** 2, weights=weights)), rel=1e-5)


SETTINGS = {
    "training.worlds": 8,
    "training.rollout": 8,
    "training.epochs": 1,
    "training.minibatches": 2,
    "training.normalise_value": True,
    "training.value_clip": 0.2,
    "training.reward_scale": 50.0,
    "training.learning_rate": 1e-2,
    "training.network.encoders": ["entity"],
    "training.network.hidden": 8,
}


def learner_of(rivals, **settings):
    scenario = load(rivals, SETTINGS | {f"training.{k.replace('__', '.')}": v for k, v in settings.items()})
    return build_learner(scenario, load_training(scenario))


def steps_of(learner, look, n_updates):
    """What a device sees of each of some updates, as `look(learned, experience)` tells; all in one program."""
    learned, actors = learner.init(0)
    dynamic, static = eqx.partition(learned, eqx.is_array)

    def program(dynamic, actors):
        learned = eqx.combine(dynamic, static)
        actors, experience = learner.collect(learned, actors)
        after, _ = learner._counted(learned, experience)
        return eqx.filter(after, eqx.is_array), actors, look(learned, experience)

    shared, split = PartitionSpec(), PartitionSpec(AXIS)
    specs = {"in_specs": (shared, split), "out_specs": (shared, split, shared)}
    step = jax.jit(jax.shard_map(program, mesh=learner.mesh, check_vma=False, **specs))
    for _ in range(n_updates):
        dynamic, actors, seen = step(dynamic, actors)
        yield jax.device_get(seen)


@pytest.mark.parametrize("value", ["group", pytest.param("global", marks=pytest.mark.slow)])
def test_nothing_is_beyond_the_clip_while_parameters_are_what_they_were(rivals, value):
    learner = learner_of(rivals, credit__value=value)

    def look(learned, experience):
        batch, scale, _ = learner._prepare(learned, experience)
        said = learner.evaluate(learned.network, batch.rows, experience.state[0], scale)[2]
        said = learner.separate_values(said, batch.rows.valid, batch.rows.sides)
        return (said - batch.old_value) / scale.scale[None, None, None], scale.scale[0], scale.offset[0]

    moved, scales, offsets = zip(*steps_of(learner, look, 4), strict=True)
    assert max(np.abs(x).max() for x in moved) < 1e-3
    # The scale moved: by the one before, everything would be beyond.
    assert scales[0] > 3.0
    assert abs(offsets[0] - offsets[-1]) > 1.0


def test_a_last_value_is_in_the_units_of_the_scale_that_was_when_it_was_said(rivals):
    # Actors lag by two updates, in which the scale moves by much; every fourth step truncates.
    learner = learner_of(rivals, algorithm="impala", impala__lag=2, clip=0.0, steps=8192)

    def look(learned, experience):
        acting, rollout = learner.acting(learned)[1], experience.rollout
        by_critic = acting.restore(rollout.value, jnp.ones(rollout.final_valid.shape, bool))
        return rollout.final_valid, rollout.final_value, by_critic, acting.scale[0], learned.scale.scale[0]

    acted, learned = [], []
    for cut, final_value, by_critic, acting, now in steps_of(learner, look, 4):
        assert cut.any()
        # Rivals see nothing but themselves, so the last observation is worth what each before it is.
        np.testing.assert_allclose(final_value[cut], by_critic[cut], rtol=1e-5, atol=1e-5)
        acted.append(acting)
        learned.append(now)
    # Those that act have the scale of two updates before: at first none.
    assert acted[:3] == [1.0, 1.0, 1.0]
    assert acted[3] == learned[1] > 3.0
