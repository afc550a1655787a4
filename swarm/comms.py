"""Messages between neighbours, with loss and delay.

Each entity broadcasts a message in each step, to those within the radius of a neighbour search when it sends; each link
may lose it; what gets through arrives a whole number of steps later. In a scenario's `act`

    mail, inbox = self.radio.step(world.fields.mail, neighbors, entities, message, key)

Which links fail depends on the key and on the identities of both ends, not on slots, capacity or batch, and has no
gradient. A message in flight outlives its sender: it is delivered. A receiver that died gets none, and neither does the
entity that took over its slot.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, UInt

from swarm.entities import Entities
from swarm.errors import ConfigError
from swarm.neighbors import Among, Neighbors
from swarm.space import rounded


class Loss(eqx.Module):
    """Probability that a link loses a message: constant + ratio * (distance / reference)^2, at most 1.

    The second part is that of Vasarhelyi et al. 2018 (reference 80 m).

    Attributes:
        constant: at any distance.
        ratio: at the reference distance.
        reference: metres.
    """

    constant: Float[Array, ""]
    ratio: Float[Array, ""]
    reference: Float[Array, ""]

    @classmethod
    def of(cls, constant: float | int = 0.0, ratio: float | int = 0.0, reference: float | int = 1.0) -> "Loss":
        """Build it from numbers.

        Raises:
            ConfigError: a number is out of range.
        """
        if not (0 <= constant <= 1 and ratio >= 0 and reference > 0):
            raise ConfigError(
                f"Loss: constant = {constant:g}, ratio = {ratio:g}, reference = {reference:g}: expected a constant "
                "from 0 to 1, a ratio of at least 0 and a reference above 0 m"
            )
        return cls(jnp.float32(constant), jnp.float32(ratio), jnp.float32(reference))

    def probability(self, distance: Float[Array, "*v"]) -> Float[Array, "*v"]:
        """Of links of a length in metres."""
        return jnp.minimum(self.constant + rounded(self.ratio * jnp.square(distance / self.reference)), 1.0)


class Total(eqx.Module):
    """What arrived at each slot in a step.

    Attributes:
        total: sum of the messages; 0 where none arrived.
        count: how many arrived.
    """

    total: Float[Array, "n m"]
    count: Float[Array, " n"]

    @property
    def mean(self) -> Float[Array, "*t n m"]:
        """Mean of the messages; 0 where none arrived."""
        return self.total / jnp.maximum(self.count, 1.0)[..., None]


class Letters(eqx.Module):
    """What arrived at each slot in a step, from up to `k` senders, the one that was nearest first.

    Attributes:
        message: 0 where none arrived.
        sender: identity of the sender, which may have died since; -1: none arrived.
    """

    message: Float[Array, "n k m"]
    sender: Int[Array, "n k"]


class Mail(eqx.Module):
    """What is under way: a ring of `t` steps.

    Attributes:
        inbox: what the receivers will get, stacked along t.
        receiver: identity of the entity that each slot held when it was sent.
        turn: place of the oldest.
    """

    inbox: PyTree
    receiver: Int[Array, "t n"]
    turn: Int[Array, ""]


class AbstractRadio(eqx.Module):
    """Broadcasts to neighbours.

    Attributes:
        loss: of each link.
        delay: steps from sending to arrival; 0: at once.
    """

    loss: eqx.AbstractVar[Loss]
    delay: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        if self.delay < 0:
            raise ConfigError(f"{type(self).__name__}: delay = {self.delay}: expected 0 steps or more")

    @abc.abstractmethod
    def nothing(self, n_slots: int, n_numbers: int) -> Any:
        """Return an inbox without messages of `n_numbers` numbers."""

    @abc.abstractmethod
    def send(
        self,
        neighbors: Neighbors,
        entities: Entities,
        message: Float[Array, "n m"],
        key: Key[Array, ""],
        among: Among | None = None,
    ) -> Any:
        """Return what gets through to each slot; arguments as for `step`."""

    def init(self, n_slots: int, n_numbers: int) -> Mail:
        """Nothing is under way; for messages of `n_numbers` numbers."""
        empty = self.nothing(n_slots, n_numbers)
        ring = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.delay, *x.shape)), empty)
        return Mail(ring, jnp.full((self.delay, n_slots), -1, jnp.int32), jnp.int32(0))

    def step(
        self,
        mail: Mail,
        neighbors: Neighbors,
        entities: Entities,
        message: Float[Array, "n m"],
        key: Key[Array, ""],
        among: Among | None = None,
    ) -> tuple[Mail, Any]:
        """Send this step's messages, and deliver those of `delay` steps ago.

        Args:
            mail: what is under way.
            neighbors: who hears whom, as the entities stand now.
            entities: the population now: senders, and receivers of what arrives.
            message: of each slot.
            key: of this step; decides which links lose their message.
            among: who hears whom by label, like the team.

        Returns:
            What is under way now, and what arrives.
        """
        sent = self.send(neighbors, entities, message, key, among)
        if self.delay == 0:
            return mail, sent
        got = entities.alive & (mail.receiver[mail.turn] == entities.uid)

        def deliver(old: Array, nothing: Array) -> Array:
            return jnp.where(got.reshape(got.shape + (1,) * (nothing.ndim - 1)), old[mail.turn], nothing)

        inbox = jax.tree.map(deliver, mail.inbox, self.nothing(*message.shape))
        ring = jax.tree.map(lambda old, new: old.at[mail.turn].set(new), mail.inbox, sent)
        receiver = mail.receiver.at[mail.turn].set(jnp.where(entities.alive, entities.uid, -1))
        return Mail(ring, receiver, (mail.turn + 1) % self.delay), inbox


class SumRadio(AbstractRadio):
    """Receivers get the sum of all messages that reach them, and their number (`Total`)."""

    loss: Loss
    delay: int = eqx.field(static=True)

    def nothing(self, n_slots: int, n_numbers: int) -> Total:
        """Zeros."""
        return Total(jnp.zeros((n_slots, n_numbers)), jnp.zeros(n_slots))

    def send(
        self,
        neighbors: Neighbors,
        entities: Entities,
        message: Float[Array, "n m"],
        key: Key[Array, ""],
        among: Among | None = None,
    ) -> Total:
        """Sum over neighbours."""
        bits = jax.random.bits(key, (2,))
        own, m = _mixed(entities.uid.astype(jnp.uint32) ^ bits[0]), message.shape[1]
        # As two numbers that a float holds exactly: a pair function sees floats only.
        halves = [half.astype(jnp.float32)[:, None] for half in (own >> 16, own & 0xFFFF)]

        def pair(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
            draw = _draw(_joined(mine[m:]), _joined(theirs[m:]), bits[1])
            arrives = draw >= self.loss.probability(distance)
            return jnp.stack([jnp.where(arrives, part, 0.0) for part in (*theirs[:m], 1.0)])

        sums = neighbors.sum(pair, jnp.concatenate([message, *halves], axis=1), among)
        return Total(sums[:, :m], sums[:, m])


class NearestRadio(AbstractRadio):
    """Receivers get the messages of the `k` nearest senders one by one (`Letters`); a lost one leaves its place empty.

    Attributes:
        k: most messages that a receiver gets in a step.
    """

    loss: Loss
    delay: int = eqx.field(static=True)
    k: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"NearestRadio: k = {self.k}: expected at least 1")

    def nothing(self, n_slots: int, n_numbers: int) -> Letters:
        """Zeros from nobody."""
        return Letters(jnp.zeros((n_slots, self.k, n_numbers)), jnp.full((n_slots, self.k), -1, jnp.int32))

    def send(
        self,
        neighbors: Neighbors,
        entities: Entities,
        message: Float[Array, "n m"],
        key: Key[Array, ""],
        among: Among | None = None,
    ) -> Letters:
        """Gather from the nearest."""
        bits = jax.random.bits(key, (2,))
        own, nearest = _mixed(entities.uid.astype(jnp.uint32) ^ bits[0]), neighbors.nearest(self.k, among)
        draw = _draw(own[:, None], nearest.gather(own), bits[1])
        arrives = nearest.valid & (draw >= self.loss.probability(nearest.distance))
        return Letters(
            message=jnp.where(arrives[:, :, None], nearest.gather(message), 0.0),
            sender=jnp.where(arrives, nearest.gather(entities.uid), -1),
        )


def _draw(receiver: UInt[Array, "*#v"], sender: UInt[Array, "*#v"], bits: UInt[Array, ""]) -> Float[Array, "*_v"]:
    """A uniform number in [0, 1) for each directed link, from the mixed identities of its ends and a step's bits.

    Some integer operations instead of the hundred of threefry, which would cost more than the search itself. The
    factor tells the two directions apart; it is odd, and one less is odd when halved, so that it loses few bits.
    """
    mixed = _mixed(_mixed(receiver * jnp.uint32(0x85EBCA6B) + sender) ^ bits)
    return (mixed >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def _mixed(x: UInt[Array, "*v"]) -> UInt[Array, "*v"]:
    """Hash 32 bits one to one, each bit of the result from all (lowbias32; Wellons 2018, Hash Prospector)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _joined(halves: Float[Array, " 2"]) -> UInt[Array, ""]:
    """The number whose upper and lower 16 bits these are."""
    return (halves[0].astype(jnp.uint32) << 16) | halves[1].astype(jnp.uint32)
