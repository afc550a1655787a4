"""What pushes entities from outside: wind that grows with height, gusts, turbulence, and drones above.

Each gives the `Air` of a step (`swarm.dynamics.flight`); sums of them are air, too. Metres, seconds, z upward,
ground at z = 0.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from swarm.core.errors import ConfigError
from swarm.core.rounding import rounded
from swarm.dynamics.airframe import Airframe
from swarm.dynamics.flight import Air
from swarm.geometry.vectors import norm
from swarm.neighbors.questions import Neighbors
from swarm.population.entities import Entities

FOOT = 0.3048
# The height that winds near the ground are given for: 20 feet.
REFERENCE_HEIGHT = 20 * FOOT


class Shear(eqx.Module):
    """Mean wind that grows with height: V(z) = V_20 ln(z / z_0) / ln(20 ft / z_0) (MIL-F-8785C, 3.7.3.2).

    The standard has it from 3 to 1,000 ft (1 to 305 m), with z_0 = 0.15 ft where aircraft land and 2 ft elsewhere.
    Below z_0 the air is still.

    Attributes:
        velocity: at 20 ft (6.1 m), metres per second.
        roughness: z_0, metres; > 0. None: the same wind at each height.
    """

    velocity: Float[Array, " 3"]
    roughness: Float[Array, ""] | None = None

    def at(self, position: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
        """Metres per second."""
        if self.roughness is None:
            return jnp.broadcast_to(self.velocity, position.shape)
        share = jnp.log(jnp.maximum(position[:, 2] / self.roughness, 1.0)) / jnp.log(REFERENCE_HEIGHT / self.roughness)
        return rounded(share[:, None] * self.velocity[None])


class Gust(eqx.Module):
    """One bump of wind over all the world, amplitude (1 - cos(2 pi (t - start) / duration)) / 2 (CS-25.341(a)(2)).

    Its first half is the discrete gust of MIL-F-8785C, 3.7.2.3.

    Attributes:
        amplitude: in the middle, metres per second.
        start: seconds.
        duration: seconds; > 0.
    """

    amplitude: Float[Array, " 3"]
    start: Float[Array, ""]
    duration: Float[Array, ""]

    def at(self, time: Float[Array, ""]) -> Float[Array, " 3"]:
        """Metres per second."""
        phase = jnp.clip((time - self.start) / self.duration, 0.0, 1.0)
        return 0.5 * (1.0 - jnp.cos(2 * jnp.pi * phase)) * self.amplitude


class Eddies(eqx.Module):
    """State of `Dryden`: what its filters hold, in units of standard deviations, and for whom.

    Attributes:
        filters: along the wind; across, first and second stage; upward, first and second stage.
        uid: identity of the entity that they belong to.
    """

    filters: Float[Array, "n 5"]
    uid: Int[Array, " n"]


class Dryden(eqx.Module):
    """Turbulence near the ground, for each entity by itself and correlated in time (MIL-F-8785C, 3.7.1.2 and 3.7.3.4).

    The spectra of the three components, in an air that passes at the airspeed V, are those of white noise through
        along:      1 / (1 + T s),
        the others: (1 + sqrt(3) T s) / (1 + T s)^2, with T = L / V,
    so that the autocorrelations are sigma^2 exp(-t/T) and sigma^2 exp(-t/T) (1 - t/(2T)). With h in feet,
        L_along = L_across = h / (0.177 + 0.000823 h)^1.2, L_up = h,
        sigma_up = 0.1 V_20, sigma_along = sigma_across = sigma_up / (0.177 + 0.000823 h)^0.4,
    h from 10 to 1,000 ft. Filters are discretised exactly for what L and V are in a step. Components follow the mean
    wind. Two entities side by side feel independent eddies: right where they are farther apart than L.

    Attributes:
        speed: of the mean wind at 20 ft, V_20, metres per second.
        min_airspeed: eddies pass at least that fast, also over who drifts with the wind; metres per second.
    """

    speed: Float[Array, ""]
    min_airspeed: Float[Array, ""]

    def init(self, entities: Entities) -> Eddies:
        """Of nobody: who is there gets eddies in the first step, drawn from their stationary distribution."""
        n = entities.n_slots
        return Eddies(jnp.zeros((n, 5)), jnp.full(n, -2, jnp.int32))

    def scales(self, height: Float[Array, " n"]) -> tuple[Float[Array, "n 3"], Float[Array, "n 3"]]:
        """Lengths (metres) and standard deviations (metres per second) along, across and up."""
        feet = jnp.clip(height / FOOT, 10.0, 1000.0)
        base = 0.177 + rounded(0.000823 * feet)
        level, up = FOOT * feet / base**1.2, FOOT * feet
        strong = 0.1 * self.speed
        aside = strong / base**0.4
        return jnp.stack([level, level, up], axis=1), jnp.stack([aside, aside, jnp.full_like(aside, strong)], axis=1)

    def step(
        self, eddies: Eddies, entities: Entities, mean: Float[Array, "n 3"], key: Key[Array, ""], dt: Float[Array, ""]
    ) -> tuple[Eddies, Float[Array, "n 3"]]:
        """Let eddies pass for `dt` seconds.

        Args:
            eddies: as they stand.
            entities: for where they are, how fast, and who.
            mean: wind where they are, metres per second.
            key: draws are per identity.
            dt: seconds.

        Returns:
            The new state, and the turbulence, metres per second in axes of the world.
        """
        # What the dead hold must not reach gradients.
        alive = entities.alive
        lengths, sigmas = self.scales(jnp.where(alive, entities.position[:, 2], 0.0))
        against = jnp.where(alive[:, None], entities.velocity - mean, 0.0)
        airspeed = jnp.maximum(norm(against), self.min_airspeed)
        passed = dt * airspeed[:, None] / lengths
        draw = rounded(jax.vmap(lambda k: jax.random.normal(k, (5,)))(entities.keys(key)))
        old, new = eddies.filters, (eddies.uid != entities.uid)
        along = gauss_markov(old[:, 0], draw[:, 0], passed[:, 0])
        across = _two_stages(old[:, 1], old[:, 2], draw[:, 1], draw[:, 2], passed[:, 1])
        up = _two_stages(old[:, 3], old[:, 4], draw[:, 3], draw[:, 4], passed[:, 2])
        first = [draw[:, 0], *_stationary(draw[:, 1], draw[:, 2]), *_stationary(draw[:, 3], draw[:, 4])]
        filters = [jnp.where(new, a, b) for a, b in zip(first, [along, *across, *up], strict=True)]
        u = rounded(sigmas[:, 0] * filters[0])
        v, w = (rounded(sigmas[:, i] * _shaped(filters[2 * i - 1], filters[2 * i])) for i in (1, 2))
        size = norm(mean[:, :2])
        there = size > 0
        size = jnp.where(there, size, 1.0)
        x, y = jnp.where(there, mean[:, 0] / size, 1.0), jnp.where(there, mean[:, 1] / size, 0.0)
        turbulence = rounded(u * x) - rounded(v * y), rounded(u * y) + rounded(v * x), w
        return Eddies(jnp.stack(filters, axis=1), entities.uid), jnp.stack(turbulence, axis=1)


def gauss_markov(state: Array, draw: Array, r: Array) -> Array:
    """A first-order Gauss-Markov process of variance 1 after `r` time constants, from a standard normal draw; exact.

    As a change of the state: exp(-r) itself, rounded, would have another time constant where r is small, and none
    where it rounds to 1.
    """
    return state + (rounded(jnp.expm1(-r) * state) + rounded(jnp.sqrt(-jnp.expm1(-2.0 * r)) * draw))


def _stationary(one: Array, two: Array) -> tuple[Array, Array]:
    """Both stages from two standard normal numbers: variances 1 and 1/2, covariance 1/2."""
    return one, rounded(0.5 * one) + rounded(0.5 * two)


def _two_stages(a: Array, b: Array, one: Array, two: Array, r: Array) -> tuple[Array, Array]:
    """Two lags after each other, the first under white noise; exact, by the covariance of what the noise adds in r.

    That is [P(1, 2r), P(2, 2r)/2; P(2, 2r)/2, P(3, 2r)/2] with the incomplete gamma functions P.
    """
    left, fading, s = jnp.exp(-r), jnp.expm1(-r), 2.0 * r
    first = jnp.sqrt(-jnp.expm1(-s))
    mixed = 0.5 * _gamma_p(2, s) / jnp.where(first > 0, first, 1.0)
    second = jnp.sqrt(jnp.maximum(0.5 * _gamma_p(3, s) - rounded(mixed * mixed), 0.0))
    new_a = a + (rounded(fading * a) + rounded(first * one))
    change = rounded(fading * b) + rounded(rounded(left * r) * a)
    new_b = b + (change + rounded(mixed * one) + rounded(second * two))
    return new_a, new_b


def _gamma_p(order: int, s: Array) -> Array:
    """Regularised lower incomplete gamma function of a small whole order, without cancellation at small s."""
    powers, term = [], jnp.ones_like(s)
    for k in range(1, 12):
        powers.append(term)
        term = term * s / k
    small, large = sum(powers[order:], start=jnp.zeros_like(s)), sum(powers[:order], start=jnp.zeros_like(s))
    return jnp.where(s < 0.7, jnp.exp(-s) * small, 1.0 - rounded(jnp.exp(-s) * large))


def _shaped(a: Array, b: Array) -> Array:
    """(1 + sqrt(3) T s) / (1 + T s)^2 of unit variance: of both stages of a lag."""
    return rounded((1.5**0.5) * a) + rounded((0.5**0.5 - 1.5**0.5) * b)


class Weather(eqx.Module):
    """Mean wind, a gust and turbulence together.

    Attributes:
        mean: mean wind.
        gust: one, or None.
        turbulence: or None.
    """

    mean: Shear
    gust: Gust | None = None
    turbulence: Dryden | None = None

    def init(self, entities: Entities) -> Eddies | None:
        """State of the turbulence."""
        return None if self.turbulence is None else self.turbulence.init(entities)

    def step(
        self,
        eddies: Eddies | None,
        entities: Entities,
        time: Float[Array, ""],
        key: Key[Array, ""],
        dt: Float[Array, ""],
    ) -> tuple[Eddies | None, Air]:
        """The air of a step of `dt` seconds at a time; `key` is that of the step."""
        # What the dead hold must not reach gradients.
        wind = mean = self.mean.at(jnp.where(entities.alive[:, None], entities.position, 0.0))
        if self.turbulence is not None and eddies is not None:
            eddies, turbulence = self.turbulence.step(eddies, entities, mean, key, dt)
            wind = wind + turbulence
        if self.gust is not None:
            wind = wind + self.gust.at(time)[None]
        return eddies, Air(wind, jnp.zeros_like(wind))


class Downwash(eqx.Module):
    """Force of drones on those below: -thrust min(area / dz^2, 1) exp(-(dxy / (spread dz + width))^2 / 2), upward.

    With dz > 0 how much higher the other one is, dxy how far aside, thrust that of the other one: what it pushes the
    air down with. Measured with Crazyflies that hovered by S. Zhou (gym-pybullet-drones, `_downwash`, where
    area thrust = strength (radius / 4)^2). Momentum theory says how that goes on: the pressure of the wake is
    proportional to the thrust, and what the wake exerts is at most the thrust, all its momentum. It is the force of
    one drone on one drone; here forces add.

    Attributes:
        area: strength (radius / 4)^2 per weight of the upper one's kind, square metres.
        spread: metres per metre.
        width: metres.
        weight: newtons.
    """

    area: Float[Array, " kinds"]
    spread: Float[Array, " kinds"]
    width: Float[Array, " kinds"]
    weight: Float[Array, " kinds"]

    @classmethod
    def of(cls, frames: Sequence[Airframe]) -> "Downwash":
        """That of airframes, one for each kind.

        Raises:
            ConfigError: one has no table `downwash`.
        """
        tables = [frame.downwash for frame in frames]
        if any(table is None for table in tables):
            raise ConfigError(
                'airframe: table "downwash" missing; take it from cf2x.toml, or measure strength and width'
            )
        rows = [
            (
                table.strength * (frame.rotors.radius / 4) ** 2 / (frame.mass * frame.gravity),
                table.spread,
                table.width,
                frame.mass * frame.gravity,
            )
            for frame, table in zip(frames, tables, strict=True)
            if table is not None
        ]
        return cls(*(jnp.asarray(column) for column in zip(*rows, strict=True)))

    def air(self, found: Neighbors, kind: Int[Array, " n"], thrust: Float[Array, " n"] | None = None) -> Air:
        """Forces from neighbours, who must have been searched in three dimensions.

        Args:
            found: who is near whom.
            kind: of the entities.
            thrust: upward, of each as it is now (`AbstractFlight.lift`), newtons; None: all hover.
        """
        thrust = self.weight[kind] if thrust is None else thrust
        shown = jnp.stack([self.area[kind], self.spread[kind], self.width[kind], thrust], axis=1)
        force = -found.sum(_push, shown)
        zero = jnp.zeros_like(force)
        force = jnp.concatenate([zero, zero, force], axis=1)
        return Air(jnp.zeros_like(force), force)


def _push(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
    """Newtons downward that a neighbour exerts on me."""
    area, spread, width, thrust = theirs
    above = way[2] > 0
    height = jnp.where(above, way[2], 1.0)
    square = rounded(jnp.square(height))
    far = square > area
    wide = jnp.square(rounded(spread * height) + width)
    aside = rounded(jnp.square(way[0])) + rounded(jnp.square(way[1]))
    # Where the formula's width passes through 0 its force is 0 but on the axis.
    share = jnp.exp(-0.5 * aside / jnp.maximum(wide, 1e-6))
    share = share * jnp.where(far, area / jnp.where(far, square, 1.0), 1.0)
    return jnp.where(above, rounded(thrust * share), 0.0)[None]
