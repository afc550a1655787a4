"""Neighbours against loops over pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swarm.geometry.space import Periodic
from swarm.neighbors.questions import AllPairs

pytestmark = pytest.mark.optimised

fixed = settings(deadline=None, derandomize=True, max_examples=40)

SIZE = np.asarray([5.0, 3.0], np.float32)
N = 6
# Multiples of 1/8 are exact, so that who stands exactly at the radius is no matter of rounding.
PLACES = hnp.arrays(np.float32, (N, 2), elements=st.integers(0, 23).map(lambda i: i / 8))


BOX = Periodic(jnp.zeros(2), jnp.asarray(SIZE))


def _pair(way, distance, mine, theirs):
    return jnp.stack([*way, distance, *theirs])


@jax.jit
def summed(position, values, alive, radius):
    return AllPairs(BOX, radius).find(position, alive).sum(_pair, values)


@given(PLACES, hnp.arrays(bool, (N,)), st.sampled_from([0.5, 1.5]))
@fixed
def test_sum_over_neighbours_is_the_loop_over_pairs(position, alive, radius):
    values = np.arange(1.0, N + 1, dtype=np.float32)[:, None]
    expected = np.zeros((N, 4))
    for i in range(N):
        for j in range(N):
            way = position[j] - position[i]
            way = way - SIZE * np.round(way / SIZE)
            distance = np.sqrt((way**2).sum())
            if i != j and alive[i] and alive[j] and distance < radius:
                expected[i] += [*way, distance, values[j, 0]]
    # The dead hold NaN: nobody may see it.
    garbled = np.where(alive[:, None], position, np.nan)
    found = summed(
        jnp.asarray(garbled),
        jnp.asarray(np.where(alive[:, None], values, np.nan)),
        jnp.asarray(alive),
        jnp.float32(radius),
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
