"""Neighbours by a grid of cells: a cost that grows with the number of entities, not with its square.

Entities are sorted by cell, so that the cells of one row (along the first axis) lie side by side. `block` entities that
follow each other in a row share a list of candidates: for each of the 3^(d-1) rows around theirs, the run of cells that
reaches a radius beyond the block's first and last. Blocks and their candidates are dense arrays, and the work is a loop
over candidates whose every step handles all entities at once. (Candidate lists per cell would be padded to the fullest
cell twice, for those who look and for those who are seen; here only the list itself is padded.)
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from swarm.neighbors import AbstractNeighborSearch, Among, Nearest, Neighbors, Pair
from swarm.space import AbstractSpace, length

# Along the first axis cells are half as wide as along the others, which shortens the lists.
REACH = 2
_UNROLL = 16
_NOBODY = np.uint32(0xFFFFFFFF)


class CellGrid(AbstractNeighborSearch):
    """Sorts entities into cells at least as wide as the radius.

    Attributes:
        space: measures displacements. Cells repeat beyond its box, so that any position is right, if slower.
        radius: neighbours are nearer than this; metres. May be lowered by value; beyond the cells' width it overflows.
        cells: number of cells along each axis; at least a radius wide, half of it along the first axis.
        window: candidates that a block of entities can have; too few are flagged as overflow.
        block: entities that share a list of candidates.
    """

    space: AbstractSpace
    radius: Float[Array, ""]
    cells: tuple[int, ...] = eqx.field(static=True)
    window: int = eqx.field(static=True)
    block: int = eqx.field(static=True, default=8)

    def find(self, position: Float[Array, "n d"], alive: Bool[Array, " n"]) -> "CellGridNeighbors":
        """Sort, and list the candidates of each block."""
        cell = jnp.where(alive, self._cell(position), self.n_cells)
        order, sorted_cell = _sort(cell, self.n_cells)
        count = jax.ops.segment_sum(jnp.ones_like(cell), cell, self.n_cells + 1)[:-1]
        start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(count, dtype=jnp.int32)])
        blocks = self._blocks(start, sorted_cell)
        candidate, n_candidates, own = self._candidates(start, sorted_cell, blocks)
        reach = self.space.size / np.asarray(self.cells) * np.asarray([REACH] + [1] * (len(self.cells) - 1))
        overflow = jnp.any(n_candidates > self.window) | jnp.any(self.radius > reach)
        return CellGridNeighbors(
            overflow=overflow,
            search=self,
            alive=alive,
            order=order,
            position=position[order],
            member=blocks.member,
            own=own,
            candidate=candidate,
            n_candidates=n_candidates,
            place=jnp.zeros_like(order).at[order].set(blocks.place),
        )

    @property
    def n_cells(self) -> int:
        """Cells in all."""
        return int(np.prod(self.cells))

    @property
    def n_rows(self) -> int:
        """Rows of cells along the first axis."""
        return self.n_cells // self.cells[0]

    def _cell(self, position: Float[Array, "n d"]) -> Int[Array, " n"]:
        """Cell of each entity, the first axis fastest."""
        cell = jnp.zeros(position.shape[0], jnp.int32)
        for axis in reversed(range(len(self.cells))):
            turns = (position[:, axis] - self.space.lower[axis]) / self.space.size[axis]
            place = ((turns - jnp.floor(turns)) * self.cells[axis]).astype(jnp.int32)
            cell = cell * self.cells[axis] + jnp.clip(place, 0, self.cells[axis] - 1)
        return cell

    def _blocks(self, start: Int[Array, " c"], sorted_cell: Int[Array, " n"]) -> "_Blocks":
        """Cut each row into blocks; as many as there could ever be."""
        n, n_rows, size = sorted_cell.shape[0], self.n_rows, self.block
        row_start = start[:: self.cells[0]]
        blocks_before = jnp.cumsum((row_start[1:] - row_start[:-1] + size - 1) // size, dtype=jnp.int32)
        blocks_before = jnp.concatenate([jnp.zeros(1, jnp.int32), blocks_before])
        number = jnp.arange(-(-n // size) + n_rows, dtype=jnp.int32)
        # A row begins where its first block does; rows without entities have none, hence the maximum.
        begins = jnp.where(blocks_before[1:] > blocks_before[:-1], blocks_before[:-1], number.shape[0])
        row = jnp.zeros_like(number).at[begins].max(jnp.arange(n_rows, dtype=jnp.int32), mode="drop")
        row = jax.lax.cummax(row)
        first = row_start[row] + (number - blocks_before[row]) * size
        end = jnp.minimum(first + size, row_start[row + 1])
        used = number < blocks_before[-1]
        first, end = jnp.where(used, first, 0), jnp.where(used, end, 0)
        member = first[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
        own_row = jnp.minimum(sorted_cell // self.cells[0], n_rows - 1)
        place = blocks_before[own_row] * size + jnp.arange(n, dtype=jnp.int32) - row_start[own_row]
        return _Blocks(row, first, end, jnp.minimum(member, n - 1), jnp.minimum(place, number.shape[0] * size - 1))

    def _candidates(
        self, start: Int[Array, " c"], sorted_cell: Int[Array, " n"], blocks: "_Blocks"
    ) -> tuple[Int[Array, "w b"], Int[Array, " b"], Int[Array, "b m"]]:
        """List the candidates of each block as ranks, and say how many they are and which ones are the members."""
        width, n = self.cells[0], sorted_cell.shape[0]
        from_cell = sorted_cell[jnp.minimum(blocks.first, n - 1)] % width - REACH
        to_cell = sorted_cell[jnp.maximum(blocks.end - 1, 0)] % width + REACH
        wanted = jnp.arange(self.window, dtype=jnp.int32)[:, None]
        candidate = jnp.zeros((self.window, blocks.row.shape[0]), jnp.int32)
        before, own = jnp.zeros_like(blocks.row), None
        for row in self._rows_around(blocks.row):
            row_start, row_end = start[row * width], start[(row + 1) * width]
            begin = start[row * width + from_cell % width]
            # Cells left of the first or right of the last are those at the other end of the row.
            end = start[row * width + to_cell % width + 1]
            wraps = (from_cell < 0) | (to_cell >= width)
            whole = to_cell - from_cell + 1 >= width
            count = jnp.where(whole, row_end - row_start, end - begin + jnp.where(wraps, row_end - row_start, 0))
            count = jnp.where(blocks.end > blocks.first, count, 0)
            rank = begin[None] + wanted - before[None]
            rank = jnp.where(rank >= row_end[None], rank - (row_end - row_start)[None], rank)
            candidate = jnp.where(wanted >= before[None], rank, candidate)
            before = before + count
            if own is None:  # the members' own row comes first
                own = blocks.member - begin[:, None]
                own = jnp.where(own < 0, own + (row_end - row_start)[:, None], own)
        assert own is not None
        return jnp.clip(candidate, 0, n - 1), before, own

    def _rows_around(self, row: Int[Array, " b"]) -> list[Int[Array, " b"]]:
        """The row itself, then those beside it, each once, also where there are fewer than three along an axis."""
        rows, stride = [row], 1
        for n_along in self.cells[1:]:
            along = row // stride % n_along
            steps = (0, -1, 1) if n_along >= 3 else tuple(range(n_along))
            rows = [r + ((along + step) % n_along - along) * stride for r in rows for step in steps]
            stride *= n_along
        return rows


class _Blocks(NamedTuple):
    """Row, first rank and rank after the last of each block; its members; the place of each rank among them."""

    row: Int[Array, " b"]
    first: Int[Array, " b"]
    end: Int[Array, " b"]
    member: Int[Array, "b m"]
    place: Int[Array, " n"]


class CellGridNeighbors(Neighbors):
    """The sorted population; ranks are places in the sorted order.

    Attributes:
        overflow: whether some block has more candidates than the window holds, or the radius is wider than a cell.
        search: the grid.
        alive: by slot.
        order: slot of each rank.
        position: of each rank.
        member: ranks of each block's members.
        own: their numbers among the candidates.
        candidate: ranks of each block's candidates.
        n_candidates: how many of them there are.
        place: where each slot stands among the members of all blocks.
    """

    overflow: Bool[Array, ""]
    search: CellGrid
    alive: Bool[Array, " n"]
    order: Int[Array, " n"]
    position: Float[Array, "n d"]
    member: Int[Array, "b m"]
    own: Int[Array, "b m"]
    candidate: Int[Array, "w b"]
    n_candidates: Int[Array, " b"]
    place: Int[Array, " n"]

    def sum(self, pair: Pair, values: Float[Array, "n v"], among: Among | None = None) -> Float[Array, "n o"]:
        """Loop over candidates, all blocks at once."""
        return jnp.where(self.alive[:, None], self._fold(pair, values, among, jnp.add, 0.0), 0.0)

    def min(self, pair: Pair, values: Float[Array, "n v"], among: Among | None = None) -> Float[Array, "n o"]:
        """Loop over candidates, all blocks at once."""
        return jnp.where(self.alive[:, None], self._fold(pair, values, among, jnp.minimum, jnp.inf), jnp.inf)

    def _fold(
        self,
        pair: Pair,
        values: Float[Array, "n v"],
        among: Among | None,
        operation: Callable[[Array, Array], Array],
        neutral: float,
    ) -> Float[Array, "n o"]:
        shown = jnp.where(self.alive[:, None], values, 0.0)[self.order]
        n_dimensions = self.position.shape[1]
        number = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        row = number((shown.shape[1],))
        n_outputs = jax.eval_shape(pair, number((n_dimensions,)), number(()), row, row).shape[0]

        # Components one by one, in and out: loops over stacked ones do not vectorise.
        def outputs(ways: list[Array], distance: Array, mine: list[Array], theirs: Array) -> list[Array]:
            found = pair(jnp.stack(ways), distance, jnp.stack(mine) if mine else theirs, theirs)
            return [found[i] for i in range(n_outputs)]

        over_blocks = jax.vmap(jax.vmap(outputs, in_axes=(0, 0, 0, None)))
        mine = [column[self.member] for column in shown.T]

        def add(totals: list[Array], candidate: _Candidate) -> tuple[list[Array], None]:
            near, ways, square = self._look(candidate, among)
            terms = over_blocks(ways, _root(square), mine, candidate.row[:, n_dimensions:])
            chosen = [jnp.where(near, term, neutral) for term in terms]
            return [operation(total, term) for total, term in zip(totals, chosen, strict=True)], None

        start = [jnp.full(self.member.shape, neutral)] * n_outputs
        totals, _ = jax.lax.scan(add, start, self._listed(shown, among), unroll=_UNROLL)
        return jnp.stack([total.ravel() for total in totals], axis=1)[self.place]

    def nearest(self, k: int, among: Among | None = None) -> Nearest:
        """Find the nearest of all candidates, then the nearest of those that come after it, and so on.

        Squared distances in 32 - b bits and the candidate's number in the b others make one integer to minimise, which
        is exact to the rounding of a float at the radius.
        """
        bits = max(1, (self.search.window - 1).bit_length())
        nobody = jnp.full(self.member.shape, _NOBODY)
        scale = 2.0 ** (32 - bits) / jnp.square(self.search.radius)
        largest = np.nextafter(np.float32(2.0 ** (32 - bits)), np.float32(0.0))
        listed = self._listed(self.position[:, :0], among)

        def next_nearest(bound: Array, _: None) -> tuple[Array, Array]:
            """The least key that is not below a bound, and the bound above it."""

            def closer(best: Array, candidate: _Candidate) -> tuple[Array, None]:
                near, _, square = self._look(candidate, among)
                rounded = jnp.minimum(square * scale, largest).astype(jnp.uint32)
                key = jnp.where(near, (rounded << bits) | candidate.number.astype(jnp.uint32), nobody)
                return jnp.minimum(best, jnp.where(key >= bound, key, nobody)), None

            best, _ = jax.lax.scan(closer, nobody, listed, unroll=_UNROLL)
            return jnp.where(best == _NOBODY, nobody, best + 1), best

        _, keys = jax.lax.scan(next_nearest, jnp.zeros(self.member.shape, jnp.uint32), None, length=k)
        key = keys.reshape(k, -1)[:, self.place].T
        return self._decode(key, bits)

    def _decode(self, key: UInt[Array, "n k"], bits: int) -> Nearest:
        valid = (key != _NOBODY) & self.alive[:, None]
        number = jnp.where(valid, key & np.uint32((1 << bits) - 1), 0).astype(jnp.int32)
        rank = self.candidate[number, (self.place // self.member.shape[1])[:, None]]
        here = jnp.zeros_like(self.position).at[self.order].set(self.position)
        space, there = self.search.space, self.position[rank]
        ways = [space.shortest(there[..., a] - here[:, None, a], a) for a in range(here.shape[1])]
        ways = [jnp.where(valid, way, 0.0) for way in ways]
        return Nearest(jnp.where(valid, self.order[rank], -1), length(ways), jnp.stack(ways, axis=-1))

    def _listed(self, shown: Float[Array, "n v"], among: Among | None) -> "_Candidate":
        """Gather what each block's candidates show, once for all members."""
        rows = jnp.concatenate([self.position, shown], axis=1)[self.candidate]
        number = jnp.arange(self.candidate.shape[0], dtype=jnp.int32)
        listed = number[:, None] < self.n_candidates[None]
        label = among.label[self.order][self.candidate] if among is not None else None
        return _Candidate(number, jnp.where(listed, jnp.square(self.search.radius), -1.0), rows, label)

    def _look(
        self, candidate: "_Candidate", among: Among | None
    ) -> tuple[Bool[Array, "b m"], list[Float[Array, "b m"]], Float[Array, "b m"]]:
        """Whether a candidate is a neighbour of each member, the way to it by axis, and its squared length."""
        space = self.search.space
        here = [column[self.member] for column in self.position.T]
        ways = [space.shortest(candidate.row[:, None, axis] - mine, axis) for axis, mine in enumerate(here)]
        square = sum((jnp.square(way) for way in ways[1:]), start=jnp.square(ways[0]))
        near = (square < candidate.limit[:, None]) & (self.own != candidate.number)
        if among is not None and candidate.label is not None:
            near = near & among.allows(among.label[self.order][self.member], candidate.label[:, None])
        return near, ways, square


