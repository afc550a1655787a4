"""How entities move under commands held for a step: one file for each family."""

from swarm.dynamics.differential import Differential
from swarm.dynamics.integrators import DoubleIntegrator, SingleIntegrator
from swarm.dynamics.lag import VelocityLag
from swarm.dynamics.motion import AbstractDynamics, Motion
from swarm.dynamics.unicycle import Unicycle

__all__ = [
    "AbstractDynamics",
    "Differential",
    "DoubleIntegrator",
    "Motion",
    "SingleIntegrator",
    "Unicycle",
    "VelocityLag",
]
