"""Rules that form groups: from the nodes of one level of the hierarchy to the groups of the next.

A rule sees nodes (entities at the lowest level, groups above it) and says which group slot each belongs to. A group
slot has an identity; when the identity changes, the slot has passed to another group. Rules with memory also see how
they left the level the last time: `Fixed` keeps it, `Components` and `KMeans` keep group slots by it.
"""

from swarm.population.grouping.components import Components
from swarm.population.grouping.fixed import Fixed
from swarm.population.grouping.kmeans import KMeans
from swarm.population.grouping.nearest import NearestAnchor
from swarm.population.grouping.parse import RULES, parse_grouping
from swarm.population.grouping.plain import Block, ByKind, ByTeam, EachNode, Everyone, Modulo, Quadrant
from swarm.population.grouping.rule import AbstractGrouping, Nodes, Previous

__all__ = [
    "RULES",
    "AbstractGrouping",
    "Block",
    "ByKind",
    "ByTeam",
    "Components",
    "EachNode",
    "Everyone",
    "Fixed",
    "KMeans",
    "Modulo",
    "NearestAnchor",
    "Nodes",
    "Previous",
    "Quadrant",
    "parse_grouping",
]
