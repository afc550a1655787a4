"""Whose trajectory is it: from quantities per entity to quantities per group, by the settings of the credit table.

A trajectory belongs to a group slot. It is valid at the steps that a member was alive to act in, and it ends where the
slot's group does: with its last member, with a change of its identity, or with the world's episode.

Where several teams learn nothing is shared between them: a group is that of one team (`GroupBy`), and what is global is
the team's (`Sides`).
"""

from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.core.errors import ConfigError, nearest
from swarm.population.grouping import RULES, AbstractGrouping, EachNode, Nodes
from swarm.population.hierarchy import broadcast_groups, reduce_groups
from swarm.simulation.types import World
from training.config import CreditTable
from training.credit.losses import generalised_advantage, vtrace
from training.credit.sides import Sides, greatest, separate, team_totals

Separable = Literal["reward", "value", "log_prob", "entropy", "advantage", "done"]


class Membership(eqx.Module):
    """Which group slot each entity belongs to, and who the slots stand for.

    Attributes:
        index: group slot of each entity slot; -1: none, or dead.
        identity: of each group slot; a change of it is the end of a trajectory.
    """

    index: Int[Array, " n"]
    identity: Int[Array, " g"]

    @property
    def n_groups(self) -> int:
        """Number of group slots."""
        return self.identity.shape[-1]

    def of(self, chosen: Bool[Array, " n"]) -> "Membership":
        """The same groups without the others."""
        return Membership(jnp.where(chosen, self.index, -1), self.identity)

    def by_team(self, team: Int[Array, " n"], n_teams: int) -> "Membership":
        """Each group's members of one team as a group of their own; slot g becomes the slots from g * n_teams on."""
        index = jnp.where(self.index >= 0, self.index * n_teams + team, -1)
        return Membership(index, jnp.repeat(self.identity, n_teams))

    def total(self, values: Float[Array, "n *v"]) -> Float[Array, "g *v"]:
        """Sum over the members of each group."""
        return reduce_groups(values, self.index, self.n_groups, "sum")

    def any(self, values: Bool[Array, " n"]) -> Bool[Array, " g"]:
        """Whether it holds for a member of the group."""
        return reduce_groups(values, self.index, self.n_groups, "any")


class GroupBy(eqx.Module):
    """Finds the membership of a world: by a level of its hierarchy, or by a rule applied to the entities.

    Attributes:
        level: index of the level; None where a rule is applied.
        rule: the rule; None where a level is read.
        n_teams: number of teams where several learn, which share no group; else 1.
    """

    level: int | None = eqx.field(static=True)
    rule: AbstractGrouping | None
    n_teams: int = eqx.field(static=True, default=1)

    def __call__(self, world: World) -> Membership:
        """Return who belongs where, now."""
        members = self._of_all(world)
        if self.n_teams == 1 or not (self.level or self.rule):
            return members
        # Whatever the rule: levels above teams hold several, and so do kinds, quadrants and merged groups.
        return members.by_team(world.entities.team, self.n_teams)

    def _of_all(self, world: World) -> Membership:
        alive = world.entities.alive
        if self.rule is not None:
            index, groups = self.rule(Nodes.of(world.entities), world.entities)
            return Membership(jnp.where(alive, index, -1), groups.identity)
        if not self.level:
            return Membership(jnp.where(alive, jnp.arange(alive.shape[0], dtype=jnp.int32), -1), world.entities.uid)
        identity = world.hierarchy.identity[self.level - 1]
        return Membership(jnp.where(alive, world.hierarchy.ancestor(self.level), -1), identity)


def group_by(text: str, levels: tuple[str, ...], parse, *, where: str, n_teams: int = 1) -> GroupBy:
    """Read the setting `grouping`: a level's name, or a grouping rule.

    Args:
        text: the setting.
        levels: names of the hierarchy's levels; they come before the rules of the same name.
        parse: `parse(text) -> AbstractGrouping` in the terms of the scenario.
        where: file and key, for the message.
        n_teams: number of teams where several learn, else 1.

    Raises:
        ConfigError: it is neither, or a rule that needs to remember its groups.
    """
    if text in levels:
        return GroupBy(levels.index(text), None, n_teams)
    if text.partition(":")[0] not in {rule.partition(":")[0] for rule in RULES}:
        hint = nearest(text, (*levels, *RULES))
        raise ConfigError(f"{where} = {text!r}: neither a level nor a grouping rule{hint}")
    grouping = parse(text)
    if grouping.has_memory:
        raise ConfigError(
            f"{where} = {text!r}: this rule remembers its groups, which only a level does; "
            f"make it a level of [groups] and give that level's name"
        )
    # A group of one needs no slots but the entities'.
    return GroupBy(0, None) if isinstance(grouping, EachNode) else GroupBy(None, grouping, n_teams)


