"""From a validated scenario file to a learner."""

import jax
import numpy as np
from jax.sharding import Mesh

from swarm.build import grouping_of
from swarm.config import Scenario
from swarm.errors import ConfigError
from training.config import TrainingConfig
from training.credit import group_by
from training.mppo import AXIS, MPPO


def build_learner(scenario: Scenario, config: TrainingConfig, n_devices: int = 1) -> MPPO:
    """Build the learner on the first `n_devices` devices.

    Raises:
        ConfigError: there are not so many devices, they do not divide the worlds, or the grouping is none.
    """
    devices = jax.devices()
    if not 1 <= n_devices <= len(devices):
        raise ConfigError(f"--devices {n_devices}: this machine has {len(devices)} {devices[0].platform} device(s)")
    if config.worlds % n_devices:
        raise ConfigError(
            f"--devices {n_devices} does not divide training.worlds = {config.worlds}; change one of them"
        )
    simulator = scenario.simulator()
    if simulator.rules.n_controls:
        raise ConfigError(
            f"{scenario.place('world.control')}: its actions are {simulator.rules.n_controls} continuous commands, and "
            "the learners act by discrete ones; use the scenario's discrete control"
        )
    where = f"{scenario.place('training.credit.grouping')}: training.credit.grouping"
    grouping = group_by(
        config.credit.grouping,
        simulator.levels,
        lambda text: grouping_of(simulator.rules, text, where=where),
        where=where,
    )
    return MPPO(simulator, grouping, config, Mesh(np.asarray(devices[:n_devices]), (AXIS,)))
