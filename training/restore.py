"""From a run folder to its policy."""

from swarm.simulator import Simulator
from training.build import build_learner
from training.config import load_training
from training.policy import NetworkPolicy
from training.runs import Checkpoints, RunFolder


def restore_policy(
    folder: RunFolder, *, simulator: Simulator | None = None, deterministic: bool = False
) -> tuple[Simulator, NetworkPolicy]:
    """Return a run's simulator and the policy of its last checkpoint.

    Args:
        folder: the run.
        simulator: another one to act in; its observation and actions must be of the same sizes.
        deterministic: take the likeliest actions instead of sampling.

    Raises:
        RunError: there is no checkpoint, or it does not fit.
    """
    scenario = folder.scenario()
    config = load_training(scenario)
    learner = build_learner(scenario, config)
    if simulator is not None:
        learner = type(learner)(simulator, learner.grouping, config, learner.mesh)
    learned = learner.init_learned(seed=0)
    checkpoints = Checkpoints(folder, config.keep_checkpoints)
    # Only what is learned is read: the worlds of the run may have other capacities.
    restored = checkpoints.restore(checkpoints.latest(), network=learned.network)
    return learner.simulator, NetworkPolicy(restored["network"], deterministic)
