"""Distributions of actions, by the parameters that an actor gives for each entity.

What a rollout keeps is the raw draw; `command` makes of it what the simulator takes.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from swarm.simulation.policy import best
from swarm.simulation.rules import AbstractRules

Raw = Int[Array, "*b n"] | Int[Array, "*b n f"] | Float[Array, "*b n a"]


class AbstractDistribution(eqx.Module):
    """A family of distributions over the actions of an entity."""

    @property
    @abc.abstractmethod
    def n_parameters(self) -> int:
        """Parameters of an entity's distribution."""

    @abc.abstractmethod
    def sample(self, parameters: Float[Array, "n p"], action_mask: Bool[Array, "n a"], keys: Key[Array, " n"]) -> Raw:
        """Draw for the entities of one world, each by its own key."""

    @abc.abstractmethod
    def mode(self, parameters: Float[Array, "n p"], action_mask: Bool[Array, "n a"]) -> Raw:
        """The likeliest action."""

    @abc.abstractmethod
    def log_prob_and_entropy(
        self, parameters: Float[Array, "*b n p"], action_mask: Bool[Array, "*b n a"], raw: Raw
    ) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
        """Log-probability of draws, and the distribution's entropy (nats)."""

    @abc.abstractmethod
    def command(self, raw: Raw) -> Raw:
        """What the simulator takes."""

    @abc.abstractmethod
    def surprise(
        self, parameters: Float[Array, "*b n p"], action_mask: Bool[Array, "*b n a"], command: Raw
    ) -> Float[Array, "*b n"]:
        """At another's command, nats; to be minimised by who imitates it."""

    @abc.abstractmethod
    def has_choice(self, action_mask: Bool[Array, "*b n a"]) -> Bool[Array, "*b n"]:
        """Whether an entity could do one thing or another."""


class Categorical(AbstractDistribution):
    """Masked categorical distributions, one for each choice of an entity, independent of each other.

    Illegal actions have probability 0. Where none is legal (dead slots) all are possible, to stay finite.

    Attributes:
        choices: number of options of each choice.
    """

    choices: tuple[int, ...] = eqx.field(static=True)

    @property
    def n_parameters(self) -> int:
        """A logit for each option."""
        return sum(self.choices)

    def sample(self, parameters: Float[Array, "n p"], action_mask: Bool[Array, "n a"], keys: Key[Array, " n"]) -> Raw:
        """Gumbel-max."""
        logits = self._masked(parameters, action_mask)
        noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:]))(keys)
        return best(logits + noise, self.choices)

    def mode(self, parameters: Float[Array, "n p"], action_mask: Bool[Array, "n a"]) -> Raw:
        """The greatest logit."""
        return best(self._masked(parameters, action_mask), self.choices)

    def log_prob_and_entropy(
        self, parameters: Float[Array, "*b n p"], action_mask: Bool[Array, "*b n a"], raw: Raw
    ) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
        """Sums over the choices."""
        indices = raw[..., None] if len(self.choices) == 1 else raw
        log_prob, entropy = jnp.zeros(raw.shape[: parameters.ndim - 1]), jnp.zeros(raw.shape[: parameters.ndim - 1])
        for choice, logits in enumerate(self._split(self._masked(parameters, action_mask))):
            log_p = jax.nn.log_softmax(logits)
            log_prob += jnp.take_along_axis(log_p, indices[..., choice : choice + 1], axis=-1)[..., 0]
            entropy -= jnp.sum(jnp.where(logits > -1e8, jnp.exp(log_p) * log_p, 0.0), axis=-1)
        return log_prob, entropy

    def command(self, raw: Raw) -> Raw:
        """The draw itself."""
        return raw

    def surprise(
        self, parameters: Float[Array, "*b n p"], action_mask: Bool[Array, "*b n a"], command: Raw
    ) -> Float[Array, "*b n"]:
        """By the probability of the command; 0 at an illegal one."""
        surprise = -self.log_prob_and_entropy(parameters, action_mask, command)[0]
        return jnp.where(surprise < 1e6, surprise, 0.0)

    def has_choice(self, action_mask: Bool[Array, "*b n a"]) -> Bool[Array, "*b n"]:
        """More than one option of some choice is legal."""
        several = [jnp.sum(part, axis=-1) > 1 for part in self._split(action_mask)]
        return jnp.any(jnp.stack(several), axis=0)

    def _split(self, x: Array) -> list[Array]:
        return jnp.split(x, np.cumsum(self.choices)[:-1], axis=-1)

    def _masked(self, logits: Array, mask: Array) -> Array:
        def one(logits: Array, mask: Array) -> Array:
            return jnp.where(mask | ~jnp.any(mask, axis=-1, keepdims=True), logits, -1e9)

        parts = zip(self._split(logits), self._split(mask), strict=True)
        return jnp.concatenate([one(*part) for part in parts], axis=-1)


