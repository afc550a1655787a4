"""Advantages and losses against an independent library, and against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from training.credit.losses import clipped_policy_loss, clipped_value_loss, generalised_advantage, vtrace

T = 9
fixed = settings(deadline=None, derandomize=True, max_examples=40)
numbers = st.floats(-4, 4, width=32)
gae = jax.jit(generalised_advantage, static_argnums=5)
corrected = jax.jit(vtrace, static_argnums=(6, 7, 8))
of_rlax = jax.jit(rlax.truncated_generalized_advantage_estimation)
corrected_by_rlax = jax.jit(rlax.vtrace_td_error_and_advantage, static_argnums=(5, 6, 7))


@given(
    reward=hnp.arrays(np.float32, (T,), elements=numbers),
    values=hnp.arrays(np.float32, (T + 1,), elements=numbers),
    discount=hnp.arrays(np.float32, (T,), elements=st.sampled_from([0.0, 0.5, 0.75, 0.99, 1.0])),
    gae_lambda=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
@fixed
def test_advantage_of_a_single_trajectory_is_that_of_rlax(reward, values, discount, gae_lambda):
    expected = of_rlax(jnp.asarray(reward), jnp.asarray(discount), gae_lambda, jnp.asarray(values))
    following, now = jnp.asarray(values[1:]), jnp.asarray(values[:-1])
    # A discount of 0 already cuts the trajectory; rlax knows no other boundary.
    on = jnp.ones(T, bool)
    found = gae(jnp.asarray(reward), jnp.asarray(discount), now, following, on, gae_lambda)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@given(
    reward=hnp.arrays(np.float32, (T,), elements=numbers),
    values=hnp.arrays(np.float32, (T + 1,), elements=numbers),
    cut=st.integers(0, T - 2),
)
@fixed
def test_a_boundary_separates_what_comes_before_from_what_comes_after(reward, values, cut):
    continues = jnp.asarray(np.arange(T) != cut)
    discount, following, now = jnp.full(T, 0.75), jnp.asarray(values[1:]), jnp.asarray(values[:-1])
    found = gae(jnp.asarray(reward), discount, now, following, continues, 0.5)
    after = jnp.asarray(np.where(np.arange(T) > cut, reward + np.float32(1.0), reward))
    found, changed = (np.asarray(x) for x in (found, gae(after, discount, now, following, continues, 0.5)))
    np.testing.assert_array_equal(found[: cut + 1], changed[: cut + 1])
    assert (found[cut + 1 :] != changed[cut + 1 :]).all()


@pytest.mark.parametrize(("trace_lambda", "clip_rho"), [(1.0, 1.0), (0.9, 2.0)])
@given(
    reward=hnp.arrays(np.float32, (T,), elements=numbers),
    values=hnp.arrays(np.float32, (T + 1,), elements=numbers),
    log_ratio=hnp.arrays(np.float32, (T,), elements=st.floats(-2, 2, width=32)),
    discount=hnp.arrays(np.float32, (T,), elements=st.sampled_from([0.0, 0.5, 0.99, 1.0])),
)
@fixed
def test_vtrace_of_a_single_trajectory_is_that_of_rlax(reward, values, log_ratio, discount, trace_lambda, clip_rho):
    reward, now, following, discount, log_ratio = map(
        jnp.asarray, (reward, values[:-1], values[1:], discount, log_ratio)
    )
    ratio = jnp.exp(log_ratio)
    expected = corrected_by_rlax(now, following, reward, discount, ratio, trace_lambda, clip_rho, clip_rho)
    on = jnp.ones(T, bool)
    target, advantage = corrected(log_ratio, reward, discount, now, following, on, trace_lambda, clip_rho, 1.0)
    np.testing.assert_allclose(target - now, expected.errors, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(advantage, expected.pg_advantage, rtol=1e-5, atol=1e-4)


def test_vtrace_of_two_lives_in_one_slot_by_hand():
    # The first life ends in step 1; another begins in the same slot. Ratios 2 (clipped to 1), 1/2, 1/4, 1.
    log_ratio = jnp.log(jnp.asarray([2.0, 0.5, 0.25, 1.0]))
    reward, value = jnp.asarray([1.0, 2.0, 3.0, 4.0]), jnp.asarray([1.0, 1.0, 2.0, 1.0])
    next_value = jnp.asarray([1.0, 0.0, 1.0, 6.0])
    continues = jnp.asarray([True, False, True, True])
    target, advantage = corrected(log_ratio, reward, jnp.full(4, 0.5), value, next_value, continues, 1.0, 1.0, 1.0)
    # Backwards. Step 3: delta = 4 + 3 - 1 = 6. Step 2: delta = (3 + 1/2 - 2) / 4 = 3/8, and 1/2 * 1/4 * 6 = 3/4 on top.
    # Step 1: delta = (2 - 1) / 2. Step 0: delta = 1 + 1/2 - 1 = 1/2, and 1/2 * 1 * 1/2 = 1/4 on top.
    np.testing.assert_allclose(target, [1.75, 1.5, 3.125, 7.0])
    np.testing.assert_allclose(advantage, [0.75, 0.5, 0.25 * (3.0 + 0.5 * 7.0 - 2.0), 6.0])


def test_without_lag_vtrace_is_the_generalised_advantage():
    rng = np.random.default_rng(1)
    reward, value, following = (jnp.asarray(rng.normal(size=(T, 5)).astype(np.float32)) for _ in range(3))
    discount, continues = jnp.full((T, 5), 0.9), jnp.asarray(rng.random((T, 5)) < 0.7)
    target, _ = corrected(jnp.zeros((T, 5)), reward, discount, value, following, continues, 0.8, 1.0, 1.0)
    np.testing.assert_allclose(target - value, gae(reward, discount, value, following, continues, 0.8), atol=1e-5)


def test_every_trailing_index_is_a_trajectory_of_its_own():
    rng = np.random.default_rng(0)
    reward, value, following = (jnp.asarray(rng.normal(size=(T, 3, 2)).astype(np.float32)) for _ in range(3))
    discount = jnp.full((T, 3, 2), 0.75)
    continues = jnp.asarray(rng.random((T, 3, 2)) < 0.7)
    whole = gae(reward, discount, value, following, continues, 0.5)
    for i, j in np.ndindex(3, 2):
        parts = [np.asarray(x)[:, i, j] for x in (reward, discount, value, following, continues)]
        np.testing.assert_allclose(np.asarray(whole)[:, i, j], gae(*map(jnp.asarray, parts), 0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"),
    [
        (2.0, 1.1, -2.2),  # within the clip: the plain surrogate
        (2.0, 1.5, -2.4),  # a good action cannot gain beyond 1 + 0.2
        (2.0, 0.5, -1.0),  # but it can lose without bound
        (-2.0, 0.5, 1.6),  # a bad action cannot gain below 1 - 0.2
        (-2.0, 1.5, 3.0),
    ],
)
def test_policy_loss_takes_the_worse_of_plain_and_clipped(advantage, ratio, expected):
    old = jnp.asarray([-1.3])
    loss = clipped_policy_loss(old + jnp.log(ratio), old, jnp.asarray([advantage]), 0.2)
    assert float(loss[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.1, 3.61),  # within the clip of 0.5 around the old value 1: (1.1 - 3)^2
        (2.5, 2.25),  # nearer to the target than the clip allows: (1.5 - 3)^2
        (-1.0, 16.0),  # farther from it: (-1 - 3)^2, the larger
    ],
)
def test_value_loss_takes_the_worse_of_plain_and_clipped(value, expected):
    loss = clipped_value_loss(jnp.asarray([value]), jnp.asarray([1.0]), jnp.asarray([3.0]), 0.5)
    assert float(loss[0]) == pytest.approx(expected, rel=1e-5)
