"""From an observation to features of each entity: by reading the map, the entity's own row, or sets of things in it."""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from swarm.simulation.types import Observation
from training.networks.layers import Attention, MapExtractor, Perceptron

N_HEADS = 4


class AbstractEncoder(eqx.Module):
    """Turns observations into features of each entity.

    Attributes:
        n_features: width of the features.
    """

    n_features: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, observation: Observation) -> Float[Array, "*b n f"]:
        """Return the features; observations may have leading batch axes on every leaf."""


class MapEncoder(AbstractEncoder):
    """A global feature extractor: reads each map once, and gives an entity the features at its cell and their mean.

    The cost grows with the map, not with the population (Takács, Magyar, Gulyás 2024).
    """

    extractor: MapExtractor
    n_features: int = eqx.field(static=True)

    def __init__(self, n_channels: int, channels: int, dilations: Sequence[int], key: Key[Array, ""]) -> None:
        self.extractor = MapExtractor(n_channels, channels, dilations, key)
        self.n_features = 2 * channels

    def __call__(self, observation: Observation) -> Float[Array, "*b n f"]:
        """Read maps, then the features at each entity's cell, then their mean over its map."""
        maps, view, cell = observation.maps, observation.view, observation.cell
        if maps is None or view is None or cell is None:
            raise ValueError("the observation has no maps")
        *batch, m, h, w, c = maps.shape
        features = self.extractor(maps.reshape(-1, h, w, c))
        board = jnp.mean(features, axis=(1, 2)).reshape(*batch, m, -1)
        features = features.reshape(*batch, m * h * w, -1)
        place = (view * h + cell[..., 0]) * w + cell[..., 1]
        local = jnp.take_along_axis(features, place[..., None], axis=-2)
        board = jnp.take_along_axis(board, view[..., None], axis=-2)
        return jnp.concatenate([local, board], axis=-1)


class EntityEncoder(AbstractEncoder):
    """Two layers over an entity's own row."""

    layers: Perceptron
    n_features: int = eqx.field(static=True)

    def __init__(self, n_own: int, hidden: int, key: Key[Array, ""]) -> None:
        self.layers = Perceptron(n_own, hidden, hidden, 2**0.5, key)
        self.n_features = hidden

    def __call__(self, observation: Observation) -> Float[Array, "*b n f"]:
        """Apply to each entity alike."""
        return jax.nn.relu(self.layers(observation.own))


class AttentionEncoder(AbstractEncoder):
    """Each entity looks at the sets of things in its row, such as the nearest foes, by attention.

    Attributes:
        looks: an attention for each set.
        columns: for each set the columns of its things, as `AbstractRules.sets` gives them.
    """

    looks: tuple[Attention, ...]
    columns: tuple[tuple[tuple[int, ...], ...], ...] = eqx.field(static=True)
    n_features: int = eqx.field(static=True)

    def __init__(
        self, n_own: int, sets: Sequence[tuple[tuple[int, ...], ...]], hidden: int, key: Key[Array, ""]
    ) -> None:
        keys = jax.random.split(key, len(sets))
        self.looks = tuple(
            Attention(n_own, len(columns[0]), hidden, N_HEADS, k) for columns, k in zip(sets, keys, strict=True)
        )
        self.columns = tuple(sets)
        self.n_features = hidden * len(sets)

    def __call__(self, observation: Observation) -> Float[Array, "*b n f"]:
        """Look at each set."""
        own = observation.own

        def look(attention: Attention, columns: tuple[tuple[int, ...], ...]) -> Array:
            things = own[..., np.asarray(columns)]
            return attention(own, things, jnp.any(things != 0, axis=-1))

        return jnp.concatenate([look(a, c) for a, c in zip(self.looks, self.columns, strict=True)], axis=-1)


def without_maps(observation: Observation) -> Observation:
    """Leave out what only a `MapEncoder` reads, so that a rollout need not keep it."""

    def maps(o: Observation) -> tuple:
        return o.maps, o.view, o.cell

    return eqx.tree_at(maps, observation, (None, None, None), is_leaf=lambda x: x is None)
