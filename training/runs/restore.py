"""From a run folder to its policy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from swarm.core.errors import RunError
from swarm.simulation.simulator import Simulator
from training.acting.policy import NetworkPolicy
from training.algorithms.mppo import MPPO
from training.algorithms.reductions import AXIS
from training.config import TrainingConfig, load_training
from training.credit.trajectories import GroupBy
from training.networks import Minds
from training.runs.checkpoints import Checkpoints, DamagedError
from training.runs.folders import RunFolder


def restore_minds(folder: RunFolder, simulator: Simulator, *, best: bool = False, update: int | None = None) -> Minds:
    """Return the networks of a run's last checkpoint, or of its best.

    Args:
        folder: the run.
        simulator: where they shall act; its observation and actions must be of the same sizes. Teams that the run did
            not know, or did not learn for, get its first network.
        best: the checkpoint of the highest score instead of the last.
        update: the checkpoint after so many updates; None: the last.

    Raises:
        RunError: there is no such checkpoint, it is damaged, or it does not fit.
    """
    scenario = folder.scenario()
    config = load_training(scenario)
    n_networks, of_team = _networks(folder, config)
    mesh = Mesh(np.asarray(jax.local_devices()[:1]), (AXIS,))
    learner = MPPO(simulator, GroupBy(None, None), None, None, tuple(range(n_networks)), config, mesh)
    fresh = learner.init_learned(seed=0)
    checkpoints = Checkpoints.best(folder) if best else Checkpoints(folder, config.keep_checkpoints)
    update = checkpoints.at(update)
    # Only the networks are read: the worlds of the run may have other capacities.
    try:
        restored = checkpoints.restore(update, network=fresh.network)
    except DamagedError as error:
        raise RunError(f"{error}; {checkpoints.remedy(update)}") from None
    n_teams = simulator.rules.n_teams
    known = [max(of_team[team], 0) if team < len(of_team) else 0 for team in range(n_teams)]
    # On no device in particular, so that they act wherever the worlds are.
    free = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)) if eqx.is_array(x) else x, restored["network"])
    return Minds(free.networks, tuple(known), simulator.rules.capacities)


def _networks(folder: RunFolder, config: TrainingConfig) -> tuple[int, list[int]]:
    """How many networks a run has, and which of them each team.

    Raises:
        RunError: its `run.json` says what its config does not.
    """
    identity = folder.identity()
    n_networks, of_team = identity.get("networks", 1), identity.get("of_team", [0])
    expected = len({name for name in config.teams if name.partition(":")[0] == "learn"})
    file = folder.path / "run.json"
    if type(n_networks) is not int or n_networks != expected:
        raise RunError(f"{file}: networks = {str(n_networks)[:40]}: its config.toml has {expected} that learn")
    if not (isinstance(of_team, list) and all(type(n) is int and -1 <= n < n_networks for n in of_team)):
        raise RunError(f"{file}: of_team = {str(of_team)[:40]}: expected for each team a number below {n_networks}")
    return n_networks, of_team


def networks_at(folder: RunFolder, *, best: bool = False, update: int | None = None) -> int:
    """The update after which the networks are that `restore_minds` returns; errors as there."""
    return (Checkpoints.best(folder) if best else Checkpoints(folder, 1)).at(update)


def frozen_policy(
    folder: RunFolder,
    simulator: Simulator,
    *,
    deterministic: bool = False,
    best: bool = False,
    update: int | None = None,
) -> NetworkPolicy:
    """Return the policy of a run, for all teams of a simulator; arguments and errors as for `restore_minds`."""
    minds = restore_minds(folder, simulator, best=best, update=update)
    return NetworkPolicy.of(minds, simulator.rules, deterministic=deterministic)


def warm_start(network: Minds, folder: RunFolder) -> tuple[Minds, list[str]]:
    """Take over from a run's last checkpoint every array that has the same place and shape.

    Returns:
        The networks, and the names of the arrays that stayed as they were.

    Raises:
        RunError: there is no checkpoint, or nothing fits.
    """
    checkpoints = Checkpoints(folder, load_training(folder.scenario()).keep_checkpoints)
    n_updates = checkpoints.latest()
    warm, stayed = checkpoints.restore_fitting(n_updates, "network", network)
    weights = _weights(network)
    if weights and not any(bool(jnp.any(x != y)) for x, y in zip(weights, _weights(warm), strict=True)):
        raise RunError(f"--init-from {folder.path}: none of its weights has the place and shape of one here")
    return warm, stayed


def _weights(network: Minds) -> list[jax.Array]:
    """Arrays that are not mere offsets; those of few numbers fit by chance."""
    return [x for x in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)) if x.ndim > 1]
