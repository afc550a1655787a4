"""Who is near whom: sums and minima over neighbours, and the k nearest, within a radius.

A search is data (space, radius, sizes); `find` looks at where the living are and returns `Neighbors`, which answers any
number of questions. All backends give the results of looking at all pairs, up to rounding.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.core.rounding import root
from swarm.core.status import Status
from swarm.geometry.space import AbstractSpace, square_length

Pair = Callable[[Float[Array, " d"], Float[Array, ""], Float[Array, " v"], Float[Array, " v"]], Float[Array, " o"]]


class Among(eqx.Module):
    """Restricts neighbours by a label of each entity: a team, a group slot, a kind.

    Attributes:
        label: of each slot; who has a negative one is nobody's neighbour, and has none.
        same: True: only those of the same label; False: only those of another one.
        n_labels: where labels are few and below this number, `find` can keep them apart, which is faster.
    """

    label: Int[Array, " n"]
    same: bool = eqx.field(static=True)
    n_labels: int | None = eqx.field(static=True, default=None)

    def allows(self, mine: Int[Array, "*#p"], theirs: Int[Array, "*#p"]) -> Bool[Array, "*_p"]:
        """Whether two labels may be neighbours."""
        return (mine >= 0) & (theirs >= 0) & ((mine == theirs) if self.same else (mine != theirs))


class Nearest(eqx.Module):
    """The `k` nearest neighbours of each slot, nearest first; equally near ones by slot.

    Attributes:
        index: slot of the neighbour; -1: none.
        distance: metres; 0 where there is none.
        displacement: to the neighbour, metres; 0 where there is none.
    """

    index: Int[Array, "n k"]
    distance: Float[Array, "n k"]
    displacement: Float[Array, "n k d"]

    @property
    def valid(self) -> Bool[Array, "n k"]:
        """Whether there is such a neighbour."""
        return self.index >= 0

    def gather(self, values: Array) -> Array:
        """Values [n, ...] of the neighbours as [n, k, ...]; 0 where there is none."""
        valid = self.valid.reshape(self.index.shape + (1,) * (values.ndim - 1))
        return jnp.where(valid, values[jnp.maximum(self.index, 0)], jnp.zeros((), values.dtype))


class Neighbors(eqx.Module):
    """Where everybody was when `find` looked.

    Attributes:
        overflow: whether the search had too little room, so that some neighbours are missing.
    """

    overflow: eqx.AbstractVar[Bool[Array, ""]]

    @property
    def status(self) -> Int[Array, ""]:
        """Bits for `Outcome.status`."""
        return jnp.where(self.overflow, jnp.int32(Status.NEIGHBORS_FULL), 0)

    @abc.abstractmethod
    def sum(self, pair: Pair, values: Float[Array, "n v"], among: Among | None = None) -> Float[Array, "n o"]:
        """Sum a pair function over the living others nearer than the radius.

        Args:
            pair: `pair(displacement, distance, mine, theirs)` of one pair; `mine` and `theirs` are rows of `values`.
                It must be finite for any arguments, distance 0 included.
            values: what entities show to each other.
            among: who counts as a neighbour.

        Returns:
            Sums for each slot; 0 for dead ones.
        """

    @abc.abstractmethod
    def min(self, pair: Pair, values: Float[Array, "n v"], among: Among | None = None) -> Float[Array, "n o"]:
        """Smallest value of a pair function over the living others nearer than the radius; arguments as for `sum`.

        Returns:
            Minima for each slot; infinite where there is no neighbour.
        """

    @abc.abstractmethod
    def nearest(self, k: int, among: Among | None = None) -> Nearest:
        """Return the k nearest of the living others that are nearer than the radius."""


class AbstractNeighborSearch(eqx.Module):
    """Finds pairs nearer than a radius.

    Attributes:
        space: measures displacements.
        radius: neighbours are nearer than this; metres.
    """

    space: eqx.AbstractVar[AbstractSpace]
    radius: eqx.AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def find(self, position: Float[Array, "n d"], alive: Bool[Array, " n"], among: Among | None = None) -> Neighbors:
        """Look at where the living are, and list who may be whose neighbour.

        Args:
            position: of all slots.
            alive: who counts.
            among: restricts every question that is asked of the result; a question may restrict itself further.
        """


class AllPairs(AbstractNeighborSearch):
    """Looks at all pairs: O(n^2), the right choice for up to some hundred entities, and for unbounded radii."""

    space: AbstractSpace
    radius: Float[Array, ""]

    def find(
        self, position: Float[Array, "n d"], alive: Bool[Array, " n"], among: Among | None = None
    ) -> "AllPairsNeighbors":
        """Measure all distances."""
        here = jnp.where(alive[:, None], position, 0.0)
        ways = [self.space.shortest(here[None, :, axis] - here[:, None, axis], axis) for axis in range(here.shape[1])]
        square = square_length(ways)
        distance = root(square)
        n = alive.shape[0]
        near = (square < jnp.square(self.radius)) & alive[:, None] & alive[None, :] & ~jnp.eye(n, dtype=bool)
        if among is not None:
            near = near & among.allows(among.label[:, None], among.label[None, :])
        return AllPairsNeighbors(jnp.zeros((), bool), alive, jnp.stack(ways), distance, near)


class AllPairsNeighbors(Neighbors):
    """All pairs [i, j]: from i to j."""

    overflow: Bool[Array, ""]
    alive: Bool[Array, " n"]
    ways: Float[Array, "d n n"]
    distance: Float[Array, "n n"]
    near: Bool[Array, "n n"]

    def _near(self, among: Among | None) -> Bool[Array, "n n"]:
        if among is None:
            return self.near
        return self.near & among.allows(among.label[:, None], among.label[None, :])

    def sum(self, pair: Pair, values: Float[Array, "n v"], among: Among | None = None) -> Float[Array, "n o"]:
        """Sum over all."""
        return jnp.sum(jnp.where(self._near(among)[None], self._terms(pair, values), 0.0), axis=2).T

    def min(self, pair: Pair, values: Float[Array, "n v"], among: Among | None = None) -> Float[Array, "n o"]:
        """Minimum over all."""
        return jnp.min(jnp.where(self._near(among)[None], self._terms(pair, values), jnp.inf), axis=2).T

    def _terms(self, pair: Pair, values: Float[Array, "n v"]) -> Float[Array, "o n n"]:
        shown = jnp.where(self.alive[:, None], values, 0.0)
        # Components first: the innermost loops then run over pairs.
        over_others = jax.vmap(pair, in_axes=(1, 0, None, 0), out_axes=1)
        over_all = jax.vmap(over_others, in_axes=(1, 0, 0, None), out_axes=1)
        return over_all(self.ways, self.distance, shown, shown)

    def nearest(self, k: int, among: Among | None = None) -> Nearest:
        """Choose from all."""
        n = self.alive.shape[0]
        near = self._near(among)
        far_first, index = jax.lax.top_k(jnp.where(near, -self.distance, -jnp.inf), min(k, n))
        pad = ((0, 0), (0, k - min(k, n)))
        far_first, index = jnp.pad(far_first, pad, constant_values=-jnp.inf), jnp.pad(index, pad)
        valid = jnp.isfinite(far_first)
        ways = [jnp.take_along_axis(way, index, axis=1) for way in self.ways]
        return Nearest(
            index=jnp.where(valid, index, -1),
            distance=jnp.where(valid, -far_first, 0.0),
            displacement=jnp.where(valid[:, :, None], jnp.stack(ways, axis=-1), 0.0),
        )
