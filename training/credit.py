"""Whose trajectory is it: from quantities per entity to quantities per group, by the settings of the credit table.

A trajectory belongs to a group slot. It is valid at the steps that a member was alive to act in, and it ends where the
slot's group does: with its last member, with a change of its identity, or with the world's episode.
"""

from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.errors import ConfigError, nearest
from swarm.grouping import RULES, AbstractGrouping, Nodes
from swarm.hierarchy import broadcast_groups, reduce_groups
from swarm.scenario import World
from training.config import CreditTable
from training.losses import generalised_advantage, vtrace

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
    """

    level: int | None = eqx.field(static=True)
    rule: AbstractGrouping | None

    def __call__(self, world: World) -> Membership:
        """Return who belongs where, now."""
        alive = world.entities.alive
        if self.rule is not None:
            index, groups = self.rule(Nodes.of(world.entities), world.entities)
            return Membership(jnp.where(alive, index, -1), groups.identity)
        if not self.level:
            return Membership(jnp.where(alive, world.hierarchy.ancestor(0), -1), world.entities.uid)
        identity = world.hierarchy.identity[self.level - 1]
        return Membership(jnp.where(alive, world.hierarchy.ancestor(self.level), -1), identity)


def group_by(text: str, levels: tuple[str, ...], parse, *, where: str) -> GroupBy:
    """Read the setting `grouping`: a level's name, or a grouping rule.

    Args:
        text: the setting.
        levels: names of the hierarchy's levels; they come before the rules of the same name.
        parse: `parse(text) -> AbstractGrouping` in the terms of the scenario.
        where: file and key, for the message.

    Raises:
        ConfigError: it is neither, or a rule that needs to remember its groups.
    """
    if text in levels:
        return GroupBy(levels.index(text), None)
    if text.partition(":")[0] not in {rule.partition(":")[0] for rule in RULES}:
        hint = nearest(text, (*levels, *RULES))
        raise ConfigError(f"{where} = {text!r}: neither a level nor a grouping rule{hint}")
    grouping = parse(text)
    if grouping.has_memory:
        raise ConfigError(
            f"{where} = {text!r}: this rule remembers its groups, which only a level does; "
            f"make it a level of [groups] and give that level's name"
        )
    return GroupBy(None, grouping)


def separate(
    values: Float[Array, "*b g"], valid: Bool[Array, "*b g"], scope: Literal["group", "global"]
) -> Float[Array, "*b g"]:
    """Keep each group's own value, or give every valid group the sum over all of them."""
    if scope == "group":
        return values
    total = jnp.sum(jnp.where(valid, values, 0.0), axis=-1, keepdims=True)
    return jnp.where(valid, total, 0.0)


def mix_reward(reward: Float[Array, "*b g"], valid: Bool[Array, "*b g"], credit: CreditTable) -> Float[Array, "*b g"]:
    """`own_weight` times the own reward and the rest of the reward of all groups together."""
    own_weight = credit.own_weight if credit.reward == "group" else 0.0
    return own_weight * reward + (1.0 - own_weight) * separate(reward, valid, "global")


def n_streams(credit: CreditTable) -> int:
    """Streams of reward that are valued one by one: the mixed reward; or own and shared, to learn how to mix them."""
    return 2 if credit.learn_own_weight else 1


def reward_streams(
    reward: Float[Array, "*b g"], valid: Bool[Array, "*b g"], credit: CreditTable
) -> Float[Array, "*b g v"]:
    """Reward of each stream."""
    if credit.learn_own_weight:
        return jnp.stack([reward, separate(reward, valid, "global")], axis=-1)
    return mix_reward(reward, valid, credit)[..., None]


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

        def greatest(values: Array, index: Array) -> Array:
            # Of an empty group -1: reductions give 0 there.
            return jax.vmap(lambda v, i: reduce_groups(v + 1, i, g, "max") - 1)(values, index)

        now, later = (jax.tree.map(lambda x, s=s: x[s], people) for s in (slice(None, -1), slice(1, None)))
        born = (later.uid != now.uid) & (later.index >= 0) & (later.builder >= 0) & ~ended[:, None]
        of_builder = jnp.take_along_axis(now.index, jnp.maximum(later.builder, 0), axis=1)
        parent = greatest(jnp.where(born, of_builder, -1), later.index)
        begins = valid[1:] & ~same & ~ended[:, None]
        team = greatest(people.team, people.index)
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
    """
    valid, reward = trajectory.valid, trajectory.reward
    value = separate(trajectory.value, valid, credit.value)
    final_value = separate(trajectory.final_value, trajectory.final_valid, credit.value)
    last_value = separate(last_value, last_valid, credit.value)
    next_valid = jnp.concatenate([valid[1:], last_valid[None]])
    next_identity = jnp.concatenate([trajectory.identity[1:], last_identity[None]])
    same = valid & next_valid & (next_identity == trajectory.identity)
    if credit.done == "global":
        same = jnp.ones_like(same)
    continues = same & ~trajectory.ended[:, None]
    following = jnp.concatenate([value[1:], last_value[None]])
    # Where a group died or its slot passed on, nothing follows; where it was truncated, its last value does.
    cut = trajectory.ended[:, None] | (trajectory.final_valid & ~continues)
    next_value = jnp.where(cut, final_value, jnp.where(continues, following, 0.0))
    gamma = jnp.full_like(reward, discount)
    take, links = None, None
    if people is not None and (credit.spawn or credit.posthumous):
        take = partial(inherit, credit=credit, n_teams=n_teams)
        lives = jnp.concatenate([valid, last_valid[None]])
        links = Links.between(people, same & ~trajectory.ended[:, None], lives, trajectory.ended)
        next_value = next_value + jax.vmap(take)(links, following)
    rows = reward, gamma, value, next_value, continues, gae_lambda
    if log_ratio is None:
        advantage = generalised_advantage(*rows, take, links)
        target = advantage + value
    else:
        target, advantage = vtrace(log_ratio, *rows, inherit=take, links_t=links)
    if credit.advantage == "global":
        n_valid = jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1)
        advantage = separate(advantage, valid, "global") / n_valid
    return advantage, target, value
