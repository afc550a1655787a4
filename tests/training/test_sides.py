"""What a team shares: sums that stop at its border, and trajectories that outlive their group (`done = "global"`)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from swarm import make
from swarm.build.scenario_files import load
from swarm.build.simulators import grouping_of
from training.algorithms.reductions import AXIS
from training.config import CreditTable, load_training
from training.credit.sides import Sides, separate
from training.credit.trajectories import Trajectory, advantages, group_by, mix_reward, own_weights, reward_streams
from training.runs.build import build_learner

GLOBAL = dict.fromkeys(("reward", "value", "log_prob", "entropy", "advantage"), "global")
T, G = 12, 6


def sums(values, valid, team):
    """The sum over the valid groups of each one's team, by a plain loop."""
    out = np.zeros(values.shape)
    for t, g in np.ndindex(values.shape):
        if valid[t, g]:
            out[t, g] = sum(values[t, k] for k in range(G) if valid[t, k] and team[t, k] == team[t, g])
    return out


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    valid = rng.random((T, G)) < 0.7
    team = np.where(valid, np.arange(G) % 3, -1).astype(np.int32)
    values = np.where(valid, rng.normal(size=(T, G)), np.nan).astype(np.float32)
    return values, valid, team


def test_what_is_global_is_the_teams(case):
    values, valid, team = case
    found = separate(*map(jnp.asarray, (values, valid)), "global", Sides(jnp.asarray(team), 3))
    np.testing.assert_allclose(found, sums(values, valid, team), atol=1e-5)


@pytest.mark.parametrize("credit", [{"reward": "global"}, {"own_weight": 0.25}, {"learn_own_weight": True}])
def test_rewards_are_shared_within_a_team(case, credit):
    values, valid, team = case
    values = np.where(valid, values, 0.0)
    table = CreditTable(**({"own_weight": 0.5} | credit))
    streams = reward_streams(jnp.asarray(values), jnp.asarray(valid), table, Sides(jnp.asarray(team), 3))
    shared = sums(values, valid, team)
    for stream, weight in enumerate(own_weights(table)):
        np.testing.assert_allclose(streams[..., stream], weight * values + (1 - weight) * shared, atol=1e-5)


@pytest.mark.parametrize("credit", [{"reward": "global"}, {"own_weight": 0.5}, GLOBAL | {"done": "global"}])
def test_what_one_team_wins_and_the_other_loses_are_opposite_signals(credit):
    table = CreditTable(**credit)
    team = np.tile(np.asarray([0, 0, 0, 1, 1, 1], np.int32), (T + 1, 1))
    rng = np.random.default_rng(1)
    half = rng.normal(size=(T, 3)).astype(np.float32)
    alive = np.ones((T + 1, 6), bool)
    alive[5:, [1, 4]] = False  # one of each team dies
    reward = np.where(alive[:-1], np.concatenate([half, -half], axis=1), 0.0)
    sides = Sides(jnp.asarray(team), 2)
    mixed = mix_reward(jnp.asarray(reward), jnp.asarray(alive[:-1]), table, sides[:T])
    identity = np.tile(np.arange(6, dtype=np.int32), (T + 1, 1))
    nothing = jnp.zeros((T, 6))
    trajectory = Trajectory(
        mixed,
        nothing,
        jnp.asarray(alive[:-1]),
        jnp.asarray(identity[:-1]),
        nothing,
        nothing > 0,
        jnp.asarray(np.arange(T) == T - 1),
    )
    last = jnp.zeros(6), jnp.asarray(alive[-1]), jnp.asarray(identity[-1])
    found, _, _ = advantages(trajectory, *last, table, 0.9, 0.8, sides=sides)
    assert np.abs(found[:, :3])[alive[:-1, :3]].min() > 1e-3
    np.testing.assert_allclose(found[:, :3], -found[:, 3:], atol=1e-5)
    # Who sees the other team's rewards beside its own sees nothing: that was so.
    if credit.get("reward") == "global":
        both = mix_reward(jnp.asarray(reward), jnp.asarray(alive[:-1]), table)
        np.testing.assert_allclose(both, 0.0, atol=1e-5)


# Trajectories that outlive their group


