"""Sums and means over all devices, of what each holds of the worlds."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

AXIS = "world"


def over_devices(x: Array) -> Array:
    """Sum over devices."""
    return jax.lax.psum(x, AXIS)


def sum_over_devices(tree: PyTree) -> PyTree:
    """Sums of many arrays over devices, joined: across processes each array by itself costs a round of messages."""
    flat, restore = ravel_pytree(tree)
    return restore(over_devices(flat))


def count(mask: Array) -> Float[Array, ""]:
    """Number of marks on all devices, at least 1."""
    # Counted as integers: single precision adds no further one to 16,777,216.
    return jnp.maximum(over_devices(jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)), 1.0)


def part_of_mean(x: Float[Array, "*g"], mask: Bool[Array, "*g"], n: Float[Array, ""]) -> Float[Array, ""]:
    """This device's part of a mean over `n` marks on all devices."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / n


def mean_over(x: Float[Array, "t b g v"], mask: Bool[Array, "t b g 1"]) -> Float[Array, " v"]:
    """Mean over what is marked, on all devices."""
    return over_devices(jnp.sum(jnp.where(mask, x, 0.0), axis=(0, 1, 2))) / count(mask)


def mean_and_variance(
    x: Float[Array, "t b g v"], mask: Bool[Array, "t b g 1"]
) -> tuple[Float[Array, " v"], Float[Array, " v"]]:
    """Of what is marked, on all devices; right however large the mean is beside the deviation.

    The first mean of many numbers is as wrong as single precision adds them; that of the rest is added to it.
    """
    first = mean_over(x, mask)
    rest = x - first[None, None, None]
    missing = mean_over(rest, mask)
    return first + missing, mean_over(jnp.square(rest - missing[None, None, None]), mask)
