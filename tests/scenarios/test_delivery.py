"""Delivery: what appears, who picks up and is paid, what it draws, and how good the auction is."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from scenarios.delivery import N_OF_PARCEL, N_OWN
from scenarios.delivery.policy import assign
from swarm import make
from swarm.core.errors import ConfigError

reset = eqx.filter_jit(lambda simulator, key: simulator.reset(key))
step = eqx.filter_jit(lambda simulator, world, action: simulator.step(world, action))
# No wind, no eddies, in the same compiled step.
CALM = {"air.wind": [0.0, 0.0]}
STILL = jnp.zeros((5, 2))
PLACES = [[4.0, 4.0], [4.0, 10.0], [4.0, 16.0], [10.0, 4.0], [10.0, 16.0], [16.0, 4.0], [16.0, 16.0]]
APART = [[9.0, 9.0], [12.0, 9.0], [15.0, 9.0], [18.0, 9.0], [18.0, 12.0]]


@pytest.fixture(scope="module")
def simulator():
    return make("delivery", CALM)


def placed(simulator, drones=(), parcels=(), load=(), energy=60.0, velocity=0.0):
    """A world with drones at rest at some places, the others apart; and parcels (origin, destination) at the start."""
    world, _ = reset(simulator, jax.random.key(0))
    level, loads = np.asarray(APART), np.full(5, -1)
    level[: len(drones)] = np.reshape(drones, (-1, 2))
    loads[: len(load)] = load
    m = simulator.rules.orders.n
    rows = np.full((m, 2), [0, 1])
    rows[: len(parcels)] = np.reshape(parcels, (-1, 2))
    new = eqx.tree_at(
        lambda p: (p.seconds, p.origin, p.destination, p.mass, p.value, p.taken),
        world.fields.parcels,
        (
            jnp.where(jnp.arange(m) < len(parcels), 0.0, 39.0),
            *jnp.asarray(rows.T),
            jnp.full(m, 0.005),
            1.0 + 0.01 * jnp.arange(m),
            jnp.isin(jnp.arange(m), jnp.asarray([x for x in loads if x >= 0], jnp.int32)),
        ),
    )
    fields = eqx.tree_at(
        lambda f: (f.places, f.parcels, f.load),
        world.fields,
        (jnp.asarray(PLACES), new, jnp.asarray(loads, jnp.int32)),
    )
    entities = eqx.tree_at(
        lambda e: (e.position, e.velocity, e.stores),
        world.entities,
        (
            jnp.asarray(np.concatenate([level, np.full((5, 1), 1.5)], axis=1), jnp.float32),
            jnp.zeros((5, 3)).at[:, 0].set(velocity),
            jnp.broadcast_to(jnp.asarray(energy, jnp.float32), (5,))[:, None],
        ),
    )
    return eqx.tree_at(lambda w: (w.entities, w.fields), world, (entities, fields))


def test_places_are_apart_and_parcels_come_as_a_poisson_process_from_one_place_to_another(simulator):
    rules, keys = simulator.rules, jax.random.split(jax.random.key(1), 200)
    places = np.asarray(jax.vmap(rules._places)(keys[:20]))
    ways = places[:, :, None] - places[:, None] + 1e3 * np.eye(7)[None, :, :, None]
    assert np.linalg.norm(ways, axis=3).min() >= 2 * 1.8
    assert places.min() > 1.8
    assert places.max() < 20.0 - 1.8
    p = jax.tree.map(np.asarray, jax.vmap(lambda key: rules.orders.draw(key, 7))(keys))
    assert (p.origin != p.destination).all()
    assert set(np.unique(p.origin)) == set(np.unique(p.destination)) == set(range(7))
    assert np.mean(p.origin == 0) == pytest.approx(0.5, abs=0.03)
    assert (p.seconds[:, :5] == 0).all()
    assert (np.diff(p.seconds, axis=1) >= 0).all()
    # Counts in 28 s of a process of 15: its halves are independent but for the sum.
    early = (p.seconds[:, 5:] < 14.0).sum(axis=1)
    assert early.mean() == pytest.approx(7.5, abs=0.5)
    assert early.var() == pytest.approx(15 / 4, rel=0.3)
    assert (p.mass.min() >= 0.002) & (p.mass.max() <= 0.008) & (p.mass.std() > 0.0015)


def test_the_oldest_parcels_go_to_the_drones_that_hover_there_one_each(simulator):
    spots = [[4.0, 9.8], [4.0, 10.3], [10.0, 4.0], [10.0, 15.6]]
    # Drones 0 and 1 at pad 1, 2 at pad 3 where nothing waits; 3 at pad 4, loaded.
    world = placed(simulator, spots, [(4, 0), (1, 2), (4, 2), (1, 3), (1, 4)], load=[-1, -1, -1, 0])
    after, timestep = step(simulator, world, STILL)
    np.testing.assert_array_equal(after.fields.load, [1, 3, -1, 0, -1])
    np.testing.assert_array_equal(np.flatnonzero(after.fields.parcels.taken), [0, 1, 3])
    hover = 0.2 * 0.2 / 30.0
    assert float(timestep.reward[0]) == pytest.approx(0.2 * 1.01 - hover, abs=1e-3)
    assert float(timestep.reward[2]) == pytest.approx(-hover, abs=1e-3)
    # Who flies past picks nothing up.
    fast, _ = step(simulator, placed(simulator, spots, [(1, 2)], velocity=1.8), STILL.at[:, 0].set(0.9))
    assert not np.asarray(fast.fields.parcels.taken).any()


@pytest.mark.parametrize(("seconds", "share"), [(10.0, 1.0), (18.0, 0.5), (30.0, 0.0)])
def test_a_parcel_pays_less_the_later_it_arrives(simulator, seconds, share):
    world = placed(simulator, [[4.0, 9.8], [4.4, 10.3]], [(4, 1), (1, 2)], load=[0])
    world = eqx.tree_at(lambda w: w.step, world, jnp.int32(round(seconds / 0.2) - 1))
    after, timestep = step(simulator, world, STILL)
    np.testing.assert_array_equal(after.fields.load, [-1, 1, -1, -1, -1])
    assert int(after.fields.parcels.delivered[0]) == round(seconds / 0.2)
    assert float(timestep.reward[0]) == pytest.approx(share, abs=0.01)
    metrics = simulator.rules.metrics(after)
    assert float(metrics["value"]) == pytest.approx(share / float(after.fields.parcels.value.sum()), abs=1e-4)
    assert float(metrics["seconds"]) == pytest.approx(seconds, rel=1e-5)
    assert float(metrics["late"]) == (seconds > 12.0)


def test_the_way_of_a_parcel_is_paid_as_it_is_flown(simulator):
    world, action = placed(simulator, [[7.0, 4.0]], [(0, 5)], load=[0]), STILL.at[0, 0].set(1.0)
    paid = 0.0
    for _ in range(5):
        world, timestep = step(simulator, world, action)
        paid += float(timestep.reward[0])
    flown = float(world.entities.position[0, 0]) - 7.0
    assert flown > 0.8
    assert paid == pytest.approx(0.5 * flown / 12.0 - 0.2 / 30.0, abs=2e-3)


def test_a_parcel_draws_what_physics_says_and_the_depot_fills(simulator):
    rules = simulator.rules
    world = placed(simulator, [[4.0, 5.3], [10.0, 10.0]], [(4, 6)], load=[-1, 0])
    after, _ = step(simulator, world, STILL)
    hover = float(rules.level.hover[0])
    joules = np.asarray(after.entities.stores[:, 0])
    np.testing.assert_allclose(joules[0], 60.0 + 0.2 * 5.0 * hover, rtol=1e-3)
    np.testing.assert_allclose(joules[2:], 60.0 - 0.2 * hover, rtol=1e-4)
    # Induced power grows with the weight to 3/2; profile and avionics do not.
    power = rules.level.power
    weights = 9.81 * np.asarray([0.0319, 0.0369])
    induced = 1.1 * weights**1.5 / np.sqrt(float(power.density_area[0])) / 0.5
    assert 60.0 - joules[1] == pytest.approx(0.2 * (hover + induced[1] - induced[0]), rel=1e-3)
    assert float(rules.metrics(after)["joules_per_delivery"]) == pytest.approx(
        0.2 * (5 * hover + induced[1] - induced[0]), rel=1e-3
    )


@pytest.mark.parametrize("course", [[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]])
def test_flights_take_the_time_and_energy_that_bids_count_on_in_wind(simulator, course):
    rules = make("delivery", {"air.wind": [3.0, 0.0]}).rules
    eddies = lambda s: s.rules.level.flying.weather.turbulence.speed  # noqa: E731
    windy = eqx.tree_at(eddies, eqx.tree_at(lambda s: s.rules, simulator, rules), jnp.float32(0.0))
    world = placed(simulator, [[10.0 - 4.0 * course[0], 14.0 - 4.0 * course[1]]])
    begun, start = None, None
    for number in range(20):
        world, _ = step(windy, world, STILL.at[0].set(jnp.asarray(course)))
        if number == 9:
            begun, start = world.entities.stores[0, 0], world.entities.position[:1, :2]
    no_stop = eqx.tree_at(lambda p: p.rules.auction["stop"], rules.scripted_policy(), jnp.float32(0.0))
    seconds, share = no_stop._leg(start, world.entities.position[:1, :2], jnp.zeros(1))
    assert float(seconds[0]) == pytest.approx(2.0, rel=0.02)
    drawn = float(begun - world.entities.stores[0, 0])
    assert float(share[0] * rules.level.battery.capacity[0]) == pytest.approx(drawn, rel=0.02)


@pytest.mark.parametrize(
    ("drones", "energy", "lost"),
    [
        ([], [0.5, 60.0, 60.0, 60.0, 60.0], [0]),  # empty
        ([[9.0, 9.0], [9.2, 9.0]], 60.0, [0, 1]),  # each other
        ([[0.05, 9.0]], 60.0, [0]),  # over the edge
        ([], 60.0, []),
    ],
)
def test_who_crashes_is_lost_with_its_parcel(simulator, drones, energy, lost):
    world = placed(simulator, drones, [(1, 2), (1, 2)], load=[0, 1], energy=energy)
    after, timestep = step(simulator, world, STILL)
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(after.entities.alive)), lost)
    np.testing.assert_array_equal(np.asarray(after.fields.load[:2]) < 0, [number in lost for number in (0, 1)])
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(timestep.reward) < -0.5), lost)
    assert float(simulator.rules.metrics(after)["lost"]) == pytest.approx(len(lost) / 5)
    # With all picked up, the episode goes on for as long as somebody carries one.
    world = eqx.tree_at(lambda w: w.fields.parcels.taken, world, jnp.ones(simulator.rules.orders.n, bool))
    _, timestep = step(simulator, world, STILL)
    assert bool(timestep.world_terminated) == (lost == [0, 1])


def test_a_drone_sees_its_parcel_and_those_that_wait_nearest(simulator):
    world = placed(simulator, [[12.0, 4.0]], [(1, 2), (3, 5), (6, 0)], load=[-1, 0])
    _, timestep = step(simulator, world, STILL)
    own = np.asarray(timestep.observation.own)
    assert own[0, 10] == 0
    np.testing.assert_allclose(own[1, 10:14], [1.0, 0.005 / 0.008, 1.0 / 1.5, 0.2 / 12.0], rtol=1e-4)
    way = np.asarray([4.0, 16.0]) - APART[1]
    np.testing.assert_allclose(own[1, 14:17], [*way / np.hypot(*way), np.hypot(*way) / 20.0], atol=1e-3)
    blocks = own[0, 17:N_OWN].reshape(2, 4, 4)
    assert blocks[0, 0, 2] == blocks[0, 3, 3] == 0.25
    assert blocks[0].sum() == 0.5
    assert blocks[1].sum() == 5 * 0.25
    rows = own[0, N_OWN : N_OWN + 4 * N_OF_PARCEL].reshape(4, N_OF_PARCEL)
    np.testing.assert_array_equal(rows[:, -1], [1, 1, 0, 0])
    np.testing.assert_allclose(rows[0, :5], [-1.0, 0.0, 0.1, 0.3, 0.0], atol=1e-3)
    assert not rows[2:].any()


def test_the_auction_is_within_n_epsilon_of_the_best_assignment():
    # Of 200 cases a third of the pairs are impossible, and some bidders want nothing at all.
    generator, epsilon = np.random.default_rng(0), 0.01
    benefit = generator.uniform(-0.3, 1.0, (200, 5, 8))
    benefit[:100] = np.round(benefit[:100], 1)  # many alike
    benefit[generator.uniform(size=benefit.shape) < 0.3] = -np.inf
    benefit[:20, 4] = -np.inf
    auction = eqx.filter_jit(lambda b, rounds: jax.vmap(lambda x: assign(x, jnp.float32(epsilon), rounds))(b))
    given = jnp.asarray(benefit, jnp.float32)
    found, short = np.asarray(auction(given, 1000)), np.asarray(auction(given, 1))
    # The optimum may leave anybody without.
    padded = np.concatenate([np.where(np.isfinite(benefit), benefit, -1e3), np.zeros((200, 5, 5))], axis=2)
    for case, pairs, few in zip(padded, found, short, strict=True):
        rows, columns = linear_sum_assignment(case, maximize=True)
        best = case[rows, columns].sum()
        for one in (pairs, few):
            assert len(set(one[one >= 0])) == (one >= 0).sum()
            assert (case[np.arange(5), one][one >= 0] > 0).all()
        total = case[np.arange(5), pairs][pairs >= 0].sum()
        assert best - 5 * epsilon - 1e-5 <= total <= best + 1e-5
    assert (short < 0).sum() > (found < 0).sum()


def test_the_scripted_drones_deliver_and_lose_nobody(simulator):
    simulator = make("delivery")
    policy = eqx.filter_jit(lambda rules, world, seen: rules.scripted_policy()(world, seen, world.key))
    values = []
    for seed in (1, 2):
        world, timestep = reset(simulator, jax.random.key(seed))
        for _ in range(200):
            world, timestep = step(simulator, world, policy(simulator.rules, world, timestep.observation))
        metrics = simulator.rules.metrics(world)
        values.append(float(metrics["value"]))
        assert float(metrics["lost"]) == 0
        assert float(metrics["joules_per_delivery"]) < 90.0
        assert int(world.status) == 0
    # Chance earns nothing.
    assert np.mean(values) > 0.4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"parcels.initial": 30}, "exceeds number = 20"),
        ({"parcels.mass": [0.1, 0.05]}, "expected 0 < least <= greatest"),
        ({"parcels.number": 3, "parcels.initial": 1}, "observation.parcels = 4 exceeds"),
        ({"observation.sight": 0.2}, "nobody could crash"),
        ({"energy.pad": 0.9}, "no room to charge"),
        ({"world.pads": 40}, "too small for pads"),
        ({"population.drone.initial": 60, "population.drone.capacity": 60}, "do not fit around a depot"),
        ({"energy.first": [0.5, 0.2]}, "expected 0 < least <= greatest <= 1"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as error:
        make("delivery", overrides)
    assert "\n" not in str(error.value)
