"""Messages between neighbours, with loss, delay and limited bandwidth.

Each entity broadcasts messages of a fixed number of numbers to those within the radius of a neighbour search when it
sends; each link may lose one; what gets through arrives some steps later. In a scenario's `act`

    mail, inbox = self.radio.step(world.fields.mail, neighbors, entities, message, key)

What happens on a link depends on the key and on the identities of both ends, not on slots, capacity or batch, and has
no gradient. A message in flight outlives its sender: it is delivered. A receiver that died gets none, and neither does
the entity that took over its slot.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt

from swarm.comms.links import AbstractLoss, Bursts, Jitter, Loss, PathLoss, either, link_draw, mixed
from swarm.core.errors import ConfigError
from swarm.geometry.obstacles import AbstractObstacles, blocked
from swarm.neighbors.questions import Among, Neighbors
from swarm.population.entities import Entities

__all__ = [
    "AbstractRadio",
    "Bursts",
    "Jitter",
    "Letters",
    "Loss",
    "Mail",
    "NearestRadio",
    "PathLoss",
    "SumRadio",
    "Total",
]


class Total(eqx.Module):
    """What arrived at each slot in a step.

    Attributes:
        total: sum of the messages; 0 where none arrived.
        count: how many arrived.
        newest: steps since the newest of them was sent; -1: none arrived.
    """

    total: Float[Array, "*t n m"]
    count: Float[Array, "*t n"]
    newest: Int[Array, "*t n"]

    @property
    def mean(self) -> Float[Array, "*t n m"]:
        """Mean of the messages; 0 where none arrived."""
        return self.total / jnp.maximum(self.count, 1.0)[..., None]


class Letters(eqx.Module):
    """What arrived at each slot in a step, from up to `k` senders.

    Without jitter the one that was nearest is first, and a lost one leaves its place empty. With jitter the one that
    was sent last is first, of those sent together the one that was nearest; if more than k arrive the last are lost.

    Attributes:
        message: 0 where none arrived.
        sender: identity of the sender, which may have died since; -1: none arrived.
        age: steps since it was sent; -1: none arrived.
    """

    message: Float[Array, "*t n k m"]
    sender: Int[Array, "*t n k"]
    age: Int[Array, "*t n k"]

    @property
    def count(self) -> Float[Array, "*t n"]:
        """How many arrived."""
        return jnp.sum(self.sender >= 0, axis=-1).astype(jnp.float32)

    @property
    def newest(self) -> Int[Array, "*t n"]:
        """Steps since the newest was sent; -1: none arrived."""
        never = jnp.iinfo(jnp.int32).max
        least = jnp.min(jnp.where(self.age >= 0, self.age, never), axis=-1)
        return jnp.where(least < never, least, -1)


class Mail(eqx.Module):
    """What is under way, and who listens.

    Attributes:
        inbox: what the receivers will get in the next `t` steps, a ring stacked along t.
        receiver: identity of the living entity in each slot; -1: none.
        clock: steps so far.
        bad: whose reception is in a bad spell (`Bursts`).
        offered: messages that were sent to each slot in the last step, lost ones included.
    """

    inbox: PyTree
    receiver: Int[Array, " n"]
    clock: Int[Array, ""]
    bad: Bool[Array, " n"]
    offered: Float[Array, " n"]


class Outgoing(eqx.Module):
    """What goes out in a step.

    Attributes:
        message: of each slot.
        sends: who sends.
        disturbed: probability that a receiver loses a message for reasons of its own.
        own: mixed identities, for the draws of the links.
        bits: of the step, for loss and delay.
    """

    message: Float[Array, "n m"]
    sends: Bool[Array, " n"]
    disturbed: Float[Array, " n"]
    own: UInt[Array, " n"]
    bits: UInt[Array, " 3"]


class AbstractRadio(eqx.Module):
    """Broadcasts to neighbours.

    With a bandwidth of b numbers a step, a message of m takes ceil(m / b) steps on the air, in which its sender sends
    no other: it arrives ceil(m / b) - 1 steps later, and senders take turns by identity, their clocks being apart.

    Attributes:
        loss: of each link.
        delay: least steps from sending to arrival; 0: at once.
        jitter: what comes on top; None: nothing.
        bursts: spells in which a receiver hears badly; None: none.
        bandwidth: numbers that a sender sends in a step; None: a message of any length.
    """

    loss: eqx.AbstractVar[AbstractLoss]
    delay: eqx.AbstractVar[int]
    jitter: eqx.AbstractVar[Jitter | None]
    bursts: eqx.AbstractVar[Bursts | None]
    bandwidth: eqx.AbstractVar[int | None]

    def __check_init__(self) -> None:
        name = type(self).__name__
        if self.delay < 0:
            raise ConfigError(f"{name}: delay = {self.delay}: expected 0 steps or more")
        if self.bandwidth is not None and self.bandwidth < 1:
            raise ConfigError(f"{name}: bandwidth = {self.bandwidth}: expected at least 1 number a step, or None")

    @abc.abstractmethod
    def nothing(self, n_slots: int, n_numbers: int) -> Any:
        """Return an inbox without messages of `n_numbers` numbers."""

    @abc.abstractmethod
    def send(
        self,
        neighbors: Neighbors,
        entities: Entities,
        sent: Outgoing,
        among: Among | None,
        obstacles: AbstractObstacles | None,
    ) -> tuple[Any, Float[Array, " n"]]:
        """What gets through to each slot, stacked by how late it is, and how many messages it was sent."""

    @abc.abstractmethod
    def merge(self, old: Any, new: Any) -> Any:
        """One inbox of two that arrive in the same step; `new` was sent last."""

    @property
    def n_delays(self) -> int:
        """How many different delays there are."""
        return 1 if self.jitter is None else self.jitter.cumulative.shape[0]

    def air_time(self, n_numbers: int) -> int:
        """Steps that sending a message takes."""
        return 1 if self.bandwidth is None else max(1, -(-n_numbers // self.bandwidth))

    def init(self, n_slots: int, n_numbers: int) -> Mail:
        """Nothing is under way; for messages of `n_numbers` numbers."""
        empty = self.nothing(n_slots, n_numbers)
        length = self.delay + self.air_time(n_numbers) - 1 + self.n_delays
        ring = jax.tree.map(lambda x: jnp.broadcast_to(x, (length, *x.shape)), empty)
        nobody = jnp.full(n_slots, -1, jnp.int32)
        return Mail(ring, nobody, jnp.int32(0), jnp.zeros(n_slots, bool), jnp.zeros(n_slots))

    def step(
        self,
        mail: Mail,
        neighbors: Neighbors,
        entities: Entities,
        message: Float[Array, "n m"],
        key: Key[Array, ""],
        among: Among | None = None,
        obstacles: AbstractObstacles | None = None,
    ) -> tuple[Mail, Any]:
        """Send this step's messages, and deliver those that are due.

        Args:
            mail: what is under way.
            neighbors: who hears whom, as the entities stand now.
            entities: the population now: senders, and receivers of what arrives.
            message: of each slot.
            key: of this step; decides what happens on each link.
            among: who hears whom by label, like the team.
            obstacles: what may be in the way of a link (`swarm.geometry.obstacles.blocked`); None: nothing. Costs 33
                distances for each link of a `NearestRadio`, and for each candidate of the search for a `SumRadio`.

        Returns:
            What is under way now, and what arrives.
        """
        stays = entities.alive & (mail.receiver == entities.uid)
        empty = self.nothing(*message.shape)

        def kept(values: Array, nothing: Array) -> Array:
            return jnp.where(stays.reshape(1, -1, *(1,) * (nothing.ndim - 1)), values, nothing[None])

        ring = jax.tree.map(kept, mail.inbox, empty)
        air_time = self.air_time(message.shape[1])
        sent, bad = self._outgoing(mail, entities, message, key, air_time, ~stays)
        arriving, offered = self.send(neighbors, entities, sent, among, obstacles)
        length = jax.tree.leaves(ring)[0].shape[0]
        when = (mail.clock + self.delay + air_time - 1 + jnp.arange(self.n_delays)) % length
        if self.n_delays > 1:
            arriving = jax.vmap(self.merge)(jax.tree.map(lambda x: x[when], ring), arriving)
        ring = jax.tree.map(lambda x, new: x.at[when].set(new), ring, arriving)
        turn = mail.clock % length
        inbox = jax.tree.map(lambda x: x[turn], ring)
        ring = jax.tree.map(lambda x, nothing: x.at[turn].set(nothing), ring, empty)
        receiver = jnp.where(entities.alive, entities.uid, -1)
        return Mail(ring, receiver, mail.clock + 1, bad, offered), inbox

    def _outgoing(
        self,
        mail: Mail,
        entities: Entities,
        message: Float[Array, "n m"],
        key: Key[Array, ""],
        air_time: int,
        new: Bool[Array, " n"],
    ) -> tuple[Outgoing, Bool[Array, " n"]]:
        """Who sends what into which disturbance; and who hears badly."""
        bits, identity = jax.random.bits(key, (3,)), entities.uid.astype(jnp.uint32)
        sends = (mixed(identity) + mail.clock.astype(jnp.uint32)) % jnp.uint32(air_time) == 0
        bad, disturbed = mail.bad, jnp.zeros(entities.n_slots)
        if self.bursts is not None:
            bad = self.bursts.step(mail.bad, new, entities, jax.random.fold_in(key, 1))
            disturbed = jnp.where(bad, self.bursts.loss, 0.0)
        return Outgoing(message, sends, disturbed, mixed(identity ^ bits[0]), bits), bad

    def _fate(
        self,
        receiver: UInt[Array, "*#v"],
        sender: UInt[Array, "*#v"],
        bits: UInt[Array, " 3"],
        probability: Float[Array, "*#v"],
    ) -> tuple[Bool[Array, "*_v"], Int[Array, "*_v"]]:
        """Whether a message gets through that is lost with a probability, and how many steps late."""
        arrives = link_draw(receiver, sender, bits[1]) >= probability
        if self.jitter is None:
            return arrives, jnp.zeros(arrives.shape, jnp.int32)
        return arrives, self.jitter.steps(link_draw(receiver, sender, bits[2]))

    def _ages(self, n_numbers: int) -> Int[Array, " j"]:
        """Steps from sending to arrival by how late a message is."""
        return self.delay + self.air_time(n_numbers) - 1 + jnp.arange(self.n_delays)


class SumRadio(AbstractRadio):
    """Receivers get the sum of all messages that reach them, and their number (`Total`)."""

    loss: AbstractLoss
    delay: int = eqx.field(static=True)
    jitter: Jitter | None = None
    bursts: Bursts | None = None
    bandwidth: int | None = eqx.field(static=True, default=None)

    def nothing(self, n_slots: int, n_numbers: int) -> Total:
        """Zeros."""
        return Total(jnp.zeros((n_slots, n_numbers)), jnp.zeros(n_slots), jnp.full(n_slots, -1, jnp.int32))

    def send(
        self,
        neighbors: Neighbors,
        entities: Entities,
        sent: Outgoing,
        among: Among | None,
        obstacles: AbstractObstacles | None,
    ) -> tuple[Total, Float[Array, " n"]]:
        """Sum over neighbours."""
        m = sent.message.shape[1]
        # Identities as two numbers that a float holds exactly: a pair function sees floats only.
        columns = [sent.message, *(x.astype(jnp.float32)[:, None] for x in (sent.own >> 16, sent.own & 0xFFFF))]
        columns += [sent.sends.astype(jnp.float32)[:, None], sent.disturbed[:, None]]
        columns += [] if obstacles is None else [entities.position]

        def pair(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
            hidden = None if obstacles is None else blocked(obstacles, mine[m + 4 :], way)
            lost = either(self.loss.probability(distance, hidden), mine[m + 3])
            arrives, late = self._fate(_joined(mine[m : m + 2]), _joined(theirs[m : m + 2]), sent.bits, lost)
            sends = theirs[m + 2] > 0
            through = [sends & arrives & (late == i) for i in range(self.n_delays)]
            parts = [jnp.where(mask, part, 0.0) for mask in through for part in (*theirs[:m], 1.0)]
            return jnp.stack([*parts, jnp.where(sends, 1.0, 0.0)])

        sums = neighbors.sum(pair, jnp.concatenate(columns, axis=1), among)
        arrived = jnp.swapaxes(sums[:, :-1].reshape(-1, self.n_delays, m + 1), 0, 1)
        age = jnp.where(arrived[..., m] > 0, self._ages(m)[:, None], -1)
        return Total(arrived[..., :m], arrived[..., m], age), sums[:, -1]

    def merge(self, old: Total, new: Total) -> Total:
        """Add."""
        return Total(old.total + new.total, old.count + new.count, least_age(old.newest, new.newest))


class NearestRadio(AbstractRadio):
    """Receivers get the messages of the `k` nearest entities one by one (`Letters`).

    Attributes:
        k: how many of the nearest are heard, whether they send in this step or not; and most messages that a receiver
            takes in a step.
    """

    loss: AbstractLoss
    delay: int = eqx.field(static=True)
    k: int = eqx.field(static=True)
    jitter: Jitter | None = None
    bursts: Bursts | None = None
    bandwidth: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"NearestRadio: k = {self.k}: expected at least 1")

    def nothing(self, n_slots: int, n_numbers: int) -> Letters:
        """Zeros from nobody."""
        nobody = jnp.full((n_slots, self.k), -1, jnp.int32)
        return Letters(jnp.zeros((n_slots, self.k, n_numbers)), nobody, nobody)

    def send(
        self,
        neighbors: Neighbors,
        entities: Entities,
        sent: Outgoing,
        among: Among | None,
        obstacles: AbstractObstacles | None,
    ) -> tuple[Letters, Float[Array, " n"]]:
        """Gather from the nearest."""
        nearest = neighbors.nearest(self.k, among)
        offered = nearest.valid & nearest.gather(sent.sends)
        hidden = None
        if obstacles is not None:
            start = jnp.where(offered[:, :, None], entities.position[:, None], 0.0)
            hidden = blocked(obstacles, start, nearest.displacement)
        lost = either(self.loss.probability(nearest.distance, hidden), sent.disturbed[:, None])
        arrives, late = self._fate(sent.own[:, None], nearest.gather(sent.own), sent.bits, lost)
        through = (offered & arrives)[None] & (late[None] == jnp.arange(self.n_delays)[:, None, None])
        message, uid = nearest.gather(sent.message), nearest.gather(entities.uid)
        letters = Letters(
            message=jnp.where(through[..., None], message[None], 0.0),
            sender=jnp.where(through, uid[None], -1),
            age=jnp.where(through, self._ages(message.shape[2])[:, None, None], -1),
        )
        return letters, jnp.sum(offered, axis=1).astype(jnp.float32)

    def merge(self, old: Letters, new: Letters) -> Letters:
        """The first k of the new ones, then the old ones, without gaps."""
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), new, old)
        so_far = jnp.cumsum(both.sender >= 0, axis=1)
        place = jnp.arange(self.k)
        # The letter for a place comes after all those up to which there are no more than the place's number.
        index = jnp.sum(so_far[:, :, None] <= place[None, None], axis=1)
        found = so_far[:, -1:] > place[None]
        return Letters(
            message=jnp.where(found[:, :, None], _at(both.message, index), 0.0),
            sender=jnp.where(found, _at(both.sender, index), -1),
            age=jnp.where(found, _at(both.age, index), -1),
        )


def least_age(a: Int[Array, "*v"], b: Int[Array, "*v"]) -> Int[Array, "*v"]:
    """The lesser of two ages, of which -1 is none."""
    return jnp.where(a < 0, b, jnp.where(b < 0, a, jnp.minimum(a, b)))


def _at(values: Array, index: Int[Array, "n k"]) -> Array:
    """Values [n, l, ...] of each slot at its k places."""
    return jnp.take_along_axis(values, index.reshape(index.shape + (1,) * (values.ndim - 2)), axis=1, mode="clip")


def _joined(halves: Float[Array, " 2"]) -> UInt[Array, ""]:
    """The number whose upper and lower 16 bits these are."""
    return (halves[0].astype(jnp.uint32) << 16) | halves[1].astype(jnp.uint32)
