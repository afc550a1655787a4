"""What an episode paid to those that are judged by it, and to which of them: one meaning in training and evaluation.

`return` is the sum of the rewards of all entities of the teams that learn (of those by which a policy is judged). The
same is told by kind, and by team where a world has several; nothing that is told of a group mixes teams.
"""

from collections.abc import Iterator, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from swarm.population.entities import Entities
from swarm.population.hierarchy import reduce_groups
from swarm.simulation.rules import AbstractRules


def by_team_and_kind(
    values: Float[Array, " n"], counted: Bool[Array, " n"], entities: Entities, rules: AbstractRules
) -> Float[Array, "m k"]:
    """Sum over the entities that count, of each team and kind."""
    n_teams, n_kinds = rules.n_teams, len(rules.kinds)
    index = jnp.where(counted, entities.team * n_kinds + entities.kind, -1)
    return reduce_groups(values, index, n_teams * n_kinds, "sum").reshape(n_teams, n_kinds)


def named_returns(reward: Float[Array, "m k"], rules: AbstractRules, judged: tuple[int, ...]) -> dict[str, Array]:
    """`return`, and the same by kind and by team."""
    return {"return": jnp.sum(reward)} | named({"return": reward}, rules, judged)


def named(
    figures: Mapping[str, Float[Array, "m k"]], rules: AbstractRules, judged: tuple[int, ...]
) -> dict[str, Float[Array, ""]]:
    """Figures of teams and kinds by name: `kind/light/return`; of several teams `team/0/return`, too.

    Args:
        figures: sums over the entities of each team and kind, by name; 0 for the teams that are not judged.
        rules: names of the kinds.
        judged: numbers of the teams that the figures are about.
    """
    found = {}
    for k, kind in enumerate(rules.kinds):
        for name, values in figures.items():
            found[f"kind/{kind}/{name}"] = jnp.sum(values[:, k])
            if len(judged) > 1:
                found |= {f"kind/{kind}/{team}{name}": values[i, k] for i, team in _teams(judged)}
    if rules.n_teams > 1:
        for name, values in figures.items():
            found |= {f"{team}{name}": jnp.sum(values[i]) for i, team in _teams(judged)}
    return found


def named_by_level(
    figures: Mapping[str, Float[Array, "l m"]], levels: tuple[str, ...], judged: tuple[int, ...]
) -> dict[str, Float[Array, ""]]:
    """Figures of the groups of each level: `level/crew/groups`, of several teams `level/crew/team/0/groups` of each.

    Args:
        figures: for each level and team, by name.
        levels: names of the levels.
        judged: numbers of the teams that the figures are about.
    """
    found = {}
    for row, level in enumerate(levels):
        for name, values in figures.items():
            for i, team in _teams(judged):
                found[f"level/{level}/{team if len(judged) > 1 else ''}{name}"] = values[row, i]
    return found


def _teams(judged: tuple[int, ...]) -> Iterator[tuple[int, str]]:
    return ((i, f"team/{i}/") for i in judged)
