"""Chunks change nothing, growth in the middle equals growth from the start, and the first offender is named."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from colony import Colony, Wander

from swarm import RandomPolicy, load, make
from swarm.build.regrow import crowding, enlarge, migrate
from swarm.core.status import Fault, Status, explain
from swarm.play.episodes import play
from swarm.population.entities import Entities
from swarm.simulation.simulator import finite, judged, usable

ROOMY = {"world.room": 64, "population.worker.capacity": 64}
N_STEPS = 16

reset = eqx.filter_jit(lambda simulator, key: simulator.reset(key)[0])


@pytest.fixture(scope="module")
def path(request):
    return str(request.path.parent / "colony.toml")


@pytest.fixture(scope="module")
def roomy(path):
    return make(load(path, ROOMY))


def history(chunks):
    """Per world and step, all that concerns the living by uid, and what concerns the world."""
    worlds = {}
    for chunk in chunks:
        for number, length in enumerate(chunk.length):
            worlds.setdefault(number, []).extend(state(chunk, t, number) for t in range(length))
    return worlds


def state(chunk, t, number):
    world = chunk.world(t, number)
    e, living = world.entities, np.flatnonzero(world.entities.alive)
    groups = [world.hierarchy.parent[0], world.hierarchy.generation[0][world.hierarchy.parent[0]]]
    near = np.where(world.fields.near >= 0, e.uid[world.fields.near], -1)
    rows = {
        int(e.uid[i]): (
            int(i),
            *(x[i].tolist() for x in (e.kind, e.team, e.position, e.stores, *groups)),
            near[i][near[i] >= 0].tolist(),
            float(chunk.timesteps.reward[t, number, i]) if chunk.timesteps.valid[t, number, i] else None,
        )
        for i in living
    }
    return int(world.step), int(e.next_uid), int(world.status), int(world.n_overflow), rows


def episode(simulator, *, policy=None, seed=0, n_steps=N_STEPS, **options):
    policy = policy or simulator.rules.scripted_policy()
    return list(play(simulator, policy, jax.random.key(seed), n_steps, **options))


# Chunks


def test_the_length_of_chunks_changes_nothing_and_compiles_once(roomy):
    n_traces = []

    class Counting(Wander):
        def __call__(self, world, observation, key):
            n_traces.append(1)
            return super().__call__(world, observation, key)

    fours = episode(roomy, chunk_steps=4)
    sixes = episode(roomy, chunk_steps=6, policy=Counting(roomy.rules, jnp.int32(-1), jnp.float32(0.0)))
    assert [int(c.length[0]) for c in sixes] == [6, 6, 4]
    assert [len(c.worlds.step) for c in sixes] == [6, 6, 4]
    assert len(n_traces) == 1
    assert history(fours) == history(sixes)
    np.testing.assert_array_equal(fours[1].first.entities.uid[0], fours[0].worlds.entities.uid[-1, 0])


def test_an_episode_stops_at_its_end_and_the_first_world_is_the_one_played_alone(roomy):
    short = eqx.tree_at(lambda s: s.max_steps, roomy, jnp.int32(11))
    chunks = episode(short, chunk_steps=8, n_worlds=2)
    assert sum(c.length for c in chunks).tolist() == [11, 11]
    assert chunks[-1].timesteps.world_truncated[-1].all()
    together = history(chunks)
    assert together[0] == history(episode(short, chunk_steps=4))[0]
    assert together[0] != together[1]


# Growth


def test_growth_in_the_middle_equals_the_larger_capacity_from_the_start(path, roomy):
    scenario = load(path, {"population.worker.capacity": 8})
    chunks = episode(make(scenario), scenario=scenario, chunk_steps=4, n_worlds=2)
    grown = [(int(c.first.step[0]), line) for c in chunks for line in c.grown]
    assert any(step == 0 for step, _ in grown)
    for key in ("world.room", "population.worker.capacity"):
        assert any(line.startswith(key) for step, line in grown if step >= 4)
    assert not any("queen" in line for _, line in grown)
    assert history(chunks) == history(episode(roomy, chunk_steps=8, n_worlds=2))
    assert not chunks[-1].worlds.status[-1].any()


def test_without_the_scenario_nothing_grows_and_the_bits_stay(path):
    chunks = episode(make(load(path)), chunk_steps=8)
    assert not any(c.grown for c in chunks)
    faults = {fault.bit: fault for c in chunks for fault in c.faults}
    assert set(faults) == {Status.ENTITIES_FULL, Status.NEIGHBORS_FULL}
    assert len([fault for c in chunks for fault in c.faults]) == 2
    for t, (_, _, status, n_overflow, _) in enumerate(history(chunks)[0]):
        for bit, fault in faults.items():
            assert bool(status & bit) == (t + 1 >= fault.step)
        assert (n_overflow > 0) == bool(status & Status.ENTITIES_FULL)


def test_what_no_key_mends_is_left_as_it_is(path, monkeypatch):
    monkeypatch.setattr(Colony, "room", {Status.ENTITIES_FULL: ("world.nothing",)})
    scenario = load(path)
    chunks = episode(make(scenario), scenario=scenario, chunk_steps=8)
    assert {fault.bit for c in chunks for fault in c.faults} == {Status.ENTITIES_FULL, Status.NEIGHBORS_FULL}
    assert chunks[-1].scenario.config == scenario.config


@pytest.mark.parametrize(
    ("status", "crowd", "lines"),
    [
        (Status.ENTITIES_FULL, {"queen": 1, "worker": 4}, ["population.worker.capacity 4 -> 8"]),
        (Status.ENTITIES_FULL, {"queen": 2, "worker": 5}, ["population.worker.capacity 4 -> 8"]),
        (Status.ENTITIES_FULL, {"queen": 2, "worker": 3}, ["population.queen.capacity 2 -> 4"]),
        (Status.ENTITIES_FULL, {"queen": 1, "worker": 1}, ["queen.capacity 2 -> 4", "worker.capacity 4 -> 8"]),
        (Status.NEIGHBORS_FULL, {"queen": 2, "worker": 4}, ["world.room 2 -> 4"]),
        (Status.NEIGHBORS_FULL | Status.ENTITIES_FULL, {"queen": 0, "worker": 4}, ["world.room", "worker"]),
        (Status.GROUPS_FULL, {"queen": 2, "worker": 4}, []),
    ],
)
def test_the_values_that_are_full_are_doubled(path, status, crowd, lines):
    scenario = load(path)
    larger, grown = enlarge(scenario, status, crowd)
    assert len(grown) == len(lines)
    for line, part in zip(grown, lines, strict=True):
        assert part in line
    words = [line.split() for line in grown]
    assert larger.config == load(path, {key: int(value) for key, _, _, value in words}).config


def test_a_crowd_is_counted_per_team_and_world():
    empty = Entities.empty(5, 2, 0)
    alive = np.asarray([[1, 1, 1, 0, 1], [1, 1, 0, 0, 0]], bool)
    kind, team = np.asarray([[0, 0, 1, 0, 1], [1, 1, 0, 0, 0]]), np.asarray([[0, 1, 0, 0, 0], [1, 1, 0, 9, 0]])
    stacked = eqx.tree_at(lambda e: (e.alive, e.kind, e.team), empty, (alive, kind, team))
    assert crowding(stacked, ("a", "b", "c")) == {"a": 1, "b": 2, "c": 0}


def test_an_array_that_shrinks_is_refused():
    assert migrate(jnp.full((3, 2), 7), jnp.zeros((2, 1), int)).tolist() == [[0, 7], [0, 7], [7, 7]]
    with pytest.raises(ValueError, match=r"\(3,\) does not fit into \(2,\)"):
        migrate(jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(ValueError, match="does not fit"):
        migrate(jnp.zeros((3, 3)), jnp.zeros(3))


# Faults


def test_the_first_bad_action_is_named_and_is_as_none(roomy):
    policies = (Wander(roomy.rules, jnp.int32(3), jnp.float32(word)) for word in (np.nan, 0))
    chunks, calm = (episode(roomy, policy=policy, chunk_steps=4) for policy in policies)
    faults = [fault for c in chunks for fault in c.faults]
    assert faults == [Fault(Status.BAD_ACTION, 7, 3, None)]
    assert str(faults[0]).startswith("BAD_ACTION at step 7, uid 3: an action is NaN")
    assert explain(int(chunks[-1].worlds.status[-1, 0]), faults) == [str(faults[0])]
    assert not any(c.faults for c in calm)  # what the policy says for dead slots, NaN here, is no fault
    told, still = history(chunks)[0], history(calm)[0]
    assert [row[-1] for row in told] == [row[-1] for row in still]


def test_the_first_state_that_is_lost_is_named_with_its_world(path):
    simulator = make(load(path, ROOMY | {"world.sick": 4}))
    chunks = episode(simulator, chunk_steps=8, n_worlds=2)
    assert [fault for c in chunks for fault in c.faults] == [Fault(Status.NON_FINITE, 9, 4, 0)]
    assert "NON_FINITE at step 9, world 0, uid 4: " in explain(2, chunks[1].faults)[0]
    assert explain(2)[0].startswith("NON_FINITE: ")


FLOCK = {"population.bird.capacity": 40, "population.bird.initial": 30, "world.size": [9.0, 9.0]}
FLOCK |= {"groups": {"levels": ["bird", "flock"], "flock": "fixed:4,5"}, "search.backend": "cell_grid"}


def test_what_a_reset_finds_no_room_for_is_a_fault_at_step_0_and_grows():
    scenario = load("flocking", FLOCK | {"search.backend": "all_pairs"})
    simulator = make(scenario)
    policy = RandomPolicy()
    (chunk,) = play(simulator, policy, jax.random.key(0), 2)
    assert int(chunk.first.status[0]) == Status.GROUPS_FULL
    assert chunk.faults == (Fault(Status.GROUPS_FULL, 0),)
    (chunk,) = play(simulator, policy, jax.random.key(0), 2, scenario=scenario)
    assert chunk.grown == ("groups.flock fixed:4,5 -> fixed:4,10 at step 0",)
    assert chunk.faults == ()
    assert not chunk.worlds.status.any()


def test_a_reset_tells_what_its_rules_and_the_state_tell():
    simulator = make("flocking", FLOCK | {"groups.flock": "fixed:4,10"})
    for where, number, bit in (
        (lambda s: s.max_steps, 3, 0),
        (lambda s: s.rules.search.radius, 8.0, Status.NEIGHBORS_FULL),  # beyond what its cells are made for
        (lambda s: s.rules.speed, np.nan, Status.NON_FINITE),
    ):
        spoilt = eqx.tree_at(where, simulator, jnp.asarray(number, where(simulator).dtype))
        assert int(reset(spoilt, jax.random.key(0)).status) == bit


def test_actions_that_no_rules_could_carry_out_are_replaced():
    action, bad = usable(jnp.asarray([-1, 0, 4, 5, 2**31 - 1], jnp.int32), (5,))
    assert action.tolist() == [0, 0, 4, 4, 4]
    assert bad.tolist() == [True, False, False, True, True]
    action, bad = usable(jnp.asarray([[0.5, jnp.nan], [-jnp.inf, 2.0], [-3.0, 1.0]]), (2,))
    assert action.tolist() == [[0.5, 0.0], [0.0, 2.0], [-3.0, 1.0]]
    assert bad.tolist() == [True, True, False]


@pytest.mark.parametrize("name", ["position", "velocity", "heading", "stores"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_each_array_of_the_state_is_looked_at(name, value):
    entities = Entities.empty(3, 2, 2)
    spoilt = getattr(entities, name).at[1].set(value)
    entities = eqx.tree_at(lambda e: getattr(e, name), entities, spoilt)
    assert finite(entities).tolist() == [True, False, True]


def test_what_living_entities_see_and_earn_is_looked_at(roomy):
    world, timestep = eqx.filter_jit(roomy.reset)(jax.random.key(0))
    assert timestep.observation.alive.any()
    assert not timestep.observation.alive.all()
    alive = int(jnp.argmax(timestep.observation.alive))
    dead = int(jnp.argmin(timestep.observation.alive))
    timestep = eqx.tree_at(lambda t: t.valid, timestep, timestep.observation.alive)
    mark = eqx.filter_jit(lambda world, timestep: judged(world, timestep).status)
    for where, bit in ((lambda t: t.observation.own, Status.BAD_OBSERVATION), (lambda t: t.reward, Status.BAD_REWARD)):
        for number in (np.nan, np.inf, -np.inf):
            spoilt = [eqx.tree_at(where, timestep, where(timestep).at[slot].set(number)) for slot in (alive, dead)]
            assert [int(mark(world, one)) for one in spoilt] == [bit, 0]
            lost = eqx.tree_at(lambda w: w.status, world, jnp.int32(Status.NON_FINITE))
            assert int(mark(lost, spoilt[0])) == Status.NON_FINITE  # which explains the rest
    seen = eqx.tree_at(
        lambda t: t.observation.maps, timestep, jnp.full((1, 2, 2, 1), np.nan), is_leaf=lambda x: x is None
    )
    assert int(mark(world, seen)) == Status.BAD_OBSERVATION
    assert explain(Status.BAD_OBSERVATION | Status.BAD_REWARD)[0].startswith("BAD_OBSERVATION: ")
    assert explain(Status.BAD_OBSERVATION | Status.BAD_REWARD)[1].startswith("BAD_REWARD: ")


def test_a_reward_that_is_no_number_is_named_by_the_episode():
    simulator = make("spread", {"world.steps": 3, "population.agent.capacity": 2, "population.agent.initial": 2})
    spoilt = eqx.tree_at(lambda s: s.rules.local_ratio, simulator, jnp.float32(np.nan))
    (chunk,) = play(spoilt, RandomPolicy.of(spoilt.rules), jax.random.key(0), 3)
    assert chunk.faults == (Fault(Status.BAD_REWARD, 1),)
