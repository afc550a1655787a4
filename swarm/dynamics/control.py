"""Controllers as layers: each takes a simpler command, flies the layer below, and is a drone again.

Position -> velocity -> attitude and thrust -> rotor speeds; the lowest layer may be an identified attitude loop.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.core.rounding import kept, root, rounded
from swarm.dynamics import quaternion
from swarm.dynamics.attitude import beyond
from swarm.dynamics.flight import AbstractAttitudeFlight, AbstractFlight, Air, Plant, repeated
from swarm.dynamics.motion import Motion, outside
from swarm.dynamics.quadrotor import Law, Quadrotor
from swarm.dynamics.quaternion import Components, components, cross, inner, joined, plane
from swarm.geometry.angles import OPPOSITE, wrapped
from swarm.geometry.space import square_length
from swarm.geometry.vectors import clipped, norm
from swarm.population.entities import Entities


class AbstractLayer(AbstractFlight):
    """A controller over a vehicle, whose state is the vehicle's. It takes four numbers as its command.

    Attributes:
        vehicle: what it commands.
    """

    # Any, because each layer narrows it.
    vehicle: eqx.AbstractVar[Any]

    def plant(self, kind: Int[Array, " n"]) -> Plant:
        """Of the vehicle."""
        return self.vehicle.plant(kind)

    def n_commands(self, n_dimensions: int) -> int:
        """Four."""
        return 4

    def init(self, entities: Entities) -> Motion:
        """As the vehicle does."""
        return self.vehicle.init(entities)

    def lift(self, motion: Motion, kind: Int[Array, " n"]) -> Float[Array, " n"]:
        """Of the vehicle."""
        return self.vehicle.lift(motion, kind)

    def attitude(self, motion: Motion) -> Float[Array, "n 4"]:
        """Of the vehicle."""
        return self.vehicle.attitude(motion)


class AttitudeHold(AbstractLayer, AbstractAttitudeFlight):
    """Holds attitude and thrust of a rigid body by the speeds of its rotors.

    Torque = I (-stiffness e - damping omega) + omega x I omega (Lee, Leok and McClamroch 2010, eq. 16, for a goal at
    rest). The error e is the sine of the tilt between both upward axes, about the axis that closes it, and the sine of
    the turn about the upward axis that is left (split as by Brescianini and D'Andrea 2018, so that a turn does not
    disturb the tilt). Beyond 90 degrees, where Lee's error (eq. 10) would fall to nothing at the opposite, each stays
    at its largest: every attitude converges, and from the opposite a drone turns to the left. While the tilt error is
    beyond 90 degrees the turn waits.

    The mixer is the pseudo-inverse of how rotors make thrust and torque; each rotor is then limited. Its command leads
    the wanted speed by `lead`, so that a slow motor answers as one that is `lead` times as fast.

    Command: roll, pitch, yaw (radians) and thrust (newtons).

    Attributes:
        vehicle: what flies.
        stiffness: about the axes of the body, 1/s^2.
        damping: 1/s.
        lead: at least 1; exact knowledge of the rotor speeds is taken for granted.
        mixer: thrust of each rotor per thrust, torque about x, y and z.
        max_tilt: largest roll and pitch command, radians.
        thrust_range: smallest and largest thrust of one rotor, newtons.
        n_updates: rotor commands in a step.
    """

    vehicle: Quadrotor
    stiffness: Float[Array, "kinds 3"]
    damping: Float[Array, "kinds 3"]
    lead: Float[Array, " kinds"]
    mixer: Float[Array, "kinds r 4"]
    max_tilt: Float[Array, " kinds"]
    thrust_range: Float[Array, "kinds 2"]
    n_updates: int = eqx.field(static=True, default=1)

    def command(self, action: Float[Array, "n 4"], kind: Int[Array, " n"]) -> Float[Array, "n 4"]:
        """Angles up to the largest tilt, a yaw of up to half a turn, and the thrusts that the rotors can have."""
        tilt, (low, high) = self.max_tilt[kind], self.mixer.shape[1] * self.thrust_range[kind].T
        roll, pitch, yaw, thrust = action.T
        thrust = low + rounded(0.5 * (thrust + 1.0) * (high - low))
        return jnp.stack([roll * tilt, pitch * tilt, yaw * jnp.pi, thrust], axis=1)

    def limited(self, command: Float[Array, "n 4"], kind: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Who is to tilt more, or to push less or more, than it can."""
        return beyond(command, self.max_tilt[kind], self.mixer.shape[1] * self.thrust_range[kind])

    def aim(
        self, angles: Float[Array, "n 3"], thrust: Float[Array, " n"], kind: Int[Array, " n"]
    ) -> Float[Array, "n 4"]:
        """As it is."""
        return jnp.concatenate([angles, thrust[:, None]], axis=1)

    def fly(
        self, motion: Motion, command: Float[Array, "n 4"], kind: Int[Array, " n"], dt: Float[Array, ""], air: Air
    ) -> Motion:
        """Command the rotors `n_updates` times."""
        return self.vehicle.driven(motion, self.law(command, kind), kind, dt, air, self.n_updates)

    def law(self, command: Float[Array, "n 4"], kind: Int[Array, " n"]) -> Law:
        """Rotor speeds from attitude, rates and rotor speeds."""
        tilt, lead = self.max_tilt[kind], self.lead[kind]
        roll, pitch, yaw, thrust = components(command)
        goal = quaternion.from_angles((jnp.clip(roll, -tilt, tilt), jnp.clip(pitch, -tilt, tilt), yaw))
        inertia, stiffness, damping = (
            components(x[kind]) for x in (self.vehicle.inertia, self.stiffness, self.damping)
        )
        low, high = components(self.thrust_range[kind])
        rotors, mixer = self.vehicle.rotors.of(kind), jnp.moveaxis(self.mixer[kind], 0, -1)

        def torque(attitude: Components, rates: Components) -> Components:
            swing = cross(rates, tuple(rounded(i * w) for i, w in zip(inertia, rates, strict=True)))
            wanted = (
                -rounded(k * e) - rounded(d * w)
                for k, e, d, w in zip(stiffness, _off(attitude, goal), damping, rates, strict=True)
            )
            return tuple(rounded(i * a) + b for i, a, b in zip(inertia, wanted, swing, strict=True))

        def speeds(attitude: Components, rates: Components, now: Array) -> Array:
            made = (thrust, *map(kept, torque(attitude, rates)))
            pushes = jnp.stack([jnp.clip(inner(row, made), low, high) for row in mixer])
            return kept(now + rounded(lead[None] * (rotors.speed_of_thrust(pushes) - now)))

        return speeds


