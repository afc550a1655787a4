"""Operations that round the same way whatever the shapes, and sums that hang on no order."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.core import numerics
from swarm.core.reproducible import reproducible

pytestmark = pytest.mark.optimised

RNG = np.random.default_rng(0)


def numbers(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


# Each of these rounds differently alone and in a batch, or in others of these sizes, when XLA has its way.
TABLE, SCALE = numbers(5), numbers()
FUNCTIONS = {
    "a product and a sum": lambda x, y: x * y + y * y - x,
    "a square": lambda x, y: x**2 + y**3 - 1.0,
    "a share": lambda x, y: 1.0 - x / 7.0 + y / SCALE,
    "a division by a table": lambda x, y: x[:, None] / TABLE[None] + y[:, None],
    "a mean": lambda x, y: jnp.mean(x * y),
    "a short sum": lambda x, y: jnp.sum(jnp.stack([x * y, x, y]), axis=0),
    "exponentials": lambda x, y: jnp.exp(x) * jnp.log(jnp.abs(y)) + jax.nn.softplus(x),
    "a loop": lambda x, y: jax.lax.fori_loop(0, 3, lambda i, z: z * y + x / 3.0, x),
    "a scan": lambda x, y: jax.lax.scan(lambda z, a: (z * a + y, z * z - a), y, x)[1],
    "a branch": lambda x, y: jax.lax.cond(x[0] > 0, lambda z: z * y + 1.0, lambda z: z / 3.0, x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_same_bits_in_any_batch(name):
    function = reproducible(FUNCTIONS[name])
    x, y = numbers(32, 7), numbers(32, 7)
    alone = jax.jit(function)
    expected = [np.asarray(alone(a, b)) for a, b in zip(x, y, strict=True)]
    for n in (1, 2, 3, 8, 32):
        batch = np.asarray(jax.jit(jax.vmap(function))(x[:n], y[:n]))
        np.testing.assert_array_equal(batch, np.stack(expected[:n]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_keeps_its_values_and_gradients(name):
    function, x, y = FUNCTIONS[name], numbers(7), numbers(7)
    total = lambda f: lambda x, y: jnp.sum(jnp.square(f(x, y)))  # noqa: E731
    np.testing.assert_allclose(reproducible(function)(x, y), function(x, y), rtol=1e-5, atol=1e-6)
    for argument in (0, 1):
        found = jax.jit(jax.grad(total(reproducible(function)), argument))(x, y)
        np.testing.assert_allclose(found, jax.grad(total(function), argument)(x, y), rtol=1e-4, atol=1e-5)


def test_arguments_and_results_may_be_any_pytrees():
    def function(pair, key):
        return {"sum": pair[0] + pair[1], "draw": jax.random.normal(key, (3,)), "key": key, "none": None}

    found = eqx.filter_jit(reproducible(function))((jnp.int32(1), jnp.int32(2)), jax.random.key(0))
    assert int(found["sum"]) == 3
    assert found["none"] is None
    assert found["draw"].shape == (3,)


SIZES = (1, 2, 5, 40, 1000, 32_768, 40_000)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_total_hangs_on_no_order_and_no_zeros(n, scale):
    x = (RNG.normal(size=n) * scale).astype(np.float32)
    total = jax.jit(numerics.total)
    found = np.asarray(total(x))
    exact = math.fsum(x.astype(float))
    # Half a unit of 2^-30 of the largest for each, and the rounding of the result.
    assert abs(float(found) - exact) <= n * 2**-30 * np.abs(x).max() + 2**-23 * abs(exact)
    np.testing.assert_array_equal(found, total(RNG.permutation(x)))
    np.testing.assert_array_equal(found, total(np.concatenate([x, np.zeros(max(SIZES) - n, np.float32)])))
    np.testing.assert_array_equal(found, jax.jit(jax.vmap(numerics.total))(np.stack([x, x[::-1]]))[1])


def test_a_total_of_what_is_not_finite():
    values = {(1.0, np.inf): np.inf, (np.nan, 1.0): np.nan, (np.inf, -np.inf): np.nan, (0.0, 0.0): 0.0}
    for x, expected in values.items():
        np.testing.assert_array_equal(numerics.total(jnp.asarray(x)), expected)
    assert numerics.total(jnp.zeros((0, 2))).shape == (2,)
    np.testing.assert_array_equal(jax.grad(lambda x: numerics.total(x) ** 2)(jnp.asarray([1.0, 2.0])), [6.0, 6.0])


@pytest.mark.parametrize(("function", "exact"), [(numerics.exp, np.exp), (numerics.log, np.log)])
def test_exponentials_and_logarithms(function, exact):
    x = np.concatenate([RNG.uniform(-87, 88, 20_000), RNG.uniform(-1, 1, 20_000)]).astype(np.float32)
    x = np.exp(x) if function is numerics.log else x
    expected = exact(x.astype(float))
    found = np.asarray(jax.jit(function)(x))
    assert np.max(np.abs(found - expected) / np.spacing(np.abs(expected).astype(np.float32))) <= 2.0
    edges = np.asarray([-np.inf, np.inf, np.nan, 0.0, 1.0, -1.0, -200.0, 200.0], np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(function(jnp.asarray(edges[:4])), exact(edges[:4]))
    slope = jax.grad(function)(jnp.float32(2.0))
    assert float(slope) == pytest.approx(float(exact(2.0)) if function is numerics.exp else 0.5, rel=1e-6)
