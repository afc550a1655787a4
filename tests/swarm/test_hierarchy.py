"""Groups against numpy loops: reduction, broadcast, membership over levels, the rules, and the generations of slots."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swarm.core.errors import ConfigError
from swarm.population.entities import Entities, Spawn, spawn
from swarm.population.grouping import Nodes, parse_grouping
from swarm.population.hierarchy import Hierarchy, broadcast_groups, form, reduce_groups, regroup

pytestmark = pytest.mark.optimised

N_GROUPS = 4
OPERATIONS = ("sum", "mean", "max", "min", "any", "count")
IN_NUMPY = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "any": np.any, "count": len}
reduce_jit = jax.jit(reduce_groups, static_argnums=(2, 3))
broadcast_jit = jax.jit(broadcast_groups)
# One flat shape and one with a trailing axis: each compiles once per operation.
SHAPES = ((7,), (5, 2))
fixed = settings(deadline=None, derandomize=True, max_examples=40)


def loop(values, index, n_groups, operation):
    groups = []
    for group in range(n_groups):
        members = values[index == group]
        if operation == "count":
            groups.append(np.full(values.shape[1:], len(members)))
        elif len(members) == 0:
            groups.append(np.zeros(values.shape[1:]))
        else:
            groups.append(IN_NUMPY[operation](members, axis=0))
    return np.stack(groups)


@st.composite
def memberships(draw):
    shape = draw(st.sampled_from(SHAPES))
    # Small whole numbers: sums are exact in any order, so that equality is meant to the bit.
    values = draw(hnp.arrays(np.float32, shape, elements=st.integers(-9, 9).map(float)))
    index = draw(hnp.arrays(np.int32, shape[:1], elements=st.integers(-1, N_GROUPS - 1)))
    mask = draw(hnp.arrays(bool, shape[:1]))
    return values, index, mask


@pytest.mark.parametrize("operation", OPERATIONS)
@given(memberships())
@fixed
def test_reduce_is_the_loop_over_groups(operation, drawn):
    values, index, mask = drawn
    index = np.where(mask, index, -1)
    values = values > 0 if operation == "any" else values
    found = np.asarray(reduce_jit(jnp.asarray(values), jnp.asarray(index), N_GROUPS, operation))
    expected = loop(values, index, N_GROUPS, operation)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6 if operation == "mean" else 0)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_stands_outside_every_group_cannot_be_seen(operation):
    index = jnp.asarray([0, -1, 2, -1, 2, 0, -1], jnp.int32)
    values = jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    poisoned = jnp.where(index < 0, jnp.nan, values)
    np.testing.assert_array_equal(
        reduce_jit(values, index, N_GROUPS, operation), reduce_jit(poisoned, index, N_GROUPS, operation)
    )


@given(memberships(), st.data())
@fixed
def test_broadcast_gives_each_member_its_groups_value_and_others_zero(drawn, data):
    values, index, _ = drawn
    groups = data.draw(hnp.arrays(np.float32, (N_GROUPS, *values.shape[1:]), elements=st.integers(-9, 9).map(float)))
    expected = np.stack([groups[i] if i >= 0 else np.zeros(values.shape[1:]) for i in index])
    np.testing.assert_array_equal(broadcast_jit(jnp.asarray(groups), jnp.asarray(index)), expected)


def two_levels(low, high):
    high_groups = jnp.zeros(2, jnp.int32)
    low_groups = jnp.zeros(len(high), jnp.int32)
    return Hierarchy(
        levels=("unit", "crew", "team"),
        parent=(jnp.asarray(low, jnp.int32), jnp.asarray(high, jnp.int32)),
        exists=(low_groups == 0, high_groups == 0),
        identity=(low_groups, high_groups),
        generation=(low_groups, high_groups),
        overflow=(jnp.int32(0), jnp.int32(0)),
        next_uid=jnp.int32(6),
    )


@given(
    low=st.lists(st.integers(-1, 2), min_size=6, max_size=6),
    high=st.lists(st.integers(-1, 1), min_size=3, max_size=3),
    mask=st.lists(st.booleans(), min_size=6, max_size=6),
)
@fixed
def test_two_levels_climb_reduce_and_broadcast_like_loops(low, high, mask):
    hierarchy = two_levels(low, high)
    up = [high[g] if g >= 0 else -1 for g in low]
    assert hierarchy.ancestor(0).tolist() == list(range(6))
    assert hierarchy.ancestor(1).tolist() == low
    assert hierarchy.ancestor(2).tolist() == up
    assert [hierarchy.n_groups(level) for level in range(3)] == [6, 3, 2]
    values = np.arange(1.0, 7.0, dtype=np.float32)
    counted = np.where(mask, up, -1)
    total = hierarchy.reduce(jnp.asarray(values), 2, "sum", jnp.asarray(mask))
    np.testing.assert_array_equal(total, loop(values, counted, 2, "sum"))
    # Who is masked out does not count, but still sees its group's value.
    seen = hierarchy.broadcast(total, 2)
    np.testing.assert_array_equal(seen, [float(total[g]) if g >= 0 else 0.0 for g in up])


# Any depth

SIZES = (9, 6, 4, 2)
PAIRS = [(of, level) for level in range(1, 4) for of in range(level)]


deep_parents = st.tuples(
    *[hnp.arrays(np.int32, n, elements=st.integers(-1, above - 1)) for n, above in itertools.pairwise(SIZES)]
)


def deep(parents, seed=0):
    """A group exists where it has members; identities are distinct."""
    rng = np.random.default_rng(seed)
    return Hierarchy(
        levels=("unit", "squad", "wing", "team"),
        parent=tuple(jnp.asarray(p) for p in parents),
        exists=tuple(jnp.asarray(np.isin(np.arange(n), p)) for n, p in zip(SIZES[1:], parents, strict=True)),
        identity=tuple(jnp.asarray(rng.permutation(n), jnp.int32) for n in SIZES[1:]),
        generation=tuple(jnp.zeros(n, jnp.int32) for n in SIZES[1:]),
        overflow=tuple(jnp.int32(0) for _ in SIZES[1:]),
        next_uid=jnp.int32(SIZES[0]),
    )


def climbed(hierarchy, of, level):
    index = list(range(SIZES[of]))
    for parent in hierarchy.parent[of:level]:
        index = [int(parent[i]) if i >= 0 else -1 for i in index]
    return np.asarray(index)


@functools.partial(jax.jit, static_argnums=2)
def ask_all(hierarchy, values, operation):
    return {
        (of, level): (
            reduced := hierarchy.reduce(values[of], level, operation, of=of),
            hierarchy.broadcast(reduced, level, to=of),
        )
        for of, level in PAIRS
    }


@pytest.mark.parametrize("operation", OPERATIONS)
@given(deep_parents, st.integers(0, 99))
@settings(fixed, max_examples=15)
def test_any_level_reduces_any_level_below_it_and_gives_back(operation, parents, seed):
    hierarchy = deep(parents)
    rng = np.random.default_rng(seed)
    values = [rng.integers(-9, 10, n).astype(np.float32) for n in SIZES]
    values = [v > 0 for v in values] if operation == "any" else values
    found = ask_all(hierarchy, [jnp.asarray(v) for v in values], operation)
    for (of, level), (reduced, given_back) in found.items():
        index = climbed(hierarchy, of, level)
        assert hierarchy.ancestor(level, of).tolist() == index.tolist()
        expected = loop(values[of], index, SIZES[level], operation)
        np.testing.assert_allclose(reduced, expected, rtol=1e-6 if operation == "mean" else 0)
        np.testing.assert_array_equal(given_back, [reduced[i] if i >= 0 else 0 for i in index])


def everything(hierarchy):
    return [x.tolist() for x in jax.tree.leaves(hierarchy)]


split_jit = jax.jit(Hierarchy.split, static_argnums=1)
merge_jit = jax.jit(Hierarchy.merge, static_argnums=1)


@given(deep_parents, st.data())
@fixed
def test_a_split_moves_those_who_leave_into_a_free_slot(parents, data):
    old = deep(parents, data.draw(st.integers(0, 99)))
    level = data.draw(st.sampled_from([1, 2, 3]))
    leaving = data.draw(hnp.arrays(bool, SIZES[level - 1]))
    group = data.draw(st.integers(-1, SIZES[level] - 1))
    new = split_jit(old, level, group, jnp.asarray(leaving))
    below = level - 1
    parent = old.parent[below].tolist()
    goes = [p == group and group >= 0 and bool(leaves) for p, leaves in zip(parent, leaving, strict=True)]
    stays = [p == group and group >= 0 and not leaves for p, leaves in zip(parent, leaving, strict=True)]
    free = [slot for slot in range(SIZES[level]) if not old.exists[below][slot]]
    if not (any(goes) and any(stays) and free):
        counted = eqx.tree_at(lambda h: h.overflow[below], new, old.overflow[below])
        assert everything(counted) == everything(old)
        assert int(new.overflow[below]) == (any(goes) and any(stays) and not free)
        return
    slot = free[0]
    assert new.parent[below].tolist() == [slot if g else p for g, p in zip(goes, parent, strict=True)]
    assert bool(new.exists[below][slot])
    assert int(new.identity[below][slot]) not in old.identity[below].tolist()
    changed = np.flatnonzero(np.asarray(new.generation[below]) != np.asarray(old.generation[below]))
    assert changed.tolist() == [slot]
    assert np.flatnonzero(np.asarray(new.identity[below]) != np.asarray(old.identity[below])).tolist() == [slot]
    for above in range(level, 3):
        expected = old.parent[above].tolist()
        if above == level:
            expected[slot] = expected[group]
        assert new.parent[above].tolist() == expected


@given(deep_parents, st.data())
@fixed
def test_a_merger_brings_all_members_together_and_frees_a_slot(parents, data):
    old = deep(parents, data.draw(st.integers(0, 99)))
    level = data.draw(st.sampled_from([1, 2, 3]))
    a, b = (data.draw(st.integers(-1, SIZES[level])) for _ in range(2))
    new = merge_jit(old, level, a, b)
    exists, parent = old.exists[level - 1].tolist(), old.parent[level - 1].tolist()
    if a == b or not all(0 <= x < len(exists) and exists[x] for x in (a, b)):
        assert everything(new) == everything(old)
        return
    assert new.parent[level - 1].tolist() == [a if p == b else p for p in parent]
    assert new.exists[level - 1].tolist() == [alive and slot != b for slot, alive in enumerate(exists)]
    if level < 3:
        assert new.parent[level].tolist() == [-1 if s == b else p for s, p in enumerate(old.parent[level].tolist())]
    assert [x.tolist() for x in new.generation] == [x.tolist() for x in old.generation]


# Rules


KINDS, N_TEAMS, N, CENTRE = ("depot", "light", "heavy"), 2, 12, (4.0, 6.0)


def rule(text):
    return parse_grouping(text, where="here", kinds=KINDS, n_teams=N_TEAMS, n_slots=N, centre=CENTRE)


def population(seed):
    """Random entities; whatever the dead slots hold is garbage."""
    rng = np.random.default_rng(seed)
    alive = rng.random(N) < 0.7

    def garbled(values, garbage):
        return jnp.asarray(np.where(alive.reshape(-1, *[1] * (values.ndim - 1)), values, garbage).astype(values.dtype))

    position = rng.integers(0, 9, (N, 2)).astype(np.float32)  # a coarse grid, so that ties and edges occur
    return Entities(
        alive=jnp.asarray(alive),
        uid=garbled(rng.permutation(50)[:N].astype(np.int32), -5),
        kind=garbled(rng.integers(0, 3, N).astype(np.int32), 77),
        team=garbled(rng.integers(0, N_TEAMS, N).astype(np.int32), -9),
        position=garbled(position, np.nan),
        heading=jnp.zeros(N),
        velocity=jnp.zeros((N, 2)),
        stores=jnp.zeros((N, 1)),
        next_uid=jnp.int32(50),
    )


def nearest_depot(e, i):
    depots = [j for j in range(N) if e.alive[j] and e.kind[j] == 0 and e.team[j] == e.team[i]]
    return min(depots, key=lambda j: (np.sum((e.position[i] - e.position[j]) ** 2), j), default=-1)


IN_PYTHON = {
    "entity": (N, lambda e, i: i),
    "global": (1, lambda e, i: 0),
    "kind": (3, lambda e, i: e.kind[i]),
    "team": (2, lambda e, i: e.team[i]),
    "modulo:4": (4, lambda e, i: e.uid[i] % 4),
    "quadrant": (4, lambda e, i: int(e.position[i, 0] > CENTRE[0]) + 2 * int(e.position[i, 1] > CENTRE[1])),
    "nearest:depot": (N, nearest_depot),
}
SEEDS = range(8)


@functools.cache
def applied(text):
    grouping = rule(text)
    return jax.jit(lambda e: grouping(Nodes.of(e), e))


@pytest.mark.parametrize("text", IN_PYTHON)
def test_rule_assigns_the_living_as_a_loop_would(text):
    n_groups, group_of = IN_PYTHON[text]
    assert rule(text).n_groups(N) == n_groups
    for seed in SEEDS:
        entities = population(seed)
        index, groups = applied(text)(entities)
        host = jax.tree.map(np.asarray, entities)
        expected = [group_of(host, i) if host.alive[i] else -1 for i in range(N)]
        assert index.tolist() == expected
        assert groups.exists.shape == (n_groups,)


@pytest.mark.parametrize("text", ["global", "kind", "team", "modulo:4", "quadrant"])
def test_groups_of_fixed_slots_stand_at_the_mean_of_their_members(text):
    for seed in SEEDS:
        entities = population(seed)
        index, groups = applied(text)(entities)
        for slot in range(groups.exists.shape[0]):
            members = np.flatnonzero(np.asarray(index) == slot)
            assert bool(groups.exists[slot]) == (len(members) > 0)
            assert int(groups.identity[slot]) == slot
            if len(members):
                np.testing.assert_allclose(groups.position[slot], entities.position[members].mean(axis=0), rtol=1e-5)
                if text == "team":
                    assert int(groups.team[slot]) == slot


def test_a_group_around_an_anchor_is_the_anchor():
    for seed in SEEDS:
        entities = population(seed)
        _, groups = applied("nearest:depot")(entities)
        anchor = np.asarray(entities.is_kind(0))
        assert groups.exists.tolist() == anchor.tolist()
        for name in ("uid", "team", "position"):
            of_group = np.asarray(getattr(groups, "identity" if name == "uid" else name))
            np.testing.assert_array_equal(of_group[anchor], np.asarray(getattr(entities, name))[anchor])


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("modulo", "like 'modulo:4'"),
        ("modulo:", "like 'modulo:4'"),
        ("modulo:0", "like 'modulo:4'"),
        ("modulo:-2", "like 'modulo:4'"),
        ("modulo:x", "like 'modulo:4'"),
        ("modulo:²", "like 'modulo:4'"),  # a digit to str.isdigit, but no number to int
        ("nearest", "valid: depot, heavy, light"),
        ("nearest:depto", "did you mean 'depot'?"),
        ("quadrants", "did you mean 'quadrant'?"),
        ("global:3", "did you mean 'global'?"),
        ("", "valid: "),
        ("fixed", "like 'fixed:8'"),
        ("fixed:0", "like 'fixed:8'"),
        ("fixed:8,", "like 'fixed:8,100'"),
        ("fixed:8,x", "like 'fixed:8,100'"),
        ("kmeans:1.5", "like 'kmeans:4'"),
        ("components", "like 'components:2.5'"),
        ("components:-1", "like 'components:2.5'"),
        ("components:inf", "like 'components:2.5'"),
        ("components:2,0", "like 'components:2.5,100'"),
        ("component:2", "did you mean 'components:RADIUS'?"),
    ],
)
def test_a_rule_that_is_none_is_refused_with_its_remedy(text, remedy):
    with pytest.raises(ConfigError) as caught:
        rule(text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("here: ")
    assert repr(text) in message
    assert remedy in message


# Generations


def births(kinds):
    m = len(kinds)
    kind = jnp.asarray(kinds, jnp.int32)
    nought = jnp.zeros(m)
    return Spawn(kind >= 0, kind, jnp.zeros(m, jnp.int32), jnp.zeros((m, 2)), nought, jnp.zeros((m, 1)))


NEAREST = (rule("nearest:depot"),)
LEVELS = ("unit", "crew")
regroup_jit = jax.jit(lambda hierarchy, entities: regroup(hierarchy, NEAREST, entities))
spawn_jit = jax.jit(spawn)


def after(hierarchy, entities, dying, kinds):
    dead = entities.remove(jnp.zeros(N, bool).at[jnp.asarray(dying, jnp.int32)].set(True))
    entities, _ = spawn_jit(dead, births(kinds))
    return regroup_jit(hierarchy, entities), entities


def test_a_slot_gets_a_generation_when_another_depot_takes_it_and_only_then():
    depot, light, none = 0, 1, -1
    entities, _ = spawn_jit(Entities.empty(N, 2, 1), births([depot, depot, light]))
    hierarchy = form(LEVELS, NEAREST, entities)
    history = []
    for dying, kinds in [
        ([], [none] * 3),  # nothing happens
        ([1], [none] * 3),  # the depot dies: its slot waits
        ([], [light, none, none]),  # a light unit takes the slot: still no other group
        ([1], [none] * 3),
        ([], [depot, none, none]),  # another depot takes it
        ([], [none] * 3),
        ([1], [depot, none, none]),  # it dies, and another takes the slot within the same step
    ]:
        hierarchy, entities = after(hierarchy, entities, dying, kinds)
        history.append((int(hierarchy.generation[0][1]), bool(hierarchy.exists[0][1])))
        assert int(hierarchy.generation[0][0]) == 0  # the other depot lives on
    assert history == [(0, True), (0, False), (0, False), (0, False), (1, True), (1, True), (2, True)]


def test_generations_count_the_depots_that_followed_each_other_in_a_slot():
    rng = np.random.default_rng(0)
    entities, _ = spawn_jit(Entities.empty(N, 2, 1), births([0] * N))
    hierarchy = form(LEVELS, NEAREST, entities)
    depots_of_slot = [[uid] for uid in range(N)]
    for _ in range(40):
        dying = np.flatnonzero(rng.random(N) < 0.2)
        hierarchy, entities = after(hierarchy, entities, dying, rng.integers(-1, 2, N).tolist())
        for slot in np.flatnonzero(np.asarray(entities.is_kind(0))):
            if depots_of_slot[slot][-1] != int(entities.uid[slot]):
                depots_of_slot[slot].append(int(entities.uid[slot]))
        assert hierarchy.generation[0].tolist() == [len(depots) - 1 for depots in depots_of_slot]
    assert max(len(depots) for depots in depots_of_slot) > 3
