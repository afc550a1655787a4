"""Drones under a closed attitude loop, as identified from flights: angles follow their command, thrust tilts."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.core.errors import ConfigError
from swarm.core.rounding import rounded
from swarm.dynamics import quaternion
from swarm.dynamics.flight import AbstractAttitudeFlight, Air, Forces, Plant, ground_share, pull_of
from swarm.dynamics.motion import Motion, outside
from swarm.dynamics.quaternion import Components, components, joined
from swarm.geometry.angles import nearest_turn, wrapped
from swarm.population.entities import Entities

# Larger of a commanded and the held yaw, up to which the identified gain holds; radians.
_KNEE = 0.9


class Held(eqx.Module):
    """Inner state of `AttitudeFlight`.

    Attributes:
        angles: roll, pitch and yaw, radians; yaw within half a turn.
        rates: of the angles, radians per second.
        thrust: newtons.
    """

    angles: Float[Array, "n 3"]
    rates: Float[Array, "n 3"]
    thrust: Float[Array, " n"]


class AbstractResponse(eqx.Module):
    """How an angle follows its command; each axis and kind by itself.

    Attributes:
        gain: angle that is held per commanded angle.
    """

    gain: eqx.AbstractVar[Float[Array, "kinds 3"]]

    @abc.abstractmethod
    def transition(self, t: Float[Array, ""]) -> Float[Array, "kinds 3 2 2"]:
        """Matrix that takes (angle - gain command, rate) to their values `t` seconds later, exactly."""


class FirstOrder(AbstractResponse):
    """A lag: angle' = (gain command - angle) / tau.

    Attributes:
        tau: seconds; > 0.
    """

    gain: Float[Array, "kinds 3"]
    tau: Float[Array, "kinds 3"]

    def transition(self, t: Float[Array, ""]) -> Float[Array, "kinds 3 2 2"]:
        """An exponential; the rate is that of the angle."""
        left = jnp.exp(-t / self.tau)
        zero = jnp.zeros_like(left)
        return _matrix(left, zero, -left / self.tau, zero)


class SecondOrder(AbstractResponse):
    """An oscillator: angle'' + 2 zeta omega angle' + omega^2 angle = gain omega^2 command.

    Attributes:
        omega: natural frequency, radians per second; > 0.
        zeta: damping ratio; > 0.
    """

    gain: Float[Array, "kinds 3"]
    omega: Float[Array, "kinds 3"]
    zeta: Float[Array, "kinds 3"]

    def transition(self, t: Float[Array, ""]) -> Float[Array, "kinds 3 2 2"]:
        """Exact for any damping: with a = zeta omega, C and S are the even and odd solutions.

        C = exp(-a t) cos(b t), S = exp(-a t) sin(b t) / b, b^2 = omega^2 - a^2; hyperbolic where b^2 < 0.
        """
        a = self.zeta * self.omega
        square = jnp.square(self.omega) - jnp.square(a)
        b = jnp.sqrt(jnp.where(square == 0, 1.0, jnp.abs(square))) * jnp.where(square == 0, 0.0, 1.0)
        fading = jnp.exp(-a * t)
        # exp(-a t) cosh(b t) would overflow; both exponents are negative, because b < a here.
        slow, fast = jnp.exp(jnp.minimum(b - a, 0.0) * t), jnp.exp(-(a + b) * t)
        over = square < 0
        even = jnp.where(over, 0.5 * (slow + fast), fading * jnp.cos(b * t))
        odd = jnp.where(over, 0.5 * (slow - fast) / jnp.where(over, b, 1.0), fading * t * jnp.sinc(b * t / jnp.pi))
        swing = a * odd
        return _matrix(even + swing, odd, -jnp.square(self.omega) * odd, even - swing)


def _matrix(*entries: Array) -> Array:
    return jnp.stack(entries, axis=-1).reshape(*entries[0].shape, 2, 2)


class AttitudeFlight(AbstractAttitudeFlight):
    """A point mass whose thrust points along the upward axis of an attitude that follows its command.

    x'' = R(angles) (0, 0, thrust / m) - R diag(drag + body_drag |u|) R^T u / m + force / m - (0, 0, g), u = x' - wind,
    thrust' = (thrust_gain command - thrust) / thrust_tau. Angles and thrust are exact under a held command, positions
    of second order in the sub-step (attitude at the middle, implicit midpoint rule for drag): stable for any step.

    The identified model is linear in the angles: within some 40 degrees of tilt. Its gain of yaw, which holds more than
    is commanded, holds for small ones only: a yaw is an angle, the same after a whole turn. So it holds until command
    or yaw is 0.9 rad, from a quarter turn on the yaw is the commanded one, and in between it goes straight from one to
    the other. The yaw follows along the nearest turn; to the opposite to the left.
    Source: drone-models (Learning Systems Lab, TUM), `so_rpy_rotor_drag`.

    Command: roll, pitch, yaw (radians) and thrust (newtons).

    Attributes:
        mass: kilograms; > 0.
        gravity: metres per second squared.
        drag: along the axes of the body, newton seconds per metre; >= 0.
        response: of the angles.
        thrust_tau: seconds; > 0.
        thrust_gain: thrust that is held per commanded thrust; > 0.
        max_tilt: largest roll and pitch command, radians.
        thrust_range: smallest and largest thrust command, newtons.
        ground_effect: (radius / 4)^2 of a rotor times its factor (`RotorTable.ground_effect`), square metres; None: no
            ground.
        body_drag: as that of a `Quadrotor`.
        n_substeps: equal parts of a step.
    """

    mass: Float[Array, " kinds"]
    gravity: Float[Array, " kinds"]
    drag: Float[Array, "kinds 3"]
    response: AbstractResponse
    thrust_tau: Float[Array, " kinds"]
    thrust_gain: Float[Array, " kinds"]
    max_tilt: Float[Array, " kinds"]
    thrust_range: Float[Array, "kinds 2"]
    ground_effect: Float[Array, " kinds"] | None = None
    body_drag: Float[Array, "kinds 3"] | None = None
    n_substeps: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.n_substeps < 1:
            raise ConfigError(f"AttitudeFlight: n_substeps = {self.n_substeps}: expected at least 1")

    def plant(self, kind: Int[Array, " n"]) -> Plant:
        """Its mass, gravity and drag."""
        body = None if self.body_drag is None else self.body_drag[kind]
        return Plant(self.mass[kind], self.gravity[kind], self.drag[kind], body)

    def n_commands(self, n_dimensions: int) -> int:
        """Three angles and the thrust."""
        return 4

    def command(self, action: Float[Array, "n 4"], kind: Int[Array, " n"]) -> Float[Array, "n 4"]:
        """Angles up to the largest tilt, a yaw of up to half a turn, and the range of thrusts."""
        tilt, (low, high) = self.max_tilt[kind], self.thrust_range[kind].T
        roll, pitch, yaw, thrust = action.T
        return jnp.stack(
            [roll * tilt, pitch * tilt, yaw * jnp.pi, low + rounded(0.5 * (thrust + 1.0) * (high - low))], axis=1
        )

    def limited(self, command: Float[Array, "n 4"], kind: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Who is to tilt more, or to push less or more, than it can."""
        return beyond(command, self.max_tilt[kind], self.thrust_range[kind])

    def lift(self, motion: Motion, kind: Int[Array, " n"]) -> Float[Array, " n"]:
        """Away from the ground."""
        return jnp.maximum(rounded(motion.inner.thrust * quaternion.up_of(components(self.attitude(motion)))[2]), 0.0)

    def init(self, entities: Entities) -> Motion:
        """Level, with the thrust that carries the weight."""
        motion = Motion.of(entities)
        zero = jnp.zeros_like(motion.heading)
        angles = jnp.stack([zero, zero, motion.heading], axis=1)
        thrust = (self.mass * self.gravity)[entities.row]
        return Motion(motion.position, motion.velocity, motion.heading, Held(angles, jnp.zeros_like(angles), thrust))

    def attitude(self, motion: Motion) -> Float[Array, "n 4"]:
        """Of the angles."""
        return joined(quaternion.from_angles(components(motion.inner.angles)))

    def aim(
        self, angles: Float[Array, "n 3"], thrust: Float[Array, " n"], kind: Int[Array, " n"]
    ) -> Float[Array, "n 4"]:
        """Divided by what the identified loop makes of a command."""
        gain = self.response.gain[kind]
        level, yaw = angles[:, :2] / gain[:, :2], _commanded_yaw(angles[:, 2], gain[:, 2])
        return jnp.concatenate([level, yaw[:, None], (thrust / self.thrust_gain[kind])[:, None]], axis=1)

    def fly(
        self, motion: Motion, command: Float[Array, "n 4"], kind: Int[Array, " n"], dt: Float[Array, ""], air: Air
    ) -> Motion:
        """Half of the angles' way, the whole change of velocity, the other half; the same with the position."""
        h = dt / self.n_substeps
        half, mass, tilt = 0.5 * h, self.mass[kind], self.max_tilt[kind]
        low, high = self.thrust_range[kind].T
        roll, pitch, yaw, push = components(command)
        gain, inner = self.response.gain[kind], motion.inner
        level = (rounded(gain[:, i] * jnp.clip(x, -tilt, tilt)) for i, x in enumerate((roll, pitch)))
        # In the turn that is nearest to where it looks; held for the step.
        look = inner.angles[:, 2]
        goals = *level, look + nearest_turn(look, _held_yaw(yaw, gain[:, 2]))
        goal = rounded(self.thrust_gain[kind] * jnp.clip(push, low, high))
        matrix = self.response.transition(half)[kind]
        left = jnp.exp(-half / self.thrust_tau)[kind]
        drag = tuple(c / mass for c in components(self.drag[kind]))
        body = None if self.body_drag is None else tuple(c / mass for c in components(self.body_drag[kind]))
        effect = None if self.ground_effect is None else self.ground_effect[kind]
        pull, wind = pull_of(self.gravity[kind], mass, air.force), components(air.wind)

        def swing(angles: Components, rates: Components, thrust: Array) -> tuple[Components, Components, Array]:
            off = tuple(a - g for a, g in zip(angles, goals, strict=True))
            both = [
                tuple(
                    rounded(matrix[:, i, row, 0] * off[i]) + rounded(matrix[:, i, row, 1] * rates[i]) for i in range(3)
                )
                for row in range(2)
            ]
            angles = tuple(g + a for g, a in zip(goals, both[0], strict=True))
            return angles, both[1], goal + rounded(left * (thrust - goal))

        def substep(state: tuple[Components, ...], _: None) -> tuple[tuple[Components, ...], None]:
            place, velocity, angles, rates, (thrust,) = state
            place = quaternion.scaled_sum(place, half, velocity)
            angles, rates, thrust = swing(angles, rates, thrust)
            attitude = quaternion.from_angles(angles)
            lift = thrust / mass
            if effect is not None:
                lift = lift + rounded(lift * ground_share(effect, place[2], quaternion.up_of(attitude)[2] > 0))
            velocity = Forces(lift, drag, body, pull, wind).kick(attitude, velocity, h)
            angles, rates, thrust = swing(angles, rates, thrust)
            return (quaternion.scaled_sum(place, half, velocity), velocity, angles, rates, (thrust,)), None

        state = *map(components, (motion.position, motion.velocity, inner.angles, inner.rates)), (inner.thrust,)
        place, velocity, angles, rates, (thrust,) = jax.lax.scan(substep, state, length=self.n_substeps)[0]
        roll, pitch, yaw = (*angles[:2], wrapped(angles[2]))
        return Motion(joined(place), joined(velocity), yaw, Held(joined((roll, pitch, yaw)), joined(rates), thrust))