def mix_reward(
    reward: Float[Array, "*b g"], valid: Bool[Array, "*b g"], credit: CreditTable, sides: Sides | None = None
) -> Float[Array, "*b g"]:
    """`own_weight` times the own reward and the rest of the reward of all groups of the team together."""
    own_weight = credit.own_weight if credit.reward == "group" else 0.0
    return own_weight * reward + (1.0 - own_weight) * separate(reward, valid, "global", sides)


def own_weights(credit: CreditTable) -> tuple[float, ...]:
    """Weight of the own reward in each stream that is valued: own and shared, to learn the mixture; or the mixture."""
    if credit.learn_own_weight:
        return 1.0, 0.0
    return (credit.own_weight if credit.reward == "group" else 0.0,)


def n_streams(credit: CreditTable) -> int:
    """Streams of reward that are valued one by one."""
    return len(own_weights(credit))


def reward_streams(
    reward: Float[Array, "*b g"], valid: Bool[Array, "*b g"], credit: CreditTable, sides: Sides | None = None
) -> Float[Array, "*b g v"]:
    """Reward of each stream."""
    if credit.learn_own_weight:
        return jnp.stack([reward, separate(reward, valid, "global", sides)], axis=-1)
    return mix_reward(reward, valid, credit, sides)[..., None]


class People(eqx.Module):
    """Who the members are, before each step and after the last; for what passes from one trajectory to another.

    Attributes:
        index: group slot.
        uid: identity.
        team: team.
        builder: slot that the builder held when it built; -1: nobody.
    """

    index: Int[Array, "*t n"]
    uid: Int[Array, "*t n"]
    team: Int[Array, "*t n"]
    builder: Int[Array, "*t n"]


class Links(eqx.Module):
    """What passes from trajectories after a step to others before it; axes [t, g] for one world.

    Attributes:
        parent: group slot of the builder, for groups whose trajectory begins with somebody it built; -1: none.
        bereaved: whether the trajectory ended in the step though the episode went on: its last member died.
        team: of the group before the step.
        heirs: of the group after the step, if it lives then; -1 if not.
    """

    parent: Int[Array, "*t g"]
    bereaved: Bool[Array, "*t g"]
    team: Int[Array, "*t g"]
    heirs: Int[Array, "*t g"]

    @classmethod
    def between(cls, people: People, same: Bool[Array, "t g"], valid: Bool[Array, "r g"], ended: Array) -> "Links":
        """Find the links.

        Args:
            people: t + 1 rows.
            same: whether the trajectory goes on after the step.
            valid: whether the group lives; t + 1 rows.
            ended: whether the episode ended in the step; [t].
        """
        g = valid.shape[-1]
        now, later = (jax.tree.map(lambda x, s=s: x[s], people) for s in (slice(None, -1), slice(1, None)))
        born = (later.uid != now.uid) & (later.index >= 0) & (later.builder >= 0) & ~ended[:, None]
        of_builder = jnp.take_along_axis(now.index, jnp.maximum(later.builder, 0), axis=1)
        parent = greatest(jnp.where(born, of_builder, -1), later.index, g)
        begins = valid[1:] & ~same & ~ended[:, None]
        team = greatest(people.team, people.index, g)
        return cls(
            parent=jnp.where(begins, parent, -1),
            bereaved=valid[:-1] & ~same & ~ended[:, None],
            team=team[:-1],
            heirs=jnp.where(valid[1:], team[1:], -1),
        )


