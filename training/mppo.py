"""M-PPO: PPO with masked actions and a trajectory per group; rollout and update are one compiled program.

Source: Takács, Magyar, Gulyás, "Scalable Reinforcement Learning in Multi-Agent Environments", 2024.
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
from training.config import CreditTable, TrainingConfig
from training.credit import GroupBy, Membership, Trajectory, advantages, separate
from training.losses import clipped_policy_loss, clipped_value_loss
from training.networks import Network
from training.policy import log_prob_and_entropy
from training.rollout import Actors, EpisodeSums, Rollout, collect, start

AXIS = "world"


class Learned(eqx.Module):
    """What is learned, the same on every device.

    Attributes:
        network: parameters.
        optimizer: state of the optimiser.
        key: of the run; never advanced, draws fold in the number of the update.
        n_updates: updates done.
    """

    network: Network
    optimizer: PyTree
    key: Key[Array, ""]
    n_updates: Int[Array, ""]


class Batch(eqx.Module):
    """What the loss needs of each time step [..., n] and [..., g]; statistics are over valid entries only.

    Attributes:
        observation: what was seen.
        action: per entity.
        index: group slot per entity.
        old_log_prob: per group, separated as the credit settings say.
        old_value: likewise.
        advantage: normalised.
        target: of the value.
        valid: a member lived.
        acts: a member had a choice; only such steps count for the policy.
    """

    observation: Observation
    action: Int[Array, "*b n"]
    index: Int[Array, "*b n"]
    old_log_prob: Float[Array, "*b g"]
    old_value: Float[Array, "*b g"]
    advantage: Float[Array, "*b g"]
    target: Float[Array, "*b g"]
    valid: Bool[Array, "*b g"]
    acts: Bool[Array, "*b g"]


class MPPO(eqx.Module):
    """The learner: `init(key)`, then `update` again and again.

    Attributes:
        simulator: of one world.
        grouping: whose trajectories there are.
        config: settings.
        mesh: devices; worlds are sharded over them, what is learned is on each.
    """

    simulator: Simulator
    grouping: GroupBy
    config: TrainingConfig = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with clipped gradients and, if set, a falling learning rate."""
        c = self.config
        n_steps = c.n_updates * c.epochs * c.minibatches
        rate = optax.linear_schedule(c.learning_rate, 0.0, n_steps) if c.anneal else c.learning_rate
        return optax.chain(optax.clip_by_global_norm(c.max_grad_norm), optax.adam(rate, eps=1e-5))

    def init(self, seed: int) -> tuple[Learned, Actors]:
        """Return a fresh learner and its worlds, placed on the mesh."""
        key = jax.random.key(seed)
        learned = self.init_learned(seed)
        actors = eqx.filter_jit(lambda: start(self.simulator, _stream(key, 1), jnp.arange(self.config.worlds)))()
        return self.place(learned, actors)

    def place(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors]:
        """Put what is learned on every device, and a share of the worlds on each."""
        replicated = NamedSharding(self.mesh, PartitionSpec())
        sharded = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return eqx.filter_shard(learned, replicated), eqx.filter_shard(actors, sharded)

    @eqx.filter_jit
    def init_learned(self, seed: int) -> Learned:
        """Return fresh parameters and optimiser."""
        key = jax.random.key(seed)
        _, timestep = self.simulator.reset(key)
        n = self.config.network
        network = Network(
            timestep.observation,
            len(self.simulator.rules.kinds),
            channels=n.channels,
            dilations=n.dilations,
            hidden=n.hidden,
            key=_stream(key, 0),
        )
        optimizer = self.optimizer.init(eqx.filter(network, eqx.is_inexact_array))
        return Learned(network, optimizer, key, jnp.int32(0))

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

    # Everything below runs on each device with its share of the worlds; sums over devices are explicit.

    def _update(self, learned: Learned, actors: Actors) -> tuple[Learned, Actors, dict[str, Any]]:
        c = self.config
        act_base = jax.random.fold_in(_stream(learned.key, 2), learned.n_updates)
        shuffle_base = jax.random.fold_in(_stream(learned.key, 3), learned.n_updates)
        actors, rollout, sums = collect(
            self.simulator, self.grouping, learned.network, actors, _stream(learned.key, 1), act_base, c.rollout
        )
        batch, statistics = self._prepare(learned.network, actors, rollout)
        network, optimizer, losses = self._learn(learned, batch, actors.index, shuffle_base)
        n_alive = jnp.sum(rollout.observation.alive, dtype=jnp.float32)
        metrics = losses | statistics | {"agent_steps": _over_devices(n_alive), "episode": _add_up(sums)}
        return Learned(network, optimizer, learned.key, learned.n_updates + 1), actors, metrics

    def _prepare(self, network: Network, actors: Actors, rollout: Rollout) -> tuple[Batch, dict[str, Array]]:
        """Assign credit: from entities to groups, advantages, and their normalisation over valid entries."""
        c = self.config
        _, value = network(actors.timestep.observation)
        last = jax.vmap(self.grouping)(actors.world)
        alive, mask = rollout.observation.alive, rollout.observation.action_mask
        per_step = jax.vmap(jax.vmap(_group_quantities))
        reward, group_value, log_prob, valid, acts = per_step(
            rollout.membership, rollout.reward * c.reward_scale, rollout.value, rollout.log_prob, alive, mask
        )
        identity = rollout.membership.identity
        trajectory = Trajectory(
            reward, group_value, valid, identity, rollout.final_value, rollout.final_valid, rollout.ended
        )
        last_value, last_valid = jax.vmap(lambda m, v, a: (m.total(v), m.any(a)))(
            last, value, actors.timestep.observation.alive
        )

        def assign(trajectory: Trajectory, value: Array, valid: Array, identity: Array) -> tuple[Array, ...]:
            return advantages(trajectory, value, valid, identity, c.credit, c.discount, c.gae_lambda)

        advantage, target, old_value = jax.vmap(assign, in_axes=(1, 0, 0, 0), out_axes=1)(
            trajectory, last_value, last_valid, last.identity
        )
        residual = _variance(target - old_value, valid) / jnp.maximum(_variance(target, valid), 1e-8)
        mean, variance = _mean(advantage, acts), _variance(advantage, acts)
        statistics = {"explained_variance": 1.0 - residual, "value": _mean(old_value, valid)}
        batch = Batch(
            observation=rollout.observation,
            action=rollout.action,
            index=rollout.membership.index,
            old_log_prob=separate(log_prob, valid, c.credit.log_prob),
            old_value=old_value,
            advantage=(advantage - mean) / jnp.sqrt(variance + 1e-8),
            target=target,
            valid=valid,
            acts=acts,
        )
        return batch, statistics

    def _learn(
        self, learned: Learned, batch: Batch, index: Int[Array, " b"], key: Key[Array, ""]
    ) -> tuple[Network, PyTree, dict[str, Array]]:
        """Run the epochs. A minibatch takes the same number of steps from every world, drawn without replacement.

        Each world shuffles its own steps, so minibatches do not depend on how the worlds are sharded.
        """
        c = self.config
        size = c.rollout // c.minibatches
        batch = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), batch)

        def shuffled(epoch: Array) -> Int[Array, "m b s"]:
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, epoch), i))(index)
            order = jax.vmap(lambda k: jax.random.permutation(k, c.rollout))(keys)
            return jnp.moveaxis(order.reshape(-1, c.minibatches, size), 1, 0)

        order = jax.vmap(shuffled)(jnp.arange(c.epochs)).reshape(c.epochs * c.minibatches, -1, size)
        params, static = eqx.partition(learned.network, eqx.is_inexact_array)
        left = 1.0 - learned.n_updates / c.n_updates if c.anneal else jnp.float32(1)
        entropy_weight = c.entropy_weight * jnp.maximum(left, 0.0)

        def step(carry: tuple[PyTree, PyTree], chosen: Array) -> tuple[tuple[PyTree, PyTree], dict[str, Array]]:
            params, optimizer = carry
            minibatch = jax.vmap(lambda rows, which: jax.tree.map(lambda x: x[which], rows))(batch, chosen)
            minibatch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), minibatch)
            counts = (_count(minibatch.acts), _count(minibatch.valid))
            gradient, metrics = jax.grad(_loss, has_aux=True)(params, static, minibatch, counts, c, entropy_weight)
            gradient, metrics = jax.tree.map(_over_devices, (gradient, metrics))
            change, optimizer = self.optimizer.update(gradient, optimizer, params)
            metrics["grad_norm"] = optax.tree.norm(gradient)
            return (optax.apply_updates(params, change), optimizer), metrics

        (params, optimizer), metrics = jax.lax.scan(step, (params, learned.optimizer), order)
        return eqx.combine(params, static), optimizer, {name: jnp.mean(x) for name, x in metrics.items()}


