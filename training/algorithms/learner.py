"""What all learners share: parameters and worlds on devices, one compiled update, credit for experience."""

import abc
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.simulator import Simulator
from swarm.simulation.types import Observation
from training.acting.policy import TeamPolicy
from training.acting.rollout import Actors, EpisodeSums, Experience, Stage, collect, start
from training.algorithms.reductions import AXIS, count, mean_and_variance, mean_over, over_devices, part_of_mean
from training.config import TrainingConfig
from training.credit.mixing import OwnWeight
from training.credit.sides import Sides, separate
from training.credit.trajectories import (
    GroupBy,
    Membership,
    People,
    Trajectory,
    advantages,
    n_streams,
    own_weights,
    reward_streams,
)
from training.networks import Minds, Network
from training.networks.distributions import AbstractDistribution, Raw, distribution_of
from training.networks.normalise import ValueScale


class Learned(eqx.Module):
    """What is learned, the same on every device.

    Attributes:
        network: parameters.
        optimizer: state of the optimiser.
        scale: of the values; stays 1 unless values are normalised.
        own_weight: of the own reward; None unless it is learned.
        behind: parameters before the last updates, oldest first, along a leading axis; None unless actors lag.
        scales_behind: their scales of the values, likewise.
        key: of the run; never advanced, draws fold in the number of the update.
        n_updates: updates done.
    """

    network: Minds
    optimizer: PyTree
    scale: ValueScale
    own_weight: OwnWeight | None
    behind: PyTree
    scales_behind: ValueScale | None
    key: Key[Array, ""]
    n_updates: Int[Array, ""]


class Groups(eqx.Module):
    """Experience by group slot, before credit is assigned.

    Attributes:
        reward: sum over the members, scaled.
        log_prob: of all that the members did, when they did it.
        valid: a member lived.
        acts: a member had a choice; only such steps count for the policy.
        sides: whose team each group is; None where only one learns.
    """

    reward: Float[Array, "*t g"]
    log_prob: Float[Array, "*t g"]
    valid: Bool[Array, "*t g"]
    acts: Bool[Array, "*t g"]
    sides: Sides | None


class Rows(eqx.Module):
    """What networks must see of steps to say anew what to do and to expect; leading axes of any part of a rollout.

    Attributes:
        observation: what was seen.
        raw: the draw, per entity.
        mind: number of the network that acted, per entity.
        fresh: whether an entity's memory starts from nothing.
        index: group slot per entity.
        valid: a member of the group lived.
        sides: whose team each group is; None where only one learns.
        taught: what the teacher would have done, per entity; None without one.
    """

    observation: Observation
    raw: Int[Array, "..."] | Float[Array, "..."]
    mind: Int[Array, "*b n"]
    fresh: Bool[Array, "*b n"]
    index: Int[Array, "*b n"]
    valid: Bool[Array, "*b g"]
    sides: Sides | None
    taught: Raw | None

    @classmethod
    def of(cls, experience: Experience, groups: Groups) -> "Rows":
        """All steps of a rollout."""
        r, g = experience.rollout, groups
        return cls(r.observation, r.raw, r.mind, r.fresh, r.membership.index, g.valid, g.sides, r.taught)


