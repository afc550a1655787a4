"""Gradients of what is there for embedders: finite beside a dead slot of NaN, the same in both modes, and right."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swarm
from swarm.comms import radios as comms
from swarm.comms.links import Bursts, Jitter, Loss
from swarm.dynamics import Differential, Motion, drone_dynamics, load_airframe
from swarm.dynamics.air import Downwash, Dryden, Gust, Shear, Weather
from swarm.dynamics.avoidance import avoid, reciprocal, walls
from swarm.dynamics.energy import Battery, Charge, Pads, RotorPower
from swarm.dynamics.integrators import DoubleIntegrator, SingleIntegrator
from swarm.dynamics.lag import VelocityLag
from swarm.dynamics.unicycle import Unicycle
from swarm.geometry.obstacles import Balls, Boxes, Capsules, Extruded, Polygons, Union, collide
from swarm.geometry.space import Open, Periodic, Walled
from swarm.geometry.terrain import HeightMap
from swarm.neighbors.search import SearchTable, neighbor_search
from swarm.population.entities import Entities
from swarm.population.grouping import KMeans
from swarm.population.grouping.rule import Nodes
from swarm.sensing import exact as sensing
from swarm.sensing.instruments import Ranging, gps, imu, inertial, rtk
from swarm.simulation.simulator import reset_ended

N, T, DT, STEP = 6, 3, jnp.float32(0.02), 5e-4
ALIVE, KIND = jnp.arange(N) < N - 1, jnp.zeros(N, jnp.int32)
KEYS = jax.random.split(jax.random.key(0), 4)
SPACES = {"open": Open, "periodic": Periodic, "walled": lambda low, size: Walled(low, size, jnp.float32(0.5))}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def rows(d, seed=0, dead=np.nan):
    values = np.random.default_rng(seed).uniform(1.0, 4.0, (N, d)).astype(np.float32)
    values[N - 1] = dead
    return jnp.asarray(values)


def entities_of(position, velocity):
    blank = Entities.empty(N, position.shape[1], 0)
    uid = jnp.where(ALIVE, jnp.arange(N), -1)
    return eqx.tree_at(lambda e: (e.alive, e.uid, e.position, e.velocity), blank, (ALIVE, uid, position, velocity))


def size_of(*values):
    """Sum of squares over the living, of uneven weights."""
    total = jnp.zeros(())
    for value in values:
        mask = ALIVE.reshape((N,) + (1,) * (value.ndim - 1))
        weight = 1.0 + jnp.cos(jnp.arange(float(value.size))).reshape(value.shape)
        total = total + jnp.sum(jnp.where(mask, weight * jnp.where(mask, value, 0.0) ** 2, 0.0))
    return total


def moving(dynamics, d):
    """A few steps, by position, velocity, commands and all numbers of the dynamics."""
    numbers, rest = eqx.partition(dynamics, eqx.is_inexact_array)

    def run(position, velocity, command, numbers):
        own = eqx.combine(numbers, rest)
        start = own.init(entities_of(position, velocity))
        motion = jax.lax.scan(lambda m, _: (own.step(m, command, KIND, DT), None), start, length=T)[0]
        return size_of(motion.position, motion.velocity, motion.heading)

    command = 0.4 * rows(dynamics.n_commands(d), 2, 0.0)
    if dynamics.n_commands(d) == 4:
        command = own_scale(dynamics, command)
    return run, (rows(d), 0.3 * rows(d, 1), command, numbers)


def own_scale(dynamics, command):
    """Middle commands, a little aside of each other."""
    return dynamics.command(0.1 * (command - 1.0), KIND)


ONE = jnp.ones(1)
PLAIN = {
    "single integrator": (SingleIntegrator(2 * ONE), 2),
    "double integrator": (DoubleIntegrator(2 * ONE, 1.5 * ONE), 3),
    "velocity lag": (VelocityLag(0.5 * ONE, 4 * ONE, 2 * ONE), 3),
    "unicycle": (Unicycle(0 * ONE, 2 * ONE, ONE), 2),
    "differential": (
        Differential(
            lambda m, u, drag: Motion(m.velocity, u - drag * m.velocity, jnp.zeros(()), None),
            jnp.asarray([0.3]), jnp.full((1, 2), -4.0), jnp.full((1, 2), 4.0), None, diffrax.Heun(), 2,
        ),
        2,
    ),
}  # fmt: skip
FLIGHTS = [
    (model, commands)
    for model in ("rotors", "attitude", "attitude_lag")
    for commands in ("rotors", "attitude", "velocity", "position")
    if model == "rotors" or commands != "rotors"
]

# Rotors in double precision: tests/swarm/test_drones.py.
QUICK_FLIGHTS = (("attitude", "attitude"),)


def direction(given, seed=7):
    """By a share of what there is: what is 0, or not finite, stays."""
    rng = np.random.default_rng(seed)

    def of(x):
        there = np.isfinite(x)
        way = rng.normal(size=x.shape) * np.abs(np.where(there, x, 0.0))
        return jnp.asarray(np.where(there, way, 0.0), x.dtype)

    return jax.tree.map(of, given)


def agree(run, given, forward=True, differences=True, step=STEP):
    """Reverse mode is finite where somebody lives, and along a direction what forward mode and differences say."""

    @jax.jit
    def look(given, way):
        if not forward:
            return *jax.value_and_grad(lambda g: run(*g))(given), None
        # Reverse mode is this, transposed.
        value, push = jax.linearize(lambda g: run(*g), given)
        return value, jax.linear_transpose(push, given)(jnp.ones_like(value))[0], push(way)

    way = direction(given)
    value, slope, told = look(given, way)
    along = 0.0
    for x, g, w in zip(*map(jax.tree.leaves, (given, slope, way)), strict=True):
        there = np.isfinite(np.asarray(x))
        assert np.isfinite(np.asarray(g)[there]).all()
        along += np.sum(np.asarray(g, float)[there] * np.asarray(w, float)[there])
    assert np.isfinite(value)
    assert abs(along) > 0
    size = 1.0 + abs(float(value))
    if forward:
        np.testing.assert_allclose(along, told, rtol=2e-3, atol=1e-3 * size)
    if differences:
        # Of values of the same program, so that it is compiled once.
        high = look(jax.tree.map(lambda x, w: x + step * w, given, way), way)[0]
        low = look(jax.tree.map(lambda x, w: x - step * w, given, way), way)[0]
        np.testing.assert_allclose(along, float(high - low) / (2 * step), rtol=1e-2, atol=2e-3 * size)


@pytest.mark.parametrize("name", PLAIN)
def test_dynamics(name):
    agree(*moving(*PLAIN[name]), forward=name != "differential")


def test_differential_refuses_forward_mode():
    run, given = moving(*PLAIN["differential"])
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda g: run(*g), (given,), (given,))


@pytest.mark.slow
def test_differential_has_forward_mode_with_a_bounded_scan():
    dynamics = PLAIN["differential"][0]
    agree(*moving(eqx.tree_at(lambda d: d.solver, dynamics, diffrax.Heun(scan_kind="bounded")), 2))


@pytest.mark.parametrize(
    ("model", "commands"), [flight if flight in QUICK_FLIGHTS else slow(*flight) for flight in FLIGHTS]
)
def test_drones_under_all_commands(model, commands):
    agree(*moving(drone_dynamics(["cf2x_l250"], 0.02, model=model, commands=commands), 3))


@pytest.mark.parametrize(
    ("space", "backend"),
    [
        *((space, "all_pairs") for space in SPACES),
        *(slow(space, "cell_grid") for space in ("open", "walled")),
        ("periodic", "cell_grid"),
    ],
)
def test_neighbours_and_what_is_sensed_of_them(space, backend):
    box = SPACES[space](jnp.zeros(2), jnp.full(2, 6.0))
    search = neighbor_search(box, 2.5, N, SearchTable(backend=backend, room=8))

    def run(position, velocity, heading):
        position, velocity = box.confine(position, velocity)
        found = search.find(position, ALIVE)
        sums = found.sum(lambda way, distance, mine, theirs: distance * theirs + way[0] * mine, velocity)
        least = found.min(lambda way, distance, mine, theirs: distance[None] + mine[:1], velocity)
        near = found.nearest(3)
        seen, _ = sensing.neighbor_rows(near, search.radius, velocity, velocity, heading[:, 0])
        sectors = sensing.scan_sectors(found, search.radius, heading[:, 0], KIND, 4)
        cells = sensing.Raster(box.lower, box.size, (2, 2)).sum(position, ALIVE, velocity)
        least = jnp.where(jnp.isfinite(least), least, 0.0)
        return size_of(sums, least, near.distance, seen, sectors.distance) + jnp.sum(cells**2)

    agree(run, (rows(2), rows(2, 1), rows(1, 2)))


def solids(d):
    flat = (
        Balls(jnp.asarray([[2.0, 2.0]]), 0.4 * ONE),
        Boxes(jnp.asarray([[3.5, 3.5]]), jnp.full((1, 2), 0.5), 0.3 * ONE),
        Capsules(jnp.asarray([[1.0, 4.0]]), jnp.asarray([[1.0, 5.0]]), 0.2 * ONE),
        Polygons(jnp.asarray([[[3.0, 0.0], [4.0, 0.0], [4.0, 1.5]]])),
    )
    heights = np.random.default_rng(0).uniform(0.0, 1.2, (5, 5))
    ground = HeightMap.of(heights, (0.0, 0.0), (1.2, 1.2))
    return Union(flat) if d == 2 else Union((Extruded(Union(flat), jnp.float32(-jnp.inf), jnp.float32(2.0)), ground))


@pytest.mark.parametrize("d", [slow(2), 3])
def test_rays(d):
    ways = np.random.default_rng(1).normal(size=(N, 5, d))
    ways = jnp.asarray(ways / np.linalg.norm(ways, axis=2, keepdims=True), jnp.float32)
    search = neighbor_search(Open(jnp.zeros(d), jnp.full(d, 6.0)), 6.0, N)

    def run(position, ways, solid):
        near = search.find(position, ALIVE).nearest(2)
        return size_of(sensing.scan_rays(solid, position, ways, ALIVE, jnp.float32(6.0), 8, near, jnp.full(N, 0.2)))

    agree(run, (rows(d), ways, solids(d)))


@pytest.mark.parametrize("d", [2, slow(3)])
def test_distances_and_collisions(d):
    def run(position, velocity, solid):
        place, speed = collide(solid, position, velocity, jnp.full(N, 0.3), jnp.float32(0.5))
        return size_of(place, speed, solid.distance(jnp.where(ALIVE[:, None], position, 0.0)))

    # How far the ground is at least is a share of the height above it, which counts as constant.
    agree(run, (rows(d), rows(d, 1) - 2.0, solids(d)), differences=d == 2)


@pytest.mark.parametrize("d", [2, slow(3)])
def test_reciprocal_avoidance(d):
    search = neighbor_search(Open(jnp.zeros(d), jnp.full(d, 6.0)), 9.0, N)

    def run(position, velocity, horizon):
        near, mask = search.find(position, ALIVE).nearest(3), ALIVE[:, None]
        here, moves = (jnp.where(mask, x, 0.0) for x in (position, velocity))
        hard = walls(here[:, :1], jnp.broadcast_to(jnp.eye(d)[:1], (N, 1, d)), horizon, DT)
        reach = jnp.full(near.distance.shape, 0.6)
        soft = reciprocal(velocity, near.displacement, near.gather(velocity), near.valid, reach, horizon, DT)
        return size_of(avoid(1.5 * moves, jnp.full(N, 3.0), hard, soft) - here)

    agree(run, (rows(d), rows(d, 1) - 2.5, jnp.float32(2.0)))


def test_instruments():
    flight = drone_dynamics(["cf2x_l250"], 0.02, model="attitude", commands="attitude")
    sensors = gps(0.02, 50.0), rtk(0.02, 50.0, latency=1)
    gyro = imu(0.02, 50.0)
    numbers, rest = eqx.partition((*sensors, gyro), eqx.is_inexact_array)
    ranging = Ranging.of(0.1, 0.02, Loss.of(0.1))

    def run(position, velocity, numbers):
        receivers = eqx.combine(numbers, rest)
        entities = entities_of(position, velocity)
        tracks = [sensor.init(entities) for sensor in receivers]
        before = flight.init(entities)
        commands = own_scale(flight, jnp.concatenate([velocity, jnp.ones((N, 1))], axis=1))
        after = flight.step(before, commands, KIND, DT)
        truth = jnp.concatenate([position, velocity], axis=1)
        truths = truth, truth, inertial(flight, before, after, KIND, DT)

        def body(tracks, key):
            seen = [sensor.step(*x, key) for sensor, *x in zip(receivers, tracks, [entities] * 3, truths, strict=True)]
            return [track for track, _ in seen], size_of(*[reading.value for _, reading in seen])

        _, sizes = jax.lax.scan(body, tracks, KEYS)
        measured, _ = ranging.measure(
            jnp.where(ALIVE[:, None], position, 0.0), position > 0, entities, jax.random.key(9)
        )
        return jnp.sum(sizes) + size_of(measured)

    agree(run, (rows(3), rows(3, 1), numbers))


@pytest.mark.parametrize("radio", ["sum", "nearest"])
def test_what_is_said(radio):
    search = neighbor_search(Open(jnp.zeros(2), jnp.full(2, 6.0)), 4.0, N)
    more: dict = {"jitter": Jitter.of([0.7, 0.3]), "bursts": Bursts.of(5, 2), "bandwidth": 2}
    loss = Loss.of(0.1, 0.1, 4.0, 0.5)
    device = comms.SumRadio(loss, 1, **more) if radio == "sum" else comms.NearestRadio(loss, delay=1, k=2, **more)
    ball = Balls(jnp.asarray([[2.0, 2.0]]), 0.4 * ONE)

    def run(position, message):
        entities, found = entities_of(position, 0.0 * position), search.find(position, ALIVE)

        def body(mail, key):
            mail, heard = device.step(mail, found, entities, message, key, obstacles=ball)
            return mail, size_of(heard.total if radio == "sum" else heard.message)

        return jnp.sum(jax.lax.scan(body, device.init(N, 2), KEYS)[1])

    agree(run, (rows(2), rows(2, 1)))


def test_air():
    weather = Weather(
        Shear(jnp.asarray([2.0, 0.5, 0.0]), jnp.float32(0.05)),
        Gust(jnp.asarray([0.0, 2.0, 0.0]), jnp.float32(0.0), jnp.float32(0.5)),
        Dryden(jnp.float32(2.0), jnp.float32(0.3)),
    )
    downwash = Downwash.of([load_airframe("cf2x")])
    search = neighbor_search(Open(jnp.zeros(3), jnp.full(3, 6.0)), 4.0, N)

    def run(position, velocity, weather):
        entities = entities_of(position, velocity)

        def body(eddies, of_step):
            eddies, air = weather.step(eddies, entities, *of_step, DT)
            return eddies, size_of(air.wind)

        _, sizes = jax.lax.scan(body, weather.init(entities), (DT * jnp.arange(4.0), KEYS))
        return jnp.sum(sizes) + size_of(10.0 * downwash.air(search.find(position, ALIVE), KIND).force)

    agree(run, (rows(3), rows(3, 1), weather))


@pytest.mark.parametrize("charge", [False, True])
def test_energy(charge):
    table = {"mass": 2.0, "disc_area": 0.5, "tip_speed": 120.0, "solidity": 0.05, "body_drag": 0.6}
    power, battery = RotorPower.of([table]), Battery.of([5e3])
    pads = Pads.of(jnp.full((1, 3), 2.0), 1.0, 50.0)

    def run(position, velocity, power, efficiency):
        held = jnp.full(N, 2e3)
        energy = Charge.of(held) if charge else held
        filling = eqx.tree_at(lambda p: p.efficiency, pads, efficiency)
        supplied = filling.supply(Open(jnp.zeros(3), jnp.ones(3)), position, ALIVE)
        drawn = power.of_flight(velocity, KIND, 0.1 * ONE[KIND])
        energy = jax.lax.fori_loop(0, T, lambda _, e: battery.step(e, KIND, drawn, supplied, DT), energy)
        return size_of(battery.share(energy.energy if charge else energy, KIND))

    agree(run, (rows(3), rows(3, 1), power, jnp.float32(0.8)))


def test_groups():
    space = Open(jnp.zeros(2), jnp.full(2, 6.0))
    rule = KMeans(space, 2, 1)

    def run(position, velocity):
        entities = entities_of(position, velocity)
        _, groups = rule(Nodes.of(entities), entities)
        return jnp.sum(jnp.where(groups.exists[:, None], groups.position, 0.0) ** 2)

    agree(run, (rows(2), rows(2, 1)))


SCENARIOS = {
    "spread": {"world.control": "continuous"},
    "flocking": {"world.control": "continuous", "population.bird.capacity": N, "population.bird.initial": N - 1},
    "pursuit": {"world.control": "continuous"}
    | {f"population.{kind}.{n}": 2 for kind in ("scout", "hunter", "prey") for n in ("capacity", "initial")},
    "vasarhelyi": {"population.drone.capacity": 4, "population.drone.initial": 4},
    "crossing": {"population.drone.capacity": 4, "population.drone.initial": 4},
    "patrol": {},
    "delivery": {},
}
QUICK = ("spread", "flocking")


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in SCENARIOS])
def test_positions_after_steps_of_a_simulator_by_the_action(name):
    simulator = swarm.make(name, SCENARIOS[name])
    world, _ = eqx.filter_jit(simulator.reset)(jax.random.key(0))
    start = world.entities.position

    def run(action):
        moved = jax.lax.fori_loop(0, 2, lambda _, world: simulator.step(world, action)[0], world)
        entities = moved.entities
        weight = 1.0 + jnp.cos(jnp.arange(float(start.size))).reshape(start.shape)
        return jnp.sum(jnp.where(entities.alive[:, None], weight * (entities.position - start), 0.0))

    action = np.random.default_rng(1).normal(0.0, 0.3, (start.shape[0], simulator.rules.n_controls))
    # Floats hold places a hundred metres off to 8 micrometres.
    agree(run, (jnp.asarray(action, jnp.float32),), step=2e-2)


@pytest.mark.slow
def test_restarts_have_no_reverse_mode():
    simulator = swarm.make("spread", SCENARIOS["spread"])
    worlds, timesteps = eqx.filter_eval_shape(jax.vmap(simulator.reset), KEYS)
    place = worlds.entities.position

    def run(position, worlds, timesteps):
        worlds = eqx.tree_at(lambda w: w.entities.position, worlds, position)
        return jnp.sum(reset_ended(simulator, worlds, timesteps, KEYS)[0].entities.position)

    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.eval_shape(jax.grad(run), place, worlds, timesteps)
    jax.eval_shape(lambda x, *rest: jax.jvp(lambda x: run(x, *rest), (x,), (x,)), place, worlds, timesteps)
