"""What may happen to a message on its way: loss by distance and obstacles, bursts of it, and varying delay.

Each is drawn from the key of a step and the identities of both ends, by a hash: some integer operations instead of the
hundred of threefry, which would cost more than the neighbour search itself.
"""

import abc
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from swarm.core.errors import ConfigError
from swarm.core.rounding import rounded
from swarm.population.entities import Entities


class AbstractLoss(eqx.Module):
    """How probable it is that a link loses a message."""

    @abc.abstractmethod
    def probability(self, distance: Float[Array, "*v"], blocked: Bool[Array, "*v"] | None = None) -> Float[Array, "*v"]:
        """Of links of a length in metres, and with an obstacle in their way or without."""


class Loss(AbstractLoss):
    """Probability that a link loses a message: constant + ratio * (distance / reference)^2, at most 1.

    The second part is that of Vasarhelyi et al. 2018 (reference 80 m). An obstacle in the way loses it independently.

    Attributes:
        constant: at any distance.
        ratio: at the reference distance.
        reference: metres.
        wall: through an obstacle.
    """

    constant: Float[Array, ""]
    ratio: Float[Array, ""]
    reference: Float[Array, ""]
    wall: Float[Array, ""]

    @classmethod
    def of(
        cls,
        constant: float | int = 0.0,
        ratio: float | int = 0.0,
        reference: float | int = 1.0,
        wall: float | int = 0.0,
    ) -> "Loss":
        """Build it from numbers.

        Raises:
            ConfigError: a number is out of range.
        """
        if not (0 <= constant <= 1 and ratio >= 0 and reference > 0 and 0 <= wall <= 1):
            raise ConfigError(
                f"Loss: constant = {constant:g}, ratio = {ratio:g}, reference = {reference:g}, wall = {wall:g}: "
                "expected a constant and a wall from 0 to 1, a ratio of at least 0 and a reference above 0 m"
            )
        return cls(*(jnp.float32(x) for x in (constant, ratio, reference, wall)))

    def probability(self, distance: Float[Array, "*v"], blocked: Bool[Array, "*v"] | None = None) -> Float[Array, "*v"]:
        """Grows with the square of the distance."""
        free = jnp.minimum(self.constant + rounded(self.ratio * jnp.square(distance / self.reference)), 1.0)
        return free if blocked is None else jnp.where(blocked, either(free, self.wall), free)


class PathLoss(AbstractLoss):
    """Log-distance path loss with log-normal shadowing (Rappaport 2002, eq. 4.69 and 4.72): outage below the threshold.

    A message is lost where 10 exponent log10(distance / reach) + wall (through an obstacle) + X > 0 dB, with X normal
    and drawn anew for each message: probability Phi(mean / fading).

    Attributes:
        reach: distance at which half of the messages get through in the open, metres.
        exponent: 2 in free space, 2.7 to 3.5 between buildings.
        fading: standard deviation of X, decibels.
        wall: what an obstacle takes, decibels.
    """

    reach: Float[Array, ""]
    exponent: Float[Array, ""]
    fading: Float[Array, ""]
    wall: Float[Array, ""]

    @classmethod
    def of(
        cls, reach: float | int, exponent: float | int = 2.0, fading: float | int = 4.0, wall: float | int = 0.0
    ) -> "PathLoss":
        """Build it from numbers.

        Raises:
            ConfigError: a number is out of range.
        """
        if not (all(0 < x < math.inf for x in (reach, exponent, fading)) and 0 <= wall < math.inf):
            raise ConfigError(
                f"PathLoss: reach = {reach:g}, exponent = {exponent:g}, fading = {fading:g}, wall = {wall:g}: expected "
                "a reach above 0 m, an exponent and a fading above 0, and a wall of at least 0 dB"
            )
        return cls(*(jnp.float32(x) for x in (reach, exponent, fading, wall)))

    def probability(self, distance: Float[Array, "*v"], blocked: Bool[Array, "*v"] | None = None) -> Float[Array, "*v"]:
        """Of outage."""
        excess = rounded(10.0 * self.exponent * jnp.log10(jnp.maximum(distance / self.reach, 1e-6)))
        if blocked is not None:
            excess = excess + jnp.where(blocked, self.wall, 0.0)
        return jax.scipy.special.ndtr(excess / self.fading)


