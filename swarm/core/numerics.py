"""Sums, exponentials and logarithms that round the same way whatever the batch, the capacity and the device count.

XLA's own do not: it sums in an order that depends on shapes, and on CPUs vectors of some lengths take another
exponential and logarithm than the rest.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from swarm.core.rounding import rounded

# A sum holds every number as a multiple of the largest, in that many bits.
_BITS = 30
# Numbers of so many summands add up in two halves, and in four quarters, without passing 32 bits.
_TWO, _FOUR = 1 << 15, 1 << 23
_EXPONENT, _BIAS = 23, 127


def power_of_two(exponent: Int[Array, "*v"]) -> Float[Array, "*v"]:
    """2 to the power of a whole number from -126 to 127, exactly; float32."""
    return jax.lax.bitcast_convert_type((exponent + _BIAS) << _EXPONENT, jnp.float32)


def exponent_of(number: Float[Array, "*v"]) -> Int[Array, "*v"]:
    """Whole number e with 2^e <= |number| < 2^(e+1); -127 of 0 and of subnormal numbers."""
    return ((jax.lax.bitcast_convert_type(number, jnp.int32) >> _EXPONENT) & 0xFF) - _BIAS


def fixed_point(values: Float[Array, "*v"], largest: Float[Array, "*#v"]) -> tuple[Int[Array, "*v"], Int[Array, "*#v"]]:
    """Whole multiples of a unit that follows from the largest magnitude alone, and the exponent of that unit.

    Each is off by at most half a unit, 2^-31 of the largest magnitude. What is not finite becomes 0.
    """
    # Numbers too small for their unit to be a normal number lose bits instead.
    unit = jnp.maximum(exponent_of(largest) + 1 - _BITS, -_BIAS + 1)
    # In two factors, as 2^-unit can be beyond the range.
    half = unit // 2
    scaled = values * power_of_two(-half) * power_of_two(half - unit)
    return jnp.where(jnp.isfinite(values), jnp.round(scaled), 0.0).astype(jnp.int32), unit


def from_fixed_point(high: Int[Array, "*v"], low: Int[Array, "*v"], unit: Int[Array, "*v"]) -> Float[Array, "*v"]:
    """The number (high * 2^15 + low) units."""
    high, low = high + (low >> 15), low & 0x7FFF
    half = unit // 2
    both = rounded(high.astype(jnp.float32) * 32768.0) + low.astype(jnp.float32)
    return both * power_of_two(half) * power_of_two(unit - half)


@jax.custom_jvp
def total(values: Float[Array, "n *v"]) -> Float[Array, "*v"]:
    """Sum along the first axis, independent of order: the same bits for any order, and with any number of zeros added.

    Exact but for each number's rounding to 2^-31 of the largest magnitude, and for one rounding of the result (fixed
    point, as in Demmel and Nguyen, Fast Reproducible Floating-Point Summation, 2013, with one bin).

    Args:
        values: float32; at most 2^23 along the axis. Where one of them is infinite or not a number, so is the sum.
    """
    n = values.shape[0]
    if n == 0:
        return jnp.zeros(values.shape[1:], values.dtype)
    top, bottom = jnp.max(values, axis=0), jnp.min(values, axis=0)
    largest = jnp.maximum(top, -bottom)
    whole, unit = fixed_point(values, largest[None])
    add = lambda part: jnp.sum(part, axis=0, dtype=jnp.int32)  # noqa: E731
    if n <= _TWO:
        high, low = add(whole >> 15), add(whole & 0x7FFF)
    elif n <= _FOUR:
        # The low half of 15 bits as 7 and 8, the high half as 8 and 8; carried on from part to part.
        first, second = add(whole & 0xFF), add((whole >> 8) & 0x7F)
        third, fourth = add((whole >> 15) & 0xFF), add(whole >> 23)
        second = second + (first >> 8)
        low = ((second & 0x7F) << 8) + (first & 0xFF)
        third = third + (second >> 7)
        high = (fourth << 8) + third
    else:
        raise ValueError(f"cannot add up {n} numbers along one axis, more than {_FOUR}")
    return jnp.where(jnp.isfinite(largest), from_fixed_point(high, low, unit[0]), top + bottom)


@total.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return total(*primals), jnp.sum(tangents[0], axis=0)


def polynomial(x: Float[Array, "*v"], coefficients: tuple[float, ...]) -> Float[Array, "*v"]:
    """Value of a polynomial, highest power first (Horner)."""
    value = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = rounded(value * x) + coefficient
    return value


@jax.custom_jvp
def exp(x: Float[Array, "*v"]) -> Float[Array, "*v"]:
    """Exponential function to 2 units in the last place (Cody and Waite 1980; coefficients of Cephes' expf)."""
    power = jnp.round(jnp.clip(x, -150.0, 130.0) * 1.44269504088896341)
    rest = x - rounded(power * 0.693359375) - rounded(power * -2.12194440e-4)
    rest = jnp.where(jnp.isfinite(rest), rest, 0.0)
    shape = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
    value = rounded(polynomial(rest, shape) * rounded(rest * rest)) + rest + 1.0
    whole = power.astype(jnp.int32)
    half = whole // 2
    value = value * power_of_two(half) * power_of_two(whole - half)
    value = jnp.where(x > 88.72284, jnp.inf, jnp.where(x < -87.3365, 0.0, value))
    return jnp.where(x != x, x, value)


@exp.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value = exp(*primals)
    return value, value * tangents[0]


@jax.custom_jvp
def log(x: Float[Array, "*v"]) -> Float[Array, "*v"]:
    """Natural logarithm to 2 units in the last place (coefficients of Cephes' logf); of 0 and the subnormal -inf."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    # Mantissa from sqrt(1/2) to sqrt(2), so that the logarithm of what is near 1 does not cancel.
    shift = (bits - 0x3F3504F3) >> _EXPONENT
    mantissa = jax.lax.bitcast_convert_type(bits - (shift << _EXPONENT), jnp.float32)
    rest, power = mantissa - 1.0, shift.astype(jnp.float32)
    shape = (
        *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
        *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    )
    square = rounded(rest * rest)
    value = rounded(rounded(polynomial(rest, shape) * rest) * square) + rounded(power * -2.12194440e-4)
    value = value - 0.5 * square + rest + rounded(power * 0.693359375)
    value = jnp.where(x < jnp.finfo(x.dtype).tiny, jnp.where(x < 0, jnp.nan, -jnp.inf), value)
    return jnp.where((x == jnp.inf) | (x != x), x, value)


@log.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return log(x), tangent / x
