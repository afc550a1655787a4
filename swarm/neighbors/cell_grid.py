"""Neighbours by a grid of cells: a cost that grows with the number of entities, not with its square.

Entities are sorted by cell, so that the cells of one row (along the first axis) lie side by side. `block` entities that
follow each other in a row share a list of candidates: for each of the 3^(d-1) rows around theirs, the run of cells that
reaches a radius beyond the block's first and last. The work is a loop over candidates whose every step handles many
blocks at once; what one step handles is dense, so only the ends of lists are padding. Blocks are sorted by the length
of their lists: all of them take part in the first steps, a quarter in the next, a sixteenth in the last, so that a
crowd somewhere does not cost everywhere.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from swarm.core.platforms import by_platform
from swarm.core.rounding import root
from swarm.geometry.space import AbstractSpace, length, square_length
from swarm.neighbors.questions import AbstractNeighborSearch, Among, Nearest, Neighbors, Pair
from swarm.neighbors.sorting import NO_KEY, least_keys, sort_cells

# Along the first axis cells are half as wide as along the others, which shortens the lists.
REACH = 2
_UNROLL = 4
# Candidates that a step of the search for the nearest handles at once, and for how many blocks. On a CPU what it looks
# at again and again stays in the cache; an accelerator wants half a million entities to be busy. More would take memory
# (a kilobyte a block, some times over), and every block waits for the longest list of its part.
_CHUNK = 32
_PARTS = {"cpu": 192, "accelerator": 2**16}
# Of a key of the nearest: for the squared distance, in units of the squared radius, and for the number of a candidate.
_DISTANCE_BITS = 23
_NUMBER_BITS = 9


class CellGrid(AbstractNeighborSearch):
    """Sorts entities into cells at least as wide as the radius.

    Attributes:
        space: measures displacements. Cells repeat beyond its box, so that any position is right, if slower.
        radius: neighbours are nearer than this; metres. May be lowered by value; beyond the cells' width it overflows.
        cells: number of cells along each axis; at least a radius wide, half of it along the first axis.
        windows: candidates for which all blocks have room, how many more a quarter of them, and a sixteenth.
        block: entities that share a list of candidates.
        part: blocks for which the nearest are sought at once; None: what suits the device. It changes no result.
    """

    space: AbstractSpace
    radius: Float[Array, ""]
    cells: tuple[int, ...] = eqx.field(static=True)
    windows: tuple[int, ...] = eqx.field(static=True)
    block: int = eqx.field(static=True, default=8)
    part: int | None = eqx.field(static=True, default=None)

    def find(
        self, position: Float[Array, "n d"], alive: Bool[Array, " n"], among: Among | None = None
    ) -> "CellGridNeighbors":
        """Sort, and list the candidates of each block."""
        n_layers, layer, rest = 1, jnp.zeros(position.shape[0], jnp.int32), among
        if among is not None and among.n_labels is not None and among.n_labels * self.n_cells < 2**31:
            n_layers, layer, rest = among.n_labels, among.label, None
            alive = alive & (layer >= 0) & (layer < n_layers)
        across = among is not None and rest is None and not among.same
        layers = list(range(1, n_layers)) if across else [0]
        cell = jnp.where(alive, layer * self.n_cells + self._cell(position), n_layers * self.n_cells)
        order, sorted_cell = sort_cells(cell, n_layers * self.n_cells)
        count = jax.ops.segment_sum(jnp.ones_like(cell), cell, n_layers * self.n_cells + 1)[:-1]
        start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(count, dtype=jnp.int32)])
        blocks = self._blocks(start, sorted_cell)
        runs = self._runs(start, sorted_cell, blocks, layers, n_layers)
        member, n_candidates, runs, by_length = _longest_first(blocks, runs)
        own = jnp.full_like(member, -1)
        if layers == [0]:  # the members' own row is the first run
            own = member - runs.begin[0][:, None]
            own = jnp.where(own < 0, own + (runs.row_end[0] - runs.row_start[0])[:, None], own)
        tiers = self._tiers(runs, position.shape[0])
        too_wide = jnp.any(self.radius > self._reach())
        return CellGridNeighbors(
            overflow=too_wide | self._overflows(n_candidates),
            search=self,
            among=rest,
            alive=alive,
            order=order,
            # What the dead hold must not reach gradients.
            position=jnp.where(alive[:, None], position, 0.0)[order],
            member=member,
            own=own,
            tiers=tiers,
            runs=runs,
            n_candidates=n_candidates,
            place=jnp.zeros_like(order).at[order].set(by_length[blocks.number] * self.block + blocks.lane),
        )

    @property
    def n_cells(self) -> int:
        """Cells in all."""
        return int(np.prod(self.cells))

    @property
    def n_rows(self) -> int:
        """Rows of cells along the first axis."""
        return self.n_cells // self.cells[0]

    def _reach(self) -> Float[Array, " d"]:
        """The widest radius for which the cells are right."""
        cells = np.asarray([self.cells[0] / REACH, *self.cells[1:]], np.float32)
        return self.space.size / cells

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
        n, size, width = sorted_cell.shape[0], self.block, self.cells[0]
        row_start = start[::width]
        n_rows = row_start.shape[0] - 1
        n_blocks = -(-n // size) + n_rows
        blocks_before = jnp.cumsum((row_start[1:] - row_start[:-1] + size - 1) // size, dtype=jnp.int32)
        blocks_before = jnp.concatenate([jnp.zeros(1, jnp.int32), blocks_before])
        number = jnp.arange(n_blocks, dtype=jnp.int32)
        # A row begins where its first block does; rows without entities have none.
        begins = jnp.where(blocks_before[1:] > blocks_before[:-1], blocks_before[:-1], number.shape[0])
        row = jnp.zeros_like(number).at[begins].max(jnp.arange(n_rows, dtype=jnp.int32), mode="drop")
        row = jax.lax.cummax(row)
        first = row_start[row] + (number - blocks_before[row]) * size
        end = jnp.minimum(first + size, row_start[row + 1])
        used = number < blocks_before[-1]
        first, end = jnp.where(used, first, 0), jnp.where(used, end, 0)
        member = jnp.minimum(first[:, None] + jnp.arange(size, dtype=jnp.int32)[None], n - 1)
        own_row = jnp.minimum(sorted_cell // width, n_rows - 1)
        along = jnp.arange(n, dtype=jnp.int32) - row_start[own_row]
        # The dead, sorted last, stand anywhere.
        block = jnp.minimum(blocks_before[own_row] + along // size, number.shape[0] - 1)
        return _Blocks(row, first, end, member, block, along % size)

    def _runs(
        self,
        start: Int[Array, " c"],
        sorted_cell: Int[Array, " n"],
        blocks: "_Blocks",
        layers: list[int],
        n_layers: int,
    ) -> "_Runs":
        """The runs of candidates of each block, as ranks: one in each row around it, in each layer that counts."""
        width, n = self.cells[0], sorted_cell.shape[0]
        from_cell = sorted_cell[jnp.minimum(blocks.first, n - 1)] % width - REACH
        to_cell = sorted_cell[jnp.maximum(blocks.end - 1, 0)] % width + REACH
        wraps = (from_cell < 0) | (to_cell >= width)
        whole = to_cell - from_cell + 1 >= width
        runs = []
        for row in self._rows_around(blocks.row, layers, n_layers):
            row_start, row_end = start[row * width], start[(row + 1) * width]
            begin, end = start[row * width + from_cell % width], start[row * width + to_cell % width + 1]
            # Cells left of the first or right of the last are those at the other end of the row.
            count = jnp.where(wraps, end - begin + row_end - row_start, end - begin)
            count = jnp.where(whole, row_end - row_start, count)
            runs.append(_Runs(begin, jnp.where(blocks.end > blocks.first, count, 0), row_start, row_end))
        return jax.tree.map(lambda *parts: jnp.stack(parts), *runs)

    def _rows_around(self, row: Int[Array, " b"], layers: list[int], n_layers: int) -> list[Int[Array, " b"]]:
        """The row itself, then those beside it, each once, also where there are fewer than three along an axis."""
        layer, row = row // self.n_rows, row % self.n_rows
        rows, stride = [row], 1
        for n_along in self.cells[1:]:
            along = row // stride % n_along
            steps = (0, -1, 1) if n_along >= 3 else tuple(range(n_along))
            rows = [r + ((along + step) % n_along - along) * stride for r in rows for step in steps]
            stride *= n_along
        return [r + (layer + step) % n_layers * self.n_rows for step in layers for r in rows]

    def _sizes(self, n_blocks: int) -> list[int]:
        """How many blocks take part in each tier."""
        return [max(1, -(-n_blocks // 4**tier)) for tier in range(len(self.windows))]

    def _tiers(self, runs: "_Runs", n: int) -> tuple[Int[Array, "_ _"], ...]:
        """Candidates of the blocks in each tier, as ranks; beyond the end of a list, anybody."""
        tiers, done = [], 0
        for window, size in zip(self.windows, self._sizes(runs.length.shape[1]), strict=True):
            number = done + jnp.arange(window, dtype=jnp.int32)[:, None]
            tiers.append(_Runs(*[x[:, None, :size] for x in runs]).rank(number, n))
            done += window
        return tuple(tiers)

    def _overflows(self, n_candidates: Int[Array, " b"]) -> Bool[Array, ""]:
        """Whether a list is longer than its tiers allow; lists come in descending order of length."""
        n_blocks = n_candidates.shape[0]
        # The longest list that takes part in each tier and not in the next.
        first = [*self._sizes(n_blocks)[1:], 0]
        longest = [n_candidates[i] if i < n_blocks else jnp.int32(0) for i in first]
        return jnp.any(jnp.stack(longest) > np.cumsum(self.windows))


class _Blocks(NamedTuple):
    """Row, first rank, rank after the last, and ranks of the members of each block; block and lane of each rank."""

    row: Int[Array, " b"]
    first: Int[Array, " b"]
    end: Int[Array, " b"]
    member: Int[Array, "b m"]
    number: Int[Array, " n"]
    lane: Int[Array, " n"]


class _Runs(NamedTuple):
    """Runs of candidates: the rank that each begins at, its length, and the ranks between which it wraps around."""

    begin: Int[Array, "*r b"]
    length: Int[Array, "*r b"]
    row_start: Int[Array, "*r b"]
    row_end: Int[Array, "*r b"]

    def rank(self, number: Int[Array, "..."], n: int) -> Int[Array, "..."]:
        """Ranks, of n, of the candidates of some numbers; beyond the end of a list, anybody."""
        rank, before = number, 0
        for begin, count, row_start, row_end in zip(*self, strict=True):
            here = begin + number - before
            here = jnp.where(here >= row_end, here - (row_end - row_start), here)
            rank = jnp.where(number >= before, here, rank)
            before = before + count
        return jnp.clip(rank, 0, n - 1)


def _longest_first(blocks: _Blocks, runs: _Runs) -> tuple[Int[Array, "b m"], Int[Array, " b"], _Runs, Int[Array, " b"]]:
    """Members, list lengths and runs of the blocks in descending order of length, and the new place of each block."""
    n_candidates = jnp.sum(runs.length, axis=0, dtype=jnp.int32)
    n_blocks = n_candidates.shape[0]
    order, _ = sort_cells(jnp.max(n_candidates) - n_candidates, blocks.number.shape[0])
    place = jnp.zeros(n_blocks, jnp.int32).at[order].set(jnp.arange(n_blocks, dtype=jnp.int32))
    return blocks.member[order], n_candidates[order], _Runs(*(x[:, order] for x in runs)), place


class CellGridNeighbors(Neighbors):
    """The sorted population; ranks are places in the sorted order.

    Attributes:
        overflow: whether a list of candidates has no room, or the radius is wider than a cell.
        search: the grid.
        among: restriction that the lists do not follow already.
        alive: by slot, those who count.
        order: slot of each rank.
        position: of each rank.
        member: ranks of each block's members; blocks by descending length of their lists.
        own: their numbers among the candidates; -1: not among them.
        tiers: ranks of the candidates, of all blocks, of the first quarter, and so on.
        runs: where they come from.
        n_candidates: how many each block has.
        place: where each slot stands among the members of all blocks.
    """

    overflow: Bool[Array, ""]
    search: CellGrid
    among: Among | None
    alive: Bool[Array, " n"]
    order: Int[Array, " n"]
    position: Float[Array, "n d"]
    member: Int[Array, "b m"]
    own: Int[Array, "b m"]
    tiers: tuple[Int[Array, "_ _"], ...]
    runs: "_Runs"
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

        def add(totals: list[Array], seen: _Seen) -> list[Array]:
            mine = [column[self.member[: seen.near.shape[0]]] for column in shown.T]
            terms = over_blocks(seen.ways, root(seen.square), mine, seen.theirs)
            chosen = [jnp.where(seen.near, term, neutral) for term in terms]
            return [operation(total, term) for total, term in zip(totals, chosen, strict=True)]

        start = [jnp.full(self.member.shape, neutral)] * n_outputs
        totals = self._over_candidates(add, start, self._listed(shown, among), among)
        return jnp.stack([total.ravel() for total in totals], axis=1)[self.place]

    def _over_candidates(
        self,
        operation: Callable[[list[Array], "_Seen"], list[Array]],
        carry: list[Array],
        listed: list["_Candidate"],
        among: Among | None,
    ) -> list[Array]:
        """Fold an operation over the candidates of all blocks, tier by tier; carries are [b, m]."""
        for tier in listed:
            size = tier.row.shape[1]

            def body(part: list[Array], candidate: _Candidate) -> tuple[list[Array], None]:
                return operation(part, self._look(candidate, among)), None

            part, _ = jax.lax.scan(body, [x[:size] for x in carry], tier, unroll=_UNROLL)
            carry = [jnp.concatenate([new, old[size:]]) for new, old in zip(part, carry, strict=True)]
        return carry

    def nearest(self, k: int, among: Among | None = None) -> Nearest:
        """Loop over chunks of candidates, for many blocks at once, and keep the least keys.

        A key is the squared distance, rounded to 2^-23 of the radius's square (two floats at the radius), beside the
        number of the candidate. So neither the room for candidates nor the parts that blocks are in change the result.
        """
        if self.search.part is not None:
            return self._decode(self._nearest(k, among, self.search.part))
        return self._decode(by_platform(lambda platform: self._nearest(k, among, _PARTS[platform])))

    def _nearest(self, k: int, among: Among | None, most_blocks: int) -> Int[Array, "n k"]:
        """Numbers of the nearest among each slot's candidates; -1: none. So many blocks are handled at once."""
        held, n_blocks = jax.lax.stop_gradient(self), self.member.shape[0]
        n_parts = -(-n_blocks // most_blocks)
        n_listed = jnp.minimum(self.n_candidates, sum(self.search.windows))
        runs = _Runs(*[jnp.moveaxis(x, 1, 0) for x in self.runs])

        def least(blocks: tuple[Array, Array, Array, _Runs]) -> Int[Array, "k b m"]:
            member, own, n_candidates, runs = blocks
            mine = (member, own, n_candidates, _Runs(*[x.T for x in runs]))
            return eqx.tree_at(lambda s: (s.member, s.own, s.n_candidates, s.runs), held, mine)._least(k, among)

        def parts(x: Array) -> Array:
            padded = jnp.pad(x, ((0, -n_blocks % n_parts), *((0, 0),) * (x.ndim - 1)))
            return padded.reshape(n_parts, -1, *x.shape[1:])

        blocks = jax.tree.map(parts, (self.member, self.own, n_listed, runs))
        return jnp.moveaxis(jax.lax.map(least, blocks), 1, 3).reshape(-1, k)[self.place]

    def _least(self, k: int, among: Among | None) -> Int[Array, "k b m"]:
        """Numbers of the nearest candidates of each member; -1: none.

        A key has few bits for a number, so longer lists are read in rounds. In each, those found before it have the
        numbers from 0 to k, and its own candidates those from k on, so that their order stays.
        """
        bits = max(_NUMBER_BITS, (k + _CHUNK - 1).bit_length())
        per_round = ((1 << bits) - k) // _CHUNK
        # Lists come in descending order of length.
        n_chunks = (self.n_candidates[0] + _CHUNK - 1) // _CHUNK

        def look(first: Array | int, found: UInt[Array, "k b m"]) -> tuple[UInt[Array, "k b m"], Int[Array, "k b m"]]:
            def body(i: Array, found: Array) -> Array:
                offset = k - first * _CHUNK
                return least_keys(k, jnp.concatenate([found, self._keys(i * _CHUNK, offset, bits, among)]))

            found = jax.lax.fori_loop(first, jnp.minimum(first + per_round, n_chunks), body, found)
            return found, (found & np.uint32((1 << bits) - 1)).astype(jnp.int32)

        nobody = jnp.full((k, *self.member.shape), NO_KEY)
        if sum(self.search.windows) <= per_round * _CHUNK:
            found, place = look(0, nobody)
            return jnp.where(found == NO_KEY, -1, place - k)

        def of_round(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            found, number = carry
            place = jnp.arange(k, dtype=jnp.uint32)[:, None, None]
            anew = jnp.where(found == NO_KEY, NO_KEY, (found >> bits << bits) | place)
            found, place = look(i * per_round, anew)
            before = jnp.take_along_axis(number, jnp.minimum(place, k - 1), axis=0)
            return found, jnp.where(place < k, before, i * (per_round * _CHUNK) + place - k)

        n_rounds = (n_chunks + per_round - 1) // per_round
        found, number = jax.lax.fori_loop(0, n_rounds, of_round, (nobody, jnp.zeros(nobody.shape, jnp.int32)))
        return jnp.where(found == NO_KEY, -1, number)

    def _keys(self, first: Int[Array, ""], offset: Array | int, bits: int, among: Among | None) -> UInt[Array, "w b m"]:
        """Distance, and number plus an offset, of the next candidates for each member of their blocks."""
        number = first + jnp.arange(_CHUNK, dtype=jnp.int32)
        rank = _Runs(*[x[:, None] for x in self.runs]).rank(number[:, None], self.alive.shape[0])
        labels = [a.label[self.order][rank] for a in (self.among, among) if a is not None]
        row = jnp.stack([column[rank] for column in self.position.T], axis=-1)
        seen = jax.vmap(self._look, in_axes=(0, None))(_Candidate(number, row, labels), among)
        span = 2.0 ** min(_DISTANCE_BITS, 32 - bits)
        # Below what stands for nobody by more than one.
        largest = np.nextafter(np.float32(span - 1.0), np.float32(0.0))
        rounded = (
            jnp.minimum(seen.square * (span / jnp.square(self.search.radius)), largest)
            .astype(jnp.int32)
            .astype(jnp.uint32)
        )
        place = (number + offset).astype(jnp.uint32)[:, None, None]
        return jnp.where(seen.near, (rounded << bits) | place, NO_KEY)

    def _decode(self, number: Int[Array, "n k"]) -> Nearest:
        valid = (number >= 0) & self.alive[:, None]
        number = jnp.where(valid, number, 0)
        block = self.place // self.member.shape[1]
        rank = _Runs(*[x[:, block, None] for x in self.runs]).rank(number, self.alive.shape[0])
        here = jnp.zeros_like(self.position).at[self.order].set(self.position)
        space, there = self.search.space, self.position[rank]
        ways = [space.shortest(there[..., a] - here[:, None, a], a) for a in range(here.shape[1])]
        ways = [jnp.where(valid, way, 0.0) for way in ways]
        return Nearest(jnp.where(valid, self.order[rank], -1), length(ways), jnp.stack(ways, axis=-1))

    def _listed(self, shown: Float[Array, "n v"], among: Among | None) -> list["_Candidate"]:
        """Gather what the candidates of each block show, once for all members; tier by tier."""
        rows, first, listed = jnp.concatenate([self.position, shown], axis=1), 0, []
        labels = [a.label[self.order] for a in (self.among, among) if a is not None]
        for tier in self.tiers:
            number = first + jnp.arange(tier.shape[0], dtype=jnp.int32)
            listed.append(_Candidate(number, rows[tier], [label[tier] for label in labels]))
            first += tier.shape[0]
        return listed

    def _look(self, candidate: "_Candidate", among: Among | None) -> "_Seen":
        """Measure the ways from the members of blocks to a candidate of each."""
        space, n_dimensions, size = self.search.space, self.position.shape[1], candidate.row.shape[0]
        member = self.member[:size]
        here = [column[member] for column in self.position.T]
        ways = [space.shortest(candidate.row[:, None, axis] - mine, axis) for axis, mine in enumerate(here)]
        square = square_length(ways)
        listed = candidate.number < self.n_candidates[:size]
        limit = jnp.where(listed, jnp.square(self.search.radius), -1.0)
        near = (square < limit[:, None]) & (self.own[:size] != candidate.number)
        restrictions = [a for a in (self.among, among) if a is not None]
        for restriction, label in zip(restrictions, candidate.labels, strict=True):
            near = near & restriction.allows(restriction.label[self.order][member], label[:, None])
        return _Seen(near, ways, square, candidate.number, candidate.row[:, n_dimensions:])


class _Candidate(NamedTuple):
    """One candidate of each block of a tier.

    Attributes:
        number: in the list.
        row: its position and values.
        labels: one for each restriction.
    """

    number: Int[Array, "*w"]
    row: Float[Array, "*w b v"]
    labels: list[Int[Array, "*w b"]]


class _Seen(NamedTuple):
    """A candidate as the members of its block see it.

    Attributes:
        near: whether it is a neighbour.
        ways: to it, by axis.
        square: of the distance.
        number: in the list.
        theirs: its values.
    """

    near: Bool[Array, "b m"]
    ways: list[Float[Array, "b m"]]
    square: Float[Array, "b m"]
    number: Int[Array, ""]
    theirs: Float[Array, "b v"]
