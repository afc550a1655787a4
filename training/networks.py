"""The shared global feature extractor and the heads that act for every entity.

Unlike the engine, networks take whole batches (leading axes `*b`): one large convolution is several times faster on CPU
than a vmapped one whose gradient is summed afterwards.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from swarm.scenario import Observation
from training.convolution import convolution3x3

_orthogonal = jax.nn.initializers.orthogonal


class Convolution(eqx.Module):
    """A 3x3 convolution with orthogonal weights (Saxe et al. 2014) and bias."""

    kernel: Float[Array, "3 3 c f"]
    bias: Float[Array, " f"]
    dilation: int = eqx.field(static=True)

    def __init__(self, n_in: int, n_out: int, dilation: int, key: Key[Array, ""]) -> None:
        self.kernel = _orthogonal(2**0.5)(key, (3 * 3 * n_in, n_out)).reshape(3, 3, n_in, n_out)
        self.bias = jnp.zeros(n_out)
        self.dilation = dilation

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """Keep height and width."""
        y: Array = convolution3x3(x, self.kernel, self.dilation)
        return y + self.bias[None, None, None]


class Linear(eqx.Module):
    """x W + b with orthogonal weights of the given gain."""

    weight: Float[Array, "i o"]
    bias: Float[Array, " o"]

    def __init__(self, n_in: int, n_out: int, gain: float, key: Key[Array, ""]) -> None:
        self.weight = _orthogonal(gain)(key, (n_in, n_out))
        self.bias = jnp.zeros(n_out)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Apply to the last axis."""
        y = x @ self.weight
        return y + self.bias.reshape((1,) * (y.ndim - 1) + (-1,))


class ResidualBlock(eqx.Module):
    """x + gate(mean(y)) * y with y = relu(conv(x)): a dilated convolution, squeezed and excited (Hu et al. 2018)."""

    convolution: Convolution
    gate: Linear

    def __init__(self, channels: int, dilation: int, key: Key[Array, ""]) -> None:
        conv_key, gate_key = jax.random.split(key)
        self.convolution = Convolution(channels, channels, dilation, conv_key)
        self.gate = Linear(channels, channels, 1.0, gate_key)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Keep the shape."""
        y = jax.nn.relu(self.convolution(x))
        return x + jax.nn.sigmoid(self.gate(jnp.mean(y, axis=(1, 2))))[:, None, None] * y


class MapExtractor(eqx.Module):
    """Reads a whole map once: a 3x3 convolution and residual blocks; the cost grows with the map alone."""

    stem: Convolution
    blocks: tuple[ResidualBlock, ...]

    def __init__(self, n_channels: int, channels: int, dilations: Sequence[int], key: Key[Array, ""]) -> None:
        stem_key, *block_keys = jax.random.split(key, 1 + len(dilations))
        self.stem = Convolution(n_channels, channels, 1, stem_key)
        self.blocks = tuple(ResidualBlock(channels, d, k) for d, k in zip(dilations, block_keys, strict=True))

    def __call__(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """Return features of the same height and width."""
        x = jax.nn.relu(self.stem(maps))
        for block in self.blocks:
            x = block(x)
        return x


class KindHead(eqx.Module):
    """Two layers from an entity's features to outputs; each kind has layers of its own, and its own are picked."""

    inner: Linear
    outer: Linear
    n_kinds: int = eqx.field(static=True)

    def __init__(self, n_in: int, hidden: int, n_kinds: int, n_out: int, gain: float, key: Key[Array, ""]) -> None:
        inner_key, outer_key = jax.random.split(key)
        self.inner = Linear(n_in, n_kinds * hidden, 2**0.5, inner_key)
        self.outer = Linear(hidden, n_kinds * n_out, gain, outer_key)
        self.n_kinds = n_kinds

    def __call__(self, features: Float[Array, "*b n f"], kind: Int[Array, "*b n"]) -> Float[Array, "*b n o"]:
        """Return the outputs of each entity's own kind."""
        return self._pick(self.outer(self._pick(jax.nn.relu(self.inner(features)), kind)), kind)

    def _pick(self, x: Float[Array, "*b n m"], kind: Int[Array, "*b n"]) -> Float[Array, "*b n o"]:
        x = x.reshape(*x.shape[:-1], self.n_kinds, -1)
        return jnp.take_along_axis(x, kind[..., None, None], axis=-2)[..., 0, :]


class Network(eqx.Module):
    """Map extractor, actor and critic.

    An entity's features are those of the map at its cell, their mean over the board, and its own. The critic gives a
    value per entity; a group's value is the sum over its members, so it is a critic per group.
    """

    extractor: MapExtractor
    actor: KindHead
    critic: KindHead

    def __init__(
        self,
        observation: Observation,
        n_kinds: int,
        *,
        channels: int,
        dilations: Sequence[int],
        hidden: int,
        key: Key[Array, ""],
    ) -> None:
        extractor_key, actor_key, critic_key = jax.random.split(key, 3)
        n_features = 2 * channels + observation.own.shape[-1]
        n_actions = observation.action_mask.shape[-1]
        self.extractor = MapExtractor(observation.maps.shape[-1], channels, dilations, extractor_key)
        # A small output gain starts the policy near uniform, and the values near 0: random values would drown the rare
        # first rewards in the advantages, and the policy would walk at random until they are unlearned.
        self.actor = KindHead(n_features, hidden, n_kinds, n_actions, 0.01, actor_key)
        self.critic = KindHead(n_features, hidden, n_kinds, 1, 0.01, critic_key)

    def __call__(self, observation: Observation) -> tuple[Float[Array, "*b n a"], Float[Array, "*b n"]]:
        """Return masked logits and a value per entity slot; the values of dead slots are 0.

        Args:
            observation: of one world, or with leading batch axes on every leaf.
        """
        features = self._features(observation)
        logits, values = self.actor(features, observation.kind), self.critic(features, observation.kind)[..., 0]
        return mask_logits(logits, observation.action_mask), jnp.where(observation.alive, values, 0.0)

    def _features(self, observation: Observation) -> Float[Array, "*b n f"]:
        *batch, m, h, w, c = observation.maps.shape
        maps = self.extractor(observation.maps.reshape(-1, h, w, c))
        board = jnp.mean(maps, axis=(1, 2)).reshape(*batch, m, -1)
        maps = maps.reshape(*batch, m * h * w, -1)
        place = (observation.view * h + observation.cell[..., 0]) * w + observation.cell[..., 1]
        local = jnp.take_along_axis(maps, place[..., None], axis=-2)
        board = jnp.take_along_axis(board, observation.view[..., None], axis=-2)
        return jnp.concatenate([local, board, observation.own], axis=-1)


def mask_logits(logits: Float[Array, "*b a"], mask: Bool[Array, "*b a"]) -> Float[Array, "*b a"]:
    """Make illegal actions impossible; where none is legal (dead slots) all are left possible, to stay finite."""
    return jnp.where(mask | ~jnp.any(mask, axis=-1, keepdims=True), logits, -1e9)


def n_parameters(network: Network) -> int:
    """Number of trained numbers."""
    return sum(x.size for x in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
