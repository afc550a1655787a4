"""Displacements, and what happens at the edge."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swarm.space import Periodic

fixed = settings(deadline=None, derandomize=True, max_examples=40)
SIZE = np.asarray([5.0, 3.0], np.float32)
N = 6
# Multiples of 1/8 are exact, so that who stands exactly at the radius is no matter of rounding.
PLACES = hnp.arrays(np.float32, (N, 2), elements=st.integers(0, 23).map(lambda i: i / 8))
BOX = Periodic(jnp.zeros(2), jnp.asarray(SIZE))

displacement = jax.jit(lambda a, b: BOX.displacement(a, b))


@given(PLACES, PLACES)
@fixed
def test_displacement_is_the_shortest_of_all_ways_round(a, b):
    images = np.stack([b - a + SIZE * np.asarray([i, j]) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    shortest = np.linalg.norm(images, axis=-1).min(axis=0)
    way = np.asarray(displacement(jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_allclose(np.linalg.norm(way, axis=-1), shortest, atol=1e-5)
    # It leads to b, up to whole turns.
    turns = (a + way - b) / SIZE
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-5)


wrap = jax.jit(lambda p: BOX.confine(p, jnp.zeros_like(p))[0])


@given(hnp.arrays(np.float32, (N, 2), elements=st.floats(-20, 20, width=32)))
@fixed
def test_wrapped_positions_are_inside_the_box(position):
    wrapped = np.asarray(wrap(jnp.asarray(position)))
    assert ((wrapped >= 0) & (wrapped < SIZE)).all()
    turns = (wrapped.astype(float) - position) / SIZE
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-5)
