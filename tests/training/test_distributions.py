"""Distributions of actions against numeric integration."""

import jax
import jax.numpy as jnp
import numpy as np

from training.networks.distributions import TanhNormal

# From the least to the largest deviation that a network can ask for, and beyond either.
LOG_STDS = np.linspace(-4.5, 1.5, 13)
MEANS = np.asarray([0.0, 1e-3, 0.3, -0.5, 1.0, -2.0, 4.0, -10.0, 30.0, -300.0, 3000.0])


def integrated(mean, log_std):
    """Entropy of tanh(u), u normal: E[-log p(u) + log(1 - tanh(u)^2)], by a fine sum in double precision."""
    std = np.exp(np.clip(log_std, -4.0, 1.0))
    z = np.linspace(-9.0, 9.0, 20001)
    u = mean[..., None] + std[..., None] * z
    slope = 2.0 * (np.log(2.0) - np.abs(u) - np.log1p(np.exp(-2.0 * np.abs(u))))
    density = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    shrunk = np.sum(slope * density, axis=-1) * (z[1] - z[0])
    return np.log(std) + 0.5 * np.log(2.0 * np.pi * np.e) + shrunk


@jax.jit
def entropy_and_gradient(mean, log_std):
    entropies, back = jax.vjp(entropy, mean, log_std)
    return entropies, back(jnp.ones_like(entropies))


def entropy(mean, log_std):
    # A network's 0 is a logarithm of -0.5.
    parameters = jnp.stack([mean, log_std + 0.5], axis=-1)
    mask = jnp.ones((*parameters.shape[:-1], 1), bool)
    return TanhNormal(1).log_prob_and_entropy(parameters, mask, jnp.zeros((*parameters.shape[:-1], 1)))[1]


def test_entropy_of_squashed_normal_and_its_gradient_are_right_for_every_mean_and_deviation():
    mean, log_std = np.meshgrid(MEANS, LOG_STDS, indexing="ij")
    found, gradient = entropy_and_gradient(*(jnp.asarray(x, jnp.float32) for x in (mean, log_std)))
    # Of numbers in the thousands single precision leaves so much.
    np.testing.assert_allclose(found, integrated(mean, log_std), rtol=3e-7, atol=5e-4)
    h = 1e-4
    by_mean = (integrated(mean + h, log_std) - integrated(mean - h, log_std)) / (2 * h)
    by_std = (integrated(mean, log_std + h) - integrated(mean, log_std - h)) / (2 * h)
    np.testing.assert_allclose(gradient[0], by_mean, atol=2e-3)
    np.testing.assert_allclose(gradient[1], by_std, atol=2e-3)


def test_entropy_is_the_mean_surprise_of_own_draws():
    parameters = jnp.asarray([[0.0, 1.5], [-1.0, 0.7], [2.0, -1.0]])
    parameters = jnp.repeat(parameters, 40_000, axis=0)
    family, mask = TanhNormal(1), jnp.ones((len(parameters), 1), bool)

    @jax.jit
    def draw(keys):
        return family.log_prob_and_entropy(parameters, mask, family.sample(parameters, mask, keys))

    log_prob, entropies = map(np.asarray, draw(jax.random.split(jax.random.key(0), len(parameters))))
    np.testing.assert_allclose(-log_prob.reshape(3, -1).mean(axis=1), entropies.reshape(3, -1)[:, 0], atol=0.02)
