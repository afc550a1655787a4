"""The population against a list of slots kept by hand: who gets which slot and which identity."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.core.status import Status
from swarm.population.entities import LAST, Entities, Spawn, counted, spawn
from swarm.population.hierarchy import form
from swarm.simulation.simulator import visible_status

pytestmark = pytest.mark.optimised

N_REQUESTS, MOST_SLOTS = 4, 5
spawn_jit = jax.jit(spawn)
remove_jit = jax.jit(Entities.remove)
NO_GROUPS = form((), (), Entities.empty(1, 2, 1))


def requests(wanted, first_heading=0.0):
    """Requests that can be told apart by their heading, kind and place."""
    m = len(wanted)
    number = jnp.arange(m, dtype=jnp.float32)
    return Spawn(
        wanted=jnp.asarray(wanted, bool),
        kind=jnp.arange(m, dtype=jnp.int32),
        team=jnp.arange(m, dtype=jnp.int32) % 2,
        position=jnp.stack([number, number + 0.5], axis=1),
        heading=number + first_heading,
        stores=number[:, None] + 100.0,
    )


def test_births_take_the_lowest_free_slots_in_order():
    entities, _ = spawn_jit(Entities.empty(5, 2, 1), requests([True] * 4))
    entities = remove_jit(entities, jnp.asarray([False, True, False, True, False]))
    entities, n_overflow = spawn_jit(entities, requests([False, True, False, True], first_heading=10.0))
    assert entities.alive.tolist() == [True, True, True, True, False]
    assert entities.uid.tolist()[:4] == [0, 4, 2, 5]
    assert entities.heading.tolist()[:4] == [0.0, 11.0, 2.0, 13.0]
    assert entities.kind.tolist()[:4] == [0, 1, 2, 3]
    assert entities.team.tolist()[:4] == [0, 1, 0, 1]
    assert entities.position.tolist()[1] == [1.0, 1.5]
    assert entities.stores.tolist()[3] == [103.0]
    assert int(n_overflow) == 0


def test_births_without_a_slot_are_counted_and_get_no_identity():
    entities, n_overflow = spawn_jit(Entities.empty(3, 2, 1), requests([True] * 4))
    assert int(n_overflow) == 1
    # The three first served: order is precedence.
    assert entities.heading.tolist() == [0.0, 1.0, 2.0]
    assert int(entities.next_uid) == 3
    full, n_overflow = spawn_jit(entities, requests([False, True, True, False]))
    assert int(n_overflow) == 2
    for before, after in zip(jax.tree.leaves(entities), jax.tree.leaves(full), strict=True):
        np.testing.assert_array_equal(before, after)


def test_no_identity_is_given_twice_when_all_are_spent():
    entities = eqx.tree_at(lambda e: e.next_uid, Entities.empty(5, 2, 1), LAST - 3)
    assert not visible_status(entities, NO_GROUPS)
    entities, n_overflow = spawn_jit(entities, requests([True] * 4))
    # Slots there are, so more room would not help.
    assert int(n_overflow) == 0
    assert entities.alive.tolist() == [True, True, True, False, False]
    assert entities.uid.tolist() == [LAST - 3, LAST - 2, LAST - 1, -1, -1]
    assert int(entities.next_uid) == LAST
    assert visible_status(entities, NO_GROUPS) == Status.IDENTITIES_SPENT
    again, _ = spawn_jit(remove_jit(entities, jnp.ones(5, bool)), requests([True] * 4))
    assert not again.alive.any()


def test_groups_of_which_the_identities_are_nearly_spent_say_so():
    entities = Entities.empty(3, 2, 1)
    for highest, expected in ((LAST - 3, 0), (LAST - 2, Status.IDENTITIES_SPENT)):
        identity = jnp.asarray([-1, highest, 7], jnp.int32)
        assert visible_status(entities, eqx.tree_at(lambda h: h.identity, NO_GROUPS, (identity,))) == expected


def test_a_count_stays_at_the_most_that_its_bits_hold():
    total = jnp.asarray([0, LAST - 1, LAST], jnp.int32)
    assert counted(total, jnp.asarray([7, 5, LAST], jnp.int32)).tolist() == [7, LAST, LAST]


def test_a_newborn_inherits_nothing_from_the_dead():
    entities, _ = spawn_jit(Entities.empty(3, 2, 1), requests([True] * 4))
    nan = jnp.full_like(entities.position, jnp.nan)
    dead = Entities(
        alive=jnp.zeros(3, bool),
        uid=entities.uid,
        kind=entities.kind,
        team=entities.team,
        position=nan,
        heading=nan[:, 0],
        velocity=nan,
        stores=nan[:, :1],
        next_uid=entities.next_uid,
    )
    born, _ = spawn_jit(dead, requests([True] * 4))
    for leaf in jax.tree.leaves(born):
        assert np.isfinite(np.asarray(leaf, float)).all()
    assert born.velocity.tolist() == [[0.0, 0.0]] * 3


@given(
    n_slots=st.sampled_from((1, MOST_SLOTS)),
    rounds=st.lists(
        st.tuples(
            st.lists(st.booleans(), min_size=MOST_SLOTS, max_size=MOST_SLOTS),
            st.lists(st.booleans(), min_size=N_REQUESTS, max_size=N_REQUESTS),
        ),
        min_size=1,
        max_size=12,
    ),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_any_sequence_of_births_and_deaths_follows_the_list_of_slots(n_slots, rounds):
    entities = Entities.empty(n_slots, 2, 1)
    slots, next_uid, heading_of, slot_of = [None] * n_slots, 0, {}, {}
    for number, (dying, wanted) in enumerate(rounds):
        entities = remove_jit(entities, jnp.asarray(dying[:n_slots]))
        slots = [None if dies else uid for uid, dies in zip(slots, dying, strict=False)]
        entities, n_overflow = spawn_jit(entities, requests(wanted, first_heading=10.0 * number))
        refused = 0
        for request in np.flatnonzero(wanted):
            if None not in slots:
                refused += 1
                continue
            slots[slots.index(None)] = next_uid
            heading_of[next_uid] = request + 10.0 * number
            next_uid += 1
        assert int(n_overflow) == refused
        assert int(entities.next_uid) == next_uid
        assert entities.alive.tolist() == [uid is not None for uid in slots]
        living = {int(uid): slot for slot, uid in enumerate(entities.uid) if slots[slot] is not None}
        # As many identities as living: unique; and none that an earlier entity had in another slot: stable, not reused.
        assert len(living) == sum(uid is not None for uid in slots)
        assert all(slot_of.setdefault(uid, slot) == slot for uid, slot in living.items())
        assert living == {uid: slot for slot, uid in enumerate(slots) if uid is not None}
        assert all(float(entities.heading[slot]) == heading_of[uid] for uid, slot in living.items())


def test_births_can_be_differentiated_in_a_compiled_batch():
    def placed(position):
        births = eqx.tree_at(lambda b: b.position, requests([True] * 4), position)
        return jnp.sum(jnp.square(spawn(Entities.empty(3, 2, 1), births)[0].position))

    batch = jnp.arange(16.0).reshape(2, 4, 2)
    expected = 2 * np.where(np.arange(4)[None, :, None] < 3, batch, 0.0)
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.grad(placed)))(batch), expected)


def test_random_keys_depend_on_the_identity_alone():
    few, _ = spawn_jit(Entities.empty(3, 2, 1), requests([True] * 4))
    many, _ = spawn_jit(Entities.empty(5, 2, 1), requests([True] * 4))
    key = jax.random.key(3)
    few_keys, many_keys = (np.asarray(jax.random.key_data(e.keys(key))) for e in (few, many))
    np.testing.assert_array_equal(few_keys, many_keys[:3])
    assert len({tuple(k) for k in many_keys[:4]}) == 4


def test_kinds_are_counted_among_the_living_of_a_team_only():
    entities, _ = spawn_jit(Entities.empty(5, 2, 1), requests([True] * 4))
    assert entities.is_kind(0).tolist() == [True, False, False, False, False]  # slot 4 is dead and of kind 0
    assert entities.is_kind(1, team=1).tolist() == [False, True, False, False, False]
    assert not bool(entities.is_kind(1, team=0).any())
