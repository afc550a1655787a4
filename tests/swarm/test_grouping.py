"""Rules with memory against loops and scipy: fixed groups, components, k-means; anchors; neighbours in groups."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.core.errors import ConfigError
from swarm.geometry.space import Open, Periodic
from swarm.neighbors.questions import AllPairs, Among
from swarm.population.entities import Entities, Spawn, spawn
from swarm.population.grouping import Components, KMeans, NearestAnchor, Nodes, Previous, parse_grouping
from swarm.population.grouping.components import disguised, revealed
from swarm.population.grouping.nearest import nearest_of
from swarm.population.hierarchy import Hierarchy, form, regroup

N, N_TEAMS, SIDE, KINDS = 20, 2, 10.0, ("depot", "unit")
LEVELS = ("unit", "squad", "wing")
some = settings(deadline=None, derandomize=True, max_examples=12)
spawn_jit = jax.jit(spawn)
remove_jit = eqx.filter_jit(Entities.remove)
split_jit, merge_jit = eqx.filter_jit(Hierarchy.split), eqx.filter_jit(Hierarchy.merge)


def rule(text, n_slots=N, **more):
    centre = (SIDE / 2, SIDE / 2)
    return parse_grouping(text, where="here", kinds=KINDS, n_teams=N_TEAMS, n_slots=n_slots, centre=centre, **more)


@functools.cache
def rules(*texts, n_slots=N):
    return tuple(rule(text, n_slots) for text in texts)


form_jit, regroup_jit = eqx.filter_jit(form), eqx.filter_jit(regroup)


def births(rng, m, n_wanted):
    """Requests padded to m, so that every number of births has one shape."""
    place = rng.uniform(0, SIDE, (m, 2)).astype(np.float32)
    return Spawn(
        wanted=jnp.arange(m) < n_wanted,
        kind=jnp.asarray(rng.integers(0, 2, m), jnp.int32),
        team=jnp.asarray(rng.integers(0, N_TEAMS, m), jnp.int32),
        position=jnp.asarray(place),
        heading=jnp.zeros(m),
        stores=jnp.zeros((m, 1)),
    )


def population(seed, n_slots=N, n_living=14):
    return spawn_jit(Entities.empty(n_slots, 2, 1), births(np.random.default_rng(seed), N, n_living))[0]


def turned_over(entities, seed, share=0.3, n_born=4, walk=0.0):
    """Some die, some are born, all walk; what becomes of a slot below N does not depend on how many there are."""
    rng = np.random.default_rng([seed, 1])
    n = entities.n_slots
    dying = np.zeros(n, bool)
    dying[:N] = rng.random(N) < share
    step = np.zeros((n, 2), np.float32)
    step[:N] = rng.normal(0, walk, (N, 2)) if walk else 0.0
    entities = eqx.tree_at(lambda e: e.position, entities, jnp.asarray(np.asarray(entities.position) + step))
    return spawn_jit(remove_jit(entities, jnp.asarray(dying)), births(rng, 8, n_born))[0]


def permuted(entities, order):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[order]) if x.ndim else x, entities)


def partition(entities, index):
    """Sets of identities, and who is in none."""
    groups, index, uid = {}, np.asarray(index), np.asarray(entities.uid)
    for slot in np.flatnonzero(np.asarray(entities.alive)):
        groups.setdefault(int(index[slot]), set()).add(int(uid[slot]))
    return {frozenset(members) for group, members in groups.items() if group >= 0}, groups.get(-1, set())


def same_leaves(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


MEMORY = ("fixed:3", "components:1.7", "kmeans:3")
RULES_OF_LEVELS = [("fixed:3", "kmeans:2"), ("components:1.7", "team"), ("kmeans:3", "nearest:depot")]


# What holds for every rule


@pytest.mark.parametrize("texts", RULES_OF_LEVELS)
def test_slots_may_be_permuted_and_there_may_be_twice_as_many(texts):
    # Components are numbered in the order of slots, so of groups of components only those by team have no order.
    for seed in range(2):
        small, order = population(seed), np.random.default_rng(seed).permutation(N)
        hierarchy = form_jit(LEVELS, rules(*texts), small)
        shuffled = form_jit(LEVELS, rules(*texts), permuted(small, order))
        roomy = population(seed, 2 * N)
        wide = form_jit(LEVELS, rules(*texts, n_slots=2 * N), roomy)
        for step in range(3):
            for level in (1, 2):
                found = partition(small, hierarchy.ancestor(level))
                assert sum(len(group) for group in found[0]) >= 3
                assert partition(permuted(small, order), shuffled.ancestor(level)) == found
                # Not only the partition: the same slots, identities and generations.
                assert wide.ancestor(level).tolist()[:N] == hierarchy.ancestor(level).tolist()
                n = hierarchy.n_groups(level)
                here, there = (np.where(h.exists[level - 1], h.identity[level - 1], -1)[:n] for h in (hierarchy, wide))
                assert here.tolist() == there.tolist()
                assert not np.asarray(wide.exists[level - 1])[n:].any()
            # Those born later take slots in the order of slots, so under a permutation nobody is born.
            seed_of_step = 100 * seed + step
            small = turned_over(small, seed_of_step, share=0.15, n_born=0, walk=0.3)
            roomy = turned_over(roomy, seed_of_step, share=0.15, n_born=0, walk=0.3)
            hierarchy = regroup_jit(hierarchy, rules(*texts), small)
            shuffled = regroup_jit(shuffled, rules(*texts), permuted(small, order))
            wide = regroup_jit(wide, rules(*texts, n_slots=2 * N), roomy)


@pytest.mark.parametrize("texts", RULES_OF_LEVELS)
def test_generations_count_the_groups_that_followed_each_other_and_the_dead_are_in_none(texts):
    entities = population(1)
    hierarchy = form_jit(LEVELS, rules(*texts), entities)
    held = [[i] for i in hierarchy.identity[0].tolist()]
    for step in range(12):
        entities = turned_over(entities, step, walk=0.5)
        garbage = jnp.where(entities.alive[:, None], entities.position, jnp.nan)
        entities = eqx.tree_at(lambda e: e.position, entities, garbage)
        hierarchy = regroup_jit(hierarchy, rules(*texts), entities)
        index, exists = np.asarray(hierarchy.parent[0]), np.asarray(hierarchy.exists[0])
        assert (index[~np.asarray(entities.alive)] == -1).all()
        assert exists[index[index >= 0]].all()
        assert exists.sum() == len(set(index[index >= 0].tolist()))
        for slot in np.flatnonzero(exists):
            if held[slot][-1] != (identity := int(hierarchy.identity[0][slot])):
                assert identity not in held[slot]
                held[slot].append(identity)
        assert hierarchy.generation[0].tolist() == [len(identities) - 1 for identities in held]
        assert [int(n) for n in hierarchy.overflow] == [0, 0]
    assert max(len(identities) for identities in held) > 2


@pytest.mark.parametrize("texts", RULES_OF_LEVELS)
def test_a_world_alone_is_the_world_in_a_batch(texts):
    worlds = [population(seed) for seed in range(3)]
    later = [turned_over(world, seed, walk=0.2) for seed, world in enumerate(worlds)]
    alone = [
        regroup_jit(form_jit(LEVELS, rules(*texts), a), rules(*texts), b) for a, b in zip(worlds, later, strict=True)
    ]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    formed = eqx.filter_jit(eqx.filter_vmap(lambda e: form(LEVELS, rules(*texts), e)))(stack(worlds))
    batch = eqx.filter_jit(eqx.filter_vmap(lambda h, e: regroup(h, rules(*texts), e)))(formed, stack(later))
    same_leaves(batch, stack(alone))


@pytest.mark.parametrize("text", MEMORY)
def test_gradients_pass_by_the_rules(text):
    entities = population(0)
    hierarchy = form_jit(LEVELS[:2], rules(text), entities)

    @jax.jit
    @jax.grad
    def of(position):
        moved = eqx.tree_at(lambda e: e.position, entities, position)
        return jnp.sum(regroup(hierarchy, rules(text), moved).reduce(position**2, 1, "mean"))

    # Two at one place, and two in the middle of nowhere.
    gradient = of(entities.position.at[1].set(entities.position[0]))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).sum() > 0


# Fixed groups


def joined(groups, newborn, size, n_slots):
    """The rule as a loop: `groups` of (team, members) by slot, `newborn` of (team, uid) in order."""
    for team in range(N_TEAMS):
        queue = [uid for its_team, uid in newborn if its_team == team]
        for slot in sorted(groups):
            while groups[slot][0] == team and len(groups[slot][1]) < size and queue:
                groups[slot][1].append(queue.pop(0))
        while queue:
            free = [slot for slot in range(n_slots) if slot not in groups]
            if not free:
                break
            groups[free[0]] = (team, queue[:size])
            queue = queue[size:]
    return groups


@pytest.mark.parametrize(("text", "roomy"), [("fixed:3", True), ("fixed:1", True), ("fixed:4,5", False)])
def test_fixed_groups_keep_their_members_and_newborns_fill_the_ranks(text, roomy):
    grouping = rules(text)
    size, n_slots = grouping[0].size, grouping[0].n_groups(N)
    overflows = 0
    for seed in range(3):
        entities, hierarchy, groups = Entities.empty(N, 2, 1), None, {}
        for step in range(10):
            entities = turned_over(entities, 50 * seed + step, share=0.3, n_born=8 if step < 2 else 4)
            if hierarchy is None:
                hierarchy, before = form_jit(LEVELS[:2], grouping, entities), 0
            else:
                before = int(hierarchy.overflow[0])
                hierarchy = regroup_jit(hierarchy, grouping, entities)
            alive = np.flatnonzero(np.asarray(entities.alive))
            team_of = {int(entities.uid[i]): int(entities.team[i]) for i in alive}
            groups = {slot: (team, [u for u in members if u in team_of]) for slot, (team, members) in groups.items()}
            groups = {slot: group for slot, group in groups.items() if group[1]}
            placed = {u for _, members in groups.values() for u in members}
            newborn = [(team_of[u], u) for u in (int(entities.uid[i]) for i in alive) if u not in placed]
            groups = joined(groups, newborn, size, n_slots)
            slot_of = {u: slot for slot, (_, members) in groups.items() for u in members}
            assert hierarchy.parent[0][alive].tolist() == [slot_of.get(int(entities.uid[i]), -1) for i in alive]
            left_out = len(alive) - len(slot_of)
            assert int(hierarchy.overflow[0]) == before + left_out
            overflows += left_out
    assert (overflows == 0) == roomy


def test_the_first_fixed_groups_are_of_consecutive_identities_of_a_team():
    entities = population(5)
    hierarchy = form_jit(LEVELS[:2], rules("fixed:3"), entities)
    of_team = [sorted(entities.uid[entities.is_kind(k, t)].tolist() for k in (0, 1)) for t in (0, 1)]
    expected = set()
    for kinds in of_team:
        uids = sorted(itertools.chain(*kinds))
        expected |= {frozenset(uids[i : i + 3]) for i in range(0, len(uids), 3)}
    assert partition(entities, hierarchy.parent[0]) == (expected, set())


@given(st.integers(0, 999))
@some
def test_splits_and_mergers_outlive_regrouping_at_every_level(seed):
    rng = np.random.default_rng(seed)
    texts = ("fixed:4,16", "fixed:3,12")
    entities = population(seed)
    hierarchy = form_jit(LEVELS, rules(*texts), entities)
    edited = []
    for level in (1, 2):
        group = int(rng.choice(np.flatnonzero(np.asarray(hierarchy.exists[level - 1]))))
        hierarchy = split_jit(
            hierarchy, level, jnp.int32(group), jnp.asarray(rng.random(hierarchy.n_groups(level - 1)) < 0.5)
        )
        a, b = rng.choice(np.flatnonzero(np.asarray(hierarchy.exists[level - 1])), 2)
        merged = merge_jit(hierarchy, level, jnp.int32(a), jnp.int32(b))
        # A wing whose only squad was merged into another wing's would end; then it is not the same hierarchy.
        if level == 2 or partition(entities, merged.ancestor(2))[0] == partition(entities, hierarchy.ancestor(2))[0]:
            hierarchy = merged
        edited.append(partition(entities, hierarchy.ancestor(level)))
    assert sum(map(len, edited[0][0])) == int(entities.alive.sum())
    same_leaves(regroup_jit(hierarchy, rules(*texts), entities), hierarchy)
    # Later on the living stay together as they were.
    together = {uid: frozenset(g) for g in edited[0][0] for uid in g}
    for step in range(3):
        entities = turned_over(entities, 7 * seed + step)
        hierarchy = regroup_jit(hierarchy, rules(*texts), entities)
    for group in partition(entities, hierarchy.parent[0])[0]:
        old = {uid for uid in group if uid in together}
        assert len({together[uid] for uid in old}) <= 1


# Components


def test_labels_of_components_are_told_apart_beyond_what_single_precision_counts():
    rng = np.random.default_rng(0)
    numbers = np.concatenate([np.arange(5), 2**24 + np.arange(-2, 3), rng.integers(0, 2**31 - 2**25, 50)])
    numbers = jnp.asarray(np.append(np.unique(numbers), 2**31 - 2**25), jnp.int32)
    shown = jax.jit(disguised)(numbers)
    assert np.isfinite(shown).all()
    assert (np.diff(np.asarray(shown)) > 0).all()
    # Through what a search does with them: selection and minima.
    seen = jax.jit(lambda x: jnp.minimum(jnp.where(x > 0, x, jnp.inf), jnp.inf))(shown)
    np.testing.assert_array_equal(revealed(seen), numbers)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("space", [Open(jnp.zeros(2), jnp.full(2, SIDE)), Periodic(jnp.zeros(3), jnp.full(3, SIDE))])
def test_the_nearest_places_are_the_same_bits_however_many_are_looked_at_at_once(space):
    rng, n, g = np.random.default_rng(0), 50, 7
    position, place = (jnp.asarray(rng.uniform(0, SIDE, (m, space.n_dimensions)), jnp.float32) for m in (n, g))
    place = place.at[3].set(place[1])  # of equally near ones the first
    team, place_team = (jnp.asarray(rng.integers(0, 2, m), jnp.int32) for m in (n, g))
    valid = jnp.arange(g) != 4
    arguments = position, team, place, place_team, valid
    by_default = jax.jit(lambda *x: nearest_of(space, *x))(*arguments)
    square = jnp.sum(jnp.square(space.displacement(position[:, None], place[None])), axis=2)
    square = jnp.where(valid[None] & (team[:, None] == place_team[None]), square, jnp.inf)
    np.testing.assert_array_equal(by_default[0], jnp.argmin(square, axis=1))
    for at_once in (3, 7):
        found = jax.jit(lambda *x, at_once=at_once: nearest_of(space, *x, at_once))(*arguments)
        jax.tree.map(np.testing.assert_array_equal, found, by_default)


def test_fixed_groups_whose_members_cannot_be_counted_are_refused():
    assert rule("fixed:16000000").size == N
    with pytest.raises(ConfigError, match=r"here: 'fixed:50,99999999999' needs .*at most 16,777,216"):
        rule("fixed:50,99999999999")


def scipy_components(space, entities, radius):
    alive = np.flatnonzero(np.asarray(entities.alive))
    team = np.asarray(entities.team)[alive]
    # Of all slots, so that every number of the living has one shape.
    way = np.asarray(space.displacement(entities.position[:, None, :], entities.position[None, :, :]))
    way = way[alive][:, alive]
    near = (np.sqrt((way**2).sum(axis=-1)) < radius) & (team[:, None] == team[None, :])
    _, label = scipy.sparse.csgraph.connected_components(scipy.sparse.csr_matrix(near), directed=False)
    uid = np.asarray(entities.uid)
    return {frozenset(uid[alive[label == k]].tolist()) for k in set(label.tolist())}


@pytest.mark.parametrize("space", [Open, Periodic], ids=lambda space: space.__name__)
def test_components_are_those_of_scipy(space):
    here = space(jnp.zeros(2), jnp.full(2, SIDE))
    sizes = set()
    for radius in (0.5, 1.5, 2.5):
        grouping = (Components(AllPairs(here, jnp.float32(radius))),)
        for seed in range(5):
            entities = turned_over(population(seed), seed)
            found, nowhere = partition(entities, form_jit(LEVELS[:2], grouping, entities).parent[0])
            assert found == scipy_components(here, entities, radius)
            assert not nowhere
            sizes |= {len(group) for group in found}
    assert min(sizes) == 1
    assert max(sizes) > 4


def test_a_long_chain_in_any_order_is_one_component():
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(N)
        entities = spawn_jit(Entities.empty(N, 2, 1), births(np.random.default_rng(0), N, N))[0]
        place = jnp.stack([jnp.asarray(order, jnp.float32), jnp.zeros(N)], axis=1)
        entities = eqx.tree_at(lambda e: (e.position, e.team), entities, (place, jnp.zeros(N, jnp.int32)))
        assert form_jit(LEVELS[:2], rules("components:1.1"), entities).parent[0].tolist() == [0] * N
        broken = entities.remove(jnp.asarray(order == 7))
        found, _ = partition(broken, form_jit(LEVELS[:2], rules("components:1.1"), broken).parent[0])
        assert sorted(map(len, found)) == [7, N - 8]


def test_a_component_keeps_a_slot_of_its_members_and_the_one_with_the_lowest_keeps_it_when_it_breaks():
    entities = population(0)
    hierarchy = form_jit(LEVELS[:2], rules("components:1.7"), entities)
    kept = broken = 0
    for step in range(15):
        before = np.asarray(hierarchy.parent[0])
        same = np.asarray(hierarchy.identity[0])
        next_uid = int(entities.next_uid)
        entities = turned_over(entities, step, share=0.1, n_born=1, walk=0.5)
        hierarchy = regroup_jit(hierarchy, rules("components:1.7"), entities)
        index, identity = np.asarray(hierarchy.parent[0]), np.asarray(hierarchy.identity[0])
        old = [i for i in range(N) if entities.alive[i] and entities.uid[i] < next_uid and before[i] >= 0]
        lowest = {}  # of each group before: its lowest living member, if that is the lowest old one of its component
        for i in old:
            first = min(j for j in old if index[j] == index[i])
            lowest.setdefault(int(before[first]), first)
        for slot, first in lowest.items():
            assert index[first] == slot
            assert identity[slot] == same[slot]
            kept += 1
        broken += len({int(index[i]) for i in old}) - len(lowest)
    assert kept > 20
    assert broken > 2


def test_components_beyond_the_slots_are_no_groups_and_are_counted():
    entities = population(3)
    full = form_jit(LEVELS[:2], rules("components:1"), entities)
    n_groups = int(full.exists[0].sum())
    short = form_jit(LEVELS[:2], rules("components:1,4"), entities)
    assert n_groups > 4
    assert int(short.overflow[0]) == n_groups - 4
    expected = np.where(np.asarray(full.parent[0]) < 4, np.asarray(full.parent[0]), -1)
    assert short.parent[0].tolist() == expected.tolist()


# k-means


def squares(entities, place):
    """Squared distances [n, g] to the places of the own team."""
    way = np.asarray(entities.position)[:, None, :] - np.asarray(place)[None, :, :]
    return (way**2).sum(axis=-1)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_members_are_at_the_nearest_centroid_and_the_objective_never_rises(k):
    grouping = rules(f"kmeans:{k}")[0]
    first = jax.jit(lambda e: grouping(Nodes.of(e), e))
    again = jax.jit(lambda e, before: grouping(Nodes.of(e), e, before))
    for seed in range(4):
        entities = turned_over(population(seed), seed)
        index, groups = first(entities)
        objectives = []
        for _ in range(5):
            alive, team = np.asarray(entities.alive), np.asarray(entities.team)
            exists = np.asarray(groups.exists)
            allowed = exists[None, :] & (team[:, None] == np.arange(2 * k)[None, :] // k)
            distance = np.where(allowed, squares(entities, groups.position), np.inf)
            np.testing.assert_allclose(
                distance[alive, np.asarray(index)[alive]], distance[alive].min(axis=1), rtol=1e-5, atol=1e-5
            )
            objectives.append(distance[alive].min(axis=1).sum())
            # As many groups as asked, or as there are members.
            for m in range(N_TEAMS):
                assert exists[m * k : (m + 1) * k].sum() == min(k, (alive & (team == m)).sum())
            index, groups = again(entities, Previous(index, groups.identity))
        assert (np.diff(objectives) <= 1e-4 * objectives[0] + 1e-6).all()
        if k == 3:
            assert objectives[-1] > 0
        # Settled, a centroid is its members' mean.
        for slot in np.flatnonzero(groups.exists):
            members = np.asarray(entities.position)[np.asarray(index) == slot]
            np.testing.assert_allclose(groups.position[slot], members.mean(axis=0), rtol=1e-3, atol=1e-3)


def test_far_apart_heaps_are_found_and_keep_their_slots_while_they_move():
    rng = np.random.default_rng(0)
    heap = np.arange(N) % 4
    entities = population(0, n_living=N)
    centre = np.asarray([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]], np.float32)
    one = (KMeans(Open(jnp.zeros(2), jnp.full(2, SIDE)), 4, 1),)

    def placed(entities, offset):
        place = centre[heap] + rng.uniform(-1, 1, (N, 2)) + offset
        return eqx.tree_at(
            lambda e: (e.position, e.team), entities, (jnp.asarray(place, jnp.float32), jnp.zeros(N, jnp.int32))
        )

    entities = placed(entities, 0.0)
    first = hierarchy = form_jit(LEVELS[:2], one, entities)
    of_heap = {frozenset(np.flatnonzero(heap == h).tolist()) for h in range(4)}
    assert partition(entities, hierarchy.parent[0]) == (of_heap, set())
    for step in range(1, 6):
        # By the end every heap stands where another one stood.
        entities = placed(entities, 10.0 * step)
        hierarchy = regroup_jit(hierarchy, one, entities)
        same_leaves(hierarchy, first)
    # A heap that dies out leaves its slot to a new group.
    slot = int(hierarchy.parent[0][0])
    later = regroup_jit(hierarchy, one, entities.remove(jnp.asarray(heap == 0)))
    assert (np.asarray(later.generation[0]) == (np.arange(4) == slot)).all()
    assert int(later.identity[0][slot]) == 4


def test_in_a_periodic_box_a_heap_may_lie_across_the_edge():
    x = np.asarray([9.8, 0.1, 0.3, 9.7, 4.9, 5.1, 5.3, 4.8], np.float32)
    entities = population(0, n_living=8)
    place = jnp.full((N, 2), jnp.nan).at[:8].set(jnp.stack([jnp.asarray(x), jnp.full(8, 9.9)], axis=1))
    entities = eqx.tree_at(lambda e: (e.position, e.team), entities, (place, jnp.zeros(N, jnp.int32)))
    grouping = KMeans(Periodic(jnp.zeros(2), jnp.full(2, SIDE)), 2, 1)
    index, groups = jax.jit(lambda e: grouping(Nodes.of(e), e))(entities)
    expected = {frozenset(range(4)), frozenset(range(4, 8))}
    for _ in range(2):
        assert partition(entities, index) == (expected, set())
        assert sorted(groups.position[:, 0].tolist()) == pytest.approx([5.025, 9.975], abs=1e-3)
        index, groups = jax.jit(lambda e, p: grouping(Nodes.of(e), e, p))(entities, Previous(index, groups.identity))


# Anchors


def test_anchors_fit_into_their_capacity_or_are_counted():
    entities = population(2)
    n_anchors = int(entities.is_kind(0).sum())
    wide = jax.jit(lambda e: rule("nearest:depot")(Nodes.of(e), e))
    index, groups = wide(entities)
    fits = rule("nearest:depot", capacity={"depot": n_anchors})
    assert (fits.n_anchors, rule("nearest:depot", capacity={"depot": 99}).n_anchors) == (n_anchors, N)
    same_leaves(jax.jit(lambda e: fits(Nodes.of(e), e))(entities), (index, groups))
    short = rule("nearest:depot", capacity={"depot": n_anchors - 2})
    index, groups = jax.jit(lambda e: short(Nodes.of(e), e))(entities)
    assert int(groups.overflow) == 2
    assert set(index.tolist()) <= {-1, *np.flatnonzero(entities.is_kind(0))[:-2].tolist()}
    none = rule("nearest:depot", capacity={"depot": 0})
    assert set(none(Nodes.of(entities), entities)[0].tolist()) == {-1}


def test_the_nearest_anchor_may_be_across_the_edge_of_a_periodic_box():
    entities = population(0, n_living=3)
    place = jnp.zeros((N, 2)).at[:3, 0].set(jnp.asarray([9.5, 4.0, 1.0]))
    entities = eqx.tree_at(
        lambda e: (e.position, e.team, e.kind),
        entities,
        (place, jnp.zeros(N, jnp.int32), (jnp.arange(N) >= 2).astype(jnp.int32)),
    )
    for space, expected in [(Open, 1), (Periodic, 0)]:
        anchors = NearestAnchor(space(jnp.zeros(2), jnp.full(2, SIDE)), 0, N, 4)
        assert int(anchors(Nodes.of(entities), entities)[0][2]) == expected


# Neighbours within a group


def test_neighbours_can_be_kept_to_a_group():
    for seed in range(3):
        entities = turned_over(population(seed), seed)
        hierarchy = form_jit(LEVELS, rules("fixed:3", "fixed:2"), entities)
        near = AllPairs(Open(jnp.zeros(2), jnp.full(2, SIDE)), jnp.float32(5.0)).find(entities.position, entities.alive)
        values = jnp.arange(1.0, N + 1)[:, None]
        alive = np.asarray(entities.alive)
        for level in (1, 2):
            group = np.asarray(hierarchy.ancestor(level))
            distance = np.sqrt(squares(entities, entities.position))
            mate = (distance < 5.0) & (group[:, None] == group[None, :]) & alive[:, None] & alive[None, :]
            mate &= ~np.eye(N, dtype=bool)
            among = Among(hierarchy.ancestor(level), same=True)
            total = near.sum(lambda way, far, mine, theirs: theirs, values, among)
            least = near.min(lambda way, far, mine, theirs: theirs, values, among)
            theirs = np.where(mate, np.arange(1.0, N + 1)[None, :], np.nan)
            np.testing.assert_array_equal(total[:, 0], np.nansum(theirs, axis=1))
            np.testing.assert_array_equal(least[:, 0], np.where(mate, theirs, np.inf).min(axis=1))
            index = near.nearest(4, among).index
            assert all(mate[i, j] for i in range(N) for j in index[i].tolist() if j >= 0)
            assert mate.any()
