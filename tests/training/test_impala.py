"""IMPALA: lagging actors and their correction, on the probe game."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.build.scenario_files import load
from training.algorithms.reductions import AXIS
from training.config import load_training
from training.runs.build import build_learner

SETTINGS = {
    "training.recipe": "impala",
    "training.epochs": 1,
    "training.minibatches": 1,
    "training.learning_rate": 1e-2,
}


def run(rivals, n_updates, n_devices=1, **settings):
    overrides = {f"training.{k.replace('__', '.')}": v for k, v in settings.items()}
    scenario = load(rivals, SETTINGS | overrides)
    learner = build_learner(scenario, load_training(scenario), n_devices)
    (learned, actors), rows = learner.init(0), []
    for _ in range(n_updates):
        learned, actors, metrics = learner.update(learned, actors)
        rows.append(metrics)
    return learned, rows


def parameters(learned):
    return [np.asarray(x) for x in jax.tree.leaves(eqx.filter(learned.network, eqx.is_inexact_array))]


def test_without_lag_there_is_nothing_to_correct(rivals):
    corrected, rows = run(rivals, 6, impala__vtrace=True)
    plain, _ = run(rivals, 6, impala__vtrace=False)
    for a, b in zip(parameters(corrected), parameters(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert all(float(row["kl"]) < 1e-6 for row in rows)


def test_values_are_of_the_policy_that_learns_though_another_acts(rivals):
    # Both learn to take: each gets 1 - 2 a step, for ever (truncation is bootstrapped), so -1 / (1 - 0.5).
    learned, rows = run(rivals, 80, impala__lag=4, steps=16384, learning_rate=3e-2, discount=0.5, reward_scale=1.0)
    assert max(float(row["kl"]) for row in rows) > 1e-4
    assert float(rows[-1]["value"]) == pytest.approx(-2.0, abs=0.3)
    assert jax.tree.leaves(learned.behind)[0].shape[0] == 4


def test_actors_lag_by_as_many_updates_as_they_are_told(rivals):
    learned, _ = run(rivals, 3, impala__lag=2)
    before, _ = run(rivals, 1, impala__lag=2)
    oldest = [np.asarray(x)[0] for x in jax.tree.leaves(learned.behind)]
    for a, b in zip(oldest, parameters(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_and_eight_devices_learn_the_same_parameters(rivals):
    one, eight = (
        parameters(run(rivals, 10, n, impala__lag=1, normalise_value=True, worlds=16, minibatches=2)[0]) for n in (1, 8)
    )
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_the_policy_no_longer_does_is_not_driven_further(rivals):
    scenario = load(rivals, SETTINGS)
    learner = build_learner(scenario, load_training(scenario), 1)
    weight = jnp.asarray([0.0, 0.5, 1.0, 1.0]).reshape(4, 1, 1)
    own = jnp.asarray([9.0, 3.0, 4.0, 0.0]).reshape(4, 1, 1)
    rows = (weight * own)[None, ..., None], jnp.ones((1, 4, 1, 1), bool), weight[None]
    normalised = jax.vmap(learner.normalised, axis_name=AXIS)(*rows)[0, ..., 0]
    # The mean by weight is (1.5 + 4) / 2.5 = 2.2, so that 0, 0.4, 1.8 and -2.2 are left.
    expected = np.asarray([0.0, 0.4, 1.8, -2.2])
    np.testing.assert_allclose(normalised[:, 0, 0], expected / np.sqrt(np.mean(expected**2)), rtol=1e-5)
    # A policy that does nothing of it any longer learns nothing from it.
    rows = (jnp.zeros_like(rows[0]), rows[1], jnp.zeros_like(rows[2]))
    assert not np.asarray(jax.vmap(learner.normalised, axis_name=AXIS)(*rows)).any()


def test_a_clip_keeps_the_policy_near_the_one_that_acted(rivals):
    free, near = (
        run(rivals, 4, clip=clip, epochs=8, learning_rate=3e-2, anneal=[], reward_scale=1.0)[1] for clip in (0.0, 0.05)
    )
    moved, kept = (max(float(row["kl"]) for row in rows) for rows in (free, near))
    assert kept < 0.5 * moved
    assert all(float(row["clip_fraction"]) == 0 for row in free)
