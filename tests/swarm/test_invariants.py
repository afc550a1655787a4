"""What holds for every scenario: capacity, batch, dead slots and replay change nothing; episodes end as they should.

Here programs are compiled in a hurry, in `test_invariants_compiled` as users compile them.
"""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import on_host, same_bits, same_by_uid, shuffled

from swarm import RandomPolicy, Simulator, make
from swarm.simulation.simulator import reset_ended

N_STEPS, SEGMENT = 60, 6

OUTPOST = {
    "world.size": [12, 12],
    "world.friendly_fire": True,
    "world.steps": 1000,
    "population.depot.capacity": 1,
    "population.depot.initial": 1,
    # No team can pay for so many lights that a cap is reached (asserted below).
    "population.depot.metal": 60.0,
    "population.light.capacity": 14,
    "population.light.initial": 4,
    "population.heavy.capacity": 4,
    "population.heavy.initial": 2,
}
FLOCKING = {
    "world.size": [6.0, 6.0],
    "world.steps": 1000,
    "population.bird.capacity": 40,
    "population.bird.initial": 30,
}
BATTLE = {
    "world.size": [30.0, 28.0],
    "world.gap": 2.0,
    "world.squad": 4,
    "world.steps": 1000,
    "groups.squad": "block:4",
    "waves.every": 8,
    "waves.count": 2,
    "population.infantry.capacity": 24,
    "population.infantry.initial": 12,
    "population.infantry.wave": 4,
    "population.infantry.health": 30.0,
    "population.infantry.damage": 30.0,
    "population.archer.capacity": 12,
    "population.archer.initial": 4,
    "population.archer.wave": 4,
    "population.archer.damage": 30.0,
    "population.archer.accuracy": 0.7,
    "population.cavalry.capacity": 4,
    "population.cavalry.initial": 4,
    "population.cavalry.wave": 0,
}
SPREAD = {
    "world.size": [3.0, 3.0],
    "world.steps": 1000,
    "world.landmarks": 6,
    "population.agent.capacity": 12,
    "population.agent.initial": 8,
}
PURSUIT = {
    "world.size": [16.0, 16.0],
    "world.steps": 1000,
    "world.obstacles": 3,
    "world.obstacle_radius": [1.0, 2.0],
    "world.raster": [6, 6],
    "world.respawn": True,
    "world.prey": "acting",
    "population.scout.capacity": 8,
    "population.scout.initial": 6,
    "population.scout.sight": 8.0,
    "population.hunter.catch": 3.5,
    "reward.assist": 4.0,
    "population.prey.strength": 2.0,
    "population.hunter.capacity": 6,
    "population.hunter.initial": 5,
    "population.prey.capacity": 14,
    "population.prey.initial": 12,
}
CROSSING = {
    "world.size": [4.0, 4.0, 2.0],
    "world.circle": 1.5,
    "world.jitter": 0.1,
    "world.pillars": 2,
    "world.pillar_radius": 0.1,
    "world.steps": 1000,
    "population.drone.capacity": 10,
    "population.drone.initial": 8,
}
PATROL = {
    "world.size": [6.0, 6.0],
    "world.cells": [8, 8],
    "world.steps": 1000,
    "population.drone.capacity": 6,
    "population.drone.initial": 5,
    "energy.endurance": 9.0,
    "energy.pad": 1.5,
    "radio.range": 3.0,
}
DELIVERY = {
    "world.size": [12.0, 12.0],
    "world.pads": 3,
    "world.slow": 1.5,
    "world.steps": 1000,
    "parcels.last": 10.0,
    "population.drone.capacity": 7,
    "population.drone.initial": 6,
    # Patrol has these.
    "air.turbulence": False,
    "air.downwash": "",
}
VASARHELYI = {
    "world.size": [60.0, 60.0],
    "world.pillars": [[20.0, 30.0, 5.0]],
    "world.steps": 1000,
    "population.drone.capacity": 12,
    "population.drone.initial": 9,
    "population.drone.collision_distance": 6.0,
    "radio.range": 30.0,
    "radio.loss": 0.2,
    "radio.heard": 8,
}
CASES = {
    "outpost, 1 team": ("outpost", OUTPOST | {"world.teams": 1}),
    "outpost, 2 teams": ("outpost", OUTPOST | {"world.teams": 2}),
    "flocking": ("flocking", FLOCKING),
    "flocking, cell grid": ("flocking", FLOCKING | {"search.backend": "cell_grid", "search.room": 4}),
    "flocking, 3D": ("flocking", FLOCKING | {"world.size": [6.0, 6.0, 6.0], "world.control": "continuous"}),
    "vicsek": ("vicsek", FLOCKING),
    "vicsek, 3D": ("vicsek", FLOCKING | {"world.size": [6.0, 6.0, 6.0]}),
    "battle": ("battle", BATTLE),
    "spread": ("spread", SPREAD),
    "pursuit": ("pursuit", PURSUIT),
    "crossing": ("crossing", CROSSING),
    "patrol": ("patrol", PATROL),
    "delivery": ("delivery", DELIVERY),
    "vasarhelyi": ("vasarhelyi", VASARHELYI),
}
BROAD = ["outpost, 2 teams", "flocking, cell grid", "battle", "pursuit"]