def inherit(links: Links, after: Float[Array, " g"], credit: CreditTable, n_teams: int) -> Float[Array, " g"]:
    """What each trajectory takes from others, of their quantities after a step.

    `spawn`: a builder's takes that share of those that begin with whom it built, as if the child were part of it.
    `posthumous`: that of the dead takes that share of the mean over the living of its team, so that what it set going
    counts on (Cohen et al. 2022, arXiv 2111.05992, value the survivors instead of nothing, too).
    """
    taken = jnp.zeros_like(after)
    if credit.spawn:
        taken += credit.spawn * reduce_groups(after, links.parent, after.shape[0], "sum")
    if credit.posthumous:
        of_team = reduce_groups(after, links.heirs, n_teams, "mean")
        taken += jnp.where(links.bereaved, credit.posthumous * broadcast_groups(of_team, links.team), 0.0)
    return taken


class Trajectory(eqx.Module):
    """What credit is computed from; axes [t, g] for each world. Row t is the step from t to t + 1.

    Attributes:
        reward: of a stream (`reward_streams`).
        value: before the step.
        valid: a member was alive when the step began.
        identity: of the group slot when the step began.
        final_value: value of the last observation where world or group was truncated in the step; else 0.
        final_valid: whether the group lived at that observation.
        ended: the world's episode ended in the step; [t].
    """

    reward: Float[Array, "t *b g"]
    value: Float[Array, "t *b g"]
    valid: Bool[Array, "t *b g"]
    identity: Int[Array, "t *b g"]
    final_value: Float[Array, "t *b g"]
    final_valid: Bool[Array, "t *b g"]
    ended: Bool[Array, "t *b"]


def advantages(
    trajectory: Trajectory,
    last_value: Float[Array, " g"],
    last_valid: Bool[Array, " g"],
    last_identity: Int[Array, " g"],
    credit: CreditTable,
    discount: float,
    gae_lambda: float,
    people: People | None = None,
    n_teams: int = 1,
    log_ratio: Float[Array, "t g"] | None = None,
    sides: Sides | None = None,
    own_weight: float | Float[Array, ""] | None = None,
) -> tuple[Float[Array, "t g"], Float[Array, "t g"], Float[Array, "t g"]]:
    """Return advantage, value target and (separated) value of each step of one world's trajectories.

    Args:
        trajectory: the rollout.
        last_value: value after the last step.
        last_valid: whether the group lives after the last step.
        last_identity: identity of the group slot after the last step.
        credit: the settings.
        discount: gamma.
        gae_lambda: lambda.
        people: who the members are; needed where something passes between trajectories.
        n_teams: number of teams.
        log_ratio: of the policy that learns to the one that acted: advantages by V-trace; None: the generalised ones.
        sides: team of each group, before each step and after the last; None: all are of one.
        own_weight: weight of the own reward in this stream; None: as the settings say.
    """
    t, valid, reward, ended = trajectory.valid.shape[0], trajectory.valid, trajectory.reward, trajectory.ended[:, None]
    now = None if sides is None else sides[:t]
    values, lives = jnp.concatenate([trajectory.value, last_value[None]]), jnp.concatenate([valid, last_valid[None]])
    separated = separate(values, lives, credit.value, sides)
    value, following = separated[:t], separated[1:]
    final_value = _final_values(trajectory, values[1:], lives[1:], credit, now)
    next_identity = jnp.concatenate([trajectory.identity[1:], last_identity[None]])
    same = valid & lives[1:] & (next_identity == trajectory.identity)
    continues = same & ~ended
    # Where a group died or its slot passed on, nothing follows; where it was truncated, its last value does.
    cut = ended | (trajectory.final_valid & ~continues)
    next_value = jnp.where(cut, final_value, jnp.where(continues, following, 0.0))
    gamma = jnp.full_like(reward, discount)
    links = rest = None
    if people is not None and (credit.spawn or credit.posthumous):
        links = Links.between(people, continues, lives, trajectory.ended)
        next_value = next_value + jax.vmap(partial(inherit, credit=credit, n_teams=n_teams))(links, following)
    if credit.done == "global":
        own_weight = own_weights(credit)[0] if own_weight is None else own_weight
        later_value, rest = _what_comes_after(
            trajectory, values, lives, log_ratio, sides, credit, discount, gae_lambda, own_weight
        )
        outlived = valid & ~continues & ~trajectory.final_valid
        next_value = next_value + jnp.where(outlived, later_value, 0.0)
        rest = jnp.where(outlived, rest, 0.0)

    def take(row: tuple[Links | None, Array | None], after: Array) -> Array:
        links, rest = row
        taken = jnp.zeros_like(after) if links is None else inherit(links, after, credit, n_teams)
        return taken if rest is None else taken + rest

    passes = None if links is None and rest is None else take
    rows = reward, gamma, value, next_value, continues, gae_lambda
    if log_ratio is None:
        advantage = generalised_advantage(*rows, passes, (links, rest))
        target = advantage + value
    else:
        target, advantage = vtrace(log_ratio, *rows, inherit=passes, links_t=(links, rest))
    if credit.advantage == "global":
        n_valid = separate(jnp.ones_like(advantage), valid, "global", now)
        advantage = separate(advantage, valid, "global", now) / jnp.maximum(n_valid, 1.0)
    return advantage, target, value


