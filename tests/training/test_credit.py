"""Credit: whose reward, whose value, and where trajectories begin and end, by hand (`test_sides`: between teams)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from training.config import CreditTable
from training.credit.trajectories import Membership, Trajectory, advantages, mix_reward, separate

GAMMA = LAMBDA = 0.5  # decay 1/4 per step; all numbers below are exact
OWN = CreditTable()
fixed = settings(deadline=None, derandomize=True, max_examples=40)


def credit_of(valid, identity, *, credit=OWN, ended=(), final_value=None, last_value=2.0, reward=2.0, last=None):
    """Advantages where each step of each slot pays 2 and each value is 2, so that a step that goes on has delta 1.

    `valid` and `identity` have a last row for what lives after the last step.
    """
    valid, identity = np.asarray(valid, bool), np.asarray(identity, np.int32)
    alive, after = valid[:-1], valid[-1]
    t = len(alive)
    trajectory = Trajectory(
        reward=jnp.asarray(np.where(alive, reward, 0.0), jnp.float32),
        value=jnp.asarray(np.where(alive, 2.0, 0.0), jnp.float32),
        valid=jnp.asarray(alive),
        identity=jnp.asarray(identity[:-1]),
        final_value=jnp.asarray(np.zeros(alive.shape) if final_value is None else final_value, jnp.float32),
        final_valid=jnp.asarray(np.zeros(alive.shape) if final_value is None else final_value) != 0,
        ended=jnp.asarray(np.isin(np.arange(t), ended)),
    )
    last_value = jnp.asarray(np.where(after, last_value, 0.0), jnp.float32)
    return advantages(trajectory, last_value, jnp.asarray(after), jnp.asarray(identity[-1]), credit, GAMMA, LAMBDA)


def test_a_life_beyond_the_rollout_bootstraps_from_the_last_value():
    advantage, target, value = credit_of([[1]] * 4, [[7]] * 4)
    # delta = 2 + 2/2 - 2 = 1 at each step; A = 1 + A'/4.
    assert advantage[:, 0].tolist() == [1.3125, 1.25, 1.0]
    assert target[:, 0].tolist() == [3.3125, 3.25, 3.0]
    assert value[:, 0].tolist() == [2.0, 2.0, 2.0]
    advantage, _, _ = credit_of([[1]] * 4, [[7]] * 4, last_value=6.0)
    assert advantage[:, 0].tolist() == [1.4375, 1.75, 3.0]


def test_a_death_ends_the_trajectory_with_nothing_to_follow():
    # Dies in the second step: delta = 2 + 0 - 2 = 0 there.
    advantage, _, _ = credit_of([[1], [1], [0], [0]], [[7]] * 4)
    assert advantage[:2, 0].tolist() == [1.0, 0.0]


def test_a_slot_reused_in_the_very_next_step_starts_another_trajectory():
    # Entity 7 dies in step 1 and entity 9 is born into its slot in that same step: the slot is valid throughout.
    advantage, _, _ = credit_of([[1]] * 5, [[7], [7], [9], [9], [9]])
    assert advantage[:, 0].tolist() == [1.0, 0.0, 1.25, 1.0]
    # The same at the end of the rollout: the last value is the newcomer's.
    advantage, _, _ = credit_of([[1]] * 3, [[7], [7], [9]], last_value=50.0)
    assert advantage[:, 0].tolist() == [1.0, 0.0]


def test_a_birth_starts_a_trajectory_and_leaves_the_empty_slot_before_it_alone():
    advantage, target, _ = credit_of([[0], [0], [1], [1], [1]], [[-1], [-1], [9], [9], [9]])
    assert advantage[:, 0].tolist() == [0.0, 0.0, 1.25, 1.0]
    assert target[:2, 0].tolist() == [0.0, 0.0]


def test_a_life_of_one_step_is_its_reward():
    advantage, target, _ = credit_of([[0], [1], [0]], [[-1], [9], [9]])
    assert advantage[:, 0].tolist() == [0.0, 0.0]
    assert target[1, 0] == 2.0


def test_a_truncated_episode_bootstraps_from_its_final_observation():
    # Identities start again at 0 in each episode, so that the next one has the same: it must not be bootstrapped from.
    final = [[0.0], [4.0], [0.0], [0.0]]
    advantage, _, _ = credit_of([[1]] * 5, [[0]] * 5, ended=[1], final_value=final)
    # delta = 2 + 4/2 - 2 = 2 at the truncation.
    assert advantage[:, 0].tolist() == [1.5, 2.0, 1.25, 1.0]


def test_a_terminated_episode_is_followed_by_nothing():
    advantage, _, _ = credit_of([[1]] * 5, [[0]] * 5, ended=[1])
    assert advantage[:, 0].tolist() == [1.0, 0.0, 1.25, 1.0]


def test_who_dies_in_the_step_that_truncates_the_world_gets_no_bootstrap():
    final = [[0.0, 0.0], [4.0, 0.0]]
    advantage, _, _ = credit_of([[1, 1]] * 3, [[0, 1]] * 3, ended=[1], final_value=final)
    assert advantage.tolist() == [[1.5, 1.0], [2.0, 0.0]]


def test_slots_do_not_see_each_other_under_their_own_credit():
    valid = [[1, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]]
    identity = [[0, -1, 2], [0, 5, 2], [0, 5, 2], [6, 5, 2]]
    together = credit_of(valid, identity)[0]
    for slot in range(3):
        alone = credit_of([[row[slot]] for row in valid], [[row[slot]] for row in identity])[0]
        np.testing.assert_array_equal(together[:, slot], alone[:, 0])


def test_done_global_leaves_a_slots_next_to_itself():
    # Nothing is shared, so nothing comes after a death: entity 9 has the slot of 7, and a trajectory of its own.
    credit = CreditTable(done="global")
    advantage, _, _ = credit_of([[1]] * 4, [[7], [9], [9], [9]], credit=credit)
    assert advantage[:, 0].tolist() == [0.0, 1.25, 1.0]
    own, _, _ = credit_of([[1]] * 4, [[7], [9], [9], [9]])
    assert advantage.tolist() == own.tolist()


def test_advantage_global_is_the_mean_over_the_valid():
    credit = CreditTable(advantage="global")
    # The second slot dies in the last step: advantages 1 and 0 there.
    own = credit_of([[1, 1, 0], [1, 1, 0], [1, 0, 0]], [[0, 1, -1]] * 3)[0]
    shared, target, _ = credit_of([[1, 1, 0], [1, 1, 0], [1, 0, 0]], [[0, 1, -1]] * 3, credit=credit)
    assert own[1].tolist() == [1.0, 0.0, 0.0]
    assert shared[1].tolist() == [0.5, 0.5, 0.0]
    # The value still learns its own target.
    assert target[1].tolist() == [3.0, 2.0, 0.0]


def test_value_global_gives_each_valid_group_the_sum():
    credit = CreditTable(value="global")
    _, _, value = credit_of([[1, 1, 0], [1, 0, 0], [1, 0, 0]], [[0, 1, -1]] * 3, credit=credit)
    assert value.tolist() == [[4.0, 4.0, 0.0], [2.0, 0.0, 0.0]]


@pytest.mark.parametrize("done", ["group", "global"])
def test_a_team_is_worth_who_was_cut_off_alone_and_who_goes_on(done):
    final = [[0.0, 0.0], [4.0, 0.0], [0.0, 0.0]]
    credit = CreditTable(value="global", done=done)
    advantage, _, value = credit_of([[1, 1], [1, 1], [0, 1], [0, 1]], [[0, 1]] * 4, credit=credit, final_value=final)
    assert value.tolist() == [[4.0, 4.0], [4.0, 4.0], [0.0, 2.0]]
    # The first is followed by its last value and the other's, 4 + 2; the other goes on without it.
    assert advantage[1, 0] == 2.0 + 0.5 * 6.0 - 4.0
    assert advantage[1:, 1].tolist() == [2.0 + 0.5 * 2.0 - 4.0 + 0.25, 1.0]


# Separation

ROWS = (3, 4)
VALUES = hnp.arrays(np.float32, ROWS, elements=st.integers(-8, 8).map(float))
VALID = hnp.arrays(bool, ROWS)


@given(VALUES, VALID)
@fixed
def test_global_scope_is_the_sum_over_the_valid_and_zero_elsewhere(values, valid):
    expected = np.where(valid, np.where(valid, values, 0).sum(axis=-1, keepdims=True), 0)
    poisoned = jnp.asarray(np.where(valid, values, np.nan))
    np.testing.assert_array_equal(separate(poisoned, jnp.asarray(valid), "global"), expected)
    np.testing.assert_array_equal(separate(jnp.asarray(values), jnp.asarray(valid), "group"), values)


@given(VALUES, VALID, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
@fixed
def test_own_weight_interpolates_between_own_and_global_reward(values, valid, own_weight):
    values = np.where(valid, values, 0)
    reward, mask = jnp.asarray(values), jnp.asarray(valid)
    total = separate(reward, mask, "global")
    mixed = mix_reward(reward, mask, CreditTable(own_weight=own_weight))
    np.testing.assert_allclose(mixed, own_weight * values + (1 - own_weight) * np.asarray(total), atol=1e-5)
    # reward = "global" is the weight 0, whatever the weight says.
    everyone = mix_reward(reward, mask, CreditTable(reward="global", own_weight=own_weight))
    np.testing.assert_array_equal(everyone, total)


@pytest.mark.parametrize("own_weight", [-0.1, 1.5])
def test_own_weight_is_a_share(own_weight):
    with pytest.raises(ValueError, match="own_weight"):
        CreditTable(own_weight=own_weight)


# Groups

STEPS, N = 5, 4
grouped = jax.jit(
    lambda trajectory, value, valid, identity: advantages(trajectory, value, valid, identity, OWN, GAMMA, LAMBDA)[0]
)


@given(
    reward=hnp.arrays(np.float32, (STEPS, N), elements=st.integers(-8, 8).map(float)),
    value=hnp.arrays(np.float32, (STEPS + 1, N), elements=st.integers(-8, 8).map(float)),
    death=hnp.arrays(np.int32, (N,), elements=st.integers(1, STEPS + 1)),
)
@fixed
def test_one_group_of_all_has_the_sum_of_the_entities_advantages(reward, value, death):
    # Advantage is linear in rewards and values, and a death leaves nothing behind; only births would make a difference.
    death[0] = STEPS + 1  # somebody lives on, so that the group does
    alive = np.arange(STEPS + 1)[:, None] < death[None]
    reward, value = np.where(alive[:-1], reward, 0.0), np.where(alive, value, 0.0)
    identity = np.broadcast_to(np.arange(N, dtype=np.int32), (STEPS + 1, N))

    def advantage_of(reward, value, alive, identity):
        trajectory = Trajectory(
            reward=jnp.asarray(reward, jnp.float32),
            value=jnp.asarray(value[:-1], jnp.float32),
            valid=jnp.asarray(alive[:-1]),
            identity=jnp.asarray(identity[:-1]),
            final_value=jnp.zeros(reward.shape),
            final_valid=jnp.zeros(reward.shape, bool),
            ended=jnp.zeros(STEPS, bool),
        )
        last = jnp.asarray(value[-1], jnp.float32), jnp.asarray(alive[-1]), jnp.asarray(identity[-1])
        return np.asarray(grouped(trajectory, *last))

    per_entity = advantage_of(reward, value, alive, identity)
    members = jax.vmap(lambda a: Membership(jnp.where(a, 0, -1), jnp.zeros(1, jnp.int32)))(jnp.asarray(alive))

    def total(x, n):
        rows = jax.tree.map(lambda leaf: leaf[:n], members)
        return np.asarray(jax.vmap(lambda m, v: m.total(v))(rows, jnp.asarray(x, jnp.float32)))

    group_alive = np.asarray(jax.vmap(lambda m, v: m.any(v))(members, jnp.asarray(alive)))
    whole = advantage_of(total(reward, STEPS), total(value, STEPS + 1), group_alive, np.zeros((STEPS + 1, 1), np.int32))
    np.testing.assert_allclose(whole[:, 0], np.where(alive[:-1], per_entity, 0).sum(axis=1), atol=1e-4)
