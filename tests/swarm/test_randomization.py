"""Values that differ between worlds: their draws, what is refused, and that a world is as if built with its own."""

import dataclasses
import json
import tomllib
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import tomli_w

from swarm import ConfigError, load, make
from swarm.build.randomization import Distribution, variants_of
from swarm.build.regrow import enlarge
from swarm.core.status import Status
from swarm.play.episodes import play
from swarm.play.telemetry import Recorder
from swarm.play.telemetry.replay import Recording

N_STEPS = 6
SMALL = {"population.bird.capacity": 12, "population.bird.initial": 12, "world.size": [6.0, 6.0]}
RANDOM = {
    "population.bird.speed": {"uniform": [1.0, 3.0]},
    "boids.cohesion": {"choice": [0.0, 0.3]},
    "world.steps": {"choice": [3, 5, 100]},
    "randomization.pool": 16,
}
COLONY = Path(__file__).parent / "colony.toml"


@pytest.fixture(scope="module")
def scenario():
    return load("flocking", SMALL | RANDOM)


# Drawing


@pytest.mark.parametrize(
    ("distribution", "cdf"),
    [
        (Distribution("uniform", (-1.0, 3.0)), lambda x: (x + 1) / 4),
        (Distribution("log_uniform", (0.1, 10.0)), lambda x: (np.log10(x) + 1) / 2),
        (Distribution("normal", (0.0, 1.0), 0.0), lambda x: 2 * normal(x) - 1),
        (Distribution("normal", (0.0, 1.0), -1.0, 2.0), lambda x: (normal(x) - normal(-1)) / (normal(2) - normal(-1))),
    ],
)
def test_draws_fill_their_distribution_evenly(distribution, cdf):
    draws = distribution.draws(200, "0 key")
    shares = np.sort([cdf(x) for x in draws]) * 200
    assert (np.floor(shares) == np.arange(200)).all()
    assert draws != sorted(draws)


def normal(x):
    from scipy.special import ndtr

    return ndtr(x)


def test_choices_are_equally_frequent():
    draws = Distribution("choice", (1, 2, 4)).draws(60, "0 key")
    assert {x: draws.count(x) for x in draws} == {1: 20, 2: 20, 4: 20}


def test_a_value_is_drawn_as_it_is_whatever_else_is_drawn(scenario):
    alone = load("flocking", SMALL | {k: RANDOM[k] for k in ("population.bird.speed", "randomization.pool")})
    speeds = [values["population.bird.speed"] for values in scenario.draws()]
    assert speeds == [values["population.bird.speed"] for values in alone.draws()]
    other = load("flocking", SMALL | RANDOM | {"randomization.seed": 1})
    assert speeds != [values["population.bird.speed"] for values in other.draws()]


# Files


def test_a_file_keeps_its_distributions(scenario, tmp_path):
    assert scenario.config.population.bird.speed == 2.0
    (tmp_path / "again.toml").write_text(tomli_w.dumps(scenario.resolved()), "utf-8")
    again = load(tmp_path / "again.toml")
    assert (again.config, again.draws()) == (scenario.config, scenario.draws())
    mine = 'base = "again.toml"\n[population.bird]\nspeed = {normal = [2.0, 0.1]}\n[boids]\ncohesion = 0.1\n'
    (tmp_path / "mine.toml").write_text(mine, "utf-8")
    assert (
        tomllib.loads(mine)["population"]["bird"]["speed"]
        == load(tmp_path / "mine.toml").resolved()["population"]["bird"]["speed"]
    )
    assert set(load(tmp_path / "mine.toml").random) == {"population.bird.speed", "world.steps"}


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("population.bird.speed", {"uniform": [5.0, 3.0]}, ["{'uniform': [5.0, 3.0]}", "(least, greatest)"]),
        ("population.bird.speed", {"uniform": 3.0}, ["expected uniform = "]),
        ("population.bird.speed", {"uniform": [1.0, 2.0], "low": 1.5}, ["expected uniform = "]),
        ("population.bird.speed", {"log_uniform": [0.0, 1.0]}, ["above 0"]),
        ("population.bird.speed", {"normal": [2.0, 0.0]}, ["standard deviation above 0"]),
        ("population.bird.speed", {"normal": [2.0, 0.1], "low": 9.0}, ["nearer to the mean"]),
        ("population.bird.speed", {"choice": []}, ["expected choice = "]),
        ("population.bird.speed", {"choice": ["fast"]}, ["expected choice = "]),
        ("population.bird.speed", {"choice": [1.0], "normal": [2.0, 0.1]}, ["normal and choice exclude each other"]),
        # Out of bounds: by its least value, though hardly drawn; by a draw; and together with another value.
        ("population.bird.speed", {"uniform": [-1e-9, 3.0]}, ["speed = -1e-09", "greater than 0"]),
        ("population.bird.speed", {"normal": [2.0, 2.0]}, ["population.bird.speed = -", "greater than 0"]),
        ("population.bird.radius", {"uniform": [1.0, 2.0]}, ["a draw of randomized values", "spacing = 1.2"]),
        ("world.steps", {"uniform": [10, 20]}, ["world.steps = 1", "valid integer"]),
        ("population.bird.capacity", {"choice": [12, 14]}, ["population.bird.capacity", "compiled in", "one value"]),
        ("boids.cohesion", {"uniform": [0.1, 0.3], "per": "bird"}, ["per = 'bird'", 'per = "entity"']),
        ("boids.cohesion", {"uniform": [0.1, 0.3], "per": "entity"}, ["boids.cohesion", "all entities share"]),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_compiled(key, value, parts):
    with pytest.raises(ConfigError) as caught:
        make(load("flocking", SMALL | {key: value}))
    assert "\n" not in str(caught.value)
    for part in ("command line: ", key.rpartition(".")[2], *parts):
        assert part in str(caught.value)


