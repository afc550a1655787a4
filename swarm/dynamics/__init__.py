"""How entities move under commands held for a step: one file for each family."""

from swarm.dynamics.airframe import Airframe, airframe_names, load_airframe
from swarm.dynamics.attitude import AttitudeFlight
from swarm.dynamics.control import AttitudeHold, PositionHold, VelocityHold
from swarm.dynamics.differential import Differential
from swarm.dynamics.drones import drone_dynamics
from swarm.dynamics.flight import AbstractFlight, Air
from swarm.dynamics.ground import Grounded, GroundTable
from swarm.dynamics.integrators import DoubleIntegrator, SingleIntegrator
from swarm.dynamics.lag import VelocityLag
from swarm.dynamics.motion import AbstractDynamics, Motion
from swarm.dynamics.quadrotor import Quadrotor
from swarm.dynamics.unicycle import Unicycle

__all__ = [
    "AbstractDynamics",
    "AbstractFlight",
    "Air",
    "Airframe",
    "AttitudeFlight",
    "AttitudeHold",
    "Differential",
    "DoubleIntegrator",
    "GroundTable",
    "Grounded",
    "Motion",
    "PositionHold",
    "Quadrotor",
    "SingleIntegrator",
    "Unicycle",
    "VelocityHold",
    "VelocityLag",
    "airframe_names",
    "drone_dynamics",
    "load_airframe",
]
