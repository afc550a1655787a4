"""Battle: Lanchester's laws, the fight against loops, motion, waves, squads."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scenarios.battle import HEALTH, N_MOVES, N_SEEN, WAIT
from scenarios.battle.layout import ARCHER, CAVALRY, INFANTRY
from scenarios.battle.policy import FocusFire, attack_or
from swarm import RandomPolicy, make
from swarm.build.scenario_files import load
from swarm.core.errors import ConfigError
from swarm.simulation.policy import AbstractPolicy

step = eqx.filter_jit(lambda simulator, world, action: simulator.step(world, action))
reset = eqx.filter_jit(lambda simulator, key: simulator.reset(key))

NOBODY = {"capacity": 0, "initial": 0, "wave": 0}


def army(kind, **values):
    return {f"population.{kind}.{name}": value for name, value in values.items()}


SMALL = {
    "world.size": [30.0, 28.0],
    "world.gap": 2.0,
    "world.squad": 4,
    "groups.squad": "block:4",
    "waves.every": 10,
    "reward.taken": 0.5,
    "reward.death": 0.5,
    **army("infantry", capacity=20, initial=12, wave=4, health=40.0),
    **army("archer", capacity=16, initial=4, wave=4, health=30.0, accuracy=0.7),
    **army("cavalry", capacity=4, initial=4, wave=0, health=50.0),
}


@pytest.mark.parametrize("name", ["battle", "skirmish", "legion"])
def test_no_wing_belongs_to_both_armies(name):
    # It would make one of them stronger.
    config = load(name).config
    n_squads = sum(config.squads(0, "initial"))
    assert n_squads % int(config.groups["wing"].removeprefix("block:")) == 0


def test_squares_of_a_large_field_have_numbers_of_their_own():
    """25 million of them, of which single precision tells 16.8 million apart."""
    rules = make("battle", SMALL | {"world.size": [10_000.0, 10_000.0], "world.place": 2.0}).rules
    n_x, n_y = rules.n_places
    assert n_x * n_y > 2**24
    row, column = np.asarray([0, 3400, 4999, 4999, 4999]), np.asarray([1, 17, 4996, 4997, 4998])
    position = rules.space.lower[None] + 2.0 * jnp.asarray(np.stack([column + 0.5, row + 0.5], axis=1), jnp.float32)
    found = jax.jit(lambda rules, p: rules._place_of(p, jnp.ones(5, bool)))(rules, position)
    np.testing.assert_array_equal(found, row * n_x + column)


@functools.cache
def melee():
    """A small crowded battle at random: simulator, and 40 steps of worlds before, actions, worlds and steps after."""
    simulator = make("battle", SMALL)
    chance, focus = RandomPolicy(), FocusFire(simulator.rules)

    def body(carry, key):
        world, timestep = carry
        # Some fight in earnest, so that much happens.
        noise = chance(world, timestep.observation, key)
        action = jnp.where(world.entities.uid % 3 == 0, noise, focus(world, timestep.observation, key))
        after, timestep = simulator.step(world, action)
        return (after, timestep), (world, action, after, timestep)

    @jax.jit
    def play(key):
        return jax.lax.scan(body, simulator.reset(key), jax.random.split(key, 40))[1]

    return simulator, *jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), play(jax.random.key(3)))


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# Lanchester (1916): A falls at a rate beta * B and B at alpha * A under aimed fire, so alpha * A^2 - beta * B^2 stays.

DUEL = {
    "world.size": [60.0, 60.0],
    "world.squad": 1,
    "world.gap": 0.0,
    "world.policy": "focus",
    "groups": {"levels": ["entity"]},
    "waves.count": 0,
    **army("archer", **NOBODY),
}


def duel(a, b, alpha, beta, **both):
    """Army 0: `a` infantry; army 1: `b` cavalry. All see and reach all, nobody moves, an attack at every step."""
    fixed = {"speed": 0.0, "sensing": 1000.0, "reach": 1000.0, "cooldown": 1, "wave": 0, "health": 1.0, **both}
    infantry = army("infantry", capacity=a, initial=a, share=[1.0, 0.0], **(fixed | alpha))
    cavalry = army("cavalry", capacity=b, initial=b, share=[0.0, 1.0], **(fixed | beta))
    return make("battle", DUEL | infantry | cavalry)


class FireAtNumber(AbstractPolicy):
    """Fires at one of the 8 enemies seen, chosen anew at random, whether somebody is there or not."""

    aimed: bool = eqx.field(static=True)

    def __call__(self, world, observation, key):
        draw = jax.vmap(jax.random.uniform)(world.entities.keys(key))
        n_seen = jnp.sum(world.fields.seen.valid, axis=1) if self.aimed else N_SEEN
        return N_MOVES + jnp.minimum((draw * n_seen).astype(jnp.int32), N_SEEN - 1)


class Concentrate(AbstractPolicy):
    """All fire at the nearest enemy, which is the same for all in these tests."""

    def __call__(self, world, observation, key):
        return jnp.full(world.entities.alive.shape, N_MOVES, jnp.int32)


@functools.partial(jax.jit, static_argnums=(3,))
def strengths(simulator, policy, key, n_steps):
    """Health left in each army, before the first step and after each."""

    def left(world):
        e = world.entities
        return jnp.stack([jnp.sum(jnp.where(e.alive & (e.team == m), e.stores[:, HEALTH], 0.0)) for m in (0, 1)])

    def body(carry, key):
        world, timestep = carry
        carry = simulator.step(world, policy(world, timestep.observation, key))
        return carry, left(carry[0])

    start = simulator.reset(key)
    _, history = jax.lax.scan(body, start, jax.random.split(key, n_steps))
    return jnp.concatenate([left(start[0])[None], history])


def test_concentrated_fire_follows_the_square_law():
    # The smaller army is the better one, and wins: 48^2 * 0.0016 > 54^2 * 0.0008.
    a, b, alpha, beta = 48, 54, 0.0016, 0.0008
    simulator = duel(a, b, {"damage": alpha}, {"damage": beta})
    # Both armies in one line, each in order of distance from the other, so that all have the same nearest enemy.
    line = jnp.concatenate([20.0 - 0.1 * jnp.arange(a), 30.0 + 0.1 * jnp.arange(b)])
    place = jnp.stack([line, jnp.full(a + b, 30.0)], axis=1)
    rules = eqx.tree_at(lambda r: (r.start.position, r.place), simulator.rules, (place, jnp.float32(1e-3)))
    simulator = eqx.tree_at(lambda s: s.rules, simulator, rules)
    left = np.asarray(strengths(simulator, Concentrate(), jax.random.key(0), 1100), float)
    fighting = (left > 0).all(axis=1)
    assert not fighting[-1]
    # The one who is being shot at still shoots: armies of n + f healths have n + 1 who fight, on average f + 1/2 more.
    square = alpha * (left[:, 0] + 0.5) ** 2 - beta * (left[:, 1] + 0.5) ** 2
    scale = alpha * a**2 + beta * b**2
    np.testing.assert_allclose(square[fighting] / scale, square[0] / scale, atol=0.01)
    # And in time: A'' = alpha beta A, so A = A0 cosh(r t) - B0 sqrt(beta / alpha) sinh(r t).
    t = np.arange(len(left))[fighting]
    rate = np.sqrt(alpha * beta)
    expected = (a + 0.5) * np.cosh(rate * t) - (b + 0.5) * np.sqrt(beta / alpha) * np.sinh(rate * t)
    np.testing.assert_allclose(left[fighting, 0] + 0.5, expected, atol=0.03 * a)


def final_strengths(simulator, policy, n_worlds, n_steps):
    """Entities left in each army at the end, in many worlds."""
    keys = jax.random.split(jax.random.key(7), n_worlds)
    left = np.asarray(jax.vmap(lambda key: strengths(simulator, policy, key, n_steps)[-1])(keys), float)
    return left.T


def change(martingale, before, after):
    """Its mean change over worlds and the standard error, both relative to its start."""
    start, end = martingale(*before), martingale(*after)
    return (end.mean() - start) / start, end.std() / np.sqrt(len(end)) / start


def test_random_aimed_fire_follows_the_square_law_on_average():
    # Where single entities fall at random, alpha A (A + 1) - beta B (B + 1) is a martingale: A falls to A - 1 at rate
    # beta B, which changes it by -2 alpha beta A B, and B at rate alpha A, by as much upward.
    alpha, beta = 0.004, 0.006
    simulator = duel(40, 24, {"accuracy": alpha}, {"accuracy": beta}, damage=1.0)
    after = final_strengths(simulator, FireAtNumber(True), 64, 120)
    drift, error = change(lambda a, b: alpha * a * (a + 1) - beta * b * (b + 1), (40, 24), after)
    # Steps are finite: at most one in 20 shots meets one who falls to another in the same step.
    assert error < 0.06
    assert abs(drift) < 4 * error + 0.02
    assert after.sum() < 0.8 * 64 * 64


def test_unaimed_fire_follows_the_linear_law_on_average():
    # Who fires into an area of 8 places hits with a probability in proportion to those who stand there: A falls at a
    # rate in proportion to A B, and B too, so alpha A - beta B is a martingale.
    alpha, beta = 0.04, 0.02
    simulator = duel(8, 8, {"accuracy": alpha}, {"accuracy": beta}, damage=1.0)
    after = final_strengths(simulator, FireAtNumber(False), 192, 60)
    drift, error = change(lambda a, b: alpha * a - beta * b, (8, 8), after)
    assert error < 0.06
    assert abs(drift) < 4 * error + 0.02
    # The square law is left by far.
    drift, error = change(lambda a, b: alpha * a**2 - beta * b**2, (8, 8), after)
    assert abs(drift) > 6 * error


def test_an_army_that_concentrates_its_fire_beats_one_that_does_not():
    simulator = duel(24, 24, {"damage": 0.02}, {"damage": 0.02})

    class Mixed(AbstractPolicy):
        def __call__(self, world, observation, key):
            focused = attack_or(world, observation, jnp.zeros(world.entities.alive.shape, jnp.int32))
            return jnp.where(world.entities.team == 0, focused, FireAtNumber(True)(world, observation, key))

    left = np.asarray(strengths(simulator, Mixed(), jax.random.key(0), 150))
    assert left[-1, 1] == 0
    assert left[-1, 0] > 6


# The fight and what is seen, against loops.


def test_the_nearest_enemies_in_sight_are_seen_and_those_in_reach_may_be_attacked():
    simulator, _, _, after, timestep = melee()
    table, attackable = simulator.rules.table, 0
    for t in range(0, 40, 3):
        e, seen = jax.tree.map(lambda x, t=t: x[t], (after.entities, after.fields.seen))
        mask = timestep.observation.action_mask[t]
        # Who is born in a step is seen, and sees, only after the next.
        old = e.alive & (e.uid < (after.entities.next_uid[t - 1] if t else e.next_uid))
        for i in np.flatnonzero(e.alive):
            distance = np.linalg.norm(e.position - e.position[i], axis=1)
            enemies = np.flatnonzero(old & (e.team != e.team[i]) & (distance < table.sensing[e.kind[i]]))
            nearest = np.sort(distance[enemies])[:N_SEEN] if old[i] else distance[:0]
            # Distances, because equally near ones may come in any order.
            np.testing.assert_array_equal(seen.index[i] >= 0, np.arange(N_SEEN) < len(nearest))
            found = seen.index[i, : len(nearest)]
            assert np.isin(found, enemies).all()
            np.testing.assert_allclose(distance[found], nearest, rtol=1e-5)
            np.testing.assert_allclose(seen.distance[i, : len(nearest)], nearest, rtol=1e-5)
            ready = e.stores[i, WAIT] == 0
            legal = [bool(ready and distance[j] <= table.reach[e.kind[i]]) for j in found]
            np.testing.assert_array_equal(mask[i, N_MOVES:], legal + [False] * (N_SEEN - len(legal)))
            assert mask[i, :N_MOVES].all()
            attackable += sum(legal)
        assert not mask[~e.alive].any()
    assert attackable > 50


def test_damage_deaths_waits_and_rewards_are_those_of_a_loop():
    simulator, before, action, after, timestep = melee()
    table, reward = simulator.rules.table, {k: float(v) for k, v in simulator.rules.reward.items()}
    n_deaths = n_misses = n_shared = 0
    for t in range(40):
        e, seen = jax.tree.map(lambda x, t=t: x[t], (before.entities, before.fields.seen))
        new = jax.tree.map(lambda x, t=t: x[t], after.entities)
        draws = jax.vmap(jax.random.uniform)(e_keys(before, t))
        blows = {}
        for i in np.flatnonzero(e.alive & (action[t] >= N_MOVES)):
            slot, kind = action[t, i] - N_MOVES, e.kind[i]
            target = seen.index[i, slot]
            if target < 0 or seen.distance[i, slot] > table.reach[kind] or e.stores[i, WAIT] > 0:
                continue
            if draws[i] < table.accuracy[kind]:
                blows.setdefault(int(target), []).append((int(i), float(table.damage[kind])))
            else:
                n_misses += 1
            if new.uid[i] == e.uid[i]:
                assert new.stores[i, WAIT] == table.cooldown[kind] - 1
        gained, dead = np.zeros(len(e.alive)), set()
        for target, hits in blows.items():
            total, full, health = sum(d for _, d in hits), float(table.health[e.kind[target]]), e.stores[target, HEALTH]
            share, kills = min(total, health) / full, float(total >= health)
            n_shared += len(hits) > 1
            dead |= {target} if kills else set()
            gained[target] -= reward["taken"] * share + reward["death"] * kills
            for i, damage in hits:
                gained[i] += (reward["dealt"] * share + reward["kill"] * kills) * damage / total
            if not kills:
                np.testing.assert_allclose(new.stores[target, HEALTH], health - total, rtol=1e-5)
        np.testing.assert_allclose(timestep.reward[t], np.where(e.alive, gained, 0.0), atol=1e-5)
        np.testing.assert_array_equal(np.flatnonzero(timestep.terminated[t]), sorted(dead))
        unhurt = e.alive & ~np.isin(np.arange(len(e.alive)), list(blows))
        np.testing.assert_array_equal(new.stores[unhurt, HEALTH], e.stores[unhurt, HEALTH])
        n_deaths += len(dead)
    assert n_deaths > 5
    assert n_misses > 5
    assert n_shared > 5


def e_keys(worlds, t):
    key = jax.random.fold_in(worlds.key[t], worlds.step[t])
    return jax.vmap(lambda uid: jax.random.fold_in(key, uid))(worlds.entities.uid[t].astype(np.uint32))


def test_two_may_kill_each_other_in_the_same_step():
    simulator, *_ = melee()
    world, _ = reset(simulator, jax.random.key(0))
    e = world.entities
    chosen = np.asarray([np.flatnonzero(e.alive & (e.kind == INFANTRY) & (e.team == m))[0] for m in (0, 1)])
    entities = eqx.tree_at(
        lambda e: (e.alive, e.position, e.stores),
        e,
        (
            jnp.zeros_like(e.alive).at[chosen].set(True),
            e.position.at[chosen].set(jnp.asarray([[10.0, 10.0], [11.0, 10.0]])),
            e.stores.at[chosen, HEALTH].set(1.0),
        ),
    )
    world = eqx.tree_at(lambda w: w.entities, world, entities)
    # They look at each other at the end of a step.
    world, _ = step(simulator, world, jnp.zeros(e.n_slots, jnp.int32))
    after, timestep = step(simulator, world, jnp.full(e.n_slots, N_MOVES, jnp.int32))
    np.testing.assert_array_equal(np.flatnonzero(timestep.terminated), sorted(chosen))
    assert not after.entities.alive.any()
    assert timestep.world_terminated
    assert simulator.metrics(after)["won"] == 0.5


# Motion.


def test_everybody_moves_as_told_unless_a_wall_or_a_crowd_is_in_the_way():
    simulator, before, action, after, timestep = melee()
    rules = simulator.rules
    n_free = n_blocked = 0
    for t in range(40):
        e, new = jax.tree.map(lambda x, t=t: x[t], (before.entities, after.entities))
        same = e.alive & (new.uid == e.uid) & new.alive
        angle = (action[t] - 1) * np.pi / 4
        way = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.asarray(rules.table.speed)[e.kind][:, None]
        way[(action[t] == 0) | (action[t] >= N_MOVES)] = 0.0
        wanted = np.clip(e.position + way * float(rules.time_step), 0.0, np.asarray(rules.space.size))
        square = [np.minimum(p // float(rules.place), np.asarray([14, 13])) for p in (e.position, wanted)]
        dying = timestep.terminated[t]
        for i in np.flatnonzero(same):
            crowd = ((square[0] == square[1][i]).all(axis=1) & e.alive & ~dying).sum()
            full = crowd >= int(rules.crowd) and (square[0][i] != square[1][i]).any()
            expected = e.position[i] if full else wanted[i]
            np.testing.assert_allclose(new.position[i], expected, atol=1e-4)
            n_free, n_blocked = n_free + (not full), n_blocked + full
    assert n_free > 200
    assert n_blocked > 20


def test_in_open_space_one_may_leave_the_field():
    simulator = make("battle", SMALL | {"world.edge": "open"})
    world, _ = reset(simulator, jax.random.key(0))
    west = jnp.full(world.entities.n_slots, 5, jnp.int32)
    for _ in range(30):
        world, timestep = step(simulator, world, west)
    out = np.asarray(world.entities.alive & (world.entities.position[:, 0] < 0))
    assert out.sum() > 10
    assert np.isfinite(np.asarray(timestep.observation.own)[out]).all()


# Waves and groups.


def test_waves_bring_whole_squads_to_both_armies_while_there_is_room():
    _, before, _, after, _ = melee()
    born = after.entities.next_uid - before.entities.next_uid
    # Each wave: 4 infantry and 4 archers for each army, at steps 10 and 20, for `count` is 2; all had room.
    np.testing.assert_array_equal(np.flatnonzero(born), [9, 19])
    assert born.max() == 16
    assert (after.n_overflow == 0).all()
    last = jax.tree.map(lambda x: x[9], after)
    new = last.entities.alive & (last.entities.uid >= before.entities.next_uid[9])
    squads = last.hierarchy.parent[0]
    for squad in np.unique(squads[new]):
        members = np.flatnonzero(last.entities.alive & (squads == squad))
        assert len(members) == 4
        assert new[members].all()
        assert len(np.unique(last.entities.team[members])) == len(np.unique(last.entities.kind[members])) == 1
    # At its army's end of the field.
    x = last.entities.position[new, 0]
    assert (np.where(last.entities.team[new] == 0, x, 30.0 - x) < 8.0).all()


def test_an_army_without_room_gets_nothing_and_that_is_counted():
    simulator, *_ = melee()
    # A wave is due at once, and brings army 1 more than it has room for.
    n_wave = jnp.asarray([[4, 4, 0], [90, 4, 0]], jnp.int32)
    simulator = eqx.tree_at(lambda s: (s.rules.every, s.rules.n_wave), simulator, (jnp.int32(1), n_wave))
    world, _ = reset(simulator, jax.random.key(0))
    n_initial = int(world.entities.next_uid)
    world, _ = step(simulator, world, jnp.zeros(world.entities.n_slots, jnp.int32))
    assert int(world.entities.next_uid) == n_initial + 8
    assert (np.asarray(world.entities.team)[np.asarray(world.entities.uid) >= n_initial] == 0).all()
    assert int(world.n_overflow) == 94
    assert int(world.status) == 1


@functools.cache
def campaign():
    """Four battles by the scripted policy: simulator, entities and squads at each of 200 steps, and final metrics."""
    simulator = make("battle", SMALL | {"world.size": [60.0, 28.0], "world.gap": 20.0, "waves.every": 40})
    policy = simulator.rules.scripted_policy()

    @jax.jit
    @jax.vmap
    def play(key):
        world, timestep = simulator.reset(key)
        last, _, (worlds, _) = simulator.rollout(policy, world, timestep, key, 200)
        return world.entities, worlds.entities, worlds.hierarchy.parent[0], simulator.metrics(last)

    return simulator, *jax.tree.map(np.asarray, play(jax.random.split(jax.random.key(0), 4)))


def test_squads_keep_together_on_the_march():
    simulator, start, entities, squads, _ = campaign()
    full = np.linalg.norm(np.asarray(simulator.rules.start.post), axis=1).max()
    for t in range(8):
        e = jax.tree.map(lambda x, t=t: x[0, t], entities)
        for squad in np.unique(squads[0, t][e.alive]):
            members = e.position[e.alive & (squads[0, t] == squad)]
            # The jitter at the start is up to half a metre each way.
            assert np.linalg.norm(members - members.mean(axis=0), axis=1).max() < full + 1.5
    first = jax.tree.map(lambda x: x[0], start)
    forward = np.where(e.team == 0, 1.0, -1.0) * (e.position[:, 0] - first.position[:, 0])
    speed = np.asarray(simulator.rules.table.speed)[e.kind]
    assert (forward / (8 * speed * float(simulator.rules.time_step)))[e.alive].mean() > 0.6


def test_scripted_armies_fight_it_out():
    metrics = campaign()[-1]
    assert metrics["decided"].mean() >= 0.75
    left = np.asarray([metrics["survivors_0"], metrics["survivors_1"]])
    np.testing.assert_array_equal((left == 0).any(axis=0), metrics["decided"] == 1)
    np.testing.assert_array_equal(metrics["won"] == 1, metrics["health_0"] > metrics["health_1"])
    # Each army had 20 at the start and got two waves of 8.
    np.testing.assert_array_equal(left + np.asarray([metrics["killed_1"], metrics["killed_0"]]), 36)


def test_kinds_stand_where_they_belong():
    e = jax.tree.map(lambda x: x[0], campaign()[1])
    own, (x, y) = e.alive & (e.team == 0), e.position.T
    assert x[own & (e.kind == INFANTRY)].min() > x[own & (e.kind == ARCHER)].max()
    beside = np.abs(y[own & (e.kind == CAVALRY)] - 14)
    assert beside.min() > np.abs(y[own & (e.kind == INFANTRY)] - 14).max()
    # Army 1 is army 0 turned by half a turn, but for the jitter.
    other = e.alive & (e.team == 1)
    np.testing.assert_allclose(60 - x[other], x[own], atol=1.01)
    np.testing.assert_allclose(28 - y[other], y[own], atol=1.01)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("world.gap", 200.0, "no room for the initial armies"),
        ("population.infantry.initial", 125, "not a whole number of squads"),
        ("population.archer.reach", 30.0, "exceeds sensing"),
        ("groups", {"levels": ["entity"]}, 'needs "wing" right above "squad"'),
        ("population.infantry.wave", 400, "exceeds capacity"),
        ("population.infantry.share", [1.0, 2.0], "must be from 0 to 1"),
    ],
)
def test_mistakes_in_the_file_are_named(key, value, message):
    with pytest.raises(ConfigError, match=message):
        load("battle", {key: value})


def test_focus_fire_attacks_the_weakest_in_reach():
    simulator, _, _, after, timestep = melee()
    world, observation = jax.tree.map(lambda x: x[12], (after, timestep.observation))
    action = np.asarray(eqx.filter_jit(FocusFire(simulator.rules))(world, observation, jax.random.key(0)))
    e, n_attacks = world.entities, 0
    for i in np.flatnonzero(e.alive):
        legal = np.flatnonzero(observation.action_mask[i, N_MOVES:])
        if len(legal) > 1:
            targets = world.fields.seen.index[i, legal]
            chosen = world.fields.seen.index[i, action[i] - N_MOVES]
            assert e.stores[chosen, HEALTH] == e.stores[targets, HEALTH].min()
            n_attacks += 1
    assert n_attacks > 2