class Case(NamedTuple):
    name: str
    simulator: Simulator
    roomy: Simulator  # the same with twice the capacity

    @property
    def has_births(self) -> bool:
        return self.name.startswith(("outpost", "battle", "pursuit"))


def built(name):
    """A case, and a simulator, for programs of one kind, as what was played is kept by simulator."""
    return _built(name, jax.config.read("jax_disable_most_optimizations"))


@functools.cache
def _built(name, hurry):
    scenario, overrides = CASES[name]
    doubled = {k: 2 * v if k.endswith("capacity") else v for k, v in overrides.items()}
    return Case(name, make(scenario, overrides), make(scenario, doubled))


# What others stand for, too: flocks are on the cell grid or in three dimensions.
RARE = frozenset({"outpost, 1 team", "flocking", "vicsek", "vicsek, 3D", "vasarhelyi"})


def among(names, rare=RARE, compiled=("flocking, cell grid", "crossing")):
    """The cases of a claim: as users compile, those named last are quick tests; in a hurry, all but the rare."""

    def of(claim):
        claim.cases = names, rare, compiled
        return claim

    return of


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        names, rare, compiled = metafunc.function.cases
        as_users = any(mark.name == "optimised" for mark in metafunc.definition.iter_markers())
        cases = quick(names, compiled) if as_users else [name for name in names if name not in {*rare, *compiled}]
        metafunc.parametrize("case", cases, indirect=True, scope="module")
        if "n_worlds" in metafunc.fixturenames:
            metafunc.parametrize("n_worlds", quick((1, 2, 3, 8, 32), (3,)) if as_users else [3])


def quick(values, of_them):
    """Parameters, of which some are quick tests."""
    return [pytest.param(x, marks=() if x in of_them else pytest.mark.slow) for x in values]


@pytest.fixture(scope="module")
def case(request):
    return built(request.param)


def _policy(rules):
    """The random one; of Vicsek's birds their own, which is random, too."""
    is_vicsek = getattr(rules, "scripted", None) == "vicsek"
    return rules.scripted_policy() if is_vicsek else RandomPolicy(rules.n_controls)


def play(simulator, world, timestep, key):
    """A short segment of an episode, with all that happened."""

    def body(carry, step_key):
        world, timestep = carry
        action = _policy(simulator.rules)(world, timestep.observation, step_key)
        carry = simulator.step(world, action)
        return carry, (*carry, action, simulator.metrics(carry[0]))

    (world, timestep), history = jax.lax.scan(body, (world, timestep), jax.random.split(key, SEGMENT))
    return world, timestep, history


