"""Roundings that a compiler cannot take apart or join, and a root whose gradient is finite."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def rounded(product: Float[Array, "*v"]) -> Float[Array, "*v"]:
    """The same number, rounded before it is added to another product.

    Of a * b + c * d the compiler may fuse either product with the sum (multiply-add, which rounds once), and it chooses
    differently alone and in a batch. It does not see through this minimum of bit patterns, which spares all but one
    NaN; a selection of what equals itself it does see through where it knows the factors, as of random draws.
    """
    whole = jnp.dtype(f"int{8 * product.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(product, whole)
    return jax.lax.bitcast_convert_type(jnp.minimum(bits, jnp.iinfo(whole).max - 1), product.dtype)


@rounded.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return rounded(*primals), tangents[0]


@jax.custom_jvp
def kept(number: Float[Array, "*v"]) -> Float[Array, "*v"]:
    """The same number, computed once where several results need it.

    On CPUs XLA computes sums and products anew for every result that they enter, so that long chains of them grow as
    trees do; the result of a division it keeps. That this one is by 1 it does not see, LLVM later does.
    """
    return number / jnp.where(number == number, 1.0, 2.0)


@kept.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return kept(*primals), tangents[0]


def root(square: Float[Array, "*v"]) -> Float[Array, "*v"]:
    """Square root with gradient 0 at 0."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
