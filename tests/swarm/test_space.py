"""Displacements, and what happens at the edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swarm.core.rounding import rounded
from swarm.geometry.space import Open, Periodic, Walled, square_length

pytestmark = pytest.mark.optimised

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


def test_rounding_changes_no_number_and_no_gradient():
    numbers = np.asarray([0.0, -0.0, 1.5, -2e-38, 3e38, np.inf, -np.inf, np.nan, -np.nan], np.float32)
    same = np.asarray(jax.jit(rounded)(numbers))
    np.testing.assert_array_equal(same.view(np.int32), numbers.view(np.int32))
    np.testing.assert_array_equal(jax.vmap(jax.grad(rounded))(jnp.asarray(numbers[:5])), np.ones(5))


def test_sums_of_products_are_not_fused_whatever_the_compiler_knows_of_the_factors():
    def square(key):
        x, y = jax.random.uniform(key, (2, 1000), minval=-1.0)
        return x, y, square_length([x, y])

    x, y, total = (np.asarray(v) for v in jax.jit(square)(jax.random.key(0)))
    np.testing.assert_array_equal(total, x * x + y * y)


wrap = jax.jit(lambda p: BOX.confine(p, jnp.zeros_like(p))[0])


@given(hnp.arrays(np.float32, (N, 2), elements=st.floats(-20, 20, width=32)))
@fixed
def test_wrapped_positions_are_inside_the_box(position):
    wrapped = np.asarray(wrap(jnp.asarray(position)))
    assert ((wrapped >= 0) & (wrapped < SIZE)).all()
    turns = (wrapped.astype(float) - position) / SIZE
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-5)


# XLA flushes subnormal numbers to 0.
FAST = hnp.arrays(np.float32, (N, 2), elements=st.floats(-20, 20, width=32, allow_subnormal=False))
LOWER = np.asarray([-1.0, 2.0], np.float32)


def walled(restitution):
    return Walled(jnp.asarray(LOWER), jnp.asarray(SIZE), jnp.float32(restitution))


confine = jax.jit(lambda space, position, velocity: space.confine(position, velocity))


@given(FAST, FAST, st.sampled_from([0.0, 0.5, 1.0]))
@fixed
def test_walls_contain_and_give_no_energy(position, velocity, restitution):
    inside, after = (np.asarray(x) for x in confine(walled(restitution), jnp.asarray(position), jnp.asarray(velocity)))
    below, above = position < LOWER, position > LOWER + SIZE
    assert ((inside >= LOWER) & (inside <= LOWER + SIZE)).all()
    assert (np.abs(after) <= np.abs(velocity)).all()
    if restitution == 1.0:
        np.testing.assert_array_equal(np.abs(after), np.abs(velocity))
    # Who stayed inside feels nothing; at a wall nobody moves outward, and who came back already is not turned round.
    stayed = ~(below | above)
    np.testing.assert_array_equal(inside[stayed], position[stayed])
    np.testing.assert_array_equal(after[stayed], velocity[stayed])
    assert (after[below] >= 0).all()
    assert (after[above] <= 0).all()
    inward = (below & (velocity > 0)) | (above & (velocity < 0))
    np.testing.assert_array_equal(after[inward], velocity[inward])


@given(PLACES, hnp.arrays(np.float32, (N, 2), elements=st.integers(-16, 16).map(lambda i: i / 8)))
@fixed
def test_a_flight_between_reflecting_walls_is_a_straight_line_folded(start, velocity):
    space, n, dt = walled(1.0), 60, 0.25
    place, way = jnp.asarray(LOWER + start), jnp.asarray(velocity)
    for _ in range(n):
        place, way = confine(space, place + way * dt, way)
    # Mirrored at each wall, the box repeats with twice its size.
    straight = np.mod(start + velocity * n * dt, 2 * SIZE)
    folded = np.minimum(straight, 2 * SIZE - straight)
    np.testing.assert_allclose(np.asarray(place) - LOWER, folded, atol=1e-4)


ways = jax.jit(lambda space, a, b: space.displacement(a, b))


@given(FAST, FAST)
@fixed
def test_walled_and_open_ways_are_straight(a, b):
    for space in (walled(1.0), Open(jnp.asarray(LOWER), jnp.asarray(SIZE))):
        np.testing.assert_array_equal(ways(space, jnp.asarray(a), jnp.asarray(b)), b - a)


@given(FAST, FAST)
@fixed
def test_open_space_lets_pass(position, velocity):
    after = confine(Open(jnp.asarray(LOWER), jnp.asarray(SIZE)), jnp.asarray(position), jnp.asarray(velocity))
    np.testing.assert_array_equal(after, (position, velocity))
