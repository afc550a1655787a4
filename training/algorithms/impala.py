"""IMPALA: actors may lag behind the learner, which corrects for that by V-trace (Espeholt et al. 2018), by group."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from training.acting.rollout import Experience
from training.algorithms.learner import AbstractLearner, Groups, Learned, Rows
from training.algorithms.reductions import count, part_of_mean, sum_over_devices
from training.credit.sides import separate
from training.networks import Minds
from training.networks.normalise import ValueScale


class IMPALA(AbstractLearner):
    """Steps of the optimiser on whole trajectories, by the policy gradient with V-trace.

    Each minibatch takes some of the worlds, with all their steps, and each pass (`epochs`) all minibatches; what was
    learned since the rollout began is corrected like any other lag. What became more likely or less by more than `clip`
    is not driven further that way, as in PPO (Schulman et al. 2017, eq. 7), so that a rollout can be learned from more
    than once (Luo et al. 2020, arXiv 1912.00167, keep IMPALA near the policy that acted likewise). In this
    deterministic form rollouts and steps take turns, and experience is made with the parameters of `impala.lag` updates
    before.
    """

    def behind(self, arrays: PyTree) -> PyTree:
        """As many copies as actors lag."""
        lag = self.config.impala.lag
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (lag, *x.shape)), arrays) if lag else None

    def acting(self, learned: Learned) -> tuple[Minds, ValueScale]:
        """The oldest parameters kept."""
        if learned.behind is None:
            return learned.network, learned.scale
        static = eqx.filter(learned.network, eqx.is_inexact_array, inverse=True)
        oldest, scale = jax.tree.map(lambda x: x[0], (learned.behind, learned.scales_behind))
        return eqx.combine(oldest, static), scale

    def learn(self, learned: Learned, experience: Experience) -> tuple[Learned, dict[str, Array]]:
        """Say anew what to do and to expect, correct, and follow the gradient."""
        groups = self.groups(experience)
        params, static = eqx.partition(learned.network, eqx.is_inexact_array)
        weights = *(self.weight(learned, name) for name in ("clip", "entropy_weight")), self.teacher_weight(learned)
        n = self.config.minibatches

        def step(carry: tuple[PyTree, PyTree, ValueScale], number: Int[Array, ""]) -> tuple[tuple, dict[str, Array]]:
            params, optimizer, scale = carry
            some, of_groups = _some_worlds(experience, groups, number, n)
            gradient, (metrics, target, value) = jax.grad(self._loss, has_aux=True)(
                params, static, some, of_groups, scale, weights
            )
            gradient, metrics = sum_over_devices((gradient, metrics))
            change, optimizer = self.optimizer.update(gradient, optimizer, params)
            scale = self.rescaled(scale, target, of_groups.valid)
            metrics |= self.statistics(some, of_groups, target, value) | {"grad_norm": optax.tree.norm(gradient)}
            return (optax.apply_updates(params, change), optimizer, scale), metrics

        carry = params, learned.optimizer, learned.scale
        numbers = jnp.tile(jnp.arange(n), self.config.epochs)
        (params, optimizer, scale), metrics = jax.lax.scan(step, carry, numbers)
        behind = learned.behind, learned.scales_behind
        if self.config.impala.lag:
            now = eqx.filter(learned.network, eqx.is_inexact_array), learned.scale
            behind = jax.tree.map(lambda old, x: jnp.concatenate([old[1:], x[None]]), behind, now)
        new = eqx.combine(params, static), optimizer, scale, *behind
        parts = lambda x: (x.network, x.optimizer, x.scale, x.behind, x.scales_behind)  # noqa: E731
        learned = eqx.tree_at(parts, learned, new, is_leaf=lambda x: x is None)
        return learned, {name: jnp.mean(x) for name, x in metrics.items()}

    def _loss(
        self,
        params: PyTree,
        static: PyTree,
        experience: Experience,
        groups: Groups,
        scale: ValueScale,
        weights: tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]],
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Float[Array, "t b g v"], Float[Array, "t b g v"]]]:
        """This device's part of the loss: sums over its entries, divided by the number on all devices.

        `weights` are the clip, that of the entropy and that of the teacher, by their schedules. Returns the targets and
        the values, too.
        """
        c, network, valid, acts = self.config, eqx.combine(params, static), groups.valid, groups.acts
        rows, sides = Rows.of(experience, groups), groups.sides
        log_prob, entropy, value, imitation = self.evaluate(network, rows, experience.state[0], scale)
        log_ratio = jax.lax.stop_gradient(log_prob - separate(groups.log_prob, valid, c.credit.log_prob, sides))
        expected = jax.lax.stop_gradient((value, self.last_value(network, experience)))
        corrects = log_ratio if c.impala.vtrace else None
        advantage, target, _ = self.assign(scale, experience, groups, *expected, corrects)
        value = self.separate_values(value, valid, sides)
        ratio = jnp.exp(log_ratio)
        advantage = self.normalised(advantage, acts, jnp.minimum(ratio, 1.0) if c.impala.vtrace else None)
        error = jnp.square((value - target) / scale.scale[None, None, None])
        n_acts, n_valid, (clip, entropy_weight, teacher_weight) = count(acts), count(valid), weights
        far = jnp.where(advantage[..., 0] > 0, ratio > 1.0 + clip, ratio < 1.0 - clip) & (clip > 0)
        metrics = {
            "policy_loss": part_of_mean(jnp.where(far, 0.0, -advantage[..., 0] * log_prob), acts, n_acts),
            "value_loss": part_of_mean(error[..., 0], valid, n_valid),
            "entropy": part_of_mean(entropy, acts, n_acts),
            "kl": part_of_mean(ratio - 1.0 - log_ratio, acts, n_acts),
            "clip_fraction": part_of_mean(far.astype(jnp.float32), acts, n_acts),
        }
        loss = metrics["policy_loss"] + c.value_weight * metrics["value_loss"] - entropy_weight * metrics["entropy"]
        if self.teacher is not None:
            metrics["imitation"] = jnp.where(teacher_weight > 0, imitation, 0.0)
            loss = loss + teacher_weight * imitation
        return loss, (metrics | {"loss": loss}, target, jax.lax.stop_gradient(value))


def _some_worlds(
    experience: Experience, groups: Groups, number: Int[Array, ""], n_parts: int
) -> tuple[Experience, Groups]:
    """One of equal parts of the worlds: each n-th, so that a part does not depend on how worlds are sharded."""

    def along(axis: int) -> Callable[[Array], Array]:
        def take(x: Array) -> Array:
            shape = (*x.shape[:axis], x.shape[axis] // n_parts, n_parts, *x.shape[axis + 1 :])
            return jax.lax.dynamic_index_in_dim(x.reshape(shape), number, axis + 1, keepdims=False)

        return take

    e = experience
    rollout, state, groups = jax.tree.map(along(1), (e.rollout, e.state, groups))
    last, index = jax.tree.map(along(0), (e.last, e.index))
    return Experience(rollout, state, last, index, e.sums), groups
