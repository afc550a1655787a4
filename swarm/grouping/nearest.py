"""Groups around anchors: the nearest living entity of a kind."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.entities import Entities
from swarm.grouping.rule import AbstractGrouping, Nodes, Previous
from swarm.space import AbstractSpace


def nearest_of(
    space: AbstractSpace,
    position: Float[Array, "n d"],
    team: Int[Array, " n"],
    place: Float[Array, "g d"],
    place_team: Int[Array, " g"],
    valid: Bool[Array, " g"],
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Find for each the nearest valid place of its team; of equally near ones the first.

    One pass over the n for each place, without an n by g matrix: XLA's argmin over one is 10 times slower on CPU.

    Returns:
        Its index, -1 where there is none, and the squared distance, infinite where there is none; m^2.
    """
    position = jax.lax.stop_gradient(position)
    n, axes = position.shape[0], range(position.shape[1])

    def look(best: tuple[Array, Array], candidate: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        index, square = best
        number, there, its_team, its_valid = candidate
        ways = [jnp.square(space.shortest(position[:, axis] - there[axis], axis)) for axis in axes]
        new = sum(ways[1:], start=ways[0])
        nearer = its_valid & (team == its_team) & (new < square)
        return (jnp.where(nearer, number, index), jnp.where(nearer, new, square)), None

    n_places = place.shape[0]
    places = (jnp.arange(n_places, dtype=jnp.int32), jax.lax.stop_gradient(place), place_team, valid)
    start = (jnp.full(n, -1, jnp.int32), jnp.full(n, jnp.inf))
    return jax.lax.scan(look, start, places, unroll=max(1, min(8, n_places)))[0]


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
