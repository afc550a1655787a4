"""Sums over all groups of a team: nothing is shared between teams, of which one may win what another loses."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.population.hierarchy import broadcast_groups, reduce_groups


class Sides(eqx.Module):
    """Which team each group slot stands for. Where only one learns there is none to tell apart, and no `Sides`.

    Attributes:
        team: of the slot; -1 where nobody belongs.
        n_teams: number of teams.
    """

    team: Int[Array, "*b g"]
    n_teams: int = eqx.field(static=True)

    @classmethod
    def of(cls, team: Int[Array, "*b n"], index: Int[Array, "*b n"], n_groups: int, n_teams: int) -> "Sides":
        """Find the team of each group from those of its members.

        Args:
            team: of each entity.
            index: group slot of each entity.
            n_groups: number of group slots.
            n_teams: number of teams.
        """
        *batch, n = team.shape
        found = greatest(team.reshape(-1, n), index.reshape(-1, n), n_groups)
        return cls(found.reshape(*batch, n_groups), n_teams)

    def __getitem__(self, rows: slice) -> "Sides":
        """Some rows."""
        return Sides(self.team[rows], self.n_teams)


def greatest(values: Int[Array, "t n"], index: Int[Array, "t n"], n_groups: int) -> Int[Array, "t g"]:
    """The greatest of what each group's members have, none below 0; of an empty group -1: reductions give 0 there."""
    return jax.vmap(lambda v, i: reduce_groups(v + 1, i, n_groups, "max") - 1)(values, index)


def team_totals(values: Float[Array, "*b g"], valid: Bool[Array, "*b g"], sides: Sides | None) -> Float[Array, "*b m"]:
    """Sum over the valid groups of each team; of all where there are no sides."""
    values = jnp.where(valid, values, 0.0)
    if sides is None:
        return jnp.sum(values, axis=-1, keepdims=True)
    *batch, g = values.shape
    flat, team = values.reshape(-1, g), sides.team.reshape(-1, g)
    totals = jax.vmap(lambda v, m: reduce_groups(v, m, sides.n_teams, "sum"))(flat, team)
    return totals.reshape(*batch, sides.n_teams)


def separate(
    values: Float[Array, "*b g"],
    valid: Bool[Array, "*b g"],
    scope: Literal["group", "global"],
    sides: Sides | None = None,
) -> Float[Array, "*b g"]:
    """Keep each group's own value, or give every valid group the sum over all of its team."""
    if scope == "group":
        return values
    totals = team_totals(values, valid, sides)
    if sides is None:
        return jnp.where(valid, totals, 0.0)
    *batch, g = values.shape
    theirs = jax.vmap(broadcast_groups)(totals.reshape(-1, sides.n_teams), sides.team.reshape(-1, g))
    return jnp.where(valid, theirs.reshape(*batch, g), 0.0)