# Worlds


@pytest.fixture(scope="module")
def episodes(scenario, unhurried):
    with unhurried():
        return list(episode(scenario))


def episode(scenario, **options):
    simulator = make(scenario)
    policy = make(load("flocking", SMALL)).rules.scripted_policy()
    return play(simulator, policy, jax.random.key(5), N_STEPS, n_worlds=4, **options)


@pytest.mark.usefixtures("optimised")
def test_a_world_is_as_if_built_with_its_own_values(scenario, episodes):
    [chunk] = episodes
    draws = scenario.draws()
    drawn = [draws[i] for i in chunk.first.draw]
    assert len({values["population.bird.speed"] for values in drawn}) > 2
    assert chunk.length.tolist() == [min(values["world.steps"], N_STEPS) for values in drawn]
    speed = np.linalg.norm(chunk.worlds.entities.velocity, axis=-1)
    for number, values in enumerate(drawn):
        np.testing.assert_allclose(speed[:, number], values["population.bird.speed"], rtol=1e-5)
    # One of them alone, by a simulator that draws nothing.
    number = 1
    simulator = make(scenario.drawn(drawn[number]))
    assert simulator.draws is None
    key = jax.random.split(jax.random.fold_in(jax.random.key(5), number))[0]
    world, timestep = eqx.filter_jit(simulator.reset)(key)
    same_bits(world, jax.tree.map(lambda x: x[number], chunk.first))
    for t in range(chunk.length[number]):
        world, timestep = eqx.filter_jit(simulator.step)(world, chunk.actions[t, number])
        same_bits(world, chunk.world(t, number))
    assert bool(timestep.ended) == (drawn[number]["world.steps"] <= N_STEPS)


def same_bits(world, other):
    for name in ("entities", "fields", "step", "status"):
        jax.tree.map(np.testing.assert_array_equal, getattr(world, name), getattr(other, name))


def test_each_reset_draws_by_its_key(scenario):
    simulator = make(scenario)
    draw = eqx.filter_jit(jax.vmap(lambda key: simulator.reset(key)[0].draw))
    draws = draw(jax.random.split(jax.random.key(0), 256))
    # 16 each; 2 or fewer or 34 or more have a probability below 1e-3.
    counts = np.bincount(draws, minlength=16)
    assert counts.min() > 2
    assert counts.max() < 34


# Entities

PACK = {
    "population.hunter.speed": {"uniform": [2.5, 3.9], "per": "entity"},
    "population.prey.strength": {"choice": [1.0, 2.0, 4.0], "per": "entity"},
    "world.time_step": {"choice": [0.05, 0.1]},
    "world.size": [24.0, 24.0],
    "world.respawn": True,
    "world.control": "continuous",
    "randomization.pool": 4,
    "randomization.variants": 3,
}


@pytest.fixture(scope="module")
def pack():
    return load("pursuit", PACK)


@pytest.fixture(scope="module")
def hunt(pack):
    simulator, policy = make(pack), make(pack).rules.scripted_policy()
    world, timestep = eqx.filter_jit(simulator.reset)(jax.random.key(3))
    history = eqx.filter_jit(simulator.rollout)(policy, world, timestep, jax.random.key(1), 120)[2]
    worlds = jax.tree.map(lambda start, rest: jax.numpy.concatenate([start[None], rest]), world, history[0])
    return worlds, jax.device_get(history[1])