def _held_yaw(command: Array, gain: Array) -> Array:
    """The yaw that is held under a commanded one: `gain` times it where it is small, itself beyond a quarter turn."""
    return _bent(wrapped(command), _KNEE / jnp.maximum(gain, 1.0), gain)


def _commanded_yaw(held: Array, gain: Array) -> Array:
    """The inverse of `_held_yaw`."""
    return _bent(wrapped(held), _KNEE / jnp.maximum(1.0 / gain, 1.0), 1.0 / gain)


def _bent(angle: Array, knee: Array, slope: Array) -> Array:
    """An odd function of `slope` up to the knee, straight from there to a quarter turn, and the same angle beyond."""
    size, quarter = jnp.abs(angle), 0.5 * jnp.pi
    top = rounded(slope * knee)
    between = top + rounded((size - knee) * ((quarter - top) / (quarter - knee)))
    bent = jnp.where(size < quarter, jnp.sign(angle) * between, angle)
    return jnp.where(size <= knee, rounded(slope * angle), bent)


def beyond(command: Float[Array, "n 4"], tilt: Float[Array, " n"], thrust: Float[Array, "n 2"]) -> Bool[Array, " n"]:
    """Whether roll or pitch is more than a tilt (radians), or the thrust out of a range (newtons)."""
    level = jnp.any(outside(command[:, :2], -tilt[:, None], tilt[:, None]), axis=1)
    return level | outside(command[:, 3], thrust[:, 0], thrust[:, 1])