class AbstractLearner(eqx.Module):
    """The learner: `init(seed)`, then `update` again and again.

    Attributes:
        simulator: of one world.
        grouping: whose trajectories there are.
        of_team: number of each team's network; -1: an opponent.
        opponents: acts for the teams that do not learn; None where all learn.
        teacher: what it would do is learned at first (`training.config.TeacherTable`); None: nobody teaches.
        config: settings.
        mesh: devices; worlds are sharded over them, what is learned is on each.
    """

    simulator: Simulator
    grouping: GroupBy
    opponents: TeamPolicy | None
    teacher: AbstractPolicy | None
    of_team: tuple[int, ...] = eqx.field(static=True)
    config: TrainingConfig = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with clipped gradients and, if set, a falling learning rate."""
        c = self.config
        n_steps = c.n_updates * c.epochs * c.minibatches
        rate = optax.linear_schedule(c.learning_rate, 0.0, n_steps) if "learning_rate" in c.anneal else c.learning_rate
        return optax.chain(optax.clip_by_global_norm(c.max_grad_norm), optax.adam(rate, eps=1e-5))

    @property
    def distribution(self) -> AbstractDistribution:
        """Of the actions."""
        return distribution_of(self.simulator.rules)

    @property
    def platform(self) -> str:
        """Of the devices: `cpu`, or another."""
        return self.mesh.devices.flat[0].platform

    def stage(self, minds: Minds, scale: ValueScale | None = None, teaching: Bool[Array, ""] | None = None) -> Stage:
        """What acts, and where; values are in units of reward, and the teacher teaches, unless told otherwise."""
        scale = ValueScale.start(n_streams(self.config.credit)) if scale is None else scale
        teaching = jnp.ones((), bool) if teaching is None else teaching
        parts = self.simulator, self.grouping, minds, scale, self.distribution, self.opponents, self.teacher, teaching
        return Stage(*parts, self.platform)

    def init(self, seed: int) -> tuple[Learned, Actors]:
        """Return a fresh learner and its worlds, placed on the mesh."""
        learned = self.init_learned(seed)
        return self.place(learned, self.start(learned))

    @eqx.filter_jit
    def start(self, learned: Learned) -> Actors:
        """Start all worlds, each where it will be stepped."""

        def program(worlds: Int[Array, " b"]) -> Actors:
            return start(self.stage(learned.network), run_key(learned.key, 1), worlds)

        split = PartitionSpec(AXIS)
        sharded = jax.shard_map(program, mesh=self.mesh, in_specs=split, out_specs=split, check_vma=False)
        return sharded(jnp.arange(self.config.worlds))

    def close(self) -> None:
        """There is nothing to stop."""

    @eqx.filter_jit
    def place(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors]:
        """Put what is learned on every device, and a share of the worlds on each."""
        replicated = NamedSharding(self.mesh, PartitionSpec())
        sharded = NamedSharding(self.mesh, PartitionSpec(AXIS))
        # An update leaves empty arrays whole on every device; another sharding would compile it anew.
        empty, full = eqx.partition(actors, lambda x: eqx.is_array(x) and not x.size)
        actors = eqx.combine(eqx.filter_shard(empty, replicated), eqx.filter_shard(full, sharded))
        return eqx.filter_shard(learned, replicated), actors

    @eqx.filter_jit
    def init_learned(self, seed: int | Int[Array, ""]) -> Learned:
        """Return fresh parameters and optimiser."""
        key, credit = jax.random.key(seed), self.config.credit
        _, timestep = self.simulator.reset(key)

        def build(key: Key[Array, ""]) -> Network:
            return Network.build(
                self.config.network,
                self.simulator.rules,
                timestep.observation,
                n_parameters=self.distribution.n_parameters,
                n_values=n_streams(credit),
                key=key,
            )

        first = run_key(key, 0)
        keys = [first, *(jax.random.fold_in(first, i) for i in range(1, max(self.of_team) + 1))]
        minds = Minds(tuple(build(k) for k in keys), self.of_team, self.simulator.rules.capacities)
        optimizer = self.optimizer.init(eqx.filter(minds, eqx.is_inexact_array))
        own_weight = OwnWeight.start(credit.own_weight) if credit.learn_own_weight else None
        scale = ValueScale.start(n_streams(credit))
        behind = self.behind(eqx.filter(minds, eqx.is_inexact_array)), self.behind(scale)
        return Learned(minds, optimizer, scale, own_weight, *behind, key, jnp.int32(0))

    @eqx.filter_jit
    def update(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors, dict[str, Any]]:
        """Collect a rollout and learn from it.

        Returns:
            The new learner and worlds, and metrics: losses and statistics of the update, and under `episode` sums
            over the episodes that ended (`count`, `metrics`, `status`).
        """
        dynamic, static = eqx.partition(learned, eqx.is_array)
        shared, split = PartitionSpec(), PartitionSpec(AXIS)

        def program(dynamic: PyTree, actors: Actors) -> tuple[PyTree, Actors, dict[str, Any]]:
            learned, actors, metrics = self._update(eqx.combine(dynamic, static), actors)
            return eqx.filter(learned, eqx.is_array), actors, metrics

        sharded = jax.shard_map(
            program, mesh=self.mesh, in_specs=(shared, split), out_specs=(shared, split, shared), check_vma=False
        )
        dynamic, actors, metrics = sharded(dynamic, actors)
        return eqx.combine(dynamic, static), actors, metrics

    @eqx.filter_jit
    def learn_from(self, learned: Learned, experience: Experience) -> tuple[Learned, dict[str, Array]]:
        """Learn from experience that was collected elsewhere; its worlds are sharded like those of `update`."""
        dynamic, static = eqx.partition(learned, eqx.is_array)
        shared, first, second = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)
        e = experience
        parts, specs = (e.rollout, e.state, e.last, e.index, e.sums), (second, second, first, first, shared)

        def program(dynamic: PyTree, *parts: PyTree) -> tuple[PyTree, dict[str, Array]]:
            learned, metrics = self._counted(eqx.combine(dynamic, static), Experience(*parts))
            return eqx.filter(learned, eqx.is_array), metrics

        sharded = jax.shard_map(
            program, mesh=self.mesh, in_specs=(shared, *specs), out_specs=(shared, shared), check_vma=False
        )
        dynamic, metrics = sharded(dynamic, *parts)
        return eqx.combine(dynamic, static), metrics

    @eqx.filter_jit
    def update_all(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors, dict[str, Any]]:
        """The same for several seeds at once, along a leading axis of every array.

        Side by side, except on CPU, where one after the other is twice as fast.
        """
        dynamic, static = eqx.partition(learned, eqx.is_array)
        one_by_one = self.platform == "cpu"
        shared, split = PartitionSpec(), PartitionSpec(None, AXIS)

        def program(dynamic: PyTree, actors: Actors) -> tuple[PyTree, Actors, dict[str, Any]]:
            def one(seed: tuple[PyTree, Actors]) -> tuple[PyTree, Actors, dict[str, Any]]:
                learned, actors, metrics = self._update(eqx.combine(seed[0], static), seed[1])
                return eqx.filter(learned, eqx.is_array), actors, metrics

            pair = dynamic, actors
            return jax.lax.map(one, pair) if one_by_one else jax.vmap(one)(pair)

        sharded = jax.shard_map(
            program, mesh=self.mesh, in_specs=(shared, split), out_specs=(shared, split, shared), check_vma=False
        )
        dynamic, actors, metrics = sharded(dynamic, actors)
        return eqx.combine(dynamic, static), actors, metrics

    # Everything below runs on each device with its share of the worlds; sums over devices are explicit.

    @property
    def n_parts(self) -> int:
        """Parts that a rollout is learned from in each pass; the memory is kept before each."""
        return 1

    def behind(self, arrays: PyTree) -> PyTree:
        """What is kept of arrays that were."""
        return None

    @abc.abstractmethod
    def learn(self, learned: Learned, experience: Experience) -> tuple[Learned, dict[str, Array]]:
        """Learn from experience; returns losses and statistics, too. The number of updates is counted elsewhere."""

    def acting(self, learned: Learned) -> tuple[Minds, ValueScale]:
        """The networks that collect experience, and the scale of their values."""
        return learned.network, learned.scale

    def collect(self, learned: Learned, actors: Actors) -> tuple[Actors, Experience]:
        """Step the worlds for a rollout."""
        act_base = jax.random.fold_in(run_key(learned.key, 2), learned.n_updates)
        stage = self.stage(*self.acting(learned), self.teacher_weight(learned) > 0)
        reset_base = run_key(learned.key, 1)
        return collect(stage, actors, reset_base, act_base, self.config.rollout, self.n_parts)

    def _update(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors, dict[str, Any]]:
        actors, experience = self.collect(learned, actors)
        learned, metrics = self._counted(learned, experience)
        return learned, actors, metrics | {"episode": _add_up(experience.sums)}

    def _counted(self, learned: Learned, experience: Experience) -> tuple[Learned, dict[str, Array]]:
        """Learn, and count the update and the steps of entities."""
        learned, metrics = self.learn(learned, experience)
        n_alive = jnp.sum(experience.rollout.mind >= 0, dtype=jnp.int32).astype(jnp.float32)
        learned = eqx.tree_at(lambda x: x.n_updates, learned, learned.n_updates + 1)
        leaves = jax.tree.leaves(eqx.filter(learned.network, eqx.is_inexact_array))
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])
        return learned, metrics | {"agent_steps": over_devices(n_alive), "parameters_finite": jnp.all(finite)}

    def groups(self, experience: Experience) -> Groups:
        """From entities to groups."""
        rollout = experience.rollout
        choice = (rollout.mind >= 0) & self.distribution.has_choice(rollout.observation.action_mask)
        per_step = jax.vmap(jax.vmap(_group_quantities))
        reward = rollout.reward * self.config.reward_scale
        quantities = per_step(rollout.membership, reward, rollout.log_prob, choice)
        return Groups(*quantities, self.sides(rollout.people, rollout.membership.n_groups))

    def sides(self, people: People, n_groups: int) -> Sides | None:
        """Whose team each group is; None where only one learns."""
        if len([network for network in self.of_team if network >= 0]) == 1:
            return None
        return Sides.of(people.team, people.index, n_groups, self.simulator.rules.n_teams)

    def last_value(self, network: Minds, experience: Experience) -> Float[Array, "b g v"]:
        """What a network expects after the last step."""
        last = experience.last
        members = last.membership
        return network.step(last.observation, last.mind, members.index, members.n_groups, last.state, last.fresh)[1]

    def assign(
        self,
        scale: ValueScale,
        experience: Experience,
        groups: Groups,
        value: Float[Array, "t b g v"],
        last_value: Float[Array, "b g v"],
        log_ratio: Float[Array, "t b g"] | None = None,
    ) -> tuple[Array, Array, Array]:
        """Return advantages, targets and values, separated as the settings say; [t, b, g, v].

        Args:
            scale: of the values.
            experience: the rollout.
            groups: its quantities.
            value: before each step, in units of reward.
            last_value: after the last, as the critic says it.
            log_ratio: of the policy that learns to the one that acted, to correct for the difference; None: the same.
        """
        c, rollout, last = self.config, experience.rollout, experience.last
        valid = groups.valid
        last_valid = jax.vmap(lambda m: m.any(m.index >= 0))(last.membership)
        people = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), rollout.people, last.people)
        streams = (reward_streams(groups.reward, valid, c.credit, groups.sides), value, rollout.final_value)
        sides = self.sides(people, rollout.membership.n_groups)
        rows = valid, rollout.membership.identity, rollout.final_valid, rollout.ended, people, log_ratio, sides
        own_weight = jnp.asarray(own_weights(c.credit))

        def of_world(streams: Any, rows: Any, last_value: Array, last_valid: Array, last_identity: Array) -> Any:
            valid, identity, final_valid, ended, people, log_ratio, sides = rows

            def of_stream(stream: tuple[Array, Array, Array], last_value: Array, own_weight: Array) -> Any:
                reward, value, final_value = stream
                return advantages(
                    Trajectory(reward, value, valid, identity, final_value, final_valid, ended),
                    last_value,
                    last_valid,
                    last_identity,
                    c.credit,
                    c.discount,
                    c.gae_lambda,
                    people,
                    self.simulator.rules.n_teams,
                    log_ratio,
                    sides,
                    own_weight,
                )

            return jax.vmap(of_stream, in_axes=-1, out_axes=-1)(streams, last_value, own_weight)

        return jax.vmap(of_world, in_axes=(1, 1, 0, 0, 0), out_axes=1)(
            streams, rows, scale.restore(last_value, last_valid), last_valid, last.membership.identity
        )

    def evaluate(
        self, network: Minds, rows: Rows, state: Float[Array, "b n m"], scale: ValueScale
    ) -> tuple[Array, Array, Array, Array]:
        """Say anew what to do and to expect.

        Returns:
            Log-probability and entropy [s, b, g], separated as the settings say, values [s, b, g, v], and this device's
            part of the mean surprise at what the teacher would have done.
        """
        credit, valid, n_groups = self.config.credit, rows.valid, rows.valid.shape[-1]
        parameters, value = network.unroll(rows.observation, rows.mind, rows.index, n_groups, state, rows.fresh)
        log_prob, entropy = self.distribution.log_prob_and_entropy(parameters, rows.observation.action_mask, rows.raw)

        def total(index: Array, values: Array) -> Array:
            return Membership(index, jnp.zeros(n_groups, jnp.int32)).total(values)

        log_prob, entropy = (jax.vmap(jax.vmap(total))(rows.index, x) for x in (log_prob, entropy))
        return (
            separate(log_prob, valid, credit.log_prob, rows.sides),
            separate(entropy, valid, credit.entropy, rows.sides),
            scale.restore(value, valid),
            self._imitation(parameters, rows),
        )

    def _imitation(self, parameters: Array, rows: Rows) -> Float[Array, ""]:
        if rows.taught is None:
            return jnp.zeros(())
        mask = rows.observation.action_mask
        learns = (rows.mind >= 0) & self.distribution.has_choice(mask)
        return part_of_mean(self.distribution.surprise(parameters, mask, rows.taught), learns, count(learns))

    def separate_values(
        self, value: Float[Array, "*b g v"], valid: Bool[Array, "*b g"], sides: Sides | None
    ) -> Float[Array, "*b g v"]:
        """Each group's own values, or the sum over all of its team, as the settings say."""
        return jax.vmap(lambda v: separate(v, valid, self.config.credit.value, sides), in_axes=-1, out_axes=-1)(value)

    def weight(self, learned: Learned, name: Literal["clip", "entropy_weight"]) -> Float[Array, ""]:
        """A setting, by its schedule."""
        value = getattr(self.config, name)
        if name not in self.config.anneal:
            return jnp.float32(value)
        return value * jnp.maximum(1.0 - learned.n_updates / self.config.n_updates, 0.0)

    def teacher_weight(self, learned: Learned) -> Float[Array, ""]:
        """Of the surprise at what the teacher does in the loss: it falls linearly to 0."""
        table = self.config.teacher
        n_updates = max(1.0, table.until * self.config.n_updates)
        return table.weight * jnp.maximum(1.0 - learned.n_updates / n_updates, 0.0)

    def normalised(
        self,
        advantage: Float[Array, "t b g v"],
        acts: Bool[Array, "t b g"],
        weight: Float[Array, "t b g"] | None = None,
    ) -> Float[Array, "t b g v"]:
        """To mean 0 and variance 1 over what acts, if the settings say so.

        Advantages that hold an importance weight lose the mean in its proportion: a whole mean would push down, without
        end, what the policy no longer does.
        """
        if not self.config.normalise_advantage:
            return advantage
        mask, weights = acts[..., None], jnp.ones_like(advantage) if weight is None else weight[..., None]
        # All weights vanish once a policy has left what acted far behind.
        mean = mean_over(advantage, mask) / jnp.maximum(mean_over(weights, mask), 1e-8)
        centred = advantage - weights * mean[None, None, None]
        return centred / jnp.sqrt(mean_over(jnp.square(centred), mask)[None, None, None] + 1e-8)

    def rescaled(self, scale: ValueScale, target: Float[Array, "t b g v"], valid: Bool[Array, "t b g"]) -> ValueScale:
        """The scale of the values after these targets; the same if the settings do not normalise."""
        if not self.config.normalise_value:
            return scale
        return scale.update(*mean_and_variance(target, valid[..., None]))

    def statistics(self, experience: Experience, groups: Groups, target: Array, value: Array) -> dict[str, Array]:
        """How well values fit, and how many there are."""
        valid = groups.valid
        return {
            "explained_variance": 1.0 - _unexplained(target, value, valid),
            "value": mean_over(value, valid[..., None])[0],
            "population": _mean_sum(experience.rollout.mind >= 0),
            "groups": _mean_sum(valid),
        }


