"""Golden results: what every scenario and every recipe compute today, so that moving code changes no bit.

Recorded by `RECORD=1 pytest -n 0 -m slow tests/test_golden.py` into golden.json beside this file. Programs of other jax
versions and other processors round differently, so that results are only compared with those of the same. Scenarios are
compiled as users compile, where they promise their bits; updates in a hurry, which leaves fewer choices to a compiler.
"""

import hashlib
import json
import os
import platform
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm import make
from swarm.build.scenario_files import load, scenario_names
from training.config import load_training, recipe_names
from training.runs.build import build_learner

pytestmark = pytest.mark.slow

STEPS, SEGMENT, UPDATES = 64, 16, 5
FILE = Path(__file__).with_name("golden.json")
SMALL = {
    "training.worlds": 4,
    "training.rollout": 8,
    "training.minibatches": 2,
    "training.epochs": 2,
    "training.steps": 4 * 8 * UPDATES,
    "training.network.hidden": 16,
    "training.network.channels": 4,
}
# Recipes that read the map need a scenario with one.
GAMES = {"mppo": "outpost", "impala": "outpost"}


def digest(tree):
    """Of all arrays of a tree, whatever their names and their order."""
    arrays = [np.asarray(_data(x)) for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array_like))]
    each = sorted(hashlib.sha256(f"{x.dtype}{x.shape}".encode() + x.tobytes()).hexdigest() for x in arrays)
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def here():
    """What decides how programs round."""
    flags = Path("/proc/cpuinfo").read_text().split("flags")[1].split("\n")[0] if Path("/proc/cpuinfo").exists() else ""
    wide = [name for name in ("fma", "avx2", "avx512f", "asimd") if name in flags.split()]
    return " ".join([f"jax {jax.__version__}", platform.machine(), *wide])


def check(name, found):
    """Compare with what was recorded, or record."""
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("RECORD"):
        golden.setdefault(here(), {})[name] = found
        FILE.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    if here() not in golden:
        pytest.skip(f"nothing was recorded with {here()}")
    assert found == golden[here()][name]


@pytest.mark.parametrize("name", scenario_names())
def test_scripted_steps(name, optimised):
    simulator = make(name)
    policy = simulator.rules.scripted_policy()
    policy_key, reset_key = jax.random.split(jax.random.key(5))
    world, timestep = eqx.filter_jit(simulator.reset)(reset_key)

    @eqx.filter_jit
    def play(world, timestep, memory, keys):
        def body(carry, key):
            world, timestep, memory = carry
            action, memory = policy.act(world, timestep.observation, memory, key)
            world, timestep = simulator.step(world, action)
            return (world, timestep, memory), (world, timestep, action, simulator.metrics(world))

        return jax.lax.scan(body, (world, timestep, memory), keys)

    carry, histories = (world, timestep, policy.start(world.entities.n_slots)), []
    for keys in jax.random.split(policy_key, (STEPS // SEGMENT, SEGMENT)):
        carry, history = play(*carry, keys)
        histories.append(jax.tree.map(lambda x: np.asarray(_data(x)), history))
    world, timestep, action, metrics = jax.tree.map(lambda *x: np.concatenate(x), *histories)
    parts = {
        "entities": world.entities,
        "groups": world.hierarchy,
        "fields": world.fields,
        "world": (world.key, world.step, world.status, world.n_overflow),
        "observation": timestep.observation,
        "flags": eqx.tree_at(lambda t: (t.observation, t.reward), timestep, (None, None)),
        "reward": timestep.reward,
        "action": action,
        "metrics": metrics,
    }
    assert world.entities.alive.any(axis=1).all()
    assert len(np.unique(action)) > 1
    check(f"scenario {name}", {part: digest(values) for part, values in parts.items()})


def _data(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@pytest.mark.parametrize("recipe", recipe_names())
def test_updates(recipe):
    scenario = load(GAMES.get(recipe, "spread"), SMALL | {"training.recipe": recipe})
    learner = build_learner(scenario, load_training(scenario))
    learned, actors = learner.init(3)
    digests = [digest(learned.network)]
    for _ in range(UPDATES):
        learned, actors, _ = learner.update(learned, actors)
        digests.append(digest(learned.network))
    assert len(set(digests)) == UPDATES + 1
    check(f"recipe {recipe}", digests)