def by_loop(reward, value, valid, identity, ended, final, gamma, gae_lambda, credit, team):
    """One trajectory at a time, forwards: everything of a team is shared, and goes on until the world ends."""
    out = np.zeros(reward.shape)
    for t, g in np.ndindex(reward.shape):
        if not valid[t, g]:
            continue
        total, weight, lives = 0.0, 1.0, True
        for k in range(t, T):
            if k > t:
                lives = lives and valid[k, g] and identity[k, g] == identity[t, g]
            mates = [j for j in range(G) if team[j] == team[g]]
            shared = sum(reward[k, j] for j in mates if valid[k, j])
            r = (1 - credit.own_weight) * shared + (credit.own_weight * reward[k, g] if lives else 0.0)
            goes_on = valid[k + 1, g] and identity[k + 1, g] == identity[t, g] and lives
            if credit.value == "global":
                v = sum(value[k, j] for j in mates if valid[k, j])
                after = sum(value[k + 1, j] for j in mates if valid[k + 1, j])
                last = sum(final[k, j] for j in mates)
            else:
                v = value[k, g] if lives else 0.0
                after, last = value[k + 1, g] if goes_on else 0.0, final[k, g] if lives else 0.0
            total += weight * (r + gamma * (last if ended[k] else after) - v)
            weight *= gamma * gae_lambda
            if ended[k] or not (goes_on or credit.done == "global"):
                break
        out[t, g] = total
    return out


@jax.jit
def everything(reward, value, valid, identity, ended, final, team, own_weight, value_is_global):
    def credited(scope):
        credit = CreditTable(done="global", value=scope)
        mixed = own_weight * reward + (1 - own_weight) * separate(reward, valid[:-1], "global", sides[:T])
        rows = Trajectory(mixed, value[:-1], valid[:-1], identity[:-1], final, final != 0, ended)
        last = value[-1], valid[-1], identity[-1]
        return advantages(rows, *last, credit, 0.9, 0.8, sides=sides, own_weight=own_weight)[0]

    sides = Sides(team, 2)
    return jnp.where(value_is_global, credited("global"), credited("group"))


@pytest.mark.parametrize("own_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scope", ["group", "global"])
def test_what_comes_after_a_groups_end_counts_for_it_until_the_world_ends(scope, own_weight):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        valid = np.ones((T + 1, G), bool)
        identity, fresh = np.tile(np.arange(G, dtype=np.int32), (T + 1, 1)), G
        ended = rng.random(T) < 0.15
        for g in range(G):
            for t in range(1, T + 1):
                valid[t, g], identity[t, g] = valid[t - 1, g], identity[t - 1, g]
                u = rng.random()
                if ended[t - 1] or (valid[t, g] and u < 0.15) or (not valid[t, g] and u < 0.3):
                    valid[t, g], identity[t, g], fresh = True, fresh, fresh + 1  # reused in the very step, or later
                elif u < 0.3:
                    valid[t, g] = False
        reward, value = (rng.normal(size=(t, G)) for t in (T, T + 1))
        reward, value = np.where(valid[:-1], reward, 0.0), np.where(valid, value, 0.0)
        final = np.where(ended[:, None] & valid[:-1] & (rng.random((T, G)) < 0.7), rng.normal(size=(T, G)), 0.0)
        team = np.where(valid, np.asarray([0, 1, 0, 1, 1, 0]), -1).astype(np.int32)
        arrays = reward, value, valid, identity, ended, final
        rows = (jnp.asarray(x, jnp.float32) if x.dtype == float else jnp.asarray(x) for x in arrays)
        found = everything(*rows, jnp.asarray(team), own_weight, scope == "global")
        credit = CreditTable(done="global", value=scope, own_weight=own_weight)
        expected = by_loop(*arrays, 0.9, 0.8, credit, [0, 1, 0, 1, 1, 0])
        np.testing.assert_allclose(np.where(valid[:-1], found, 0.0), expected, atol=2e-5)


