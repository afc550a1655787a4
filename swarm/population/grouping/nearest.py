"""Groups around anchors: the nearest living entity of a kind."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.core.platforms import by_platform
from swarm.core.rounding import rounded
from swarm.geometry.space import AbstractSpace
from swarm.population.entities import Entities
from swarm.population.grouping.rule import AbstractGrouping, Nodes, Previous

# Distances that an accelerator measures at once: 256 MB of them.
_AT_ONCE = 2**26


def nearest_of(
    space: AbstractSpace,
    position: Float[Array, "n d"],
    team: Int[Array, " n"],
    place: Float[Array, "g d"],
    place_team: Int[Array, " g"],
    valid: Bool[Array, " g"],
    at_once: int | None = None,
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Find for each the nearest valid place of its team; of equally near ones the first.

    On CPU one pass over the n for each place, without an n by g matrix, over which XLA's argmin is 10 times slower; on
    an accelerator, where passes would wait for each other, as many places at once as memory allows.

    Args:
        space: measures distances.
        position: of the n, metres.
        team: of the n.
        place: where they may be nearest to, metres.
        place_team: of the places.
        valid: which places there are.
        at_once: so many places; by default what suits the device. It changes no result.

    Returns:
        Its index, -1 where there is none, and the squared distance, infinite where there is none; m^2.
    """
    position, place = jax.lax.stop_gradient((position, place))
    n, n_places, axes = position.shape[0], place.shape[0], range(position.shape[1])

    def look(best: tuple[Array, Array], candidates: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        number, there, its_team, its_valid = candidates
        ways = [space.shortest(position[None, :, axis] - there[:, axis, None], axis) for axis in axes]
        squares = [rounded(jnp.square(way)) for way in ways]
        new = sum(squares[1:], start=squares[0])
        new = jnp.where(its_valid[:, None] & (team[None] == its_team[:, None]), new, jnp.inf)
        one = number.shape[0] == 1
        least, which = (new[0], number[0]) if one else (jnp.min(new, axis=0), number[jnp.argmin(new, axis=0)])
        nearer = least < best[1]
        return (jnp.where(nearer, which, best[0]), jnp.where(nearer, least, best[1])), None

    def by(m: int) -> tuple[Array, Array]:
        def chunks(x: Array) -> Array:
            return jnp.pad(x, ((0, -n_places % m), *((0, 0),) * (x.ndim - 1))).reshape(-1, m, *x.shape[1:])

        places = jax.tree.map(chunks, (jnp.arange(n_places, dtype=jnp.int32), place, place_team, valid))
        start = (jnp.full(n, -1, jnp.int32), jnp.full(n, jnp.inf))
        return jax.lax.scan(look, start, places, unroll=max(1, min(4, -(-n_places // m))))[0]

    def of(platform: str) -> tuple[Array, Array]:
        return by(1 if platform == "cpu" else max(1, min(n_places, _AT_ONCE // max(n, 1))))

    return by_platform(of) if at_once is None else by(at_once)


class NearestAnchor(AbstractGrouping):
    """The group of the nearest living entity of a kind and of the own team (a depot, a leader).

    A group's slot is its anchor's slot among the entities, so groups last as long as their anchor.

    Attributes:
        space: measures distances.
        anchor_kind: kind of the anchors.
        n_slots: entity slots.
        n_anchors: most anchors that are looked at, lowest slots first; more are counted as overflow.
    """

    space: AbstractSpace
    anchor_kind: int = eqx.field(static=True)
    n_slots: int = eqx.field(static=True)
    n_anchors: int = eqx.field(static=True)

    def n_groups(self, n_nodes: int) -> int:
        """As many as entity slots."""
        return self.n_slots

    def __call__(
        self, nodes: Nodes, entities: Entities, previous: Previous | None = None
    ) -> tuple[Int[Array, " n"], Nodes]:
        """Slot of the nearest anchor; of equally near ones the lowest slot."""
        anchor = entities.is_kind(self.anchor_kind)
        count = jnp.sum(anchor, dtype=jnp.int32)
        slot = jnp.nonzero(anchor, size=self.n_anchors, fill_value=0)[0].astype(jnp.int32)
        valid = jnp.arange(self.n_anchors) < count
        number, _ = nearest_of(
            self.space, nodes.position, nodes.team, entities.position[slot], entities.team[slot], valid
        )
        found = nodes.exists & (number >= 0)
        index = jnp.where(found, slot[jnp.maximum(number, 0)], -1) if self.n_anchors else number
        e, overflow = entities, jnp.maximum(count - self.n_anchors, 0)
        return index, Nodes(anchor, e.uid, e.kind, e.team, e.position, overflow)
