"""Instruments: what they say of a true value, with bias, drift, noise, at their own rate, and late.

In a scenario's `act`

    track, reading = self.gps.step(world.fields.gps, entities, jnp.concatenate([position, velocity], axis=1), key)

Errors belong to identities: a newborn gets an instrument of its own, whatever slot, capacity and batch.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from swarm.comms.links import AbstractLoss, Loss
from swarm.core.errors import ConfigError
from swarm.core.rounding import root, rounded
from swarm.dynamics import quaternion
from swarm.dynamics.air import gauss_markov
from swarm.dynamics.flight import AbstractFlight
from swarm.dynamics.motion import Motion
from swarm.dynamics.quaternion import components, joined
from swarm.geometry.space import square_length
from swarm.population.entities import Entities

Amount = float | int | Sequence[float]
# What draws for all are keyed by: no entity has this identity.
_SKY = np.uint32(0xFFFFFFFE)


class Reading(eqx.Module):
    """What an instrument says now.

    Attributes:
        value: 0 before the first sample has arrived.
        age: steps since it was sampled; -1: none has arrived yet.
    """

    value: Float[Array, "n q"]
    age: Int[Array, " n"]

    @property
    def valid(self) -> Bool[Array, "*t n"]:
        """Whether a sample has arrived."""
        return self.age >= 0


class Track(eqx.Module):
    """State of the `Sensor` of each slot.

    Attributes:
        bias: constant error, in units of what is measured.
        drift: slow error of its own, in standard deviations.
        shared: slow error that all have in common, likewise.
        held: samples as they stood after each of the last steps, a ring.
        clock: steps so far.
        age: steps since the first one of the entity.
        uid: identity of the entity that all this belongs to.
    """

    bias: Float[Array, "n q"]
    drift: Float[Array, "n q"]
    shared: Float[Array, " q"]
    held: Float[Array, "t n q"]
    clock: Int[Array, ""]
    age: Int[Array, " n"]
    uid: Int[Array, " n"]


class Sensor(eqx.Module):
    """Samples truth + bias + drift + noise in every `period`-th step of an entity, and tells it `latency` steps later.

    The bias is drawn once for each entity. The drift is a first-order Gauss-Markov process, discretised exactly:
    correlation drift^2 exp(-t / drift_time), stationary from birth. Noise is white. The first step of an entity
    samples. Quantities have errors of their own, independent of each other. Of the drift's variance a share may be
    common to all entities of a world: one process for each quantity, drawn in the first step of the world, which moves
    on in every `period`-th step of the world.

    Attributes:
        bias: standard deviation of each of `q` quantities.
        drift: standard deviation.
        drift_rate: periods per correlation time of the drift.
        noise: standard deviation of a sample.
        period: steps between samples.
        common: share of the drift's variance that all entities of a world have in common, from 0 to 1.
        latency: steps from sampling to reading.
    """

    bias: Float[Array, " q"]
    drift: Float[Array, " q"]
    drift_rate: Float[Array, " q"]
    noise: Float[Array, " q"]
    period: Int[Array, ""]
    common: Float[Array, " q"]
    latency: int = eqx.field(static=True)

    @classmethod
    def of(
        cls,
        n_quantities: int,
        time_step: float,
        rate: float,
        bias: Amount = 0.0,
        drift: Amount = 0.0,
        drift_time: Amount = 1.0,
        noise: Amount = 0.0,
        latency: int = 0,
        common: Amount = 0.0,
    ) -> "Sensor":
        """Build it from numbers, one for all quantities or one for each.

        Args:
            n_quantities: how many numbers a reading has.
            time_step: of the simulation, seconds.
            rate: samples in a second; steps come in whole numbers between them.
            bias: standard deviation over entities, in units of the quantity.
            drift: standard deviation, likewise.
            drift_time: correlation time of the drift, seconds.
            noise: standard deviation of a sample, likewise.
            latency: steps from sampling to reading.
            common: share of the drift's variance that all entities of a world have in common, likewise; from 0 to 1.

        Raises:
            ConfigError: a number is out of range, or no whole number of steps makes the rate.
        """
        if latency < 0:
            raise ConfigError(f"Sensor: latency = {latency}: expected 0 steps or more")
        if np.any(np.asarray(common, float) > 1):
            raise ConfigError(f"Sensor: common = {common}: expected shares of the drift's variance, from 0 to 1")
        period = _period(time_step, rate)
        return cls(
            bias=_row("bias", bias, n_quantities),
            drift=_row("drift", drift, n_quantities),
            drift_rate=period * time_step / _row("drift_time", drift_time, n_quantities, positive=True),
            noise=_row("noise", noise, n_quantities),
            period=jnp.int32(period),
            common=_row("common", common, n_quantities),
            latency=latency,
        )

    def init(self, entities: Entities) -> Track:
        """Of nobody: who is there gets an instrument in the first step."""
        n, q = entities.n_slots, self.noise.shape[0]
        nobody = jnp.full(n, -2, jnp.int32)
        ring = jnp.zeros((self.latency + 1, n, q))
        zero = jnp.zeros((n, q))
        return Track(zero, zero, jnp.zeros(q), ring, jnp.int32(0), jnp.zeros(n, jnp.int32), nobody)

    def step(
        self, track: Track, entities: Entities, truth: Float[Array, "n q"], key: Key[Array, ""]
    ) -> tuple[Track, Reading]:
        """Sample what is due, and read what has arrived.

        Args:
            track: as it stands.
            entities: the population now; draws are per identity.
            truth: what is measured, as it is now.
            key: of this step.
        """
        new = track.uid != entities.uid
        age = jnp.where(new, 0, track.age + 1)
        due = (age % self.period == 0)[:, None]
        # Rounded: a normal number is itself a product, which could be joined with the next.
        draw = rounded(jax.vmap(lambda k: jax.random.normal(k, (3, truth.shape[1])))(entities.keys(key)))
        bias = jnp.where(new[:, None], rounded(self.bias[None] * draw[:, 0]), track.bias)
        drift = gauss_markov(track.drift, draw[:, 1], self.drift_rate[None])
        drift = jnp.where(new[:, None], draw[:, 1], jnp.where(due, drift, track.drift))
        sky = rounded(jax.random.normal(jax.random.fold_in(key, _SKY), self.drift.shape))
        shared = jnp.where(
            track.clock % self.period == 0, gauss_markov(track.shared, sky, self.drift_rate), track.shared
        )
        shared = jnp.where(track.clock == 0, sky, shared)
        alone, together = (self.drift * root(share) for share in (1.0 - self.common, self.common))
        slow = rounded(alone[None] * drift) + rounded(together * shared)[None]
        sample = truth + bias + slow + rounded(self.noise[None] * draw[:, 2])
        length = self.latency + 1
        held = jnp.where(due, sample, track.held[(track.clock - 1) % length])
        ring = track.held.at[track.clock % length].set(held)
        there = age >= self.latency
        value = jnp.where(there[:, None], ring[(track.clock + 1) % length], 0.0)
        since = jnp.where(there, self.latency + (age - self.latency) % self.period, -1)
        return Track(bias, drift, shared, ring, track.clock + 1, age, entities.uid), Reading(value, since)


def _row(name: str, value: Amount, n: int, positive: bool = False) -> Float[Array, " n"]:
    """One number for each quantity."""
    row = np.asarray(value, float)
    if row.shape not in ((), (n,)) or not np.all(np.isfinite(row) & (row > 0 if positive else row >= 0)):
        bound = "greater than" if positive else "at least"
        raise ConfigError(f"Sensor: {name} = {row.tolist()}: expected one number or {n}, {bound} 0")
    return jnp.asarray(np.broadcast_to(row, n), jnp.float32)


def _period(time_step: float, rate: float) -> int:
    """Steps from sample to sample."""
    if not (0 < time_step < math.inf and 0 < rate < math.inf):
        raise ConfigError(f"Sensor: time_step = {time_step:g} s, rate = {rate:g} Hz: expected both greater than 0")
    exact = 1.0 / (rate * time_step)
    period = max(round(exact), 1)
    if abs(exact - period) > 1e-3 * period:
        near = sorted({1.0 / (time_step * max(p, 1)) for p in (math.floor(exact), math.ceil(exact))})
        raise ConfigError(
            f"Sensor: rate = {rate:g} Hz: a sample every {exact:.4g} steps of {time_step:g} s, expected a whole number "
            f"of at least 1; choose {' or '.join(f'{r:.6g} Hz' for r in near)}"
        )
    return period


def gps(
    time_step: float,
    rate: float = 5.0,
    n_dimensions: int = 3,
    position_drift: float = 2.1,
    drift_time: float = 60.0,
    position_noise: float = 0.1,
    velocity_noise: float = 0.05,
    latency: int = 0,
    common: float = 0.92,
) -> Sensor:
    """A receiver whose 2 n_dimensions quantities are position (metres) and velocity (metres per second).

    Its error in position is nearly all slow, and half as large again upward. The default drift is the 2.5 m in which a
    u-blox M8 is half of the time (2.5 / sqrt(2 ln 2) = 2.1 along each axis), its velocity noise is theirs, too; the
    correlation time, and how much is white, are of the order that simulators use.

    Receivers under one sky have most of the drift in common: `common` is the share of its variance that comes from
    satellites and atmosphere (2.1 m of ephemeris, 2.1 m of clocks, 4.0 m of ionosphere, 0.7 m of troposphere, beside
    1.4 m of multipath and 0.5 m of the receiver: Parkinson 1996, "GPS error analysis", standard error model of L1 C/A).
    So two of them err by sqrt(2 (1 - common)) = 0.4 of the drift against each other, wherever they are: right for
    swarms within some kilometres. 0: independent, as receivers do that see different satellites. The common part is
    that of a world, which a batch has many of.

    Other arguments in seconds, hertz, metres, metres per second, and steps; errors as for `Sensor.of`.
    """
    up = [1.0, 1.0, 1.5][:n_dimensions]
    return _receiver(time_step, rate, up, position_drift, drift_time, position_noise, velocity_noise, latency, common)


def rtk(
    time_step: float,
    rate: float = 5.0,
    n_dimensions: int = 3,
    position_drift: float = 0.0085,
    drift_time: float = 60.0,
    position_noise: float = 0.002,
    velocity_noise: float = 0.05,
    latency: int = 0,
    common: float = 0.5,
) -> Sensor:
    """A receiver with fixed carrier phases and a base station: position against the base, to a centimetre.

    What satellites and atmosphere add is the same at the base, and gone. The default drift is the 0.01 m in which a
    u-blox ZED-F9P is half of the time, level and upward (data sheet: 0.01 m CEP and R50, and 1 mm for each kilometre
    to the base, which is left out): 0.01 / sqrt(2 ln 2) = 0.0085 along each level axis, 0.01 / 0.674 upward; its
    velocity noise is theirs, too. Antennas of base and receiver err alike, and all share that of the base: half of the
    variance is common. How slow it is, and how much is white, are assumptions. Where the base is wrong, add that.

    Arguments as for `gps`.
    """
    up = [1.0, 1.0, 1.745][:n_dimensions]
    return _receiver(time_step, rate, up, position_drift, drift_time, position_noise, velocity_noise, latency, common)


def _receiver(
    time_step: float,
    rate: float,
    up: list[float],
    position_drift: float,
    drift_time: float,
    position_noise: float,
    velocity_noise: float,
    latency: int,
    common: float,
) -> Sensor:
    """Position with drift and noise, so many times as large along each axis; velocity with noise."""
    n, zero = len(up), [0.0] * len(up)
    drift = [position_drift * share for share in up]
    noise = [position_noise * share for share in up] + [velocity_noise] * n
    return Sensor.of(2 * n, time_step, rate, 0.0, drift + zero, drift_time, noise, latency, common)


# Largest Allan deviation of a Gauss-Markov process of standard deviation 1, at 1.89 times its correlation time.
MARKOV_PEAK = 0.6174


def imu(
    time_step: float,
    rate: float,
    gyro_density: float = 8.7e-5,
    gyro_instability: float = 2.2e-5,
    gyro_bias: float = 0.0,
    accelerometer_density: float = 2.4e-3,
    accelerometer_instability: float = 3.5e-4,
    accelerometer_bias: float = 0.0,
    drift_time: tuple[float, float] = (500.0, 800.0),
    latency: int = 0,
) -> Sensor:
    """Gyroscope (radians per second) and accelerometer (metres per second squared), three axes each.

    Densities N are what the Allan deviation is at 1 s (angle and velocity random walk), in units per square root of
    hertz: a sample has the standard deviation N sqrt(rate), and its integral over t seconds N sqrt(t). Instabilities
    are the flat part of the Allan deviation; a Gauss-Markov process stands for it whose largest Allan deviation that
    is (0.617 of its standard deviation; IEEE Std 952-1997, annex C). The defaults are those of an MPU-6000 (Greenheck
    2009), calibrated, so that no bias is left. What it measures is `inertial`.

    Args:
        time_step: of the simulation, seconds.
        rate: hertz.
        gyro_density: radians per second per square root of hertz.
        gyro_instability: radians per second.
        gyro_bias: standard deviation over entities, radians per second.
        accelerometer_density: metres per second squared per square root of hertz.
        accelerometer_instability: metres per second squared.
        accelerometer_bias: standard deviation over entities, metres per second squared.
        drift_time: correlation times of the gyroscope's and the accelerometer's drift, seconds.
        latency: steps.

    Raises:
        ConfigError: as `Sensor.of`.
    """

    def both(gyro: float, accelerometer: float) -> list[float]:
        return [gyro] * 3 + [accelerometer] * 3

    return Sensor.of(
        6,
        time_step,
        rate,
        both(gyro_bias, accelerometer_bias),
        both(gyro_instability / MARKOV_PEAK, accelerometer_instability / MARKOV_PEAK),
        both(*drift_time),
        both(*(n * math.sqrt(max(rate, 0.0)) for n in (gyro_density, accelerometer_density))),
        latency,
    )


def inertial(
    flight: AbstractFlight, before: Motion, after: Motion, kind: Int[Array, " n"], dt: Float[Array, ""]
) -> Float[Array, "n 6"]:
    """Mean angular velocity and specific force over a step, in axes of the body: the truth of an `imu`.

    Radians per second and metres per second squared; at rest the force is (0, 0, g). Of second order in the step: the
    turn is that between both attitudes, and the force is turned by the attitude midway.
    """
    first, last = (components(flight.attitude(motion)) for motion in (before, after))
    # Both signs of a quaternion are the same attitude.
    sign = jnp.where(quaternion.inner(first, last) < 0, -1.0, 1.0)
    last = tuple(sign * c for c in last)
    *axis, cos = quaternion.product(quaternion.conjugate(first), last)
    square = square_length(axis)
    sin = root(square)
    turned = jnp.where(square > 0, 2.0 * jnp.arctan2(sin, cos) / jnp.where(square > 0, sin, 1.0), 2.0)
    rates = tuple(turned * c / dt for c in axis)
    middle = quaternion.unit(tuple(a + b for a, b in zip(first, last, strict=True)))
    x, y, z = components((after.velocity - before.velocity) / dt)
    force = quaternion.turn_back(middle, (x, y, z + flight.plant(kind).gravity))
    return joined((*rates, *force))


class Ranging(eqx.Module):
    """Distances with noise and gaps: radio ranging to neighbours or anchors, a lidar's or a depth camera's rays.

    Attributes:
        noise: standard deviation at no distance, metres.
        share: what it grows by with each metre.
        dropout: probability that there is no echo or answer, by distance.
    """

    noise: Float[Array, ""]
    share: Float[Array, ""]
    dropout: AbstractLoss

    @classmethod
    def of(cls, noise: float | int, share: float | int = 0.0, dropout: AbstractLoss | None = None) -> "Ranging":
        """Build it from numbers.

        Raises:
            ConfigError: a number is out of range.
        """
        if not (0 <= noise < math.inf and 0 <= share < math.inf):
            raise ConfigError(f"Ranging: noise = {noise:g}, share = {share:g}: expected both at least 0")
        return cls(jnp.float32(noise), jnp.float32(share), Loss.of() if dropout is None else dropout)

    def measure(
        self, distance: Float[Array, "n k"], valid: Bool[Array, "n k"], entities: Entities, key: Key[Array, ""]
    ) -> tuple[Float[Array, "n k"], Bool[Array, "n k"]]:
        """Measure up to k distances of each entity, independently.

        Args:
            distance: metres: those of `Nearest`, `space.distance` to anchors, a scan times its radius.
            valid: which of them there are to measure.
            entities: draws are per identity.
            key: of this step.

        Returns:
            Distances of at least 0, and which were measured; 0 where none was.
        """
        k = distance.shape[1]
        keys = entities.keys(key)
        error = jax.vmap(lambda own: jax.random.normal(own, (k,)))(keys)
        chance = jax.vmap(lambda own: jax.random.uniform(jax.random.fold_in(own, 1), (k,)))(keys)
        distance = jnp.where(valid, distance, 0.0)
        measured = valid & (chance >= self.dropout.probability(distance))
        scale = self.noise + rounded(self.share * distance)
        return jnp.where(measured, jnp.maximum(distance + rounded(scale * error), 0.0), 0.0), measured
