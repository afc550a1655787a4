"""Pursuit: motion between obstacles, catches against loops, who acts, and that each side's script does its job."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scenarios.pursuit import HUNTER, PREY, SCOUT
from swarm import RandomPolicy, make
from swarm.errors import ConfigError

SMALL = {"world.size": [24.0, 24.0], "world.obstacles": 5, "world.obstacle_radius": [1.0, 2.0], "world.raster": [6, 6]}
CASES = {
    "walled": SMALL,
    "periodic": SMALL
    | {"world.edge": "periodic", "world.prey": "acting", "world.respawn": True, "world.control": "continuous"},
}
N_STEPS, N_WORLDS = 150, 4


@eqx.filter_jit
def play(simulator, policy, keys):
    """Starts and histories of some worlds, stacked; time after world."""

    def one(key):
        reset_key, act_key = jax.random.split(key)
        world, timestep = simulator.reset(reset_key)
        _, _, history = simulator.rollout(policy, world, timestep, act_key, N_STEPS)
        return (world, timestep), history

    return jax.vmap(one)(keys)


KEYS = jax.random.split(jax.random.key(0), N_WORLDS)


@pytest.fixture(scope="module", params=CASES)
def played(request):
    simulator = make("pursuit", CASES[request.param])
    start, history = play(simulator, simulator.rules.scripted_policy(), KEYS)
    return simulator, jax.tree.map(lambda a, b: jnp.concatenate([a[:, None], b], axis=1), start, history)


@pytest.fixture(scope="module")
def walled():
    return make("pursuit", CASES["walled"])


@pytest.fixture(scope="module")
def step(walled):
    return eqx.filter_jit(walled.step)


def separation(simulator, a, b):
    """Distances between all pairs, in double precision."""
    way = np.asarray(b, float)[None] - np.asarray(a, float)[:, None]
    if type(simulator.rules.space).__name__ == "Periodic":
        way -= 24.0 * np.round(way / 24.0)
    return np.linalg.norm(way, axis=-1)


def test_nobody_is_in_an_obstacle_or_beyond_the_edge_or_too_fast(played):
    simulator, (world, _) = played
    entities, obstacles = world.entities, world.fields.obstacles
    alive, position = np.asarray(entities.alive), np.asarray(entities.position)
    radius = np.asarray(simulator.rules.table["radius"])[np.asarray(entities.kind)]
    centre, size = np.asarray(obstacles.centre)[:, :, None], np.asarray(obstacles.radius)[:, :, None]
    outside = np.linalg.norm(position[:, :, None] - centre, axis=-1) - size - radius[:, :, None]
    assert outside.transpose(0, 1, 3, 2)[alive].min() > -1e-4
    assert outside.transpose(0, 1, 3, 2)[alive].min() < 1e-3  # some did touch one
    assert ((position >= 0) & (position <= 24.0))[alive].all()
    speed = np.linalg.norm(np.asarray(entities.velocity), axis=-1)
    most = np.asarray(simulator.rules.table["speed"])[np.asarray(entities.kind)]
    assert (speed <= most * (1 + 1e-5))[alive].all()
    assert (speed > 0.9 * most)[alive].any()
    assert (np.asarray(world.status) == 0).all()


def test_obstacles_leave_room_for_a_body_between_them(walled):
    obstacles = jax.vmap(walled.rules._obstacles)(jax.random.split(jax.random.key(1), 100))
    centre, radius = np.asarray(obstacles.centre), np.asarray(obstacles.radius)
    between = np.linalg.norm(centre[:, :, None] - centre[:, None], axis=-1) - radius[:, :, None] - radius[:, None]
    body = 2 * float(walled.rules.table["radius"].max())
    assert between[:, ~np.eye(5, dtype=bool)].min() > body
    assert (np.minimum(centre, 24.0 - centre) - radius[..., None]).min() > body / 2
    assert (radius >= 1.0).all()
    assert (radius <= 2.0).all()
    assert radius.std() > 0.2


def test_catches_and_rewards_are_those_of_a_loop_over_pairs(played):
    simulator, (world, timestep) = played
    rules = simulator.rules
    table, prices = {k: np.asarray(v) for k, v in rules.table.items()}, {k: float(v) for k, v in rules.reward.items()}
    # With respawning a slot holds another entity after the step, so where prey was caught is not to be seen.
    moved = jax.vmap(jax.vmap(lambda w, t: rules._catch(eqx.tree_at(lambda e: e.alive, w.entities, t.valid))))
    caught, reward = jax.jit(moved)(world, timestep)
    n_caught = 0
    for number in range(N_WORLDS):
        for t in range(1, N_STEPS + 1, 7):
            e, before = jax.tree.map(lambda x, i=number, t=t: np.asarray(x[i, t]), (world.entities, timestep.valid))
            distance = separation(simulator, e.position, e.position)
            predator, prey = before & (e.kind != PREY), before & (e.kind == PREY)
            expected = np.where(predator, -prices["time"], prices["time"] if rules.prey_acts else 0.0)
            for j in np.flatnonzero(prey):
                reaches = predator & (distance[:, j] < table["catch"][e.kind])
                taken = table["strength"][e.kind][reaches].sum() >= table["strength"][PREY]
                assert bool(caught[number, t, j]) == taken
                if taken:
                    helpers = predator & (distance[:, j] < prices["assist"])
                    expected[helpers] += prices["catch"] / helpers.sum()
                    expected[j] -= prices["caught"] if rules.prey_acts else 0.0
                    n_caught += 1
            np.testing.assert_allclose(np.asarray(reward[number, t])[before], expected[before], atol=1e-5)
    assert n_caught > 3 or rules.respawn


def test_every_catch_is_paid_once_and_kills_once(played):
    simulator, (world, timestep) = played
    rules, reward, valid = simulator.rules, np.asarray(timestep.reward), np.asarray(timestep.valid)
    # Of the reward, the time's part is known; what remains is that of the catches.
    kind = np.asarray(world.entities.kind)
    predator = valid & (kind != PREY)
    total = np.where(predator, reward + float(rules.reward["time"]), 0.0).sum(axis=2)
    n_caught = np.diff(np.asarray(world.fields.caught), axis=1)
    n_died = (np.asarray(timestep.terminated) & (kind == PREY)).sum(axis=2)
    ended = np.asarray(timestep.world_terminated)[:, 1:]
    np.testing.assert_allclose(total[:, 1:][~ended], n_caught[~ended], atol=1e-4)
    np.testing.assert_array_equal(n_died[:, 1:][~ended], n_caught[~ended])
    assert n_caught.sum() > 20


def test_a_caught_prey_dies_or_is_followed_by_another_one(played):
    simulator, (world, _) = played
    e, caught = world.entities, np.asarray(world.fields.caught)
    n_prey = np.asarray(e.alive & (e.kind == PREY)).sum(axis=2)
    if simulator.rules.respawn:
        assert (n_prey == 16).all()
        np.testing.assert_array_equal(e.next_uid, 30 + caught)
    else:
        np.testing.assert_array_equal(n_prey, 16 - caught)
        assert (np.asarray(e.next_uid) == 30).all()
    assert (np.asarray(e.alive & (e.kind != PREY)).sum(axis=2) == 14).all()


def test_prey_act_only_where_the_file_says_so(played):
    simulator, (world, timestep) = played
    observation, alive = timestep.observation, np.asarray(world.entities.alive)
    prey = alive & (np.asarray(world.entities.kind) == PREY)
    acts = np.asarray(observation.alive)
    np.testing.assert_array_equal(acts, alive if simulator.rules.prey_acts else alive & ~prey)
    assert not np.asarray(observation.own)[~acts].any()
    assert np.asarray(observation.action_mask)[acts].all()
    assert observation.maps.shape[2] == (2 if simulator.rules.prey_acts else 1)


def test_scripted_predators_catch_what_random_ones_do_not(walled):
    scripted = play(walled, walled.rules.scripted_policy(), KEYS)[1][0].fields.caught[:, -1]
    random = play(walled, RandomPolicy(), KEYS)[1][0].fields.caught[:, -1]
    assert float(scripted.mean()) > 12
    assert float(random.mean()) < 3


def test_scripted_prey_survive_longer_than_prey_that_walk_at_random():
    simulator = make("pursuit", CASES["walled"] | {"world.prey": "acting"})
    policy = simulator.rules.scripted_policy()

    class Careless(type(policy)):
        def __call__(self, world, observation, key):
            chosen = policy(world, observation, key)
            at_random = RandomPolicy()(world, observation, key)
            return jnp.where(world.entities.kind == PREY, at_random, chosen)

    fleeing = play(simulator, policy, KEYS)[1][0].fields.caught[:, 49]
    careless = play(simulator, Careless(simulator.rules), KEYS)[1][0].fields.caught[:, 49]
    assert float(fleeing.mean()) + 4 < float(careless.mean())


def scene(simulator, *rows):
    """A world in which only these live, at rest: (kind, x, y); no obstacle is near the middle of its lower edge."""
    world, _ = simulator.reset(jax.random.key(0))
    n = simulator.rules.n_slots
    kind, place = np.zeros(n, np.int32), np.zeros((n, 2), np.float32)
    for slot, (k, x, y) in enumerate(rows):
        kind[slot], place[slot] = k, (x, y)
    entities = eqx.tree_at(
        lambda e: (e.alive, e.kind, e.team, e.position, e.velocity),
        world.entities,
        (
            jnp.arange(n) < len(rows),
            jnp.asarray(kind),
            jnp.asarray((kind == PREY).astype(np.int32)),
            jnp.asarray(place),
            jnp.zeros((n, 2)),
        ),
    )
    away = jnp.full_like(world.fields.obstacles.centre, -50.0)
    return eqx.tree_at(lambda w: (w.entities, w.fields.obstacles.centre), world, (entities, away))


@pytest.mark.parametrize(
    ("predators", "taken"),
    [
        ([(HUNTER, 1.0)], True),
        ([(HUNTER, 1.9)], False),
        ([(SCOUT, 0.5)], False),
        ([(SCOUT, 0.5), (SCOUT, -0.5)], True),
        ([(SCOUT, 0.5), (SCOUT, -1.5)], False),
    ],
)
def test_one_hunter_or_two_scouts_take_a_prey(walled, step, predators, taken):
    world = scene(walled, (PREY, 12.0, 12.0), *[(kind, 12.0 + x, 12.0) for kind, x in predators])
    after, timestep = step(world, jnp.zeros(30, jnp.int32))
    assert bool(timestep.terminated[0]) == taken
    assert bool(timestep.world_terminated) == taken
    assert float(after.fields.caught) == taken


def test_prey_flee_from_what_is_within_panic_and_leave_walls(walled):
    flee = jax.jit(lambda world: walled.rules.flee(world))
    # Straight away from one; past a wall that is in the way, along it.
    np.testing.assert_allclose(flee(scene(walled, (PREY, 12.0, 12.0), (SCOUT, 9.0, 12.0)))[0], [1.0, 0.0], atol=1e-5)
    x, y = flee(scene(walled, (PREY, 12.0, 0.3), (SCOUT, 11.5, 3.0)))[0]
    assert float(x) > 0.9
    assert float(y) > -0.1
    # Of two, the nearer one frightens more.
    x, _ = flee(scene(walled, (PREY, 12.0, 12.0), (SCOUT, 10.0, 12.0), (SCOUT, 16.0, 12.0)))[0]
    assert float(x) > 0.9
    far = flee(scene(walled, (PREY, 12.0, 12.0), (SCOUT, 6.5, 12.0)))[0]
    assert float(jnp.linalg.norm(far)) < 0.5


def test_predators_cut_off_what_they_see_and_follow_a_mate_who_sees(walled):
    policy = jax.jit(lambda world: walled.rules.scripted_policy()(world, None, jax.random.key(0)))
    prey_runs = scene(walled, (HUNTER, 8.0, 12.0), (PREY, 12.0, 12.0))
    prey_runs = eqx.tree_at(lambda w: w.entities.velocity, prey_runs, prey_runs.entities.velocity.at[1, 1].set(3.4))
    assert int(policy(prey_runs)[0]) == 2  # north-east, not east
    # The hunter does not see so far; the scout in its sight does.
    assert int(policy(scene(walled, (HUNTER, 4.0, 12.0), (SCOUT, 9.0, 14.0), (PREY, 15.0, 12.0)))[0]) == 1


def test_nobody_is_seen_beyond_sight(walled):
    look = jax.jit(lambda entities: walled.rules.look(entities).foes.valid[0, 0])
    assert bool(look(scene(walled, (HUNTER, 4.0, 12.0), (PREY, 10.9, 12.0)).entities))
    assert not bool(look(scene(walled, (HUNTER, 4.0, 12.0), (PREY, 11.1, 12.0)).entities))
    maps = jax.jit(lambda world: walled.rules.observe(world).maps[0])
    seen = maps(scene(walled, (HUNTER, 4.0, 12.0), (PREY, 10.9, 12.0)))
    assert np.argwhere(np.asarray(seen[..., 6])).tolist() == [[3, 2]]
    assert not np.asarray(maps(scene(walled, (HUNTER, 4.0, 12.0), (PREY, 11.1, 12.0)))[..., 6]).any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"world.size": [20.0, 20.0]}, "world.size = .* too small: the greatest sight"),
        ({"reward.assist": 1.0}, "reward.assist = 1 is shorter than the greatest catch"),
        ({"world.obstacles": 100}, r"world.obstacle_radius = .* lower it, or have fewer obstacles"),
        ({"world.time_step": 0.5}, "jumps over the smallest obstacle"),
        ({"world.obstacle_radius": [2.0, 1.0]}, "expected 0 < least <= greatest"),
    ],
)
def test_impossible_worlds_are_errors(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make("pursuit", overrides)
