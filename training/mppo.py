"""M-PPO: PPO with masked actions and a trajectory per group; rollout and update are one compiled program.

Source: Takács, Magyar, Gulyás, "Scalable Reinforcement Learning in Multi-Agent Environments", 2024. With other settings
of credit and networks it is IPPO (de Witt et al. 2020) or MAPPO (Yu et al. 2022), with or without memory.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from swarm.scenario import Observation
from swarm.simulator import Simulator
from training.config import TrainingConfig
from training.credit import (
    GroupBy,
    Membership,
    People,
    Trajectory,
    advantages,
    n_streams,
    reward_streams,
    separate,
)
from training.distributions import AbstractDistribution, distribution_of
from training.losses import clipped_policy_loss, clipped_value_loss
from training.mixing import OwnWeight
from training.networks import Minds, Network
from training.normalise import ValueScale
from training.policy import TeamPolicy
from training.rollout import Actors, EpisodeSums, Rollout, Stage, collect, start

AXIS = "world"


class Learned(eqx.Module):
    """What is learned, the same on every device.

    Attributes:
        network: parameters.
        optimizer: state of the optimiser.
        scale: of the values; stays 1 unless values are normalised.
        own_weight: of the own reward; None unless it is learned.
        key: of the run; never advanced, draws fold in the number of the update.
        n_updates: updates done.
    """

    network: Minds
    optimizer: PyTree
    scale: ValueScale
    own_weight: OwnWeight | None
    key: Key[Array, ""]
    n_updates: Int[Array, ""]


class Batch(eqx.Module):
    """What the loss needs of each time step; leading axes of a rollout, of a minibatch or of a part of either.

    Attributes:
        observation: what was seen.
        raw: the draw, per entity.
        mind: number of the network that acted, per entity.
        fresh: whether an entity's memory starts from nothing.
        index: group slot per entity.
        old_log_prob: per group, separated as the credit settings say.
        old_value: likewise, per stream.
        advantage: normalised, per stream.
        target: of the value, per stream.
        valid: a member lived.
        acts: a member had a choice; only such steps count for the policy.
    """

    observation: Observation
    raw: Int[Array, "..."] | Float[Array, "..."]
    mind: Int[Array, "*b n"]
    fresh: Bool[Array, "*b n"]
    index: Int[Array, "*b n"]
    old_log_prob: Float[Array, "*b g"]
    old_value: Float[Array, "*b g v"]
    advantage: Float[Array, "*b g v"]
    target: Float[Array, "*b g v"]
    valid: Bool[Array, "*b g"]
    acts: Bool[Array, "*b g"]


class Weights(eqx.Module):
    """What weighs the parts of the loss during an update.

    Attributes:
        clip: of the ratio.
        entropy: of the entropy.
        streams: of the advantages' streams.
        values: scale of the values.
    """

    clip: Float[Array, ""]
    entropy: Float[Array, ""]
    streams: Float[Array, " v"]
    values: ValueScale


class MPPO(eqx.Module):
    """The learner: `init(seed)`, then `update` again and again.

    Attributes:
        simulator: of one world.
        grouping: whose trajectories there are.
        of_team: number of each team's network; -1: an opponent.
        opponents: acts for the teams that do not learn; None where all learn.
        config: settings.
        mesh: devices; worlds are sharded over them, what is learned is on each.
    """

    simulator: Simulator
    grouping: GroupBy
    opponents: TeamPolicy | None
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

    def stage(self, minds: Minds) -> Stage:
        """What acts, and where."""
        return Stage(self.simulator, self.grouping, minds, self.distribution, self.opponents)

    def init(self, seed: int) -> tuple[Learned, Actors]:
        """Return a fresh learner and its worlds, placed on the mesh."""
        learned = self.init_learned(seed)
        worlds = jnp.arange(self.config.worlds)
        actors = eqx.filter_jit(start)(self.stage(learned.network), _stream(learned.key, 1), worlds)
        return self.place(learned, actors)

    def place(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors]:
        """Put what is learned on every device, and a share of the worlds on each."""
        replicated = NamedSharding(self.mesh, PartitionSpec())
        sharded = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return eqx.filter_shard(learned, replicated), eqx.filter_shard(actors, sharded)

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

        first = _stream(key, 0)
        keys = [first, *(jax.random.fold_in(first, i) for i in range(1, max(self.of_team) + 1))]
        minds = Minds(tuple(build(k) for k in keys), self.of_team, self.simulator.rules.capacities)
        optimizer = self.optimizer.init(eqx.filter(minds, eqx.is_inexact_array))
        own_weight = OwnWeight.start(credit.own_weight) if credit.learn_own_weight else None
        return Learned(minds, optimizer, ValueScale.start(n_streams(credit)), own_weight, key, jnp.int32(0))

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
    def update_all(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors, dict[str, Any]]:
        """The same for several seeds at once, along a leading axis of every array.

        Side by side, except on CPU, where one after the other is twice as fast.
        """
        dynamic, static = eqx.partition(learned, eqx.is_array)
        one_by_one = jax.default_backend() == "cpu"
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

    def _update(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors, dict[str, Any]]:
        c, stage = self.config, self.stage(learned.network)
        act_base = jax.random.fold_in(_stream(learned.key, 2), learned.n_updates)
        shuffle_base = jax.random.fold_in(_stream(learned.key, 3), learned.n_updates)
        actors, rollout, state, sums = collect(
            stage, actors, _stream(learned.key, 1), act_base, c.rollout, c.minibatches
        )
        batch, scale, statistics = self._prepare(learned, stage, actors, rollout)
        learned = eqx.tree_at(lambda x: x.scale, learned, scale)
        learned, losses = self._learn(learned, batch, state, actors.index, shuffle_base)
        n_alive = jnp.sum(rollout.mind >= 0, dtype=jnp.float32)
        metrics = losses | statistics | {"agent_steps": _over_devices(n_alive), "episode": _add_up(sums)}
        return eqx.tree_at(lambda x: x.n_updates, learned, learned.n_updates + 1), actors, metrics

    def _prepare(
        self, learned: Learned, stage: Stage, actors: Actors, rollout: Rollout
    ) -> tuple[Batch, ValueScale, dict[str, Array]]:
        """Assign credit: from entities to groups, advantages, and their normalisation over valid entries."""
        c = self.config
        choice = (rollout.mind >= 0) & self.distribution.has_choice(rollout.observation.action_mask)
        per_step = jax.vmap(jax.vmap(_group_quantities))
        reward, log_prob, valid, acts = per_step(
            rollout.membership, rollout.reward * c.reward_scale, rollout.log_prob, choice
        )
        advantage, target, old_value = self._assign(learned, stage, actors, rollout, reward, valid)
        moments = [_mean(x, valid[..., None]) for x in (target, jnp.square(target))]
        scale = learned.scale.update(*moments) if c.normalise_value else learned.scale
        statistics = {
            "explained_variance": 1.0 - _unexplained(target, old_value, valid),
            "value": _mean(old_value, valid[..., None])[0],
            "population": _mean_sum(rollout.mind >= 0),
            "groups": _mean_sum(valid),
        }
        if c.normalise_advantage:
            mean, variance = _mean(advantage, acts[..., None]), _variance(advantage, acts[..., None])
            advantage = (advantage - mean[None, None, None]) / jnp.sqrt(variance[None, None, None] + 1e-8)
        batch = Batch(
            observation=rollout.observation,
            raw=rollout.raw,
            mind=rollout.mind,
            fresh=rollout.fresh,
            index=rollout.membership.index,
            old_log_prob=separate(log_prob, valid, c.credit.log_prob),
            old_value=old_value,
            advantage=advantage,
            target=target,
            valid=valid,
            acts=acts,
        )
        return batch, scale, statistics

    def _assign(
        self, learned: Learned, stage: Stage, actors: Actors, rollout: Rollout, reward: Array, valid: Array
    ) -> tuple[Array, Array, Array]:
        """Return advantages, targets and old values; [t, b, g, v]."""
        c, entities, observation = self.config, actors.world.entities, actors.timestep.observation
        last, mind = jax.vmap(stage.members)(actors.world, observation.alive)
        fresh = actors.memory.uid != entities.uid
        _, last_value, _ = stage.minds.step(observation, mind, last.index, last.n_groups, actors.memory.state, fresh)
        last_valid = jax.vmap(lambda m: m.any(m.index >= 0))(last)
        builder = jnp.full_like(entities.uid, -1) if entities.builder is None else entities.builder
        last_people = People(last.index, entities.uid, entities.team, builder)
        people = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), rollout.people, last_people)
        streams = (
            reward_streams(reward, valid, c.credit),
            learned.scale.restore(rollout.value, valid),
            learned.scale.restore(rollout.final_value, rollout.final_valid),
        )
        rows = valid, rollout.membership.identity, rollout.final_valid, rollout.ended, people

        def of_world(streams: Any, rows: Any, last_value: Array, last_valid: Array, last_identity: Array) -> Any:
            valid, identity, final_valid, ended, people = rows

            def of_stream(stream: tuple[Array, Array, Array], last_value: Array) -> tuple[Array, Array, Array]:
                reward, value, final_value = stream
                trajectory = Trajectory(reward, value, valid, identity, final_value, final_valid, ended)
                return advantages(
                    trajectory,
                    last_value,
                    last_valid,
                    last_identity,
                    c.credit,
                    c.discount,
                    c.gae_lambda,
                    people,
                    self.simulator.rules.n_teams,
                )

            return jax.vmap(of_stream, in_axes=-1, out_axes=-1)(streams, last_value)

        last_value = learned.scale.restore(last_value, last_valid)
        return jax.vmap(of_world, in_axes=(1, 1, 0, 0, 0), out_axes=1)(
            streams, rows, last_value, last_valid, last.identity
        )

    def _learn(
        self,
        learned: Learned,
        batch: Batch,
        state: Float[Array, "p b n m"],
        index: Int[Array, " b"],
        key: Key[Array, ""],
    ) -> tuple[Learned, dict[str, Array]]:
        """Run the epochs over minibatches, each of the same number of steps from every world.

        Each world shuffles its own steps (with a memory: parts of successive steps), so minibatches do not depend on
        how the worlds are sharded.
        """
        c = self.config
        size, params = c.rollout // c.minibatches, eqx.filter(learned.network, eqx.is_inexact_array)
        order = self._order(index, key)
        batch = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), batch)
        state = jnp.moveaxis(state, 0, 1)

        def minibatch(chosen: Int[Array, "b s"]) -> tuple[Batch, Array]:
            rows = jax.vmap(lambda rows, which: jax.tree.map(lambda x: x[which], rows))(batch, chosen)
            first = jax.vmap(lambda parts, which: parts[which[0] // size])(state, chosen)
            return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), rows), first

        weights = self._weights(learned)
        if learned.own_weight is not None:
            own_weight = learned.own_weight.climb(self._policy_gradient(learned.network, minibatch, order, weights))
            learned = eqx.tree_at(lambda x: x.own_weight, learned, own_weight)
        static = eqx.filter(learned.network, eqx.is_inexact_array, inverse=True)

        def step(params: PyTree, optimizer: PyTree, chosen: Array) -> tuple[PyTree, PyTree, dict[str, Array]]:
            rows, first = minibatch(chosen)
            gradient, metrics = jax.grad(self._loss, has_aux=True)(params, static, rows, first, weights)
            gradient, metrics = jax.tree.map(_over_devices, (gradient, metrics))
            change, optimizer = self.optimizer.update(gradient, optimizer, params)
            metrics["grad_norm"] = optax.tree.norm(gradient)
            return optax.apply_updates(params, change), optimizer, metrics | {"steps_taken": jnp.float32(1)}

        def unless_moved(carry: tuple[PyTree, PyTree, Array], chosen: Array) -> tuple[Any, dict[str, Array]]:
            params, optimizer, moved = carry
            if not c.max_kl:
                params, optimizer, metrics = step(params, optimizer, chosen)
                return (params, optimizer, moved), metrics
            nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(step, params, optimizer, chosen)[2])
            params, optimizer, metrics = jax.lax.cond(
                moved, lambda *_: (params, optimizer, nothing), step, params, optimizer, chosen
            )
            return (params, optimizer, moved | (metrics["kl"] > c.max_kl)), metrics

        carry = params, learned.optimizer, jnp.zeros((), bool)
        (params, optimizer, _), metrics = jax.lax.scan(unless_moved, carry, order)
        n_taken = jnp.sum(metrics.pop("steps_taken"))
        metrics = {name: jnp.sum(x) / n_taken for name, x in metrics.items()}
        if c.max_kl:
            metrics["minibatches"] = n_taken
        if learned.own_weight is not None:
            metrics["own_weight"] = learned.own_weight.weight
        network = eqx.combine(params, static)
        return eqx.tree_at(lambda x: (x.network, x.optimizer), learned, (network, optimizer)), metrics

    def _order(self, index: Int[Array, " b"], key: Key[Array, ""]) -> Int[Array, "m b s"]:
        """Which steps of each world make up each minibatch of all epochs."""
        c = self.config
        size = c.rollout // c.minibatches

        def shuffled(epoch: Array) -> Int[Array, "m b s"]:
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, epoch), i))(index)
            if c.network.memory:
                parts = jax.vmap(lambda k: jax.random.permutation(k, c.minibatches))(keys)
                order = parts[:, :, None] * size + jnp.arange(size)[None, None]
            else:
                order = jax.vmap(lambda k: jax.random.permutation(k, c.rollout))(keys)
            return jnp.moveaxis(order.reshape(-1, c.minibatches, size), 1, 0)

        return jax.vmap(shuffled)(jnp.arange(c.epochs)).reshape(c.epochs * c.minibatches, -1, size)

    def _weights(self, learned: Learned) -> Weights:
        """What weighs in this update, by the schedules."""
        c = self.config
        left = jnp.maximum(1.0 - learned.n_updates / c.n_updates, 0.0)
        clip, entropy = (
            value * left if name in c.anneal else jnp.float32(value)
            for name, value in (("clip", c.clip), ("entropy_weight", c.entropy_weight))
        )
        return Weights(clip, entropy, _mixture(learned.own_weight), learned.scale)

    def _policy_gradient(self, network: Minds, minibatch: Any, order: Array, weights: Weights) -> Any:
        """The gradient by one stream of advantages on one of the first two minibatches."""
        params, static = eqx.partition(network, eqx.is_inexact_array)

        def gradient_by(stream: int, part: int) -> PyTree:
            one = eqx.tree_at(lambda w: w.streams, weights, jax.nn.one_hot(stream, 2))

            def loss(params: PyTree) -> Array:
                rows, first = minibatch(order[part])
                return self._loss(params, static, rows, first, one)[1]["policy_loss"]

            return jax.tree.map(_over_devices, jax.grad(loss)(params))

        return gradient_by

    def _loss(
        self, params: PyTree, static: PyTree, batch: Batch, state: Float[Array, "b n m"], weights: Weights
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """This device's part of the loss: sums over its entries, divided by the number on all devices."""
        c = self.config
        log_prob, entropy, value = self._evaluate(eqx.combine(params, static), batch, state, weights)
        advantage = jnp.sum(batch.advantage * weights.streams[None, None, None], axis=-1)
        policy = clipped_policy_loss(log_prob, batch.old_log_prob, advantage, weights.clip)
        scale = weights.values.scale[None, None, None]
        values = clipped_value_loss(value / scale, batch.old_value / scale, batch.target / scale, c.value_clip)
        n_acts, n_valid = _count(batch.acts), _count(batch.valid)

        def mean(x: Array, mask: Array, n: Array) -> Array:
            return jnp.sum(jnp.where(mask, x, 0.0)) / n

        ratio = log_prob - batch.old_log_prob
        clipped = (jnp.abs(jnp.expm1(ratio)) > weights.clip).astype(jnp.float32)
        metrics = {
            "policy_loss": mean(policy, batch.acts, n_acts),
            "value_loss": mean(jnp.sum(values, axis=-1), batch.valid, n_valid),
            "entropy": mean(entropy, batch.acts, n_acts),
            "kl": mean(jnp.expm1(ratio) - ratio, batch.acts, n_acts),
            "clip_fraction": mean(clipped, batch.acts, n_acts),
        }
        loss = metrics["policy_loss"] + c.value_weight * metrics["value_loss"] - weights.entropy * metrics["entropy"]
        return loss, metrics | {"loss": loss}

    def _evaluate(
        self, network: Minds, batch: Batch, state: Float[Array, "b n m"], weights: Weights
    ) -> tuple[Array, Array, Array]:
        """Return log-probability and entropy [s, b, g] and value [s, b, g, v], separated as the settings say."""
        credit, n_groups = self.config.credit, batch.valid.shape[-1]
        parameters, value = network.unroll(batch.observation, batch.mind, batch.index, n_groups, state, batch.fresh)
        mask = batch.observation.action_mask
        log_prob, entropy = self.distribution.log_prob_and_entropy(parameters, mask, batch.raw)

        def total(index: Array, values: Array) -> Array:
            return Membership(index, jnp.zeros(n_groups, jnp.int32)).total(values)

        log_prob, entropy = (jax.vmap(jax.vmap(total))(batch.index, x) for x in (log_prob, entropy))
        value = weights.values.restore(value, batch.valid)
        return (
            separate(log_prob, batch.valid, credit.log_prob),
            separate(entropy, batch.valid, credit.entropy),
            jax.vmap(lambda v: separate(v, batch.valid, credit.value), in_axes=-1, out_axes=-1)(value),
        )


