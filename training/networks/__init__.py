"""Networks: encoders of observations, memory, heads that act for every entity and value every group."""

from training.networks.memory import Memory
from training.networks.minds import Minds
from training.networks.network import Network, n_parameters

__all__ = ["Memory", "Minds", "Network", "n_parameters"]