class TanhNormal(AbstractDistribution):
    """`a` commands in (-1, 1): tanh of independent normal draws (Haarnoja et al. 2018, appendix C).

    The parameters are the means and, after them, the logarithms of the standard deviations (plus a constant, so that an
    actor that gives 0 starts with a standard deviation of 0.6). The raw draw is that before tanh, whose
    log-probability is exact however near to 1 the command is.

    Attributes:
        n_controls: a.
    """

    n_controls: int = eqx.field(static=True)

    @property
    def n_parameters(self) -> int:
        """A mean and a deviation for each command."""
        return 2 * self.n_controls

    def sample(self, parameters: Float[Array, "n p"], action_mask: Bool[Array, "n a"], keys: Key[Array, " n"]) -> Raw:
        """Draw before tanh."""
        mean, log_std = self._split(parameters)
        noise = jax.vmap(lambda k: jax.random.normal(k, (self.n_controls,)))(keys)
        return mean + jnp.exp(log_std) * noise

    def mode(self, parameters: Float[Array, "n p"], action_mask: Bool[Array, "n a"]) -> Raw:
        """The mean before tanh."""
        return self._split(parameters)[0]

    def log_prob_and_entropy(
        self, parameters: Float[Array, "*b n p"], action_mask: Bool[Array, "*b n a"], raw: Raw
    ) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
        """Of the commands; the entropy to 1e-4 nats for any mean and deviation (`_mean_log_cosh`)."""
        mean, log_std = self._split(parameters)
        z = (raw - mean) * jnp.exp(-log_std)
        log_prob = -0.5 * jnp.square(z) - log_std - 0.5 * math.log(2 * math.pi) - _log_slope(raw)
        # H[tanh(u)] = H[u] + E log(1 - tanh(u)^2).
        entropy = log_std + 0.5 * math.log(2 * math.pi * math.e) - 2.0 * _mean_log_cosh(mean, jnp.exp(log_std))
        return jnp.sum(log_prob, axis=-1), jnp.sum(entropy, axis=-1)

    def command(self, raw: Raw) -> Raw:
        """Squash."""
        return jnp.tanh(raw)

    def surprise(
        self, parameters: Float[Array, "*b n p"], action_mask: Bool[Array, "*b n a"], command: Raw
    ) -> Float[Array, "*b n"]:
        """By the density at the command, of which no part counts as farther from 0 than 0.97."""
        raw = jnp.arctanh(jnp.clip(command, -0.97, 0.97))
        return -self.log_prob_and_entropy(parameters, action_mask, raw)[0]

    def has_choice(self, action_mask: Bool[Array, "*b n a"]) -> Bool[Array, "*b n"]:
        """Whoever may command at all."""
        return jnp.any(action_mask, axis=-1)

    def _split(self, parameters: Array) -> tuple[Array, Array]:
        mean, log_std = jnp.split(parameters, 2, axis=-1)
        return mean, jnp.clip(log_std - 0.5, -4.0, 1.0)


def _log_slope(u: Array) -> Array:
    """log(1 - tanh(u)^2), without cancellation."""
    return 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))


# Weights and standard deviations of three normal distributions that add up to nearly that of density sech(v)^2 / 2.
_SECH = (0.32338888, 0.56599686, 0.11061426), (0.57638787, 0.92065164, 1.45817789)


def _mean_log_cosh(mean: Float[Array, "*a"], std: Float[Array, "*a"]) -> Float[Array, "*a"]:
    """E log cosh(u) of a normal u, in closed form.

    log cosh(u) + log 2 = E |u + v| with v of density sech(v)^2 / 2, half a logistic variable. That is a mixture of
    normal distributions over their scales (Stefanski 1991), and three of them come near enough (as in Monahan and
    Stefanski 1992; fitted here, to 4e-5 for every u, and so for every distribution of it). So u + v is a mixture of
    normal ones, too, and E |N(m, s^2)| = s sqrt(2 / pi) exp(-m^2 / 2 s^2) + m erf(m / s sqrt(2)).
    """
    total = jnp.full_like(mean, -math.log(2.0))
    for weight, scale in zip(*_SECH, strict=True):
        spread = jnp.sqrt(jnp.square(std) + scale**2)
        x = mean / (math.sqrt(2.0) * spread)
        total += weight * (math.sqrt(2.0 / math.pi) * spread * jnp.exp(-jnp.square(x)) + mean * jax.lax.erf(x))
    return total


def distribution_of(rules: AbstractRules) -> AbstractDistribution:
    """The family that suits the actions of some rules."""
    return TanhNormal(rules.n_controls) if rules.n_controls else Categorical(rules.choices)
