"""The population: a structure of arrays with a fixed number of slots and a mask of the living.

A slot keeps its entity from birth to death; arrays are never compacted, because trajectories are read along slots.
What a dead slot holds is unspecified and must influence nothing: readers select with `jnp.where`, they never
multiply by the mask (NaN times zero is NaN).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

# The largest number of 32 bits: counts stay there, and no identity is given beyond it.
LAST = np.int32(2**31 - 1)


class Entities(eqx.Module):
    """`n` slots for entities of several kinds and teams in `d`-dimensional space with `s` stores each.

    Attributes:
        alive: which slots hold a living entity.
        uid: identity, unique in an episode and never reused; -1 where no entity ever lived.
        kind: index into the scenario's kinds.
        team: index of the team.
        position: metres, or cell indices on a grid.
        heading: radians, counter-clockwise from the first axis; 0 where the scenario has none.
        velocity: metres per second, or cells per step on a grid.
        stores: what the entity holds, one column per good (see the scenario).
        next_uid: the identity that the next entity gets.
        builder: slot that the entity who made it held at that time; -1: nobody. None where the rules keep no account.
        n_kinds: number of kinds, where entities of a kind differ.
        n_variants: how many different ones of a kind there are (`swarm.build.randomization`).
    """

    alive: Bool[Array, " n"]
    uid: Int[Array, " n"]
    kind: Int[Array, " n"]
    team: Int[Array, " n"]
    position: Float[Array, "n d"]
    heading: Float[Array, " n"]
    velocity: Float[Array, "n d"]
    stores: Float[Array, "n s"]
    next_uid: Int[Array, ""]
    builder: Int[Array, " n"] | None = None
    n_kinds: int = eqx.field(static=True, default=1)
    n_variants: int = eqx.field(static=True, default=1)

    @property
    def row(self) -> Int[Array, " n"]:
        """Row of a table of values by kind: the kind, or where entities of a kind differ, that of the own variant.

        A table holds the rows of all kinds for one variant after the other.
        """
        return self.kind if self.n_variants == 1 else self.kind + self.n_kinds * (self.uid % self.n_variants)

    @property
    def n_slots(self) -> int:
        """Number of slots."""
        return self.alive.shape[0]

    @classmethod
    def empty(
        cls,
        n_slots: int,
        n_dimensions: int,
        n_stores: int,
        *,
        builders: bool = False,
        variants: tuple[int, int] = (1, 1),
    ) -> "Entities":
        """Return slots without a living entity.

        Args:
            n_slots: number of slots.
            n_dimensions: of the space.
            n_stores: number of goods.
            builders: whether they keep account of builders.
            variants: numbers of kinds, and of variants of each.
        """
        n = n_slots
        return cls(
            alive=jnp.zeros(n, bool),
            uid=jnp.full(n, -1, jnp.int32),
            kind=jnp.zeros(n, jnp.int32),
            team=jnp.zeros(n, jnp.int32),
            position=jnp.zeros((n, n_dimensions)),
            heading=jnp.zeros(n),
            velocity=jnp.zeros((n, n_dimensions)),
            stores=jnp.zeros((n, n_stores)),
            next_uid=jnp.int32(0),
            builder=jnp.full(n, -1, jnp.int32) if builders else None,
            n_kinds=variants[0],
            n_variants=variants[1],
        )

    def remove(self, dying: Bool[Array, " n"]) -> "Entities":
        """Kill the living entities of the mask. Their slots are free from now on; their data stay until reused."""
        return eqx.tree_at(lambda e: e.alive, self, self.alive & ~dying)

    def is_kind(self, kind: int, team: int | None = None) -> Bool[Array, " n"]:
        """Mask of the living of a kind, of one team if named."""
        mask = self.alive & (self.kind == kind)
        return mask if team is None else mask & (self.team == team)

    def keys(self, key: Key[Array, ""]) -> Key[Array, " n"]:
        """One random key per slot, by identity: draws do not depend on the slot, the capacity or the batch."""
        return jax.vmap(lambda uid: jax.random.fold_in(key, uid.astype(jnp.uint32)))(self.uid)


class Spawn(eqx.Module):
    """`m` requests for new entities, in order of precedence; only those `wanted` are served.

    `builder` is the slot of the entity that makes it, for populations that keep account; -1, or None: nobody.
    """

    wanted: Bool[Array, " m"]
    kind: Int[Array, " m"]
    team: Int[Array, " m"]
    position: Float[Array, "m d"]
    heading: Float[Array, " m"]
    stores: Float[Array, "m s"]
    builder: Int[Array, " m"] | None = None

    def in_order_of(self, rank: Int[Array, " m"]) -> "Spawn":
        """The same requests in another order of precedence: the least rank first, as of identities."""
        order = jnp.argsort(jnp.where(self.wanted, rank, LAST))
        return jax.tree.map(lambda x: x[order], self)


def spawn(entities: Entities, births: Spawn) -> tuple[Entities, Int[Array, ""]]:
    """Put the wanted entities into the lowest free slots, in order, and give them fresh identities.

    Request j of rank r among the wanted takes the r-th free slot (both ranks by prefix sum, so no sorting). Once all
    identities are spent (IDENTITIES_SPENT) nobody is born any more.

    Returns:
        The population, and how many wanted entities found no slot.
    """
    # Where both are known beforehand, at a reset, the compiler would count the ranks itself, which takes it seconds.
    alive, wanted = jax.lax.optimization_barrier((entities.alive, births.wanted))
    n, free = entities.n_slots, ~alive
    wanted_rank = jnp.cumsum(wanted, dtype=jnp.int32) - 1
    free_rank = jnp.cumsum(free, dtype=jnp.int32) - 1
    n_free = jnp.sum(free, dtype=jnp.int32)
    slot_of_rank = jnp.full(n, n, jnp.int32).at[jnp.where(free, free_rank, n)].set(jnp.arange(n), mode="drop")
    found = wanted & (wanted_rank < n_free)
    served = found & (wanted_rank < LAST - entities.next_uid)
    slot = jnp.where(served, slot_of_rank[jnp.clip(wanted_rank, 0, n - 1)], n)

    builder = jnp.full_like(births.kind, -1) if births.builder is None else births.builder

    def put(old: Array, new: Array) -> Array:
        return old.at[slot].set(new, mode="drop")

    population = Entities(
        alive=put(alive, served),
        uid=put(entities.uid, entities.next_uid + wanted_rank),
        kind=put(entities.kind, births.kind),
        team=put(entities.team, births.team),
        position=put(entities.position, births.position),
        heading=put(entities.heading, births.heading),
        velocity=put(entities.velocity, jnp.zeros_like(births.position)),
        stores=put(entities.stores, births.stores),
        next_uid=entities.next_uid + jnp.sum(served, dtype=jnp.int32),
        builder=None if entities.builder is None else put(entities.builder, builder),
        n_kinds=entities.n_kinds,
        n_variants=entities.n_variants,
    )
    return population, jnp.sum(wanted & ~found, dtype=jnp.int32)


def counted(total: Int[Array, "*v"], more: Int[Array, "*v"] | int) -> Int[Array, "*v"]:
    """A total and what comes on top, neither negative; where 32 bits do not hold the sum, the most that they hold."""
    return total + jnp.minimum(more, LAST - total)
