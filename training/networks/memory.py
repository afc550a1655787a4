"""What a recurrent policy remembers of each entity, and when it forgets."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# No entity has this identity.
NOBODY = -2


class Memory(eqx.Module):
    """A state per entity slot, and whose it is: whoever finds another's memory in its slot starts from nothing.

    Attributes:
        state: `m` numbers per slot; m is 0 for a policy without memory.
        uid: identity of the entity that the state belongs to.
    """

    state: Float[Array, "*b n m"]
    uid: Int[Array, "*b n"]

    @classmethod
    def empty(cls, n_slots: int, width: int) -> "Memory":
        """Return that of nobody."""
        return cls(jnp.zeros((n_slots, width)), jnp.full(n_slots, NOBODY, jnp.int32))


class Recurrence(eqx.Module):
    """A gated recurrent unit (Cho et al. 2014) for each entity."""

    cell: eqx.nn.GRUCell

    def __init__(self, n_in: int, width: int, key: Key[Array, ""]) -> None:
        self.cell = eqx.nn.GRUCell(n_in, width, key=key)

    def __call__(
        self, features: Float[Array, "*b n f"], state: Float[Array, "*b n m"], fresh: Bool[Array, "*b n"]
    ) -> Float[Array, "*b n m"]:
        """Return the next state, from nothing where the entity is fresh."""
        state = jnp.where(fresh[..., None], 0.0, state)
        rows = (x.reshape(-1, x.shape[-1]) for x in (features, state))
        return jax.vmap(self.cell)(*rows).reshape(state.shape)

    def unroll(
        self, features: Float[Array, "t *b n f"], state: Float[Array, "*b n m"], fresh: Bool[Array, "t *b n"]
    ) -> Float[Array, "t *b n m"]:
        """Return the states after each of successive steps."""

        def step(state: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            state = self(row[0], state, row[1])
            return state, state

        return jax.lax.scan(step, state, (features, fresh))[1]
