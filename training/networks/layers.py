"""Layers that networks are made of.

Unlike the engine, networks take whole batches (leading axes `*b`): one large convolution is several times faster on CPU
than a vmapped one whose gradient is summed afterwards.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from training.networks.convolution import convolution3x3

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
        # As rows of one matrix, since the gradient of a product over several axes copies the whole batch transposed.
        y = x.reshape(-1, x.shape[-1]) @ self.weight + self.bias[None]
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def part(self, i: int, n: int) -> "Linear":
        """The i-th of n equal parts of the outputs."""
        size = self.bias.shape[0] // n
        columns = slice(i * size, (i + 1) * size)
        return eqx.tree_at(lambda x: (x.weight, x.bias), self, (self.weight[:, columns], self.bias[columns]))


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
    """Two layers from an entity's features to outputs; each kind has layers of its own."""

    inner: Linear
    outer: Linear
    n_kinds: int = eqx.field(static=True)

    def __init__(self, n_in: int, hidden: int, n_kinds: int, n_out: int, gain: float, key: Key[Array, ""]) -> None:
        inner_key, outer_key = jax.random.split(key)
        self.inner = Linear(n_in, n_kinds * hidden, 2**0.5, inner_key)
        self.outer = Linear(hidden, n_kinds * n_out, gain, outer_key)
        self.n_kinds = n_kinds

    def __call__(
        self, features: Float[Array, "*b n f"], kind: Int[Array, "*b n"], blocks: tuple[int, ...] | None = None
    ) -> Float[Array, "*b n o"]:
        """Return the outputs of each entity's own kind.

        Args:
            features: of all.
            kind: their kinds.
            blocks: how many of each kind stand next to each other, the kinds in order, so that each kind's layers see
                no others; None: all kinds' layers are applied to all, and the own ones picked.
        """
        if self.n_kinds == 1 or blocks is None:
            return self._pick(self.outer(self._pick(jax.nn.relu(self.inner(features)), kind)), kind)
        outputs = []
        for k, rows in enumerate(jnp.split(features, np.cumsum(blocks)[:-1].tolist(), axis=-2)):
            hidden = jax.nn.relu(self.inner.part(k, self.n_kinds)(rows))
            outputs.append(self.outer.part(k, self.n_kinds)(hidden))
        return jnp.concatenate(outputs, axis=-2)

    def _pick(self, x: Float[Array, "*b n m"], kind: Int[Array, "*b n"]) -> Float[Array, "*b n o"]:
        if self.n_kinds == 1:
            return x
        # Masked sums, because the gradient of a lookup is a scatter, which is slow on CPU.
        x = x.reshape(*x.shape[:-1], self.n_kinds, -1)
        own = kind[..., None, None] == jnp.arange(self.n_kinds).reshape((1,) * kind.ndim + (-1, 1))
        return jnp.sum(jnp.where(own, x, 0.0), axis=-2)


class Places(eqx.Module):
    """Where entities stand once they are put in blocks, one for each kind.

    Attributes:
        place: of each slot; -1: nowhere.
        slot: of each place; -1: nobody.
        capacities: places of each block.
    """

    place: Int[Array, "*b n"]
    slot: Int[Array, "*b m"]
    capacities: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, kind: Int[Array, "*b n"], counted: Bool[Array, "*b n"], capacities: tuple[int, ...]) -> "Places":
        """Give everybody who is counted the next place in the block of its kind."""
        n, m, place, first = kind.shape[-1], sum(capacities), jnp.full_like(kind, -1), 0
        for k, size in enumerate(capacities):
            own = counted & (kind == k)
            rank = jnp.cumsum(own, axis=-1, dtype=jnp.int32) - 1
            place = jnp.where(own & (rank < size), first + rank, place)
            first += size
        flat = jnp.where(place < 0, m, place).reshape(-1, n)
        slots = jnp.arange(n, dtype=jnp.int32)
        slot = jax.vmap(lambda p: jnp.full(m, -1, jnp.int32).at[p].set(slots, mode="drop"))(flat)
        return cls(place, slot.reshape(*kind.shape[:-1], m), capacities)

    @property
    def kind(self) -> Int[Array, "*b m"]:
        """Of whoever stands, or would stand, in each place."""
        kinds = np.repeat(np.arange(len(self.capacities), dtype=np.int32), self.capacities)
        return jnp.broadcast_to(jnp.asarray(kinds), self.slot.shape)

    def take(self, values: Array, nobody: int | bool) -> Array:
        """Each place's part of values [*b n ...] of slots, which have no gradient."""
        return _take(values, self.slot, nobody)

    def rows(self, features: Float[Array, "*b n f"]) -> Float[Array, "*b m f"]:
        """The row of each place; 0 where nobody stands."""
        return rearrange(features, self.slot, self.place)

    def back(self, rows: Float[Array, "*b m f"]) -> Float[Array, "*b n f"]:
        """The row of each slot, from those of places; 0 for those who have no place."""
        return rearrange(rows, self.place, self.slot)