def _mixture(own_weight: OwnWeight | None) -> Float[Array, " v"]:
    """Weight of each stream of advantages."""
    return jnp.ones(1) if own_weight is None else jnp.stack([own_weight.weight, 1.0 - own_weight.weight])


def _group_quantities(
    membership: Membership, reward: Array, log_prob: Array, choice: Array
) -> tuple[Array, Array, Array, Array]:
    """Sums per group of reward and log-probability; whether a member lives, and whether one has a choice."""
    member = membership.index >= 0
    return membership.total(reward), membership.total(log_prob), membership.any(member), membership.any(choice)


def _stream(key: Key[Array, ""], number: int) -> Key[Array, ""]:
    """One of the run's random streams: 0 parameters, 1 episodes, 2 actions, 3 shuffling."""
    return jax.random.fold_in(key, number)


def _over_devices(x: Array) -> Array:
    return jax.lax.psum(x, AXIS)


def _count(mask: Array) -> Float[Array, ""]:
    return jnp.maximum(_over_devices(jnp.sum(mask, dtype=jnp.float32)), 1.0)


def _mean(x: Float[Array, "t b g v"], mask: Bool[Array, "t b g 1"]) -> Float[Array, " v"]:
    return _over_devices(jnp.sum(jnp.where(mask, x, 0.0), axis=(0, 1, 2))) / _count(mask)


def _variance(x: Float[Array, "t b g v"], mask: Bool[Array, "t b g 1"]) -> Float[Array, " v"]:
    return _mean(jnp.square(x - _mean(x, mask)[None, None, None]), mask)


def _unexplained(target: Array, value: Array, valid: Array) -> Float[Array, ""]:
    """Share of the targets' variance that the values leave; mean over the streams."""
    mask = valid[..., None]
    return jnp.mean(_variance(target - value, mask) / jnp.maximum(_variance(target, mask), 1e-8))


def _mean_sum(mask: Bool[Array, "t b m"]) -> Float[Array, ""]:
    """Mean over steps and worlds of how many are marked."""
    marked = _over_devices(jnp.sum(mask, dtype=jnp.float32))
    return marked / _over_devices(jnp.float32(mask.shape[0] * mask.shape[1]))


def _add_up(sums: EpisodeSums) -> EpisodeSums:
    count, metrics = jax.tree.map(_over_devices, (sums.count, sums.metrics))
    return EpisodeSums(count, metrics, jax.lax.pmax(sums.status, AXIS))
