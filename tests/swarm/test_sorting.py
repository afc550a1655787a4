"""Packed orders against numpy's, with few bits and with all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.neighbors.sorting import NO_KEY, least_keys, sort_cells

N = 40
# Six bits hold a slot: then all of a cell's ten bits, parts of 5, 4 and 3 bits, and none, so that pairs are sorted.
BITS = [32, 16, 11, 10, 9, 7, 6, 3]


@pytest.mark.parametrize("bits", BITS)
def test_slots_come_in_the_order_of_their_cells_however_few_bits_there_are(bits):
    rng = np.random.default_rng(bits)
    for cell in (rng.integers(0, 1024, N), rng.integers(0, 5, N), np.full(N, 1023), np.arange(N)[::-1] * 20):
        order, cells = sort_cells(jnp.asarray(cell, jnp.int32), 1023, bits)
        expected = np.argsort(cell, kind="stable")
        np.testing.assert_array_equal(order, expected)
        np.testing.assert_array_equal(cells, cell[expected])


# So many slots, and cells: of flocks of 1 to 64 million, of a crowd in one cell, and the most that 32 bits can count.
SIZES = [(2**20, 2**21), (2**21, 2**22), (2**22, 2**23), (2**24, 2**25), (2**26, 2**27), (2**31 - 1, 1), (2**27, 2**30)]


@pytest.mark.parametrize(("n", "n_cells"), SIZES)
def test_no_packed_number_needs_more_than_32_bits(n, n_cells):
    """The largest of each sort, by the program that would run; nothing of the size is made."""
    jaxpr = jax.make_jaxpr(lambda cell: sort_cells(cell, n_cells))(jax.ShapeDtypeStruct((n,), jnp.int32))
    equations, slot_bits = jaxpr.jaxpr.eqns, (n - 1).bit_length()
    shifts = [int(e.invars[1].val) for e in equations if e.primitive.name == "shift_left"]
    n_sorts, packs = sum(e.primitive.name == "sort" for e in equations), len(shifts)
    assert packs in (0, n_sorts)
    if packs:
        assert set(shifts) == {slot_bits}
        assert slot_bits + -(-n_cells.bit_length() // packs) <= 32
    else:
        assert n_sorts == 1


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_least_keys_are_numpys(k):
    rng = np.random.default_rng(k)
    keys = rng.permutation(2**12)[: 10 * 6].astype(np.uint32).reshape(10, 2, 3)
    keys[rng.uniform(size=keys.shape) < 0.4] = NO_KEY
    found = jax.jit(lambda x: least_keys(k, x))(keys)
    np.testing.assert_array_equal(found, np.sort(keys, axis=0)[:k])
