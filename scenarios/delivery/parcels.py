"""Parcels of delivery: which appear, when and where, and what they are worth."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from scenarios.delivery.config import ParcelsTable
from swarm.core.rounding import rounded


class Parcels(eqx.Module):
    """All `m` of an episode, in the order in which they appear; which they are, nobody knows before.

    Attributes:
        seconds: since the start, when each appears.
        origin: number of a place; 0 is the depot.
        destination: likewise; another one.
        mass: kilograms.
        value: when it arrives in time.
        taken: whether it has been picked up.
        delivered: the step in which it arrived; -1: it has not.
    """

    seconds: Float[Array, " m"]
    origin: Int[Array, " m"]
    destination: Int[Array, " m"]
    mass: Float[Array, " m"]
    value: Float[Array, " m"]
    taken: Bool[Array, " m"]
    delivered: Int[Array, " m"]

    def waiting(self, seconds: Float[Array, ""]) -> Bool[Array, " m"]:
        """Which have appeared by a time after the start, and nobody has picked up yet."""
        return (self.seconds <= seconds) & ~self.taken


class Orders(eqx.Module):
    """What parcels come.

    Attributes:
        n: of an episode.
        n_first: from the start.
        last: when all have appeared, seconds.
        from_depot: share whose origin is the depot.
        mass: least and greatest, kilograms.
        value: least and greatest.
        deadline: age up to which the value is paid in full, seconds.
        fade: seconds from then on until nothing is paid.
    """

    n: int = eqx.field(static=True)
    n_first: int = eqx.field(static=True)
    last: Float[Array, ""]
    from_depot: Float[Array, ""]
    mass: Float[Array, " 2"]
    value: Float[Array, " 2"]
    deadline: Float[Array, ""]
    fade: Float[Array, ""]

    @classmethod
    def of(cls, table: ParcelsTable) -> "Orders":
        """Build them from a scenario file's table."""
        return cls(
            n=table.number,
            n_first=table.initial,
            last=jnp.float32(table.last),
            from_depot=jnp.float32(table.from_depot),
            mass=jnp.asarray(table.mass, jnp.float32),
            value=jnp.asarray(table.value, jnp.float32),
            deadline=jnp.float32(table.deadline),
            fade=jnp.float32(table.fade),
        )

    def draw(self, key: Key[Array, ""], n_places: int) -> Parcels:
        """Those of an episode: times of a Poisson process, given their number, are those of as many even draws."""

        def one(i: Array) -> tuple[Array, ...]:
            real_key, pad_key, other_key = jax.random.split(jax.random.fold_in(key, i), 3)
            pad, other = (jax.random.randint(k, (), 1, n_places) for k in (pad_key, other_key))
            return jax.random.uniform(real_key, (4,)), pad, other

        number = jnp.arange(self.n)
        real, pad, other = jax.vmap(one)(number)
        origin = jnp.where(real[:, 0] < self.from_depot, 0, pad)
        return Parcels(
            seconds=jnp.sort(jnp.where(number < self.n_first, 0.0, self.last * real[:, 1])),
            origin=origin,
            destination=(origin + other) % n_places,
            mass=self.mass[0] + rounded(real[:, 2] * (self.mass[1] - self.mass[0])),
            value=self.value[0] + rounded(real[:, 3] * (self.value[1] - self.value[0])),
            taken=jnp.zeros(self.n, bool),
            delivered=jnp.full(self.n, -1, jnp.int32),
        )

    def paid(self, value: Float[Array, "*#v"], age: Float[Array, "*#v"]) -> Float[Array, "*_v"]:
        """What parcels pay that arrive at an age, seconds: their value, which falls after the deadline."""
        return rounded(value * jnp.clip(1.0 - (age - self.deadline) / self.fade, 0.0, 1.0))


def picked(values: Float[Array, "m *r"], number: Int[Array, " n"]) -> Float[Array, "n *r"]:
    """Values of the parcel of that number; 0 for a negative one."""
    some = (number >= 0).reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(some, values[jnp.maximum(number, 0)], 0.0)
