"""M-PPO: PPO with masked actions and a trajectory per group; rollout and update are one compiled program.

Source: Takács, Magyar, Gulyás, "Scalable Reinforcement Learning in Multi-Agent Environments", 2024. With other settings
of credit and networks it is IPPO (de Witt et al. 2020) or MAPPO (Yu et al. 2022), with or without memory.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from training.acting.rollout import Experience
from training.algorithms.learner import AbstractLearner, Learned, Rows, run_key
from training.algorithms.reductions import count, part_of_mean, sum_over_devices
from training.credit.losses import clipped_policy_loss, clipped_value_loss
from training.credit.mixing import OwnWeight
from training.credit.sides import separate
from training.networks import Minds
from training.networks.normalise import ValueScale


class Batch(eqx.Module):
    """What the loss needs of each time step; leading axes of a rollout, of a minibatch or of a part of either.

    Attributes:
        rows: what was seen and done.
        old_log_prob: per group, separated as the credit settings say.
        old_value: likewise, per stream, in units of reward by the scale that the loss has.
        advantage: normalised, per stream.
        target: of the value, per stream.
        acts: a member had a choice; only such steps count for the policy.
    """

    rows: Rows
    old_log_prob: Float[Array, "*b g"]
    old_value: Float[Array, "*b g v"]
    advantage: Float[Array, "*b g v"]
    target: Float[Array, "*b g v"]
    acts: Bool[Array, "*b g"]


class Weights(eqx.Module):
    """What weighs the parts of the loss during an update.

    Attributes:
        clip: of the ratio.
        entropy: of the entropy.
        teacher: of the surprise at what the teacher would have done.
        streams: of the advantages' streams.
        values: scale of the values.
    """

    clip: Float[Array, ""]
    entropy: Float[Array, ""]
    teacher: Float[Array, ""]
    streams: Float[Array, " v"]
    values: ValueScale


class MPPO(AbstractLearner):
    """Several passes over each rollout, in minibatches, with a clipped ratio of probabilities."""

    @property
    def n_parts(self) -> int:
        """One for each minibatch."""
        return self.config.minibatches

    def learn(self, learned: Learned, experience: Experience) -> tuple[Learned, dict[str, Array]]:
        """Assign credit once, then run the epochs."""
        batch, scale, statistics = self._prepare(learned, experience)
        learned = eqx.tree_at(lambda x: x.scale, learned, scale)
        shuffle_base = jax.random.fold_in(run_key(learned.key, 3), learned.n_updates)
        learned, losses = self._learn(learned, batch, experience.state, experience.index, shuffle_base)
        return learned, losses | statistics

    def _prepare(self, learned: Learned, experience: Experience) -> tuple[Batch, ValueScale, dict[str, Array]]:
        """Assign credit: from entities to groups, advantages, and their normalisation over valid entries."""
        c, rollout = self.config, experience.rollout
        groups = self.groups(experience)
        valid, acts = groups.valid, groups.acts
        value, last_value = learned.scale.restore(rollout.value, valid), self.last_value(learned.network, experience)
        advantage, target, old_value = self.assign(learned.scale, experience, groups, value, last_value)
        statistics = self.statistics(experience, groups, target, old_value)
        # What the critic said is compared with what it will say, so both are told by the scale that holds from now on.
        scale = self.rescaled(learned.scale, target, valid)
        old_value = self.separate_values(scale.restore(rollout.value, valid), valid, groups.sides)
        batch = Batch(
            rows=Rows.of(experience, groups),
            old_log_prob=separate(groups.log_prob, valid, c.credit.log_prob, groups.sides),
            old_value=old_value,
            advantage=self.normalised(advantage, acts),
            target=target,
            acts=acts,
        )
        return batch, scale, statistics

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
            gradient, metrics = sum_over_devices((gradient, metrics))
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
        clip, entropy = self.weight(learned, "clip"), self.weight(learned, "entropy_weight")
        return Weights(clip, entropy, self.teacher_weight(learned), _mixture(learned.own_weight), learned.scale)

    def _policy_gradient(self, network: Minds, minibatch: Any, order: Array, weights: Weights) -> Any:
        """The gradient by one stream of advantages on one of the first two minibatches."""
        params, static = eqx.partition(network, eqx.is_inexact_array)

        def gradient_by(stream: int, part: int) -> PyTree:
            one = eqx.tree_at(lambda w: w.streams, weights, jax.nn.one_hot(stream, 2))

            def loss(params: PyTree) -> Array:
                rows, first = minibatch(order[part])
                return self._loss(params, static, rows, first, one)[1]["policy_loss"]

            return sum_over_devices(jax.grad(loss)(params))

        return gradient_by

    def _loss(
        self, params: PyTree, static: PyTree, batch: Batch, state: Float[Array, "b n m"], weights: Weights
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """This device's part of the loss: sums over its entries, divided by the number on all devices."""
        c = self.config
        network = eqx.combine(params, static)
        log_prob, entropy, value, imitation = self.evaluate(network, batch.rows, state, weights.values)
        value = self.separate_values(value, batch.rows.valid, batch.rows.sides)
        advantage = jnp.sum(batch.advantage * weights.streams[None, None, None], axis=-1)
        policy = clipped_policy_loss(log_prob, batch.old_log_prob, advantage, weights.clip)
        scale = weights.values.scale[None, None, None]
        values = clipped_value_loss(value / scale, batch.old_value / scale, batch.target / scale, c.value_clip)
        n_acts, n_valid = count(batch.acts), count(batch.rows.valid)

        ratio = log_prob - batch.old_log_prob
        clipped = (jnp.abs(jnp.expm1(ratio)) > weights.clip).astype(jnp.float32)
        metrics = {
            "policy_loss": part_of_mean(policy, batch.acts, n_acts),
            "value_loss": part_of_mean(jnp.sum(values, axis=-1), batch.rows.valid, n_valid),
            "entropy": part_of_mean(entropy, batch.acts, n_acts),
            "kl": part_of_mean(jnp.expm1(ratio) - ratio, batch.acts, n_acts),
            "clip_fraction": part_of_mean(clipped, batch.acts, n_acts),
        }
        loss = metrics["policy_loss"] + c.value_weight * metrics["value_loss"] - weights.entropy * metrics["entropy"]
        if self.teacher is not None:
            metrics["imitation"] = jnp.where(weights.teacher > 0, imitation, 0.0)
            loss = loss + weights.teacher * imitation
        return loss, metrics | {"loss": loss}


def _mixture(own_weight: OwnWeight | None) -> Float[Array, " v"]:
    """Weight of each stream of advantages."""
    return jnp.ones(1) if own_weight is None else jnp.stack([own_weight.weight, 1.0 - own_weight.weight])
