"""Grouping rules as a scenario file names them."""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from swarm.core.errors import ConfigError, nearest
from swarm.core.values import shown
from swarm.geometry.space import AbstractSpace, Open
from swarm.neighbors.search import neighbor_search
from swarm.population.entities import LAST
from swarm.population.grouping.components import Components
from swarm.population.grouping.fixed import Fixed
from swarm.population.grouping.kmeans import KMeans
from swarm.population.grouping.nearest import NearestAnchor
from swarm.population.grouping.plain import Block, ByKind, ByTeam, EachNode, Everyone, Modulo, Quadrant
from swarm.population.grouping.rule import AbstractGrouping

RULES = (
    "entity",
    "global",
    "kind",
    "team",
    "quadrant",
    "modulo:K",
    "nearest:KIND",
    "block:SIZE",
    "fixed:SIZE",
    "kmeans:K",
    "components:RADIUS",
)
# Groups, or entities of one: numbers of 32 bits, of arrays that memory can hold.


def parse_grouping(
    text: str,
    *,
    where: str,
    kinds: Sequence[str],
    n_teams: int,
    n_slots: int,
    centre: Sequence[float],
    space: AbstractSpace | None = None,
    capacity: Mapping[str, int] | None = None,
) -> AbstractGrouping:
    """Return the rule that a config names: `entity`, `global`, `kind`, `team`, `quadrant`, `modulo:4`, `nearest:depot`.

    `block:8` takes consecutive identities. With memory: `fixed:8` (members for life; newborns join groups below 8),
    `kmeans:4` (4 for each team) and `components:2.5` (chains of neighbours within 2.5 m). `fixed:8,100` and
    `components:2.5,100` set the group slots.

    Args:
        text: the rule as written.
        where: the file and key it was written at, for the message.
        kinds: names of the scenario's kinds.
        n_teams: number of teams.
        n_slots: number of entity slots.
        centre: centre of the space, for `quadrant`.
        space: measures distances; None: an open one.
        capacity: most living entities of a kind, over all teams; a kind left out may have `n_slots`.

    Raises:
        ConfigError: no such rule, or its argument fits nothing.
    """
    name, _, argument = text.partition(":")
    space = Open(jnp.zeros(len(centre)), 2 * jnp.asarray(centre, jnp.float32)) if space is None else space
    plain = {
        "entity": EachNode,
        "global": Everyone,
        "kind": lambda: ByKind(len(kinds)),
        "team": lambda: ByTeam(n_teams),
        "quadrant": lambda: Quadrant(jnp.asarray(centre, jnp.float32)),
    }
    if name in plain and not argument:
        return plain[name]()
    first, comma, second = argument.partition(",")

    def count(word: str, expected: str, most: int = 2**24) -> int:
        if not (word.isdecimal() and len(word) < 20 and 0 < int(word) <= most):
            raise ConfigError(f"{where}: {shown(text)} needs {expected}; at most {most:,}")
        return int(word)

    def slots(example: str) -> int | None:
        expected = f"a whole number of group slots of at least 1 after the comma, like {example!r}"
        return count(second, expected) if comma else None

    match name:
        case "modulo":
            return Modulo(count(argument, "a whole number of at least 1, like 'modulo:4'"))
        case "block":
            return Block(count(argument, "a whole number of at least 1, like 'block:8'"))
        case "kmeans":
            return KMeans(space, count(argument, "a whole number of at least 1, like 'kmeans:4'", 4096), n_teams)
        case "fixed":
            size, room = count(first, "a size of at least 1, like 'fixed:8'"), slots("fixed:8,100")
            size = min(size, n_slots)
            if room is not None and size * room > LAST:
                raise ConfigError(f"{where}: {text!r}: {room} groups of {size} are more than 32 bits count; lower one")
            return Fixed(size, n_teams, room)
        case "components":
            radius = _number(first)
            if not 1e-9 < radius <= 1e9:
                raise ConfigError(f"{where}: {shown(text)} needs a radius above 0 in metres, like 'components:2.5'")
            return Components(neighbor_search(space, radius, n_slots), slots("components:2.5,100"))
        case "nearest":
            if argument not in kinds:
                raise ConfigError(f"{where}: {shown(text)} names no kind of this scenario{nearest(argument, kinds)}")
            most = min(n_slots, (capacity or {}).get(argument, n_slots))
            return NearestAnchor(space, list(kinds).index(argument), n_slots, most)
    raise ConfigError(f"{where}: unknown grouping {shown(text)}{nearest(text, RULES)}")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0
