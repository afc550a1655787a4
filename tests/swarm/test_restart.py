"""Worlds that end are restarted some at a time: the same worlds whatever their number."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swarm
from swarm.simulation.restart import chunk_size, for_each_marked, rows, with_rows
from swarm.simulation.simulator import reset_ended

B = 5


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("marked", [[], [4], [0, 2, 3], [0, 1, 2, 3, 4]])
def test_each_marked_index_is_served_once_and_no_other(chunk, marked):
    mask = jnp.zeros(B, bool).at[jnp.asarray(marked, int)].set(True)

    def serve(index, carry):
        served, n_chunks = carry
        return with_rows(served, index, rows(served, index) + index + 1), n_chunks + 1

    served, n_chunks = jax.jit(lambda m: for_each_marked(serve, m, (jnp.zeros(B, int), 0), chunk))(mask)
    np.testing.assert_array_equal(served, [i + 1 if i in marked else 0 for i in range(B)])
    assert n_chunks == -(-len(marked) // chunk)


def test_a_chunk_has_as_many_worlds_as_pay_on_the_device():
    def worlds(n_worlds, n_numbers):
        return jax.ShapeDtypeStruct((n_worlds, n_numbers), jnp.float32)

    assert chunk_size(worlds(4096, 250), "cpu") < chunk_size(worlds(4096, 250), "cuda") == 1024
    assert chunk_size(worlds(16, 250), "cpu") == chunk_size(worlds(16, 250), "gpu") == 16
    # A large world is as much work as there need be, at some size on an accelerator, too.
    assert chunk_size(worlds(64, 50_000), "cpu") == 1
    assert chunk_size(worlds(64, 50_000), "tpu") == 64
    assert chunk_size(worlds(64, 10**8), "cuda") == 1
    assert chunk_size(worlds(1, 1), "cpu") == chunk_size(worlds(0, 1), "cpu") == 1


@pytest.fixture(scope="module")
def batch():
    """Spread is small; its worlds are drawn from several settings."""
    simulator = swarm.make("spread", {"population.agent.acceleration": {"uniform": [4.0, 6.0]}})
    keys = jax.random.split(jax.random.key(0), 2 * B)
    worlds, timesteps = jax.jit(jax.vmap(simulator.reset))(keys[:B])
    ended = jnp.asarray([True, False, True, True, False])
    return simulator, worlds, eqx.tree_at(lambda t: t.world_truncated, timesteps, ended), keys[B:]


def bits(tree):
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(tree)]


def test_the_new_worlds_are_the_same_bits_however_many_are_reset_at_once(batch):
    simulator, worlds, timesteps, keys = batch
    fresh, first = jax.jit(jax.vmap(simulator.reset))(keys)
    select = lambda new, old: jax.tree.map(  # noqa: E731
        lambda x, y: jnp.where(timesteps.ended.reshape(-1, *(1,) * (x.ndim - 1)), x, y), new, old
    )
    expected = select(fresh, worlds), select(first.observation, timesteps.observation)
    for chunk in (None, 1, 2):
        new, steps = jax.jit(lambda *x, chunk=chunk: reset_ended(simulator, *x, chunk))(worlds, timesteps, keys)
        for x, y in zip(bits((new, steps.observation)), bits(expected), strict=True):
            np.testing.assert_array_equal(x, y)


def test_the_device_that_a_program_is_compiled_for_decides_how_many(batch):
    simulator, *_ = batch
    n = 200
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), n))
    worlds, timesteps = jax.eval_shape(jax.vmap(simulator.reset), keys)
    traced = jax.jit(lambda *x: reset_ended(simulator, *x)[0]).trace(worlds, timesteps, keys)

    def at_once(platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return {int(x) for x in re.findall(r"dynamic_slice .*sizes = \[(\d+)\] : \(tensor<\d+xi32>", text)}

    whole = worlds, timesteps.observation
    assert at_once("cpu") == {chunk_size(whole, "cpu")}
    assert at_once("cuda") == {n}
    assert chunk_size(whole, "cpu") < n