@pytest.mark.parametrize("born", [None, 3, 4, 5])
@pytest.mark.parametrize("by_vtrace", [False, True])
def test_the_dead_get_all_that_the_team_earns_after_them(born, by_vtrace):
    # A team earns 1 in each of 6 steps; the first of two dies in the third, and its slot may be reused from a step on.
    valid = np.ones((7, 2), bool)
    valid[3:, 0] = False
    identity = np.tile(np.asarray([1, 2], np.int32), (7, 1))
    if born is not None:
        valid[born:, 0], identity[born:, 0] = True, 3
    credit = CreditTable(**GLOBAL | {"advantage": "group", "done": "global"})
    reward = np.where(valid[:-1], 0.5, 0.0)
    reward[:, 1] = 1.0 - reward[:, 0]
    mixed = mix_reward(jnp.asarray(reward), jnp.asarray(valid[:-1]), credit)
    none = jnp.zeros((6, 2))
    rows = jnp.asarray(valid[:-1]), jnp.asarray(identity[:-1]), none, none > 0, jnp.asarray(np.arange(6) == 5)
    last = jnp.zeros(2), jnp.asarray(valid[-1]), jnp.asarray(identity[-1])
    ratio = none if by_vtrace else None
    found, _, _ = advantages(Trajectory(mixed, none, *rows), *last, credit, 1.0, 1.0, log_ratio=ratio)
    assert found[:3, 0].tolist() == [6.0, 5.0, 4.0]
    assert found[:, 1].tolist() == [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    if born is not None:
        assert found[born:, 0].tolist() == [6.0 - t for t in range(born, 6)]


def test_the_dead_are_not_credited_twice():
    with pytest.raises(ValueError, match="posthumous"):
        CreditTable(done="global", posthumous=0.5)


# Groups

LEVELS = """
levels = ["player", "pair", "mixed", "army", "all"]
pair = "fixed:2"
mixed = "modulo:2"
army = "team"
all = "global"
"""
GROUPINGS = ["player", "pair", "mixed", "army", "all", "entity", "global", "kind", "team", "quadrant", "modulo:2"]


@pytest.fixture(scope="module")
def duel(tmp_path_factory):
    """A game of three teams, and its first world."""
    path = tmp_path_factory.mktemp("duel") / "duel.toml"
    path.write_text(f'rules = "probes:Duel"\n[world]\nsteps = 4\n[groups]\n{LEVELS}')
    simulator = make(load(path))
    return path, simulator, eqx.filter_jit(simulator.reset)(jax.random.key(0))[0]


@pytest.mark.parametrize("grouping", [*GROUPINGS, "nearest:player", "block:2"])
def test_no_group_holds_entities_of_two_teams_that_learn(grouping, duel):
    _, simulator, world = duel

    def members(n_teams):
        parse = lambda text: grouping_of(simulator.rules, text, where="here")  # noqa: E731
        return group_by(grouping, simulator.levels, parse, where="here", n_teams=n_teams)(world)

    apart, together = members(3), members(1)
    index, team = np.asarray(apart.index), np.asarray(world.entities.team)
    assert sorted(team) == [0, 1, 2]
    assert (index >= 0).all()
    assert len(set(index)) == 3
    assert index.max() < apart.n_groups
    # Whose part of a group it is, it has that group's identity.
    np.testing.assert_array_equal(apart.identity[index], together.identity[np.asarray(together.index)])


@pytest.mark.parametrize(
    ("teams", "n_groups"), [(["learn"], 3), (["learn:a", "learn:b", "random"], 3), (["random", "learn", "random"], 1)]
)
def test_teams_are_told_apart_where_several_learn(teams, n_groups, duel):
    scenario = load(duel[0], {"training.teams": teams, "training.credit.grouping": "global"} | SMALL)
    learner = build_learner(scenario, load_training(scenario))
    assert jax.eval_shape(learner.grouping, duel[2]).n_groups == n_groups


# Learning

SMALL = {
    "training.worlds": 4,
    "training.rollout": 4,
    "training.epochs": 1,
    "training.minibatches": 1,
    "training.network.encoders": ["entity"],
    "training.network.hidden": 4,
}


def on_mesh(learner, function, learned, actors):
    """Run a function of what a device has, as the update does."""
    dynamic, static = eqx.partition(learned, eqx.is_array)

    def program(dynamic, actors):
        return function(eqx.combine(dynamic, static), actors)

    specs = (PartitionSpec(), PartitionSpec(AXIS))
    sharded = jax.shard_map(program, mesh=learner.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return jax.jit(sharded)(dynamic, actors)


@pytest.mark.parametrize("credit", [GLOBAL | {"done": "global"}, {"grouping": "global"}])
def test_rivals_who_share_with_their_team_alone_have_opposite_signals(credit, duel):
    # What one takes the next loses, so that the sum over all is 0 in every step.
    settings = {f"training.credit.{k}": v for k, v in credit.items()} | {"training.reward_scale": 1.0}
    scenario = load(duel[0], SMALL | settings)
    learner = build_learner(scenario, load_training(scenario))

    def probe(learned, actors):
        _, experience = learner.collect(learned, actors)
        groups = learner.groups(experience)
        value = learned.scale.restore(experience.rollout.value, groups.valid)
        last_value = learner.last_value(learned.network, experience)
        return learner.assign(learned.scale, experience, groups, value, last_value)[0], experience.rollout.reward

    advantage, reward = on_mesh(learner, probe, *learner.init(0))
    assert np.abs(reward).max() == 1.0
    np.testing.assert_allclose(np.asarray(reward).sum(axis=-1), 0.0)
    advantage = np.asarray(advantage)[..., 0]
    assert (np.abs(advantage).max(axis=-1) > 0.3).mean() > 0.5
    np.testing.assert_allclose(advantage.sum(axis=-1), 0.0, atol=0.05)