def _final_values(
    trajectory: Trajectory, following: Array, lives: Array, credit: CreditTable, sides: Sides | None
) -> Float[Array, "t g"]:
    """Values of the last observations, separated: of a team those who were truncated and those who go on count."""
    at_last = trajectory.final_valid
    if credit.value == "group":
        return trajectory.final_value
    value = jnp.where(at_last, trajectory.final_value, following)
    return separate(value, at_last | (lives & ~trajectory.ended[:, None]), "global", sides)


def _what_comes_after(
    trajectory: Trajectory,
    values: Float[Array, "r g"],
    lives: Bool[Array, "r g"],
    log_ratio: Float[Array, "t g"] | None,
    sides: Sides | None,
    credit: CreditTable,
    discount: float,
    gae_lambda: float,
    own_weight: float | Float[Array, ""],
) -> tuple[Float[Array, "t g"], Float[Array, "t g"]]:
    """What a trajectory still gets that goes on after its group is gone, until the episode ends (`done = "global"`).

    Nothing of its own is left, so it is the same for all the dead of a team: of the reward the share that is the
    team's, and the team's value, if that is what is learned. What is left of a team gets sums of mixed rewards
    w r_i + (1 - w) R over its n groups, which are (w + n (1 - w)) R.

    Returns:
        Value after each step, and the sum of the errors from there on, for the team of each group before the step.
    """
    t, g = trajectory.valid.shape
    now = None if sides is None else sides[:t]
    n_valid = team_totals(jnp.ones_like(trajectory.reward), trajectory.valid, now)
    shares = own_weight + n_valid * (1.0 - own_weight)
    mixed = team_totals(trajectory.reward, trajectory.valid, now)
    reward = jnp.where(n_valid > 0, (1.0 - own_weight) * mixed / jnp.where(n_valid > 0, shares, 1.0), 0.0)
    value, final_value = jnp.zeros((t + 1, reward.shape[1])), jnp.zeros_like(reward)
    if credit.value == "global":
        value = team_totals(values, lives, sides)
        final_value = team_totals(trajectory.final_value, trajectory.final_valid, now)
    goes_on = jnp.broadcast_to(~trajectory.ended[:, None], reward.shape)
    next_value = jnp.where(goes_on, value[1:], final_value)
    rows = reward, jnp.full_like(reward, discount), value[:-1], next_value, goes_on, gae_lambda
    if log_ratio is None:
        error = generalised_advantage(*rows)
    else:
        # What others do is no act of the dead, unless the log-probability is that of all; then each group has it.
        ratio = jnp.zeros_like(reward)
        if credit.log_prob == "global":
            ratio = team_totals(log_ratio, trajectory.valid, now) / jnp.maximum(n_valid, 1.0)
        error = vtrace(ratio, *rows)[0] - value[:-1]
    error = jnp.where(goes_on, jnp.concatenate([error[1:], jnp.zeros_like(error[:1])]), 0.0)
    if now is None:
        return jnp.broadcast_to(next_value, (t, g)), jnp.broadcast_to(error, (t, g))
    return jax.vmap(broadcast_groups)(next_value, now.team), jax.vmap(broadcast_groups)(error, now.team)