def test_draws_hold_the_same_variants_in_orders_of_their_own(pack, tmp_path):
    draws = pack.draws()
    speeds = [values["population.hunter.speed"] for values in draws]
    assert {len(row) for row in speeds} == {3}
    assert len({tuple(sorted(row)) for row in speeds}) == 1
    assert len(set(speeds)) > 1
    assert sorted(draws[0]["population.prey.strength"]) == [1.0, 2.0, 4.0]
    (tmp_path / "again.toml").write_text(tomli_w.dumps(pack.resolved()), "utf-8")
    assert load(tmp_path / "again.toml").draws() == draws


def test_an_entity_moves_as_if_built_with_its_own_values(pack, hunt):
    world = jax.tree.map(lambda x: x[20], hunt[0])
    e, draw = world.entities, pack.draws()[int(world.draw)]
    action = jax.random.uniform(jax.random.key(1), (e.n_slots, 2), minval=-1.0)
    step = eqx.filter_jit(lambda simulator, world: simulator.step(world, action)[0].entities.velocity)
    velocity, alone = step(make(pack), world), []
    for values in variants_of(draw):
        simulator = make(pack.drawn(values))
        assert simulator.draws is None
        same = dataclasses.replace(world, draw=None, entities=dataclasses.replace(e, n_variants=1))
        alone.append(step(simulator, same))
    assert len({float(jax.numpy.abs(x).sum()) for x in alone}) == 3
    assert (e.kind == 1).sum() == 6
    for i in np.flatnonzero(e.kind == 1):
        np.testing.assert_allclose(velocity[i], alone[int(e.uid[i]) % 3][i], rtol=1e-6)


def test_who_is_born_in_an_episode_has_the_values_of_its_identity(pack, hunt):
    world, timestep = hunt
    e, rules = jax.device_get(world.entities), make(pack).of(jax.tree.map(lambda x: x[0], world)).rules
    table = {k: np.asarray(v) for k, v in rules.table.items()}
    strength = np.asarray(pack.draws()[int(world.draw[0])]["population.prey.strength"])
    n_caught = 0
    for t in range(120):
        prey = np.flatnonzero(timestep.valid[t] & (e.kind[t] == 2))
        hunters = np.flatnonzero(e.alive[t + 1] & (e.kind[t + 1] < 2))
        for j in prey:
            born = e.uid[t + 1, j] != e.uid[t, j]
            assert born == timestep.terminated[t, j]
            if born:
                n_caught += 1
                continue
            far = np.linalg.norm(e.position[t + 1, hunters].astype(float) - e.position[t + 1, j], axis=1)
            rows = e.kind[t + 1, hunters]
            force = table["strength"][rows][far < table["catch"][rows] - 1e-4].sum()
            assert force < strength[e.uid[t, j] % 3]
    assert n_caught > 10


def test_without_distributions_nothing_is_drawn():
    simulator = make("flocking", SMALL)
    assert simulator.draws is None
    assert jax.eval_shape(simulator.reset, jax.random.key(0))[0].draw is None


@pytest.mark.usefixtures("optimised")
def test_a_recording_says_what_was_drawn_and_replays(scenario, episodes, tmp_path):
    path = tmp_path / "a.parquet"
    with Recorder(path, scenario, {"seed": 5}) as recorder:
        for chunk in episodes:
            recorder.write(chunk)
    about = json.loads(pq.read_schema(path).metadata[b"swarm"])
    draws = scenario.draws()
    for key in scenario.random:
        assert about["drawn"][key] == [draws[i][key] for i in episodes[0].first.draw]
    assert sum(chunk.length.sum() for chunk in Recording(path).replay()) == episodes[0].length.sum()


def test_draws_stay_when_a_capacity_grows():
    colony = load(COLONY, {"world.sick": {"choice": [3, 4, 5]}})
    larger, lines = enlarge(colony, Status.ENTITIES_FULL, {"queen": 2, "worker": 4})
    assert lines == ["population.worker.capacity 4 -> 8"]
    assert larger.draws() == colony.draws()
    arrays = make(larger).draws.arrays
    np.testing.assert_array_equal(arrays.rules.sick, make(colony).draws.arrays.rules.sick)
    # Nothing else differs between worlds.
    assert len(jax.tree.leaves(arrays)) == 1