# The simulator is an argument, so that one with other numbers (a shorter episode) needs no compilation of its own.
play_segment = eqx.filter_jit(play)
# Time before worlds in what is kept.
play_batch = eqx.filter_jit(
    lambda simulator, *worlds: jax.vmap(functools.partial(play, simulator), out_axes=(0, 0, 1))(*worlds)
)
step = eqx.filter_jit(lambda simulator, world, action: simulator.step(world, action))
reset = eqx.filter_jit(lambda simulator, key: simulator.reset(key))
reset_batch = eqx.filter_jit(lambda simulator, keys: jax.vmap(simulator.reset)(keys))
reset_some = eqx.filter_jit(reset_ended)

RESET_KEYS, PLAY_KEYS = jax.random.split(jax.random.key(11), 3), jax.random.split(jax.random.key(12), 3)


def stacked(*histories):
    return jax.tree.map(lambda *x: np.concatenate([on_host(part) for part in x]), *histories)


def pick(tree, number):
    """One world of a batch, by numpy: each shape would be a program."""
    return jax.tree.map(lambda x: on_host(x)[number], tree)


_EPISODES = {}


def episode(simulator, world_number=0):
    """Start, state after the first segment with the key of the second, and all 60 steps; played once per simulator."""
    # By identity, because arrays do not hash; the simulator is kept so that its identity is not given away.
    _, played = _EPISODES.setdefault(id(simulator), (simulator, {}))
    if world_number not in played:
        start = now = reset(simulator, RESET_KEYS[world_number])
        keys, states, histories = jax.random.split(PLAY_KEYS[world_number], N_STEPS // SEGMENT), [], []
        for key in keys:
            *now, history = play_segment(simulator, *now, key)
            states.append(now)
            histories.append(history)
        played[world_number] = start, (*states[0], keys[1:]), stacked(*histories)
    return played[world_number]


def of_the_living(history):
    """Everything that concerns the living, with dead slots blanked; what concerns the world as it is."""
    world, timestep, *_ = history
    alive = on_host(world.entities.alive)

    def blank(x):
        x = on_host(x)
        return np.where(alive.reshape(*alive.shape, *[1] * (x.ndim - 2)), x, np.zeros((), x.dtype))

    per_slot = ("alive", "uid", "kind", "team", "position", "heading", "velocity", "stores")
    return {
        "entities": {name: blank(getattr(world.entities, name)) for name in per_slot},
        "next_uid": world.entities.next_uid,
        "parent": blank(world.hierarchy.parent[0]),
        "group exists": world.hierarchy.exists,
        "fields": world.fields,
        "status": world.status,
        "n_overflow": world.n_overflow,
        "observation": timestep.observation,
        "reward": timestep.reward,
        "flags": (timestep.valid, timestep.terminated, timestep.truncated, timestep.world_terminated),
    }


@among(CASES)
def test_something_happens_in_the_episodes_compared(case):
    # The claims below would be empty without births, deaths and reuse of slots.
    _, _, (world, timestep, action, _) = episode(case.simulator)
    assert len(np.unique(action)) > 3
    assert np.abs(timestep.reward).sum() > 0 or case.has_births
    assert (world.n_overflow == 0).all()
    mask = timestep.observation.action_mask
    assert mask.shape[2] == case.simulator.rules.n_actions
    assert mask.any(axis=2)[timestep.observation.alive].all()
    if case.simulator.rules.n_controls:
        np.testing.assert_array_equal(mask.all(axis=2), timestep.observation.alive)
    if case.simulator.rules.capacities is not None:
        for team, of_kind in enumerate(case.simulator.rules.capacities):
            for kind, capacity in enumerate(of_kind):
                mine = world.entities.alive & (world.entities.team == team) & (world.entities.kind == kind)
                assert mine.sum(axis=1).max() <= capacity
    if case.has_births:
        n_initial = int(episode(case.simulator)[0][0].entities.next_uid)
        assert world.entities.next_uid[-1] > n_initial + 2
        assert timestep.terminated.any()
        assert world.entities.next_uid[-1] > world.entities.next_uid[SEGMENT]  # later births, too


@pytest.mark.parametrize("control", ["discrete", "continuous"])
@pytest.mark.parametrize(("name", "n_controls"), [("spread", 2), ("pursuit", 2), ("flocking", 1), ("flocking, 3D", 2)])
def test_the_mask_has_a_column_for_each_action_or_command(name, n_controls, control):
    scenario, overrides = CASES[name]
    simulator = make(scenario, overrides | {"world.control": control})
    world, timestep = eqx.filter_eval_shape(simulator.reset, jax.random.key(0))
    n_actions = max(len(names) for names in simulator.rules.actions.values())
    assert simulator.rules.n_controls == (n_controls if control == "continuous" else 0)
    assert simulator.rules.n_actions == (n_controls if control == "continuous" else n_actions)
    assert timestep.observation.action_mask.shape == (world.entities.n_slots, simulator.rules.n_actions)


# These claims need compilations of their own: a few cases are quick tests of each.


@among(CASES, rare=set(CASES) - {"outpost, 2 teams", "spread"}, compiled=("flocking, cell grid",))
def test_twice_the_capacity_changes_nothing(case):
    _, _, small = episode(case.simulator)
    _, _, roomy = episode(case.roomy)
    assert roomy[0].entities.alive.shape[1] == 2 * small[0].entities.alive.shape[1]
    assert (roomy[0].n_overflow == 0).all()
    same_by_uid(small, roomy)


@among(CASES)
def test_other_slots_change_nothing_but_the_order_of_sums(case):
    """Sums by index (onto maps, into groups of metrics) and over the cells of a grid follow slots: there they round."""
    _, (world, timestep, keys), history = episode(case.simulator)
    # Depots are always in the first slots.
    n, fixed = case.simulator.rules.n_slots, 2 if case.name.startswith("outpost") else 0
    order = np.concatenate([np.arange(fixed), fixed + np.random.default_rng(1).permutation(n - fixed)])
    now = shuffled((world, timestep), order)
    *_, segment = play_segment(case.simulator, *now, keys[0])
    before = jax.tree.map(lambda x: x[SEGMENT : 2 * SEGMENT], history)
    by_cells = "cell grid" in case.name
    rounded = ("entity", "observation", "earned") if by_cells else ()
    same_by_uid(before, stacked(segment), rounded=("maps", "metrics", *rounded))


# Crossing stands for all drones: compiled in a hurry, they round in another way in a batch.
@among(CASES, rare=RARE | {"flocking, 3D", "spread", "patrol", "delivery"})
def test_a_world_alone_is_the_world_in_a_batch(case, n_worlds):
    simulator = case.simulator
    keys = [keys[jnp.arange(n_worlds) % 3] for keys in (RESET_KEYS, PLAY_KEYS)]
    start, batch = played_together(simulator, *keys, reset_batch, play_batch)
    for number in {0, n_worlds - 1}:
        alone, _, whole = episode(simulator, number % 3)
        same_bits(alone, pick(start, number), "reset ")
        same_bits(whole, jax.tree.map(lambda x, i=number: x[:, i], batch))


def played_together(simulator, reset_keys, play_keys, reset_batch, play_batch):
    """The start of a batch, and all that happens in it."""
    now = start = reset_batch(simulator, reset_keys)
    keys = jax.vmap(lambda key: jax.random.split(key, N_STEPS // SEGMENT))(play_keys)
    segments = []
    for segment in range(N_STEPS // SEGMENT):
        *now, history = play_batch(simulator, *now, keys[:, segment])
        segments.append(history)
    return start, stacked(*segments)


@among(CASES)
@pytest.mark.parametrize(("number", "integer"), [(np.nan, -7), (np.inf, 123_456), (-1e30, 2**31 - 1)])
def test_what_dead_slots_hold_influences_nothing(case, number, integer):
    _, (world, timestep, keys), history = episode(case.simulator)
    dead = ~np.asarray(world.entities.alive)
    assert dead.any()

    def poison(x):
        garbage = number if jnp.issubdtype(x.dtype, jnp.floating) else integer
        return jnp.asarray(np.where(dead.reshape(-1, *[1] * (x.ndim - 1)), np.asarray(garbage, x.dtype), x))

    data = ("uid", "kind", "team", "position", "heading", "velocity", "stores")
    entities = eqx.tree_at(
        lambda e: [getattr(e, name) for name in data],
        world.entities,
        [poison(getattr(world.entities, name)) for name in data],
    )
    now, histories = (eqx.tree_at(lambda w: w.entities, world, entities), timestep), []
    for key in keys:
        *now, segment = play_segment(case.simulator, *now, key)
        histories.append(segment)
    clean = jax.tree.map(lambda x: x[SEGMENT:], history)
    same_bits(of_the_living(clean), of_the_living(stacked(*histories)))


@among(BROAD, rare={"outpost, 2 teams"})
def test_the_same_key_and_actions_replay_the_episode(case):
    simulator = case.simulator
    _, _, (worlds, timesteps, actions, _) = episode(simulator)
    world, _ = reset(simulator, RESET_KEYS[0])
    for t in range(N_STEPS):
        world, timestep = step(simulator, world, jnp.asarray(actions[t]))
        same_bits((world, timestep), jax.tree.map(lambda x, t=t: x[t], (worlds, timesteps)), f"step {t}: ")


@among(["flocking, cell grid", "battle"])
def test_reset_ended_restarts_the_worlds_that_ended_and_no_other(case):
    simulator = case.simulator
    worlds, timesteps = reset_batch(simulator, RESET_KEYS)
    worlds, timesteps, _ = play_batch(simulator, worlds, timesteps, PLAY_KEYS)
    ended = jnp.asarray([False, True, False])
    flagged = eqx.tree_at(lambda t: t.world_truncated, timesteps, ended)
    new_keys = jax.random.split(jax.random.key(99), 3)
    new_worlds, new_timesteps = reset_some(simulator, worlds, flagged, new_keys)
    for number in (0, 2):
        same_bits(pick((worlds, flagged), number), pick((new_worlds, new_timesteps), number), f"world {number}")
    fresh, first = reset(simulator, new_keys[1])
    same_bits(fresh, pick(new_worlds, 1))
    same_bits(first.observation, pick(new_timesteps.observation, 1))
    # What the last step gave is kept for the learner.
    kept = lambda t: (t.reward, t.valid, t.terminated, t.truncated, t.world_terminated, t.world_truncated)  # noqa: E731
    same_bits(kept(flagged), kept(new_timesteps))


def short(case, max_steps):
    return eqx.tree_at(lambda s: s.max_steps, case.simulator, jnp.int32(max_steps))


@among(CASES)
def test_an_episode_is_truncated_exactly_at_its_last_step(case):
    _, _, (_, timestep, *_) = episode(short(case, 40))
    np.testing.assert_array_equal(timestep.world_truncated, np.arange(1, N_STEPS + 1) >= 40)
    assert not timestep.world_terminated.any()
    assert not (timestep.terminated & timestep.truncated).any()
    # At the last step everybody who lives on is truncated, and who dies in it is terminated.
    np.testing.assert_array_equal(timestep.truncated[39], timestep.valid[39] & ~timestep.terminated[39])
    assert not timestep.truncated[:39].any()


@among(["outpost, 1 team", "outpost, 2 teams"])
@pytest.mark.parametrize("max_steps", [3, 4, 5])
def test_a_task_that_ends_is_terminated_and_not_truncated(case, max_steps):
    # Depots with water for 3 steps die in step 4; running out of steps in that same step changes nothing.
    simulator = short(case, max_steps)
    simulator = eqx.tree_at(lambda s: s.rules.depot["water"], simulator, jnp.float32(3.0))
    _, _, (_, timestep, *_) = episode(simulator)
    np.testing.assert_array_equal(timestep.world_terminated, np.arange(1, N_STEPS + 1) >= 4)
    np.testing.assert_array_equal(np.flatnonzero(timestep.world_truncated), [2] if max_steps == 3 else [])
    assert not (timestep.world_terminated & timestep.world_truncated).any()
    assert not (timestep.terminated & timestep.truncated).any()
    np.testing.assert_array_equal(timestep.terminated[3], timestep.valid[3])