def _group_quantities(
    membership: Membership, reward: Array, log_prob: Array, choice: Array
) -> tuple[Array, Array, Array, Array]:
    """Sums per group of reward and log-probability; whether a member lives, and whether one has a choice."""
    member = membership.index >= 0
    return membership.total(reward), membership.total(log_prob), membership.any(member), membership.any(choice)


def run_key(key: Key[Array, ""], number: int) -> Key[Array, ""]:
    """One of the run's random streams: 0 parameters, 1 episodes, 2 actions, 3 shuffling."""
    return jax.random.fold_in(key, number)


def rollout_key(key: Key[Array, ""], draw: Int[Array, " 3"]) -> Key[Array, ""]:
    """Key of the actions of one rollout among all of a run that is collected outside the compiled update."""
    base = run_key(key, 2)
    for part in range(3):
        base = jax.random.fold_in(base, draw[part])
    return base


def put(tree: PyTree, where: Any) -> PyTree:
    """Move arrays to a device, or spread them; unlike constraints of sharding this works from other devices, too."""
    return jax.tree.map(lambda x: jax.device_put(x, where) if eqx.is_array(x) else x, tree)


def _unexplained(target: Array, value: Array, valid: Array) -> Float[Array, ""]:
    """Share of the targets' variance that the values leave; mean over the streams."""
    mask = valid[..., None]
    left, all_of_it = (mean_and_variance(x, mask)[1] for x in (target - value, target))
    return jnp.mean(left / jnp.maximum(all_of_it, 1e-8))


def _mean_sum(mask: Bool[Array, "t b m"]) -> Float[Array, ""]:
    """Mean over steps and worlds of how many are marked."""
    marked = over_devices(jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32))
    return marked / over_devices(jnp.float32(mask.shape[0] * mask.shape[1]))


def _add_up(sums: EpisodeSums) -> EpisodeSums:
    count, metrics, defined = jax.tree.map(over_devices, (sums.count, sums.metrics, sums.defined))
    return EpisodeSums(count, metrics, defined, jax.lax.pmax(sums.status, AXIS))
