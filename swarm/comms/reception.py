"""Statistics of radios, to be kept in a scenario's fields: delivery rate, age of information.

    mail, inbox = self.radio.step(world.fields.mail, neighbors, entities, message, key)
    reception = world.fields.reception.step(mail, inbox, entities)

The age of information is the time since the newest message that arrived was sent (Kaul, Yates, Gruteser 2012).
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from swarm.comms.radios import Letters, Mail, Total, least_age
from swarm.neighbors.questions import Nearest
from swarm.population.entities import Entities


class Reception(eqx.Module):
    """Delivery rate of all links, and age of information of each entity, whoever told it.

    Attributes:
        offered: messages sent to each slot so far, whoever held it; right up to 2^31, 100 million steps of 20.
        delivered: of these, those that arrived.
        age: age of information: steps since the newest message that the entity has was sent; -1: it has none.
        uid: identity of the entity that the age belongs to.
    """

    offered: Int[Array, " n"]
    delivered: Int[Array, " n"]
    age: Int[Array, " n"]
    uid: Int[Array, " n"]

    @classmethod
    def init(cls, n_slots: int) -> "Reception":
        """Nothing so far."""
        nobody = jnp.full(n_slots, -1, jnp.int32)
        none = jnp.zeros(n_slots, jnp.int32)
        return cls(none, none, nobody, nobody)

    def step(self, mail: Mail, inbox: Total | Letters, entities: Entities) -> "Reception":
        """Count what a step of the radio returned."""
        uid = jnp.where(entities.alive, entities.uid, -1)
        known = entities.alive & (self.uid == uid) & (self.age >= 0)
        age = least_age(jnp.where(known, self.age + 1, -1), inbox.newest)
        # Whole numbers: a float32 stops counting at 2^24.
        offered, delivered = (count.astype(jnp.int32) for count in (mail.offered, inbox.count))
        return Reception(self.offered + offered, self.delivered + delivered, age, uid)

    @property
    def delivery_rate(self) -> Float[Array, "*t"]:
        """Share of all messages that have arrived; what is under way counts as not arrived; 0 where none was sent."""
        delivered, offered = (count.astype(jnp.float32) for count in (self.delivered, self.offered))
        return jnp.sum(delivered, axis=-1) / jnp.maximum(jnp.sum(offered, axis=-1), 1.0)


class LinkAges(eqx.Module):
    """Age of information by link, from each of the k nearest neighbours; who leaves these is forgotten.

    Attributes:
        sender: identity of the neighbour; -1: none.
        age: steps since the newest message that the entity has from it was sent; -1: it has none.
        uid: identity of the entity that all this belongs to.
    """

    sender: Int[Array, "n k"]
    age: Int[Array, "n k"]
    uid: Int[Array, " n"]

    @classmethod
    def init(cls, n_slots: int, k: int) -> "LinkAges":
        """Nothing so far."""
        nobody = jnp.full((n_slots, k), -1, jnp.int32)
        return cls(nobody, nobody, nobody[:, 0])

    def step(self, nearest: Nearest, entities: Entities, letters: Letters) -> "LinkAges":
        """Follow who is near now, and read the ages of what arrived."""
        sender = jnp.where(nearest.valid, nearest.gather(entities.uid), -1)
        uid = jnp.where(entities.alive, entities.uid, -1)
        known = (self.age >= 0) & (entities.alive & (self.uid == uid))[:, None]
        old = _age_of(sender, self.sender, jnp.where(known, self.age + 1, -1))
        return LinkAges(sender, least_age(old, _age_of(sender, letters.sender, letters.age)), uid)


def _age_of(wanted: Int[Array, "n k"], sender: Int[Array, "n l"], age: Int[Array, "n l"]) -> Int[Array, "n k"]:
    """Least age among those of each wanted sender; -1: there is none."""
    never = jnp.iinfo(jnp.int32).max
    same = (wanted[:, :, None] == sender[:, None]) & (wanted[:, :, None] >= 0) & (age[:, None] >= 0)
    least = jnp.min(jnp.where(same, age[:, None], never), axis=2)
    return jnp.where(least < never, least, -1)
