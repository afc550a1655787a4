"""Networks: who is seen by whom, what is remembered, and what distributions say."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from swarm import make
from swarm.build.scenario_files import load
from swarm.simulation.types import Observation
from training.acting.rollout import N_STATUS_BITS
from training.config import load_training
from training.networks import Minds, Network
from training.networks.critics import AttentionPool
from training.networks.distributions import Categorical, TanhNormal
from training.networks.layers import Attention, KindHead, Places
from training.networks.memory import Recurrence
from training.runs.build import build_learner

KEY = jax.random.key(0)


def test_attention_does_not_mind_the_order_of_things_and_ignores_who_is_not_there():
    look = eqx.filter_jit(eqx.filter_jit(Attention)(3, 4, 8, 4, KEY))
    rng = np.random.default_rng(0)
    own, things = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 3), (5, 6, 4)))
    there = jnp.asarray(np.tile([True, True, False, True, False, True], (5, 1)))
    expected = look(own, things, there)
    turned = look(own, jnp.asarray(np.asarray(things)[:, ::-1]), jnp.asarray(np.asarray(there)[:, ::-1]))
    np.testing.assert_allclose(turned, expected, atol=1e-5)
    garbled = jnp.asarray(np.where(there[..., None], things, np.float32(1e6)))
    np.testing.assert_array_equal(look(own, garbled, there), expected)
    assert not np.asarray(look(own, things, jnp.zeros((5, 6), bool))).any()


def test_each_kind_in_a_block_of_its_own_is_all_kinds_layers_on_all():
    rng = np.random.default_rng(0)
    capacities, n_worlds = (4, 0, 5, 2), 6
    # No more of a kind than there are places; some are not counted, and stand in nobody's way.
    kind = [rng.permutation(np.repeat(np.arange(4), (4, 3, 5, 2))) for _ in range(n_worlds)]
    kind = jnp.asarray(np.stack(kind), jnp.int32)
    counted = jnp.asarray((rng.random(kind.shape) < 0.7) & (np.asarray(kind) != 1))
    features, weigh = (jnp.asarray(rng.normal(size=(*kind.shape, n)), jnp.float32) for n in (5, 3))
    head = eqx.filter_jit(KindHead)(5, 8, 4, 3, 1.0, KEY)

    def loss(parts, places):
        head, features = parts
        if places is None:
            found = head(features, kind)
        else:
            found = places.back(head(places.rows(features), places.kind, places.capacities))
        return jnp.sum(jnp.where(counted[..., None], jnp.tanh(found) * weigh, 0.0)), found

    @eqx.filter_jit
    def both(parts):
        places = Places.of(kind, counted, capacities)
        return places, [eqx.filter_value_and_grad(loss, has_aux=True)(parts, p) for p in (None, places)]

    places, found = both((head, features))
    assert np.unique(np.asarray(places.place)[np.asarray(counted).nonzero()[0][0]]).size > 3
    # The same outputs, and the same gradients of everything.
    (_, everywhere), slopes = found[0]
    (_, in_blocks), slopes_in_blocks = found[1]
    assert not np.asarray(in_blocks)[~np.asarray(counted)].any()
    same = np.asarray(counted)[..., None]
    np.testing.assert_allclose(np.where(same, everywhere, 0.0), in_blocks, atol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (slopes, slopes_in_blocks)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("critic", ["local", "group", "world"])
def test_networks_read_only_those_whom_they_act_for(critic):
    scenario = load("pursuit", {"training.network.critic": critic, "training.network.encoders": ["map", "attention"]})
    rules, table, rng = make(scenario).rules, load_training(scenario).network, np.random.default_rng(0)
    shape, n_own = (3, rules.n_slots), max(c for rows in rules.sets.values() for row in rows for c in row) + 1
    alive = rng.random(shape) < 0.8
    # Scouts and hunters of a team stand in any of its slots.
    kind = np.stack([rng.permutation(np.repeat(np.arange(3), rules.capacity)) for _ in range(3)])
    rows = {
        "maps": rng.normal(size=(3, 1, *rules.raster, 8)).astype(np.float32),
        "view": np.zeros(shape, np.int32),
        "cell": rng.integers(0, 20, (*shape, 2)).astype(np.int32),
        "own": rng.normal(size=(*shape, n_own)).astype(np.float32),
        "kind": kind.astype(np.int32),
        "alive": alive,
        "action_mask": np.ones((*shape, 9), bool),
    }
    one, *others = (Observation(**{name: jnp.asarray(x[i]) for name, x in rows.items()}) for i in range(3))
    observation = jax.tree.map(lambda *x: np.stack(x), one, *others)
    mine = alive & (kind < 2)
    mind, index = np.where(mine, 0, -1), np.where(mine, np.arange(rules.n_slots) // 4, -1)

    @eqx.filter_jit
    def both():
        network = Network.build(table, rules, one, n_parameters=9, n_values=1, key=KEY)
        network = jax.tree.map(lambda x: x + 0.05 if eqx.is_inexact_array(x) else x, network)
        rows = jax.tree.map(jnp.asarray, (observation, mind, index))
        state, fresh = jnp.zeros((*shape, 0)), jnp.zeros(shape, bool)
        return [
            Minds((network,), (0, -1), capacities).step(*rows, 8, state, fresh)[:2]
            for capacities in (None, rules.capacities)
        ]

    (everywhere, value), (found, found_value) = both()
    assert np.abs(found[mine]).max() > 0.1
    assert not np.asarray(found)[~mine].any()
    np.testing.assert_allclose(found[mine], everywhere[mine], rtol=1e-4, atol=1e-4)
    assert np.abs(value).max() > 0.1
    np.testing.assert_allclose(found_value, value, rtol=1e-4, atol=1e-4)


def test_a_pool_is_the_softmax_over_each_groups_members():
    pool = eqx.filter_jit(AttentionPool)(3, 8, KEY)
    features, index = jax.random.normal(KEY, (7, 3)), np.asarray([0, 2, 0, -1, 2, 2, -1])
    look = eqx.filter_jit(lambda features: pool(features, jnp.asarray(index), 3))
    found = np.asarray(look(features))
    score, value = (np.asarray(features) @ np.asarray(x.weight) + np.asarray(x.bias) for x in (pool.score, pool.value))
    value = np.maximum(value, 0).reshape(7, 4, 2)
    for group in range(3):
        members = np.flatnonzero(index == group)
        if len(members):
            weight = np.exp(score[members] - score[members].max(axis=0))
            weight /= weight.sum(axis=0)
            expected = (weight[..., None] * value[members]).sum(axis=0).ravel()
            np.testing.assert_allclose(found[group, :-1], expected, atol=1e-4)
        assert found[group, -1] == pytest.approx(np.log1p(len(members)))
    # Who belongs nowhere is not seen.
    poisoned = np.where((index >= 0)[:, None], np.asarray(features), np.float32(np.nan))
    np.testing.assert_array_equal(look(jnp.asarray(poisoned)), found)


def test_a_memory_forgets_whose_slot_passed_on():
    unit = eqx.filter_jit(Recurrence)(2, 4, KEY)
    features = jax.random.normal(KEY, (5, 3, 2))
    fresh = np.zeros((5, 3), bool)
    fresh[3, 1] = True
    unroll = eqx.filter_jit(lambda *parts: unit.unroll(*map(jnp.asarray, parts)))
    states = unroll(features, jnp.ones((3, 4)), jnp.asarray(fresh))
    # From there on it is as if its life had begun then; the others go on.
    again = unroll(features[3:, 1:2], jnp.zeros((1, 4)), jnp.zeros((2, 1), bool))
    np.testing.assert_allclose(states[3:, 1:2], again, atol=1e-6)
    ongoing = unroll(features, jnp.ones((3, 4)), jnp.zeros((5, 3), bool))
    np.testing.assert_allclose(states[:, ::2], ongoing[:, ::2], atol=1e-6)


def test_commands_have_the_density_of_a_squashed_normal():
    std = np.exp(0.2 - 0.5)
    grid = np.linspace(-0.9999, 0.9999, 200_001)
    # However far out, nothing is infinite.
    raw = np.append(np.arctanh(grid), 30.0).astype(np.float32)[:, None, None]
    rows = np.broadcast_to(np.float32([0.4, 0.2]), (len(raw), 1, 2))
    log_prob, entropy = eqx.filter_jit(TanhNormal(1).log_prob_and_entropy)(
        *map(jnp.asarray, (rows, np.ones((len(raw), 1, 1), bool), raw))
    )
    expected = scipy.stats.norm.logpdf(np.arctanh(grid), 0.4, std) - np.log1p(-(grid**2))
    np.testing.assert_allclose(np.asarray(log_prob)[:-1, 0], expected, atol=1e-3)
    assert np.isfinite(np.asarray(log_prob)).all()
    density = np.exp(expected)
    integral = np.trapezoid(np.where(density > 0, -density * np.log(np.maximum(density, 1e-300)), 0.0), grid)
    assert float(np.asarray(entropy)[0, 0]) == pytest.approx(integral, abs=0.01)


def test_surprise_at_the_command_of_another():
    parameters = jnp.asarray([[0.5, 0.2]] * 2)
    surprise = TanhNormal(1).surprise(parameters, jnp.ones((2, 1), bool), jnp.asarray([[0.1], [-3.0]]))
    commands = np.asarray([0.1, -0.97])
    density = scipy.stats.norm.pdf(np.arctanh(commands), 0.5, np.exp(0.2 - 0.5)) / (1 - commands**2)
    np.testing.assert_allclose(surprise, -np.log(density), rtol=1e-5)
    # Cross entropy; what the mask forbids cannot be learned.
    logits, mask = jnp.asarray([[1.0, 0.0, 2.0]] * 3), jnp.asarray([[True, True, False]] * 3)
    surprise = Categorical((3,)).surprise(logits, mask, jnp.asarray([0, 1, 2]))
    np.testing.assert_allclose(surprise, [np.log1p(np.exp(-1)), np.log1p(np.exp(1)), 0.0], rtol=1e-5)


def test_choices_are_drawn_by_their_masked_probabilities():
    family = Categorical((2, 3))
    logits = jnp.asarray(np.tile(np.float32([0.0, 1.0, 0.0, 2.0, 5.0]), (4000, 1)))
    mask = jnp.asarray(np.tile([True, True, True, True, False], (4000, 1)))
    drawn = np.asarray(eqx.filter_jit(family.sample)(logits, mask, jax.random.split(KEY, 4000)))
    assert set(drawn[:, 1]) == {0, 1}
    first, second = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2))
    assert drawn[:, 0].mean() == pytest.approx(first, abs=0.03)
    assert drawn[:, 1].mean() == pytest.approx(second, abs=0.03)
    log_prob, entropy = eqx.filter_jit(family.log_prob_and_entropy)(logits[:1], mask[:1], jnp.asarray([[1, 1]]))
    assert float(log_prob[0]) == pytest.approx(np.log(first * second), abs=1e-5)
    expected = scipy.stats.entropy([first, 1 - first]) + scipy.stats.entropy([second, 1 - second])
    assert float(entropy[0]) == pytest.approx(expected, abs=1e-5)
    one = Categorical((3,)).has_choice(jnp.asarray([[True, False, False], [True, True, False]]))
    assert one.tolist() == [False, True]


def test_between_devices_an_update_moves_sums_and_nothing_of_an_entity(rivals):
    scenario = load(rivals, {"training.worlds": 16})
    learner = build_learner(scenario, load_training(scenario), 8)
    learned, actors = learner.init(0)
    text = eqx.filter_jit(learner.update).lower(learned, actors).compile().compiled.as_text()
    for word in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert word not in text
    moved = [line for line in text.splitlines() if " all-reduce(" in line or " all-reduce-start(" in line]
    assert moved
    # All gradients of a step go together, with some statistics.
    n_parameters = sum(x.size for x in jax.tree.leaves(eqx.filter(learned.network, eqx.is_inexact_array)))
    sizes = range(n_parameters, n_parameters + 9)
    for line in moved:
        shapes = line.split("=", 1)[1].split(" all-reduce", 1)[0]
        for shape in re.findall(r"\[([\d,]*)\]", shapes):
            size = int(np.prod([int(d) for d in shape.split(",") if d] or [1]))
            # Parameters, or statistics without an axis over worlds, steps or entities.
            assert size in sizes or size <= N_STATUS_BITS, line