class _Candidate(NamedTuple):
    """One candidate of each block.

    Attributes:
        number: in the list.
        limit: squared distance below which it counts; negative where the list has ended.
        row: its position and values.
        label: as in `Among`.
    """

    number: Int[Array, "*w"]
    limit: Float[Array, "*w b"]
    row: Float[Array, "*w b v"]
    label: Int[Array, "*w b"] | None


def _root(square: Float[Array, "b m"]) -> Float[Array, "b m"]:
    """Square root with gradient 0 at 0."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _sort(cell: Int[Array, " n"], n_cells: int) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Slots in the order of their cells, then of themselves; and the cells in that order.

    One packed integer sorts five times faster than a pair on CPU; where it has too few bits, the lower half of the
    cell's number goes first.
    """
    n = cell.shape[0]
    slot_bits = max(1, (n - 1).bit_length())
    slot, mask = jnp.arange(n, dtype=jnp.uint32), np.uint32((1 << slot_bits) - 1)
    if slot_bits + n_cells.bit_length() <= 32:
        packed = jax.lax.sort((cell.astype(jnp.uint32) << slot_bits) | slot, is_stable=False)
        return (packed & mask).astype(jnp.int32), (packed >> slot_bits).astype(jnp.int32)
    low_bits = -(-n_cells.bit_length() // 2)
    low = (cell & ((1 << low_bits) - 1)).astype(jnp.uint32)
    first = (jax.lax.sort((low << slot_bits) | slot, is_stable=False) & mask).astype(jnp.int32)
    high = (cell >> low_bits)[first].astype(jnp.uint32)
    second = (jax.lax.sort((high << slot_bits) | slot, is_stable=False) & mask).astype(jnp.int32)
    order = first[second]
    return order, cell[order]