@jax.custom_vjp
def rearrange(
    rows: Float[Array, "*b n f"], source: Int[Array, "*b m"], target: Int[Array, "*b n"]
) -> Float[Array, "*b m f"]:
    """Take the rows at `source`, 0 where it is negative; `target` says where each row went, negative: nowhere.

    Knowing the way back makes the gradient another lookup, where it would be a scatter, which is slow on CPU.
    """
    return _take(rows, source, 0.0)


def _take(values: Array, source: Int[Array, "*b m"], nobody: int | float) -> Array:
    """What stands at `source` of values [*b n ...]; `nobody` where it is negative."""
    places = source.reshape(*source.shape, *(1,) * (values.ndim - source.ndim))
    taken = jnp.take_along_axis(values, jnp.maximum(places, 0), axis=source.ndim - 1)
    return jnp.where(places >= 0, taken, nobody)


def _rearrange_forwards(rows: Array, source: Array, target: Array) -> tuple[Array, tuple[Array, Array]]:
    return rearrange(rows, source, target), (source, target)


def _rearrange_backwards(ways: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    source, target = ways
    return rearrange(gradient, target, source), None, None


rearrange.defvjp(_rearrange_forwards, _rearrange_backwards)


class Perceptron(eqx.Module):
    """Two layers, relu after the first."""

    inner: Linear
    outer: Linear

    def __init__(self, n_in: int, hidden: int, n_out: int, gain: float, key: Key[Array, ""]) -> None:
        inner_key, outer_key = jax.random.split(key)
        self.inner, self.outer = Linear(n_in, hidden, 2**0.5, inner_key), Linear(hidden, n_out, gain, outer_key)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Apply to the last axis."""
        return self.outer(jax.nn.relu(self.inner(x)))


class Attention(eqx.Module):
    """Each row looks at a set of things by scaled dot products, several heads side by side (Vaswani et al. 2017)."""

    query: Linear
    key: Linear
    value: Linear
    n_heads: int = eqx.field(static=True)

    def __init__(self, n_in: int, n_of_thing: int, hidden: int, n_heads: int, key: Key[Array, ""]) -> None:
        query_key, key_key, value_key = jax.random.split(key, 3)
        self.query = Linear(n_in, hidden, 1.0, query_key)
        self.key = Linear(n_of_thing, hidden, 1.0, key_key)
        self.value = Linear(n_of_thing, hidden, 1.0, value_key)
        self.n_heads = n_heads

    def __call__(
        self, own: Float[Array, "*b i"], things: Float[Array, "*b k f"], there: Bool[Array, "*b k"]
    ) -> Float[Array, "*b o"]:
        """Return the mean of what is there, weighted by attention; 0 where nothing is."""

        def heads(x: Array) -> Array:
            return x.reshape(*x.shape[:-1], self.n_heads, -1)

        query, key, value = heads(self.query(own)), heads(self.key(things)), heads(self.value(things))
        score = jnp.sum(query[..., None, :, :] * key, axis=-1) / query.shape[-1] ** 0.5
        there = there[..., None]
        weight = jax.nn.softmax(jnp.where(there, score, -1e9), axis=-2)
        mixed = jnp.sum(jnp.where(there, weight, 0.0)[..., None] * value, axis=-3)
        return mixed.reshape(*mixed.shape[:-2], -1)
