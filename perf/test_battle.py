"""Agent-steps per second of whole battle steps: all fight or march, and the full observation is computed.

The observation of a step is each entity's own state and its 8 nearest enemies in sight, the maps of both armies, and
the mask of legal actions; rewards, deaths, births and groups are part of a step too.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import swarm
from scenarios.battle import N_MOVES

# Entities, worlds, steps. A small world is too little work for two cores; a world on each is not.
CASES = {
    "1k": (1_000, 1, 20),
    "2 x 1k on 2 devices": (1_000, 2, 20),
    "4k": (4_000, 1, 20),
    "10k": (10_000, 1, 16),
    "100k": (100_000, 1, 8),
    "100 x 400": (400, 100, 16),
    "1000 x 40": (40, 1_000, 16),
}
EAST, WEST = 1, 5


def at_scale(n):
    """The shipped battle with `n` entities on a field as crowded, with fronts a few steps from each other.

    Nobody's health runs out, so that `n` entities fight in every step that is timed, and crowd at the front; deaths are
    worked out all the same.
    """
    side = (n / 400) ** 0.5
    overrides = {
        "world.size": [120.0 * side + 14.0, 96.0 * side + 14.0],
        "world.gap": 12.0,
        "world.steps": 1_000_000,
        "waves.every": 1_000_000,
        "search.room": 3,
    }
    squads = n // 2 // 10
    archers = cavalry = squads // 5
    for kind, number in (("infantry", squads - archers - cavalry), ("archer", archers), ("cavalry", cavalry)):
        overrides[f"population.{kind}.capacity"] = overrides[f"population.{kind}.initial"] = 10 * number
        overrides[f"population.{kind}.wave"] = 10 * (number // 4)
        overrides[f"population.{kind}.health"] = 1e6
    return swarm.make("battle", overrides)


def charge(world, observation):
    """Attack the nearest enemy, else walk towards the other army: next to no cost, and all have something to do."""
    forward = jnp.where(world.entities.team == 0, EAST, WEST)
    return jnp.where(observation.action_mask[:, N_MOVES], N_MOVES, forward).astype(jnp.int32)


@pytest.mark.parametrize("case", CASES)
def test_steps(benchmark, ready, case):
    n, n_worlds, n_steps = CASES[case]
    simulator = at_scale(n)
    n_devices = 2 if case.endswith("devices") else 1
    if jax.device_count() < n_devices:
        pytest.skip(f"needs {n_devices} devices")
    mesh, split = Mesh(np.asarray(jax.devices()[:n_devices]), ("world",)), PartitionSpec("world")

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    def chunk(worlds, observations):
        def body(carry, _):
            world, observation = carry
            world, timestep = simulator.step(world, charge(world, observation))
            seen = jnp.sum(world.fields.seen.valid, dtype=jnp.int32)
            # The observation is carried on; rewards are read, lest the compiler leave them out.
            touched = jnp.sum(timestep.reward)
            return (world, timestep.observation), (jnp.sum(timestep.valid, dtype=jnp.int32), seen, touched)

        def one(*carry):
            return jax.lax.scan(body, carry, length=n_steps)

        return jax.vmap(one)(worlds, observations)

    keys = jax.random.split(jax.random.key(0), n_worlds)
    worlds, timesteps = eqx.filter_jit(lambda keys: jax.vmap(simulator.reset)(keys))(keys)
    # The armies meet first.
    worlds, observations = eqx.filter_shard((worlds, timesteps.observation), NamedSharding(mesh, split))
    (worlds, observations), _ = ready(chunk(worlds, observations))
    result = benchmark(lambda: ready(chunk(worlds, observations)))
    (worlds, observations), (agent_steps, seen, touched) = jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x), result
    )
    assert np.isfinite(touched).all()
    assert int(worlds.n_overflow.sum()) == 0
    assert (worlds.status == 0).all()
    n_agent_steps = int(agent_steps.sum())
    assert n_agent_steps == n * n_worlds * n_steps
    assert (np.abs(touched).sum(axis=1) > 0).all()
    # What was seen in the last step of a world is what there was to be seen.
    first = jax.tree.map(lambda x: x[0], worlds.entities)
    assert int(seen[0, -1]) == n_seen_by_loop(simulator.rules, first)
    assert int(seen[:, -1].sum()) > 0
    if benchmark.stats:
        benchmark.extra_info["agent_steps_per_second"] = round(n_agent_steps / benchmark.stats.stats.median)
        benchmark.extra_info["enemies_seen"] = round(int(seen.sum()) / n_agent_steps, 3)


def n_seen_by_loop(rules, entities):
    """Enemies nearer than one's own sight, at most 8 each, counted with scipy's tree."""
    from scipy.spatial import cKDTree

    total = 0
    for army in (0, 1):
        own, foreign = (entities.alive & (entities.team == m) for m in (army, 1 - army))
        sight = np.asarray(rules.table.sensing)[entities.kind[own]]
        tree = cKDTree(entities.position[foreign])
        distance, _ = tree.query(entities.position[own], k=8, distance_upper_bound=float(sight.max()))
        total += int((distance < sight[:, None]).sum())
    return total
