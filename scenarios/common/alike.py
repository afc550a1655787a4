"""Rules of one team of one kind: a slot for each entity, rows of features, and a map if there is one."""

from collections.abc import Iterable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from swarm.population.entities import Entities
from swarm.simulation.rules import AbstractRules
from swarm.simulation.types import Observation


def numbers(table: Iterable[tuple[str, float]], but: tuple[str, ...] = ()) -> dict[str, Float[Array, ""]]:
    """The numbers of a table of a scenario file as arrays, by name; `but` names what is left out."""
    return {name: jnp.float32(value) for name, value in table if name not in but}


class AbstractAlike(AbstractRules):
    """What holds where all are of one team and one kind.

    Attributes:
        capacity: number of slots.
    """

    capacity: eqx.AbstractVar[int]

    @property
    def n_slots(self) -> int:
        """One for each entity."""
        return self.capacity

    @property
    def n_teams(self) -> int:
        """One."""
        return 1

    def seen(
        self,
        entities: Entities,
        own: Float[Array, "n o"],
        maps: Float[Array, "h w c"] | None = None,
        cell: Int[Array, "n 2"] | None = None,
    ) -> Observation:
        """What policies may see: features, 0 where nobody lives, and a map that all read.

        Args:
            entities: the population.
            own: features.
            maps: a raster; None: there is none.
            cell: the place of each entity on it.
        """
        alive, zero = entities.alive, jnp.zeros(self.capacity, jnp.int32)
        return Observation(
            maps=None if maps is None else maps[None],
            view=None if maps is None else zero,
            cell=cell,
            own=jnp.where(alive[:, None], own, 0.0),
            kind=zero,
            alive=alive,
            action_mask=jnp.broadcast_to(alive[:, None], (self.capacity, self.n_actions)),
        )
