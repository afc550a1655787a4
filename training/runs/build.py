"""From a validated scenario file to a learner."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from swarm.adapters.host import HostRules
from swarm.build.scenario_files import Scenario
from swarm.build.simulators import grouping_of, make
from swarm.commands.parsing import is_run
from swarm.core.errors import ConfigError
from swarm.core.memory import check_bytes, n_bytes
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.simulator import Simulator
from training.acting.teams import Teams, assign, policy_named
from training.algorithms.impala import IMPALA
from training.algorithms.learner import AbstractLearner, Learned
from training.algorithms.mppo import MPPO
from training.algorithms.reductions import AXIS
from training.config import TrainingConfig, load_training
from training.credit.trajectories import group_by
from training.execution.asynchronous import Alternating, Asynchronous
from training.runs.folders import RunFolder
from training.runs.restore import frozen_policy


def build_learner(
    scenario: Scenario, config: TrainingConfig, n_devices: int = 1, n_actor_devices: int = 0
) -> AbstractLearner | Asynchronous | Alternating:
    """Build the learner on the first `n_devices` devices of each process, and actors of their own on those after them.

    Actors without devices of their own share those that learn.

    Raises:
        ConfigError: there are not so many devices, they do not divide the worlds, the grouping or a team is none, or
            the network reads what the scenario does not show.
    """
    _check_devices(config, n_devices, n_actor_devices)
    devices, n_processes = jax.local_devices(), jax.process_count()
    simulator = make(scenario)
    teams = build_teams(scenario, config, simulator)
    several = len([network for network in teams.of_team if network >= 0]) > 1
    where = f"{scenario.place('training.credit.grouping')}: training.credit.grouping"
    grouping = group_by(
        config.credit.grouping,
        simulator.levels,
        lambda text: grouping_of(simulator.rules, text, where=where),
        where=where,
        n_teams=simulator.rules.n_teams if several else 1,
    )
    on_host = isinstance(simulator.rules, HostRules)
    if on_host and n_processes > 1:
        raise ConfigError(
            f"{scenario.source}: host environments live in one process, and here are {n_processes}; start it alone"
        )
    of_all = [device for process in range(n_processes) for device in jax.local_devices(process)[:n_devices]]
    mesh = Mesh(np.asarray(of_all), (AXIS,))
    learner_class = IMPALA if config.algorithm == "impala" else MPPO
    teacher = build_teacher(scenario, config, simulator)
    learner = learner_class(simulator, grouping, teams.opponents, teacher, teams.of_team, config, mesh)
    # Before any compilation: whether the network finds what it reads, and all of it fits into memory.
    _check_memory(scenario, config, simulator, jax.eval_shape(learner.init_learned, 0))
    if isinstance(learner, IMPALA) and config.impala.actors:
        return Asynchronous(learner, devices[n_devices : n_devices + n_actor_devices] or devices[:n_devices])
    return Alternating(learner) if on_host else learner


def _check_devices(config: TrainingConfig, n_devices: int, n_actor_devices: int) -> None:
    devices, n_processes = jax.local_devices(), jax.process_count()
    if not 1 <= n_devices <= len(devices):
        raise ConfigError(f"--devices {n_devices}: this machine has {len(devices)} {devices[0].platform} device(s)")
    if n_actor_devices and not config.impala.actors:
        raise ConfigError(f"--actor-devices {n_actor_devices}: nobody acts apart; set training.impala.actors, as in 2")
    if n_devices + n_actor_devices > len(devices):
        raise ConfigError(
            f"--devices {n_devices} and --actor-devices {n_actor_devices}: this machine has {len(devices)} "
            f"{devices[0].platform} device(s)"
        )
    if config.impala.actors and n_processes > 1:
        raise ConfigError(
            f"training.impala.actors = {config.impala.actors}: actors of their own live in one process, and here are "
            f"{n_processes}; set it to 0, and training.impala.lag to what they would lag"
        )
    if config.worlds % (n_devices * n_processes):
        of_all = "" if n_processes == 1 else f" of each of {n_processes} processes"
        raise ConfigError(
            f"--devices {n_devices}{of_all} does not divide training.worlds = {config.worlds}; change one of them"
        )
    if config.algorithm == "impala" and config.worlds // (n_devices * n_processes) % config.minibatches:
        raise ConfigError(
            f"training.minibatches = {config.minibatches}: each takes the same number of worlds of every device, which "
            f"has {config.worlds // (n_devices * n_processes)} of training.worlds = {config.worlds}; change one of them"
        )


def _check_memory(scenario: Scenario, config: TrainingConfig, simulator: Simulator, learned: Learned) -> None:
    """Refuse what takes more than all memory: parameters, worlds, and what the networks read in a rollout."""
    world, timestep = jax.eval_shape(simulator.reset, jax.random.key(0))
    rollout = config.rollout * n_bytes(learned.network.keep(timestep.observation))
    where = f"{scenario.source}: training.worlds = {config.worlds}, training.rollout = {config.rollout}"
    check_bytes(n_bytes(learned) + config.worlds * (n_bytes(world) + rollout), where)


def build_teams(scenario: Scenario, config: TrainingConfig, simulator: Simulator) -> Teams:
    """Find out who acts for each team."""
    where = f"{scenario.place('training.teams')}: training.teams"
    frozen = _frozen(simulator, where, '"learn", "learn:NAME", "scripted", "random"')
    return assign(config.teams, simulator.rules, frozen, where=where)


def policy_of_run(path: Path, scenario: Scenario, simulator: Simulator) -> AbstractPolicy:
    """What a run learned, as a policy for all teams: those that did not learn act as they did then."""
    folder = RunFolder.open(path)
    teams = build_teams(scenario, load_training(folder.scenario()), simulator)
    return teams.with_opponents(frozen_policy(folder, simulator))


def build_teacher(scenario: Scenario, config: TrainingConfig, simulator: Simulator) -> AbstractPolicy | None:
    """Find out who teaches, if anybody does."""
    if not config.teacher.policy:
        return None
    where = f"{scenario.place('training.teacher.policy')}: training.teacher.policy"
    return policy_named(config.teacher.policy, simulator.rules, _frozen(simulator, where, '"scripted"'))


def _frozen(simulator: Simulator, where: str, names: str) -> Callable[[str], AbstractPolicy]:
    """What finds the policy of a run folder, and else raises, with the names that there are."""

    def frozen(name: str) -> AbstractPolicy:
        if not is_run(name):
            raise ConfigError(f"{where}: {name!r}: neither {names} nor a run folder")
        return frozen_policy(RunFolder.open(Path(name)), simulator)

    return frozen
