"""Rotor-level drones, 1,000 and 100,000 at once: alone, with downwash and wind, and side by side with crazyflow.

The comparison needs `pip install crazyflow` and SCIPY_ARRAY_API=1 in the environment.
"""

import os
import statistics
import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.dynamics import drone_dynamics, load_airframe
from swarm.dynamics.air import Downwash, Dryden, Shear, Weather
from swarm.dynamics.studies import rotor_differential
from swarm.geometry.space import Open
from swarm.neighbors.search import neighbor_search
from swarm.population.entities import Entities

SIZES = {"1k": 1_000, "100k": 100_000}
RATE, N_STEPS = 500.0, 20


def population(n):
    """Drones two metres apart on average, in a layer eight metres high."""
    side = n**0.5
    place = jax.random.uniform(jax.random.key(0), (n, 3)) * jnp.asarray([side, side, 8.0])
    return eqx.tree_at(
        lambda e: (e.alive, e.uid, e.position),
        Entities.empty(n, 3, 0),
        (jnp.ones(n, bool), jnp.arange(n, dtype=jnp.int32), place + jnp.asarray([0.0, 0.0, 10.0])),
    )


def rotor_steps(n, n_steps=N_STEPS, solver=None):
    """Open loop: rotors held near hover, 500 steps in a second, as crazyflow takes by default."""
    dynamics = drone_dynamics(["cf2x_l250"], 1 / RATE, commands="rotors", control={"rate": RATE})
    dynamics = dynamics if solver is None else rotor_differential(dynamics, solver, 1)
    entities = population(n)
    start = dynamics.init(entities)

    @eqx.filter_jit
    def run(dynamics, motion, command):
        return jax.lax.fori_loop(
            0, n_steps, lambda _, m: dynamics.step(m, command, entities.kind, jnp.float32(1 / RATE)), motion
        )

    return run, dynamics, start, start.inner.rotors * 1.02


def flight_steps(n, n_steps=N_STEPS):
    """Velocity commands at 50 Hz over the attitude loop at 500 Hz, in Dryden turbulence and downwash."""
    frame = load_airframe("cf2x")
    dynamics, dt = drone_dynamics([frame], 0.02), jnp.float32(0.02)
    entities, downwash = population(n), Downwash.of([frame])
    side = n**0.5
    space = Open(jnp.asarray([0.0, 0.0, 10.0]), jnp.asarray([side, side, 8.0]))
    search = neighbor_search(space, 2.0, n)
    weather = Weather(Shear(jnp.asarray([3.0, 1.0, 0.0])), None, Dryden(jnp.float32(3.0), jnp.float32(0.3)))
    command = dynamics.command(0.1 * jax.random.normal(jax.random.key(1), (n, 4)), entities.kind)

    @eqx.filter_jit
    def run(dynamics, motion, eddies):
        def body(i, carry):
            motion, eddies, full = carry
            now = motion.into(entities)
            key = jax.random.fold_in(jax.random.key(2), i)
            eddies, air = weather.step(eddies, now, i * dt, key, dt)
            found = search.find(now.position, now.alive)
            motion = dynamics.fly(motion, command, now.kind, dt, air + downwash.air(found, now.kind))
            return motion, eddies, full | found.overflow

        return jax.lax.fori_loop(0, n_steps, body, (motion, eddies, jnp.zeros((), bool)))

    return run, dynamics, dynamics.init(entities), weather.init(entities)


def report(benchmark, n, per_step=1):
    if benchmark.stats:
        seconds = benchmark.stats.stats.median / N_STEPS
        benchmark.extra_info["drone_steps_per_second"] = round(n / seconds)
        benchmark.extra_info["steps_per_second"] = round(1 / seconds, 1)
        benchmark.extra_info["ns_per_rotor_update"] = round(1e9 * seconds / n / per_step, 1)
        print(f" {n} drones: {1 / seconds:.0f} steps/s, {n / seconds / 1e6:.2f} million drone-steps/s")


@pytest.mark.parametrize("size", SIZES)
def test_rotors(benchmark, ready, size):
    n = SIZES[size]
    run, *arguments = rotor_steps(n)
    ready(run(*arguments))
    after = benchmark(lambda: ready(run(*arguments)))
    # All climb: thrust has risen with the speed.
    assert float((after.velocity[:, 2] > 0).mean()) == 1.0
    report(benchmark, n)


@pytest.mark.parametrize("size", SIZES)
def test_flight_with_downwash_and_wind(benchmark, ready, size):
    n = SIZES[size]
    run, *arguments = flight_steps(n)
    ready(run(*arguments))
    after, eddies, full = benchmark.pedantic(lambda: ready(run(*arguments)), rounds=5)
    assert not full
    assert float(jnp.isfinite(after.velocity).mean()) == 1.0
    assert (np.asarray(eddies.uid) == np.arange(n)).all()
    report(benchmark, n, per_step=10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("solver", "integrator"),
    [(None, "euler"), (None, "rk4"), (diffrax.Euler(), "euler")],
    ids=["splitting-euler", "splitting-rk4", "euler-euler"],
)
def test_rotors_beside_crazyflow(benchmark, ready, solver, integrator, size):
    """Its first principles under Euler's method, its default, or RK4, in rounds in turn; medians.

    Both: rotors with their lag, gyroscopic and reaction torques, linear drag, an outer force; single precision, one
    parameter set for all, as many steps in one program. Ours has wind, headings and a kind for each drone, and splits
    the motion at second order with one evaluation of the forces in a step, unless a solver is given; theirs has an
    outer torque and a floor that stops it.
    """
    if os.environ.get("SCIPY_ARRAY_API") != "1":
        pytest.skip("crazyflow needs the environment variable SCIPY_ARRAY_API=1")
    crazyflow = pytest.importorskip("crazyflow.sim")
    n = SIZES[size]
    sim = crazyflow.Sim(
        n_worlds=n,
        n_drones=1,
        drone="cf2x_L250",
        dynamics="first_principles",
        control="rotor_vel",
        freq=int(RATE),
        integrator=integrator,
    )
    sim.rotor_vel_control(jnp.full((n, 1, 4), 19_500.0))
    run, *arguments = rotor_steps(n, solver=solver)
    ready(run(*arguments))
    sim.step(N_STEPS)
    ready(sim.data.states.pos)
    times = []

    def both():
        started = time.perf_counter()
        after = ready(run(*arguments))
        between = time.perf_counter()
        sim.step(N_STEPS)
        ready(sim.data.states.pos)
        times.append((between - started, time.perf_counter() - between))
        assert float(after.velocity[0, 2]) > 0

    benchmark.pedantic(both, rounds=15)
    assert int(sim.data.core.steps.max()) >= 15 * N_STEPS
    ours, theirs = (n * N_STEPS / statistics.median(column) for column in zip(*times, strict=True))
    benchmark.extra_info["drone_steps_per_second"] = round(ours)
    benchmark.extra_info["of_crazyflow"] = round(theirs)
    print(f" {n} drones: {ours / 1e6:.2f} million drone-steps/s, crazyflow under {integrator} {theirs / 1e6:.2f}")
