"""Large-scale swarm simulation with hierarchical agent groups, in JAX and Equinox.

Names are imported on first use, so that `import swarm` (and every `--help`) answers without loading jax.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from swarm.version import __version__ as __version__

if TYPE_CHECKING:
    from swarm.build import make
    from swarm.config import load
    from swarm.entities import Entities, Spawn
    from swarm.errors import ConfigError, RunError, SwarmError
    from swarm.hierarchy import Hierarchy
    from swarm.policy import AbstractPolicy
    from swarm.random_policy import RandomPolicy
    from swarm.scenario import AbstractRules
    from swarm.simulator import Simulator
    from swarm.types import Observation, Outcome, TimeStep, World

# `python -m swarm.simulate` is about to run, and Python has put the working folder first: modules there (`random.py`,
# `scenarios`) would hide those that we need. They are found all the same, after them.
if sys.argv[:1] == ["-m"] and any(word.removeprefix("-m").partition(".")[0] == "swarm" for word in sys.orig_argv):
    sys.path += [] if sys.flags.safe_path else [sys.path.pop(0)]


_HOME = {
    "load": "config",
    "make": "build",
    "Entities": "entities",
    "Hierarchy": "hierarchy",
    "ConfigError": "errors",
    "RunError": "errors",
    "SwarmError": "errors",
    "AbstractPolicy": "policy",
    "AbstractRules": "scenario",
    "Observation": "types",
    "Outcome": "types",
    "RandomPolicy": "random_policy",
    "Spawn": "entities",
    "TimeStep": "types",
    "World": "types",
    "Simulator": "simulator",
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