class Jitter(eqx.Module):
    """How many steps later than the least a message arrives, drawn for each link and message.

    Attributes:
        cumulative: probability of at most 0, 1, ... steps; the last is 1.
    """

    cumulative: Float[Array, " j"]

    @classmethod
    def of(cls, probabilities: Sequence[float]) -> "Jitter":
        """Of a table: probabilities of 0, 1, ... steps more.

        Raises:
            ConfigError: one is negative, or they do not sum to 1.
        """
        table = np.asarray(probabilities, float)
        if table.ndim != 1 or not np.all(table >= 0) or abs(table.sum() - 1) > 1e-6:
            raise ConfigError(f"Jitter: probabilities = {table.tolist()}: expected numbers from 0 to 1 whose sum is 1")
        return cls(jnp.asarray([*np.cumsum(table)[:-1], 1.0], jnp.float32))

    @classmethod
    def geometric(cls, later: float, longest: int) -> "Jitter":
        """With probability `later` a message takes a step more, again and again up to `longest` steps.

        Raises:
            ConfigError: a number is out of range.
        """
        if not (0 <= later < 1 and longest >= 0):
            raise ConfigError(
                f"Jitter: later = {later:g}, longest = {longest}: expected a probability from 0 to below 1, and 0 "
                "steps or more"
            )
        return cls.of([(1 - later) * later**i for i in range(longest)] + [later**longest])

    def steps(self, draw: Float[Array, "*v"]) -> Int[Array, "*v"]:
        """Steps more, from a uniform number in [0, 1)."""
        more = [(draw >= self.cumulative[i]).astype(jnp.int32) for i in range(self.cumulative.shape[0] - 1)]
        return sum(more, start=jnp.zeros(draw.shape, jnp.int32))


class Bursts(eqx.Module):
    """Spells in which a receiver hears badly: the two-state chain of Gilbert 1960 and Elliott 1963, a step at a time.

    Spells last 1 / end steps on average, 1 / begin lie between them, begin / (begin + end) of all steps are bad.

    Attributes:
        begin: probability that a bad spell begins after a good step.
        end: probability that it ends after a bad one.
        loss: probability that a message is lost in a bad step, whatever else may happen to it.
    """

    begin: Float[Array, ""]
    end: Float[Array, ""]
    loss: Float[Array, ""]

    @classmethod
    def of(cls, good: float | int, bad: float | int, loss: float | int = 1.0) -> "Bursts":
        """Of the mean lengths of good and bad spells, in steps.

        Raises:
            ConfigError: a number is out of range.
        """
        if not (1 <= good < math.inf and 1 <= bad < math.inf and 0 <= loss <= 1):
            raise ConfigError(
                f"Bursts: good = {good:g}, bad = {bad:g}, loss = {loss:g}: expected spells of at least 1 step, and a "
                "loss from 0 to 1"
            )
        return cls(jnp.float32(1 / good), jnp.float32(1 / bad), jnp.float32(loss))

    def step(
        self, bad: Bool[Array, " n"], new: Bool[Array, " n"], entities: Entities, key: Key[Array, ""]
    ) -> Bool[Array, " n"]:
        """Who hears badly now; the `new` ones from the stationary distribution. Draws are per identity."""
        draw = jax.vmap(jax.random.uniform)(entities.keys(key))
        chance = jnp.where(bad, 1.0 - self.end, self.begin)
        return draw < jnp.where(new, self.begin / (self.begin + self.end), chance)


def either(one: Float[Array, "*#v"], other: Float[Array, "*#v"]) -> Float[Array, "*_v"]:
    """Probability that at least one of two independent things happens."""
    return one + rounded((1.0 - one) * other)


def link_draw(receiver: UInt[Array, "*#v"], sender: UInt[Array, "*#v"], bits: UInt[Array, ""]) -> Float[Array, "*_v"]:
    """A uniform number in [0, 1) for each directed link, from the mixed identities of its ends and a step's bits.

    The factor tells the two directions apart; it is odd, and one less is odd when halved, so that it loses few bits.
    """
    both = mixed(mixed(receiver * jnp.uint32(0x85EBCA6B) + sender) ^ bits)
    return (both >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def mixed(x: UInt[Array, "*v"]) -> UInt[Array, "*v"]:
    """Hash 32 bits one to one, each bit of the result from all (lowbias32; Wellons 2018, Hash Prospector)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
