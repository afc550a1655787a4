"""Pursuit: motion between obstacles, catches against loops, who acts, and that each side's script does its job."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool

from scenarios.pursuit import HUNTER, PREY, SCOUT
from swarm import RandomPolicy, make
from swarm.core.errors import ConfigError
from swarm.simulation.policy import AbstractPolicy

SMALL = {"world.size": [24.0, 24.0], "world.obstacles": 5, "world.obstacle_radius": [1.0, 2.0], "world.raster": [6, 6]}
# Prey that one hunter takes, so that there are catches enough.
SMALL |= {"population.prey.strength": 2.0, "reward.assist": 4.0, "reward.tag": 0.0}
CASES = {
    "walled": SMALL | {"world.respawn": False},
    "periodic": SMALL | {"world.edge": "periodic", "world.prey": "acting", "world.control": "continuous"},
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

    # One after another: as a batch they take twice as long to compile.
    return jax.lax.map(one, keys)


KEYS = jax.random.split(jax.random.key(0), N_WORLDS)


class Sides(AbstractPolicy):
    """The script, or random actions, for each side; numbers, so that all pairings share one compilation."""

    script: AbstractPolicy
    predators_think: Bool[Array, ""]
    prey_thinks: Bool[Array, ""]

    def __call__(self, world, observation, key):
        thinks = jnp.where(world.entities.kind == PREY, self.prey_thinks, self.predators_think)
        scripted = self.script(world, observation, key)
        return jnp.where(thinks[:, None], scripted, RandomPolicy(scripted.shape[1])(world, observation, key))


@pytest.fixture(scope="module")
def periodic():
    return make("pursuit", CASES["periodic"])


def sides(simulator, predators_think, prey_thinks):
    return Sides(simulator.rules.scripted_policy(), jnp.asarray(predators_think), jnp.asarray(prey_thinks))


@pytest.fixture(scope="module")
def walled():
    return make("pursuit", CASES["walled"])


def history_of(simulator, policy):
    """The simulator, and worlds and time steps [b, t], the start included."""
    start, history = play(simulator, policy, KEYS)
    return simulator, jax.tree.map(lambda a, b: jnp.concatenate([a[:, None], b], axis=1), start, history)


@pytest.fixture(scope="module")
def walled_history(walled):
    return history_of(walled, walled.rules.scripted_policy())


@pytest.fixture(scope="module")
def periodic_history(periodic):
    return history_of(periodic, sides(periodic, True, True))


@pytest.fixture(scope="module", params=CASES)
def played(request):
    return request.getfixturevalue(f"{request.param}_history")


@pytest.fixture(scope="module")
def act(walled):
    return jax.jit(lambda world: walled.rules.act(world, jnp.zeros(30, jnp.int32), world.key)[1:])


def test_nobody_is_in_an_obstacle_or_beyond_the_edge_or_too_fast(played):
    simulator, (world, _) = played
    entities, obstacles = world.entities, world.fields.obstacles
    alive, position = np.asarray(entities.alive), np.asarray(entities.position)
    radius = np.asarray(simulator.rules.table["radius"])[np.asarray(entities.kind)]
    centre, size = np.asarray(obstacles.centre)[:, :, None], np.asarray(obstacles.radius)[:, :, None]
    outside = np.linalg.norm(position[:, :, :, None] - centre, axis=-1) - size - radius[..., None]
    assert outside[alive].min() > -1e-4
    assert outside[alive].min() < 1e-3  # some did touch one
    assert ((position >= 0) & (position <= 24.0))[alive].all()
    speed = np.linalg.norm(np.asarray(entities.velocity), axis=-1)
    most = np.asarray(simulator.rules.table["speed"])[np.asarray(entities.kind)]
    assert (speed <= most * (1 + 1e-5))[alive].all()
    assert (speed > 0.9 * most)[alive].any()
    assert (np.asarray(world.status) == 0).all()


def test_obstacles_leave_room_for_a_body_between_them(walled):
    obstacles = jax.jit(jax.vmap(lambda key: walled.rules._obstacles(key)))(jax.random.split(jax.random.key(1), 100))
    centre, radius = np.asarray(obstacles.centre), np.asarray(obstacles.radius)
    between = np.linalg.norm(centre[:, :, None] - centre[:, None], axis=-1) - radius[:, :, None] - radius[:, None]
    body = 2 * float(walled.rules.table["radius"].max())
    assert between[:, ~np.eye(5, dtype=bool)].min() > body
    assert (np.minimum(centre, 24.0 - centre) - radius[..., None]).min() > body / 2
    assert (radius >= 1.0).all()
    assert (radius <= 2.0).all()
    assert radius.std() > 0.2


def test_catches_and_rewards_are_those_of_a_loop_over_pairs(walled_history):
    # Without respawning, the dead stay where they were caught.
    rules, (world, timestep) = walled_history[0].rules, walled_history[1]
    table, prices = {k: np.asarray(v) for k, v in rules.table.items()}, {k: float(v) for k, v in rules.reward.items()}
    n_caught = 0
    for number in range(N_WORLDS):
        kind = np.asarray(world.entities.kind[number, 0])
        for t in range(1, N_STEPS + 1, 3):
            e, now = jax.tree.map(lambda x, i=number, t=t: np.asarray(x[i, t]), (world.entities, timestep))
            if now.world_terminated:
                break
            distance = np.linalg.norm(e.position[None].astype(float) - e.position[:, None], axis=-1)
            predator, prey = now.valid & (kind != PREY), now.valid & (kind == PREY)
            expected = np.where(predator, -prices["time"], 0.0)
            for j in np.flatnonzero(prey):
                reaches = predator & (distance[:, j] < table["catch"][kind])
                taken = table["strength"][kind][reaches].sum() >= table["strength"][PREY]
                assert now.terminated[j] == taken
                if taken:
                    helpers = predator & (distance[:, j] < prices["assist"])
                    expected[helpers] += prices["catch"] / helpers.sum()
                    n_caught += 1
            np.testing.assert_allclose(now.reward, expected, atol=1e-5)
    assert n_caught > 5


def test_each_prey_within_reach_pays_a_tag(walled, walled_history):
    tagging = eqx.tree_at(lambda s: s.rules.reward["tag"], walled, jnp.float32(0.5))
    world, timestep = history_of(tagging, walled.rules.scripted_policy())[1]
    e, untagged = jax.device_get(world.entities), np.asarray(walled_history[1][1].reward)
    np.testing.assert_array_equal(e.position, walled_history[1][0].entities.position)
    far = np.linalg.norm(e.position[..., None, :, :].astype(float) - e.position[..., None, :], axis=-1)
    reach = np.asarray(walled.rules.table["catch"])[e.kind][..., None]
    # Caught or not: who dies in the step lived when it began.
    prey = (np.asarray(timestep.valid) & (e.kind == PREY))[..., None, :]
    predator = np.asarray(timestep.valid) & (e.kind != PREY)
    tags = np.where(predator, ((far < reach) & prey).sum(axis=-1), 0)[:, 1:]
    np.testing.assert_allclose((np.asarray(timestep.reward) - untagged)[:, 1:], 0.5 * tags, atol=1e-4)
    assert tags.sum() > 50


def test_every_catch_is_paid_once_and_kills_once(played):
    simulator, (world, timestep) = played
    rules, reward, valid = simulator.rules, np.asarray(timestep.reward), np.asarray(timestep.valid)
    time, kind = float(rules.reward["time"]), np.asarray(world.entities.kind)
    predator, prey = valid & (kind != PREY), valid & (kind == PREY)
    n_caught = np.diff(np.asarray(world.fields.caught), axis=1)
    gained = np.where(predator, reward + time, 0.0).sum(axis=2)[:, 1:]
    paid = np.where(prey, reward - time if rules.prey_acts else reward, 0.0).sum(axis=2)[:, 1:]
    n_died = (np.asarray(timestep.terminated) & prey).sum(axis=2)[:, 1:]
    going = ~np.asarray(timestep.world_terminated)[:, 1:]
    np.testing.assert_allclose(gained[going], n_caught[going], atol=1e-4)
    np.testing.assert_allclose(paid[going], -n_caught[going] if rules.prey_acts else 0.0, atol=1e-4)
    np.testing.assert_array_equal(n_died[going], n_caught[going])
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


def test_each_sides_script_does_better_than_chance(periodic):
    def caught(predators_think, prey_thinks):
        world, _ = play(periodic, sides(periodic, predators_think, prey_thinks), KEYS)[1]
        return float(world.fields.caught[:, -1].mean())

    both, chance, careless = caught(True, True), caught(False, True), caught(True, False)
    assert both > 2 * chance
    assert both < 0.7 * careless


@pytest.fixture(scope="module")
def scene(walled_history):
    """Makes a world without obstacles in which only these live, at rest: (kind, x, y)."""
    world = jax.tree.map(lambda x: x[0, 0], walled_history[1][0])
    rules = walled_history[0].rules
    n, look = rules.n_slots, jax.jit(lambda entities: rules.look(entities, entities.alive)[0])

    def build(*rows):
        kind, place = np.full(n, PREY, np.int32), np.zeros((n, 2), np.float32)
        for slot, (k, x, y) in enumerate(rows):
            kind[slot], place[slot] = k, (x, y)
        alive, team, velocity = np.arange(n) < len(rows), (kind == PREY).astype(np.int32), np.zeros((n, 2), np.float32)
        values = [jnp.asarray(x) for x in (alive, kind, team, place, velocity)]
        entities = eqx.tree_at(lambda e: (e.alive, e.kind, e.team, e.position, e.velocity), world.entities, values)
        away = jnp.full_like(world.fields.obstacles.centre, -50.0)
        new = entities, look(entities), away
        return eqx.tree_at(lambda w: (w.entities, w.fields.sight, w.fields.obstacles.centre), world, new)

    return build


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
def test_one_hunter_or_two_scouts_take_a_prey(scene, act, predators, taken):
    world = scene((PREY, 12.0, 12.0), *[(kind, 12.0 + x, 12.0) for kind, x in predators])
    fields, outcome = act(world)
    assert bool(outcome.dying[0]) == taken
    assert not outcome.dying[1:].any()
    assert float(fields.caught) == taken


def test_prey_flee_from_what_is_within_panic_and_run_along_walls(walled, scene):
    flee = jax.jit(lambda world: walled.rules.flee(world))
    # Straight away from one; past a wall that is in the way, along it.
    np.testing.assert_allclose(flee(scene((PREY, 12.0, 12.0), (SCOUT, 9.0, 12.0)))[0], [1.0, 0.0], atol=1e-5)
    x, y = flee(scene((PREY, 12.0, 0.3), (SCOUT, 11.5, 3.0)))[0]
    assert float(x) > 0.9
    assert float(y) > -0.1
    # Of two, the nearer one frightens more.
    x, _ = flee(scene((PREY, 12.0, 12.0), (SCOUT, 10.0, 12.0), (SCOUT, 16.0, 12.0)))[0]
    assert float(x) > 0.9
    far = flee(scene((PREY, 12.0, 12.0), (SCOUT, 6.5, 12.0)))[0]
    assert float(jnp.linalg.norm(far)) < 0.5


def test_predators_cut_off_what_they_see_and_follow_a_mate_who_sees(walled, walled_history, scene):
    observation = jax.tree.map(lambda x: x[0, 0], walled_history[1][1].observation)
    policy = jax.jit(lambda world: walled.rules.scripted_policy()(world, observation, world.key))
    prey_runs = scene((HUNTER, 8.0, 12.0), (PREY, 12.0, 12.0))
    prey_runs = eqx.tree_at(lambda w: w.entities.velocity, prey_runs, prey_runs.entities.velocity.at[1, 1].set(3.4))
    assert int(policy(prey_runs)[0]) == 2  # north-east, not east
    # The hunter does not see so far; the scout in its sight does.
    assert int(policy(scene((HUNTER, 4.0, 12.0), (SCOUT, 9.0, 14.0), (PREY, 15.0, 12.0)))[0]) == 1


def test_nobody_is_seen_beyond_sight(walled, scene):
    def sees(world):
        return bool(world.fields.sight.foes.valid[0, 0])

    assert sees(scene((HUNTER, 4.0, 12.0), (PREY, 10.9, 12.0)))
    assert not sees(scene((HUNTER, 4.0, 12.0), (PREY, 11.1, 12.0)))
    maps = jax.jit(lambda world: walled.rules.observe(world).maps[0])
    seen = maps(scene((HUNTER, 4.0, 12.0), (PREY, 10.9, 12.0)))
    assert np.argwhere(np.asarray(seen[..., 6])).tolist() == [[3, 2]]
    assert not np.asarray(maps(scene((HUNTER, 4.0, 12.0), (PREY, 11.1, 12.0)))[..., 6]).any()


def test_mates_tell_the_way_to_what_they_see(walled, scene):
    own = jax.jit(lambda world: walled.rules.observe(world).own[0, jnp.asarray(walled.rules.sets["mates"][0])])
    # Seen by the hunter: way, relative velocity, that it is there, strength, way to the scout's prey, that it sees one.
    told = own(scene((HUNTER, 4.0, 12.0), (SCOUT, 9.0, 14.0), (PREY, 15.0, 12.0)))
    np.testing.assert_allclose(told, [5 / 7, 2 / 7, 0, 0, 1, 1, 11 / 7, 0, 1], atol=1e-6)
    untold = own(scene((HUNTER, 4.0, 12.0), (SCOUT, 9.0, 14.0)))
    np.testing.assert_allclose(untold, [5 / 7, 2 / 7, 0, 0, 1, 1, 0, 0, 0], atol=1e-6)


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
