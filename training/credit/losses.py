"""Advantages and losses as pure functions of masked trajectories.

Suffixes carry time: `reward_t` is the reward of the step from t to t + 1. Arrays are [t, ...] with any trailing axes
(worlds, group slots), and every trailing index is a trajectory of its own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree


def generalised_advantage(
    reward_t: Float[Array, "t *g"],
    discount_t: Float[Array, "t *g"],
    value_t: Float[Array, "t *g"],
    next_value_t: Float[Array, "t *g"],
    continues_t: Bool[Array, "t *g"],
    gae_lambda: float,
    inherit: Callable[[PyTree, Float[Array, " *g"]], Float[Array, " *g"]] | None = None,
    links_t: PyTree = None,
) -> Float[Array, "t *g"]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) with boundaries.

        delta_t = r_t + discount_t * V_{t+1} - V_t
        A_t = delta_t + discount_t * lambda * (continues_t * A_{t+1} + inherit(links_t, A_{t+1}))

    Args:
        reward_t: reward of the step.
        discount_t: discount, 0 where the trajectory terminated in the step.
        value_t: value before the step.
        next_value_t: value after the step, of the same trajectory: where it was truncated, of its final observation.
        continues_t: whether row t + 1 belongs to the same trajectory.
        gae_lambda: lambda.
        inherit: what each trajectory takes from others after the step; `next_value_t` must hold the same of the values.
        links_t: first argument of `inherit`, for each row.
    """
    delta_t = reward_t + discount_t * next_value_t - value_t
    return _accumulate(delta_t, discount_t * gae_lambda, continues_t, inherit, links_t)[0]


def vtrace(
    log_ratio_t: Float[Array, "t *g"],
    reward_t: Float[Array, "t *g"],
    discount_t: Float[Array, "t *g"],
    value_t: Float[Array, "t *g"],
    next_value_t: Float[Array, "t *g"],
    continues_t: Bool[Array, "t *g"],
    trace_lambda: float,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    inherit: Callable[[PyTree, Float[Array, " *g"]], Float[Array, " *g"]] | None = None,
    links_t: PyTree = None,
) -> tuple[Float[Array, "t *g"], Float[Array, "t *g"]]:
    """V-trace (Espeholt et al. 2018, eq. 1 and section 4.2) with boundaries: experience of a policy mu, values of pi.

        rho_t = min(clip_rho, pi_t / mu_t),   c_t = lambda * min(clip_c, pi_t / mu_t)
        delta_t = rho_t (r_t + discount_t V_{t+1} - V_t)
        vs_t - V_t = delta_t + discount_t c_t (continues_t (vs_{t+1} - V_{t+1}) + inherit(links_t, vs_{t+1} - V_{t+1}))
        advantage_t = rho_t (r_t + discount_t (V_{t+1} + lambda (vs_{t+1} - V_{t+1})) - V_t), likewise with boundaries

    With pi = mu and no clipping below 1, vs_t - V_t is `generalised_advantage`.

    Args:
        log_ratio_t: log(pi / mu) of what was done; of a group the sum over its members.
        reward_t: reward of the step.
        discount_t: discount, 0 where the trajectory terminated in the step.
        value_t: value before the step, by pi's critic.
        next_value_t: value after the step, of the same trajectory: where it was truncated, of its final observation.
        continues_t: whether row t + 1 belongs to the same trajectory.
        trace_lambda: lambda.
        clip_rho: greatest weight of a step's own error; it decides whose values are learned.
        clip_c: greatest weight of what follows; it trades bias for variance only.
        inherit: what each trajectory takes from others after the step, as in `generalised_advantage`.
        links_t: first argument of `inherit`, for each row.

    Returns:
        The targets vs_t of the values, and the advantages of the policy gradient.
    """
    ratio_t = jnp.exp(log_ratio_t)
    rho_t, c_t = jnp.minimum(ratio_t, clip_rho), trace_lambda * jnp.minimum(ratio_t, clip_c)
    delta_t = reward_t + discount_t * next_value_t - value_t
    error_t, following_t = _accumulate(rho_t * delta_t, discount_t * c_t, continues_t, inherit, links_t)
    return value_t + error_t, rho_t * (delta_t + discount_t * trace_lambda * following_t)


def _accumulate(
    delta_t: Float[Array, "t *g"],
    decay_t: Float[Array, "t *g"],
    continues_t: Bool[Array, "t *g"],
    inherit: Callable[[PyTree, Float[Array, " *g"]], Float[Array, " *g"]] | None,
    links_t: PyTree,
) -> tuple[Float[Array, "t *g"], Float[Array, "t *g"]]:
    """Return x_t = delta_t + decay_t * following_t, and following_t: x_{t+1} and what the trajectory inherits."""

    def backwards(later: Array, row: tuple[Array, Array, Array, PyTree]) -> tuple[Array, tuple[Array, Array]]:
        delta, decay, continues, links = row
        following = jnp.where(continues, later, 0.0)
        if inherit is not None:
            following = following + inherit(links, later)
        total = delta + decay * following
        return total, (total, following)

    rows = (delta_t, decay_t, continues_t, links_t)
    return jax.lax.scan(backwards, jnp.zeros_like(delta_t[0]), rows, reverse=True)[1]


def clipped_policy_loss(
    log_prob: Float[Array, "*g"],
    old_log_prob: Float[Array, "*g"],
    advantage: Float[Array, "*g"],
    clip: float | Float[Array, ""],
) -> Float[Array, "*g"]:
    """PPO's surrogate, to be minimised (Schulman et al. 2017, eq. 7): max(-A rho, -A clip(rho, 1 - c, 1 + c))."""
    ratio = jnp.exp(log_prob - old_log_prob)
    return jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1.0 - clip, 1.0 + clip))


def clipped_value_loss(
    value: Float[Array, "*g"], old_value: Float[Array, "*g"], target: Float[Array, "*g"], clip: float
) -> Float[Array, "*g"]:
    """max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2); with c = 0 only the first."""
    if clip == 0:
        return jnp.square(value - target)
    near = old_value + jnp.clip(value - old_value, -clip, clip)
    return jnp.maximum(jnp.square(value - target), jnp.square(near - target))
