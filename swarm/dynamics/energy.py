"""Energy of drones: what flight draws, what a battery holds, and pads that fill it.

In a scenario's `act`, with the joules of each entity in a store or a field,

    drawn = self.power.of_flight(entities.velocity - air.wind, entities.kind, payload)
    supplied = self.pads.supply(self.space, entities.position, entities.alive)
    energy = self.battery.step(energy, entities.kind, drawn, supplied, self.time_step)
    crashed = entities.alive & self.battery.flat(energy)

A newborn gets what its scenario puts into the store. All is per entity: what a dead slot holds stays there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Bool, Float, Int

from swarm.core.errors import ConfigError
from swarm.core.rounding import rounded
from swarm.core.tables import Table, validate
from swarm.dynamics.airframe import Airframe, Amount, Positive
from swarm.geometry.space import AbstractSpace
from swarm.geometry.vectors import known, norm

Share = Annotated[float, pydantic.Field(gt=0.0, le=1.0)]


class PowerTable(Table):
    """What the power of a drone with rotors depends on; the symbols are those of Zeng, Xu, Zhang 2019, table I.

    Attributes:
        mass: without payload, kilograms.
        disc_area: A, swept by all rotors together, square metres.
        tip_speed: U_tip of the blades, metres per second.
        solidity: s, share of the disc that is blade.
        body_drag: d_0, area of the body's drag per area of blade.
        blade_drag: delta, profile drag coefficient of the blades.
        induced_factor: 1 + k, induced power per that of momentum theory.
        efficiency: power at the shafts per power drawn by the motors.
        avionics: what all else draws, watts.
        gravity: metres per second squared.
        air_density: rho, kilograms per cubic metre.
    """

    mass: Positive
    disc_area: Positive
    tip_speed: Positive
    solidity: Share
    body_drag: Amount
    blade_drag: Amount = 0.012
    induced_factor: Annotated[float, pydantic.Field(ge=1.0)] = 1.1
    efficiency: Share = 1.0
    avionics: Amount = 0.0
    gravity: Positive = 9.81
    air_density: Positive = 1.225

    @classmethod
    def of_airframe(cls, frame: Airframe, rest: Mapping[str, object]) -> "PowerTable":
        """Mass, gravity, discs and tip speed (at hovering) of an airframe; `rest` holds at least what it does not say.

        Raises:
            ConfigError: a value is missing or impossible.
        """
        rotors = frame.rotors
        tip_speed = rotors.speed_of_thrust(frame.hover_thrust) * math.pi / 30 * rotors.radius
        area = len(rotors.spin) * math.pi * rotors.radius**2
        known = {"mass": frame.mass, "gravity": frame.gravity, "disc_area": area, "tip_speed": tip_speed}
        return validate(cls, {**known, **rest}, "power")


class RotorPower(eqx.Module):
    """Power of flight: profile, induced and parasite power (Zeng, Xu, Zhang 2019, eq. 12) and that of climbing.

    P = P_0 (1 + 3 V^2 / U_tip^2) + P_i (sqrt(1 + V^4 / (4 v_0^4)) - V^2 / (2 v_0^2))^(1/2)
        + d_0 rho s A V^3 / 2 + W (v_z + v_r)
    with P_0 = delta rho s A U_tip^3 / 8, P_i = (1 + k) W^(3/2) / sqrt(2 rho A), v_0 = sqrt(W / (2 rho A)), W the weight
    with payload, V the level speed against the air. P / efficiency + avionics is drawn.

    The first three terms are for level flight at a steady speed with thrust W. W v_z is the energy gained by height; in
    a climb the induced power falls, which is left out: by momentum theory a slow climb takes W v_z / 2 less.

    In a descent it rises: rotors sink into their own wake and recirculate it (vortex ring state). v_r is by how much
    the induced velocity is above that of hovering, as measured in vertical descent (Leishman 2006, section 2.13.4):
    v_r / v_0 = -1.125 x - 1.372 x^2 - 1.718 x^3 - 0.655 x^4 with x = v_z / v_0. That spares no more than 0.18 W v_0
    until x = -1, and 0.42 W v_0 at x = -1.5, where it is held: faster, the fit has the air turn the rotors, which takes
    blades that are set for it. Level flight leaves the wake behind: v_r is multiplied by the fourth power of the share
    of v_0 that the induced velocity still has (0.4 at V = v_0, 0.06 at 2 v_0; Johnson 2005 has the vortex ring state
    end at V = v_0). In a fast glide the descent carries the drone, but it never turns the motors: at least P_0's term
    and the avionics are drawn.

    Attributes:
        mass: kilograms, without payload.
        gravity: metres per second squared.
        density_area: 2 rho A, kilograms per metre.
        induced_factor: 1 + k.
        profile: P_0, watts.
        tip_speed: metres per second.
        parasite: d_0 rho s A / 2, kilograms per metre.
        efficiency: from 0 to 1.
        avionics: watts.
    """

    mass: Float[Array, " kinds"]
    gravity: Float[Array, " kinds"]
    density_area: Float[Array, " kinds"]
    induced_factor: Float[Array, " kinds"]
    profile: Float[Array, " kinds"]
    tip_speed: Float[Array, " kinds"]
    parasite: Float[Array, " kinds"]
    efficiency: Float[Array, " kinds"]
    avionics: Float[Array, " kinds"]

    @classmethod
    def of(cls, tables: Sequence[PowerTable | Mapping[str, object]]) -> "RotorPower":
        """Build it from a table for each kind.

        Raises:
            ConfigError: there is none, or a value is impossible; the message names it.
        """
        if not tables:
            raise ConfigError("power: no tables; expected one for each kind")
        rows = [t if isinstance(t, PowerTable) else validate(PowerTable, dict(t), "power") for t in tables]
        blade = [t.air_density * t.solidity * t.disc_area for t in rows]
        columns = (
            [t.mass for t in rows],
            [t.gravity for t in rows],
            [2.0 * t.air_density * t.disc_area for t in rows],
            [t.induced_factor for t in rows],
            [t.blade_drag * b * t.tip_speed**3 / 8.0 for t, b in zip(rows, blade, strict=True)],
            [t.tip_speed for t in rows],
            [0.5 * t.body_drag * b for t, b in zip(rows, blade, strict=True)],
            [t.efficiency for t in rows],
            [t.avionics for t in rows],
        )
        return cls(*(jnp.asarray(np.asarray(column), jnp.result_type(float)) for column in columns))

    def of_flight(
        self, velocity: Float[Array, "n d"], kind: Int[Array, " n"], payload: Float[Array, " n"]
    ) -> Float[Array, " n"]:
        """Watts drawn.

        Args:
            velocity: against the air, metres per second; the third component, if there is one, is that of climbing.
            kind: of each entity.
            payload: kilograms.
        """
        # NaN in a dead slot must not reach the gradients of what its kind shares.
        there = known(velocity) & (payload == payload)
        velocity, payload = jnp.where(there[:, None], velocity, 0.0), jnp.where(there, payload, 0.0)
        weight = (self.mass[kind] + payload) * self.gravity[kind]
        speed = norm(velocity[:, :2])
        square = jnp.square(speed)
        still = weight / self.density_area[kind]
        ratio = 0.5 * square / still
        # (sqrt(1 + x^2) - x)^(1/2), of which the difference would cancel at speed.
        share = 1.0 / jnp.sqrt(jnp.sqrt(1.0 + rounded(ratio * ratio)) + ratio)
        induced = self.induced_factor[kind] * weight * jnp.sqrt(still) * share
        profile = self.profile[kind] * (1.0 + rounded(3.0 * square / jnp.square(self.tip_speed[kind])))
        profile = rounded(profile)
        carried = rounded(induced) + rounded(self.parasite[kind] * square * speed)
        if velocity.shape[1] > 2:
            rise = _recirculated(velocity[:, 2], jnp.sqrt(still))
            climb = velocity[:, 2] + rounded(jnp.square(jnp.square(share)) * rise)
            carried = carried + rounded(weight * climb)
        drawn = self.avionics[kind] + rounded((profile + jnp.maximum(carried, 0.0)) / self.efficiency[kind])
        return jnp.where(there, drawn, jnp.nan)


def _recirculated(climb: Float[Array, " n"], hover: Float[Array, " n"]) -> Float[Array, " n"]:
    """What the induced velocity is above that of hovering in a vertical descent; 0 in a climb. Metres per second.

    Args:
        climb: metres per second, below 0 in a descent.
        hover: induced velocity of hovering, metres per second.
    """
    x = climb / hover
    held = jnp.clip(x, -1.5, 0.0)
    rise = rounded(held * (-1.125 - rounded(held * (1.372 + rounded(held * (1.718 + rounded(0.655 * held)))))))
    return jnp.where(x < 0, rounded(hover * (rise + held - x)), 0.0)


class Charge(eqx.Module):
    """Joules with what their float leaves over, so that the sum of many small steps is right (Kahan 1965, Knuth 1969).

    Attributes:
        energy: joules.
        rest: what is to be added to them; less than their last digit.
    """

    energy: Float[Array, " n"]
    rest: Float[Array, " n"]

    @classmethod
    def of(cls, energy: Float[Array, " n"]) -> "Charge":
        """With nothing left over."""
        return cls(energy, jnp.zeros_like(energy))


class Battery(eqx.Module):
    """Joules that a drone holds.

    Attributes:
        capacity: joules.
    """

    capacity: Float[Array, " kinds"]

    @classmethod
    def of(cls, capacities: Sequence[float | int]) -> "Battery":
        """Build it from the joules of each kind; a cell of C ampere hours and U volts holds 3600 C U.

        Raises:
            ConfigError: there is none, or one is not greater than 0.
        """
        if not capacities or not all(0 < c < math.inf for c in capacities):
            raise ConfigError(f"battery: capacity = {list(capacities)}: expected joules greater than 0 for each kind")
        return cls(jnp.asarray(np.asarray(capacities, float), jnp.result_type(float)))

    @overload
    def step(
        self,
        energy: Float[Array, " n"],
        kind: Int[Array, " n"],
        drawn: Float[Array, " n"],
        supplied: Float[Array, " n"],
        dt: Float[Array, ""],
    ) -> Float[Array, " n"]: ...

    @overload
    def step(
        self,
        energy: Charge,
        kind: Int[Array, " n"],
        drawn: Float[Array, " n"],
        supplied: Float[Array, " n"],
        dt: Float[Array, ""],
    ) -> Charge: ...

    def step(
        self,
        energy: Float[Array, " n"] | Charge,
        kind: Int[Array, " n"],
        drawn: Float[Array, " n"],
        supplied: Float[Array, " n"],
        dt: Float[Array, ""],
    ) -> Float[Array, " n"] | Charge:
        """Joules after `dt` seconds: between 0 and the capacity.

        A float holds joules to 1.2e-7 of them, and what a step draws, to no more: of steps whose draw is near to that
        (8 W for 1 ms, of 3,000 J, are 33 such units), each may err by half a unit. With plain numbers these errors
        cancel where the draw is constant and do not add up in one direction where it varies; a `Charge` keeps them,
        and is right to 1e-6 of the draw for any.

        Args:
            energy: joules before; plain numbers, or a `Charge`.
            kind: of each entity.
            drawn: watts (`RotorPower.of_flight`), held for the step.
            supplied: watts (`Pads.supply`), likewise.
            dt: seconds.

        Returns:
            What was given, numbers or a `Charge`.
        """
        change, capacity = rounded(dt * (supplied - drawn)), self.capacity[kind]
        if isinstance(energy, Charge):
            total = energy.energy + change
            # What the sum loses, exactly, whichever of both is larger.
            kept = total - energy.energy
            lost = (energy.energy - (total - kept)) + (change - kept)
            rest = energy.rest + lost
            full = total + rest
            held = jnp.clip(full, 0.0, capacity)
            return Charge(held, jnp.where(held == full, rest - (full - total), 0.0))
        return jnp.clip(energy + _diffused(energy, change), 0.0, capacity)

    def share(self, energy: Float[Array, " n"], kind: Int[Array, " n"]) -> Float[Array, " n"]:
        """Of the capacity, from 0 to 1."""
        return energy / self.capacity[kind]

    def flat(self, energy: Float[Array, " n"]) -> Bool[Array, " n"]:
        """Who has nothing left: rotors stop. What follows, a crash or a landing, is up to the scenario."""
        return energy <= 0.0


def _diffused(energy: Float[Array, " n"], change: Float[Array, " n"]) -> Float[Array, " n"]:
    """A change, rounded to digits that the energy has, so that the errors of a constant one cancel.

    As if joules were counted in changes: from where the n-th whole multiple is rounded to, to where the next one is.
    """
    size = jnp.abs(jax.lax.stop_gradient(change))
    count = jnp.round(jax.lax.stop_gradient(energy) / jnp.where(size > 0, size, 1.0))
    # Beyond that a float does not tell a number from the next; a change so small would be lost anyway.
    count = jnp.where((size > 0) & (count < 2.0**23), count, 0.0)
    step = jnp.where(change < 0, -1.0, 1.0)
    return rounded((step * count + 1.0) * change) - rounded(step * count * change)


class Pads(eqx.Module):
    """Places where batteries are filled. Each fills whoever is on it, however many.

    Attributes:
        position: of `p` pads, metres.
        radius: who is nearer than this is on a pad; metres.
        power: that the pad spends on each, watts.
        efficiency: share of it that the battery gets.
    """

    position: Float[Array, "p d"]
    radius: Float[Array, ""]
    power: Float[Array, ""]
    efficiency: Float[Array, ""]

    @classmethod
    def of(
        cls, position: Float[Array, "p d"], radius: float | int, power: float | int, efficiency: float | int = 1.0
    ) -> "Pads":
        """Build them from numbers.

        Raises:
            ConfigError: a number is out of range.
        """
        if not (0 < radius < math.inf and 0 <= power < math.inf and 0 < efficiency <= 1):
            raise ConfigError(
                f"pads: radius = {radius:g}, power = {power:g}, efficiency = {efficiency:g}: expected a radius above "
                "0 m, a power of at least 0 W and an efficiency above 0 and at most 1"
            )
        return cls(position, jnp.float32(radius), jnp.float32(power), jnp.float32(efficiency))

    def supply(
        self, space: AbstractSpace, position: Float[Array, "n d"], alive: Bool[Array, " n"]
    ) -> Float[Array, " n"]:
        """Watts that reach the battery of each; 0 for the dead."""
        here = jnp.where(alive[:, None], position, 0.0)
        near = jnp.any(space.distance(here[:, None], self.position[None]) < self.radius, axis=1)
        return jnp.where(near & alive, self.power * self.efficiency, 0.0)
