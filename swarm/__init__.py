"""Large-scale swarm simulation with hierarchical agent groups, in JAX and Equinox.

Names are imported on first use, so that `import swarm` (and every `--help`) answers without loading jax.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from swarm.core.version import __version__ as __version__

if TYPE_CHECKING:
    from swarm.build.scenario_files import load
    from swarm.build.simulators import make
    from swarm.core.errors import ConfigError, RunError, SwarmError
    from swarm.population.entities import Entities, Spawn
    from swarm.population.hierarchy import Hierarchy
    from swarm.simulation.policy import AbstractPolicy
    from swarm.simulation.random_policy import RandomPolicy
    from swarm.simulation.rules import AbstractRules
    from swarm.simulation.simulator import Simulator
    from swarm.simulation.types import Observation, Outcome, Start, TimeStep, World

# `python -m swarm.simulate` is about to run, and Python has put the working folder first: modules there (`random.py`,
# `scenarios`) would hide those that we need. They are found all the same, after them.
if sys.argv[:1] == ["-m"] and any(word.removeprefix("-m").partition(".")[0] == "swarm" for word in sys.orig_argv):
    sys.path += [] if sys.flags.safe_path else [sys.path.pop(0)]


_HOME = {
    "load": "build.scenario_files",
    "make": "build.simulators",
    "Entities": "population.entities",
    "Hierarchy": "population.hierarchy",
    "ConfigError": "core.errors",
    "RunError": "core.errors",
    "SwarmError": "core.errors",
    "AbstractPolicy": "simulation.policy",
    "AbstractRules": "simulation.rules",
    "Observation": "simulation.types",
    "Outcome": "simulation.types",
    "Start": "simulation.types",
    "RandomPolicy": "simulation.random_policy",
    "Spawn": "population.entities",
    "TimeStep": "simulation.types",
    "World": "simulation.types",
    "Simulator": "simulation.simulator",
}

__all__ = [
    "AbstractPolicy",
    "AbstractRules",
    "ConfigError",
    "Entities",
    "Hierarchy",
    "Observation",
    "Outcome",
    "RandomPolicy",
    "RunError",
    "Simulator",
    "Spawn",
    "Start",
    "SwarmError",
    "TimeStep",
    "World",
    "load",
    "make",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'swarm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"swarm.{_HOME[name]}"), name)
