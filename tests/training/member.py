"""One of several processes that learn as one; process 0 leaves the parameters. For `test_processes`."""

import sys

import equinox as eqx
import jax
import numpy as np

from swarm.build.scenario_files import load
from training.config import load_training
from training.execution.processes import connected, is_first
from training.runs.build import build_learner

SMALL = {"training.network.encoders": ["entity"], "training.network.hidden": 4, "training.learning_rate": 1e-2}
LEARNERS = {"mppo": {}, "impala": {"training.recipe": "impala", "training.epochs": 1}}


def parameters(source, overrides, n_updates, n_devices=1):
    """Parameters after some updates, and sums over the last one."""
    scenario = load(source, SMALL | overrides)
    learner = build_learner(scenario, load_training(scenario), n_devices)
    learned, actors = learner.init(0)
    for _ in range(n_updates):
        learned, actors, metrics = learner.update(learned, actors)
    found = [np.asarray(x) for x in jax.tree.leaves(eqx.filter(learned.network, eqx.is_inexact_array))]
    return [*found, *(np.asarray(metrics[name]) for name in ("agent_steps", "value", "grad_norm"))]


def main(source, out, names, coordinator, n, i):
    with connected(coordinator, int(n), int(i), 1):
        found = {name: parameters(source, LEARNERS[name], 10) for name in names.split(",")}
        if is_first():
            np.savez(out, **{f"{name}.{k}": x for name, row in found.items() for k, x in enumerate(row)})


if __name__ == "__main__":
    main(*sys.argv[1:])