def _loss(
    params: PyTree,
    static: PyTree,
    batch: Batch,
    counts: tuple[Array, Array],
    c: TrainingConfig,
    entropy_weight: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """This device's part of the loss: sums over its entries, divided by the number on all devices."""
    network, (n_acts, n_valid) = eqx.combine(params, static), counts
    log_prob, entropy, value = _evaluate(network, batch, c.credit)
    policy = clipped_policy_loss(log_prob, batch.old_log_prob, batch.advantage, c.clip)
    values = clipped_value_loss(value, batch.old_value, batch.target, c.value_clip)

    def mean(x: Array, mask: Array, n: Array) -> Array:
        return jnp.sum(jnp.where(mask, x, 0.0)) / n

    ratio = log_prob - batch.old_log_prob
    metrics = {
        "policy_loss": mean(policy, batch.acts, n_acts),
        "value_loss": mean(values, batch.valid, n_valid),
        "entropy": mean(entropy, batch.acts, n_acts),
        "kl": mean(jnp.expm1(ratio) - ratio, batch.acts, n_acts),
        "clip_fraction": mean((jnp.abs(jnp.expm1(ratio)) > c.clip).astype(jnp.float32), batch.acts, n_acts),
    }
    loss = metrics["policy_loss"] + c.value_weight * metrics["value_loss"] - entropy_weight * metrics["entropy"]
    return loss, metrics | {"loss": loss}


def _evaluate(network: Network, batch: Batch, credit: CreditTable) -> tuple[Array, Array, Array]:
    """Return log-probability, entropy and value per group [s, g], separated as the settings say."""
    logits, value = network(batch.observation)
    log_prob, entropy = jax.vmap(log_prob_and_entropy)(logits, batch.action)
    n_groups = batch.valid.shape[-1]

    def total(index: Array, values: Array) -> Array:
        return Membership(index, jnp.zeros(n_groups, jnp.int32)).total(values)

    log_prob, entropy, value = (jax.vmap(total)(batch.index, x) for x in (log_prob, entropy, value))
    return (
        separate(log_prob, batch.valid, credit.log_prob),
        separate(entropy, batch.valid, credit.entropy),
        separate(value, batch.valid, credit.value),
    )


def _group_quantities(
    membership: Membership, reward: Array, value: Array, log_prob: Array, alive: Array, mask: Array
) -> tuple[Array, ...]:
    """Sums per group of reward, value and log-probability; whether a member lives, and whether one has a choice."""
    choice = alive & (jnp.sum(mask, axis=-1) > 1)
    sums = (membership.total(x) for x in (reward, value, log_prob))
    return (*sums, membership.any(alive), membership.any(choice))


def _stream(key: Key[Array, ""], number: int) -> Key[Array, ""]:
    """One of the run's random streams: 0 parameters, 1 episodes, 2 actions, 3 shuffling."""
    return jax.random.fold_in(key, number)


def _over_devices(x: Array) -> Array:
    return jax.lax.psum(x, AXIS)


def _count(mask: Array) -> Float[Array, ""]:
    return jnp.maximum(_over_devices(jnp.sum(mask, dtype=jnp.float32)), 1.0)


def _mean(x: Array, mask: Array) -> Float[Array, ""]:
    return _over_devices(jnp.sum(jnp.where(mask, x, 0.0))) / _count(mask)


def _variance(x: Array, mask: Array) -> Float[Array, ""]:
    return _mean(jnp.square(x - _mean(x, mask)), mask)


def _add_up(sums: EpisodeSums) -> EpisodeSums:
    count, metrics = jax.tree.map(_over_devices, (sums.count, sums.metrics))
    return EpisodeSums(count, metrics, jax.lax.pmax(sums.status, AXIS))