def _off(attitude: Components, goal: Components) -> Components:
    """How far an attitude is off, about the axes of the body: sines, that stay at 1 beyond 90 degrees."""
    x, y, z, w = quaternion.product(quaternion.conjugate(goal), attitude)
    upright = rounded(z * z) + rounded(w * w)
    # Cosines and sines of half the tilt and half the turn; exactly upside down there is no turn.
    cos = root(upright)
    size = jnp.where(cos > 0, cos, 1.0)
    turn_cos, turn_sin = jnp.where(cos > 0, w / size, 1.0), jnp.where(cos > 0, z / size, 0.0)
    tilt = plane(x, y, turn_cos, turn_sin)
    near = upright >= 0.5
    sin = root(square_length(tilt))
    share = jnp.where(near, 2.0 * cos, 1.0 / jnp.where(near, 1.0, sin))
    sine, cosine = 2.0 * rounded(turn_sin * turn_cos), rounded(turn_cos * turn_cos) - rounded(turn_sin * turn_sin)
    turn = jnp.where(cosine >= 0, sine, jnp.where(sine > OPPOSITE, 1.0, -1.0))
    return rounded(share * tilt[0]), rounded(share * tilt[1]), rounded(turn * jnp.where(near, 1.0, 2.0 * upright))


class VelocityHold(AbstractLayer):
    """Flies at a velocity, looking along a yaw: the wanted acceleration says where the thrust should point.

    a = gain (v_d - v), shortened to `acceleration`, plus drag v_d / m, the drag in still air; F = m (a + (0, 0, g)),
    its tilt limited; roll and pitch from the direction of F and the yaw (Mellinger and Kumar 2011, section IV); thrust
    F . z with the upward axis z of the body (Lee et al. 2010, eq. 15). No integral: a steady wind w leaves an error of
    about drag w / (m gain).

    Command: velocity (metres per second) and yaw (radians, the same after a whole turn).

    Attributes:
        vehicle: what holds an attitude.
        gain: horizontally twice and vertically, 1/s.
        acceleration: largest, metres per second squared.
        speed: that an action of 1 commands along an axis, metres per second.
        limit: longer commands are shortened to it, metres per second; None: none are.
        max_tilt: radians; < pi / 2.
        n_updates: attitude commands in a step.
    """

    vehicle: AbstractAttitudeFlight
    gain: Float[Array, "kinds 3"]
    acceleration: Float[Array, " kinds"]
    speed: Float[Array, " kinds"]
    limit: Float[Array, " kinds"] | None
    max_tilt: Float[Array, " kinds"]
    n_updates: int = eqx.field(static=True, default=1)

    def command(self, action: Float[Array, "n 4"], kind: Int[Array, " n"]) -> Float[Array, "n 4"]:
        """Velocities up to the speed of an action along each axis, a yaw of up to half a turn."""
        return jnp.concatenate([action[:, :3] * self.speed[kind][:, None], action[:, 3:] * jnp.pi], axis=1)

    def limited(self, command: Float[Array, "n 4"], kind: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Who is to fly faster than the limit."""
        if self.limit is None:
            return jnp.zeros(kind.shape[0], bool)
        return outside(norm(command[:, :3]), jnp.zeros(()), self.limit[kind])

    def attitude_command(
        self, motion: Motion, command: Float[Array, "n 4"], kind: Int[Array, " n"]
    ) -> Float[Array, "n 4"]:
        """What the layer below is told."""
        plant, wanted = self.vehicle.plant(kind), command[:, :3]
        if self.limit is not None:
            wanted = clipped(wanted, self.limit[kind])
        change = rounded(self.gain[kind] * (wanted - motion.velocity))
        drag = plant.drag if plant.body_drag is None else plant.drag + rounded(plant.body_drag * norm(wanted)[:, None])
        against = rounded(drag * wanted) / plant.mass[:, None]
        x, y, z = components(clipped(change, self.acceleration[kind]) + against)
        z = jnp.maximum(z + plant.gravity, 0.1 * plant.gravity)
        across = clipped(joined((x, y)), z * jnp.tan(self.max_tilt[kind]))
        force = (*components(across), z)
        yaw = wrapped(command[:, 3])
        cos, sin = jnp.cos(yaw), jnp.sin(yaw)
        ahead, aside = quaternion.plane(force[0], force[1], cos, sin)
        pitch = jnp.arctan2(ahead, z)
        roll = jnp.arctan2(-aside, jnp.sqrt(rounded(ahead * ahead) + rounded(z * z)))
        up = quaternion.up_of(components(self.vehicle.attitude(motion)))
        thrust = plant.mass * inner(force, up)
        return self.vehicle.aim(joined((roll, pitch, yaw)), thrust, kind)

    def fly(
        self, motion: Motion, command: Float[Array, "n 4"], kind: Int[Array, " n"], dt: Float[Array, ""], air: Air
    ) -> Motion:
        """Command the attitude `n_updates` times."""
        h = dt / self.n_updates

        def update(motion: Motion) -> Motion:
            return self.vehicle.fly(motion, self.attitude_command(motion, command, kind), kind, h, air)

        return repeated(self.n_updates, update, motion)


class PositionHold(AbstractLayer):
    """Flies to a place and stays: v_d = gain (x_d - x), shortened to `speed`.

    Command: position (metres) and yaw (radians, the same after a whole turn); any.

    Attributes:
        vehicle: what holds a velocity.
        gain: 1/s.
        speed: largest, metres per second.
        low: command of the lowest action, metres and radians.
        high: of the highest.
        n_updates: velocity commands in a step.
    """

    vehicle: VelocityHold
    gain: Float[Array, "kinds 3"]
    speed: Float[Array, " kinds"]
    low: Float[Array, "kinds 4"]
    high: Float[Array, "kinds 4"]
    n_updates: int = eqx.field(static=True, default=1)

    def command(self, action: Float[Array, "n 4"], kind: Int[Array, " n"]) -> Float[Array, "n 4"]:
        """From `low` to `high`."""
        low, high = self.low[kind], self.high[kind]
        return low + rounded(0.5 * (action + 1.0) * (high - low))

    def fly(
        self, motion: Motion, command: Float[Array, "n 4"], kind: Int[Array, " n"], dt: Float[Array, ""], air: Air
    ) -> Motion:
        """Command the velocity `n_updates` times."""
        h = dt / self.n_updates

        def update(motion: Motion) -> Motion:
            way = rounded(self.gain[kind] * (command[:, :3] - motion.position))
            velocity = clipped(way, self.speed[kind])
            return self.vehicle.fly(motion, jnp.concatenate([velocity, command[:, 3:]], axis=1), kind, h, air)

        return repeated(self.n_updates, update, motion)
