"""The extension point for dynamics, and the state they advance.

A scenario's `act` reads

    motion = Motion.of(entities, fields.inner)
    motion = self.dynamics.step(motion, self.dynamics.command(action, entities.kind), entities.kind, self.time_step)
    entities = motion.into(entities)

Parameters are arrays over kinds, gathered once in a step. All is per entity: what a dead slot holds stays there.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from swarm.population.entities import Entities


class Motion(eqx.Module):
    """The state of motion of `n` entities, or of one (without the axis n).

    Attributes:
        position: metres.
        velocity: metres per second.
        heading: radians, counter-clockwise from the first axis.
        inner: what else the dynamics carry from step to step (attitude, rates, rotor speeds): arrays with leading axis
            n, of the structure that `AbstractDynamics.init` sets; None where there is nothing. The scenario keeps it in
            its fields.
    """

    position: Float[Array, "*n d"]
    velocity: Float[Array, "*n d"]
    heading: Float[Array, "*n"]
    inner: PyTree = None

    @classmethod
    def of(cls, entities: Entities, inner: PyTree = None) -> "Motion":
        """Read it from the population; 0 for the dead, whose NaN would reach the gradients of shared parameters."""
        alive = entities.alive
        place, velocity = (jnp.where(alive[:, None], x, 0.0) for x in (entities.position, entities.velocity))
        return cls(place, velocity, jnp.where(alive, entities.heading, 0.0), inner)

    def into(self, entities: Entities) -> Entities:
        """Write position, velocity and heading to the population."""
        new = self.position, self.velocity, self.heading
        return eqx.tree_at(lambda e: (e.position, e.velocity, e.heading), entities, new)


class AbstractDynamics(eqx.Module):
    """Moves entities under a command that is held during a step.

    Commands are in physical units and limited here, so that any finite command is legal; `limited` says whose are.
    """

    @abc.abstractmethod
    def n_commands(self, n_dimensions: int) -> int:
        """Numbers in the command of an entity."""

    @abc.abstractmethod
    def command(self, action: Float[Array, "n c"], kind: Int[Array, " n"]) -> Float[Array, "n c"]:
        """Commands from actions in [-1, 1], which span the limits of a kind; these must be finite then."""

    def limited(self, command: Float[Array, "n c"], kind: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Whose command is beyond a limit of its kind, so that `step` carries out another one; nobody's without limits.

        What a controller itself asks of the layer below is limited without being reported.
        """
        return jnp.zeros(command.shape[0], bool)

    @abc.abstractmethod
    def init(self, entities: Entities) -> Motion:
        """Return the motion of the population as it stands, with `inner` at its start values.

        Slots that pass to a new entity need new start values, too: the scenario selects them by `uid`.
        """

    @abc.abstractmethod
    def step(
        self, motion: Motion, command: Float[Array, "n c"], kind: Int[Array, " n"], dt: Float[Array, ""]
    ) -> Motion:
        """Advance by `dt` seconds."""


def outside(value: Float[Array, "*#v"], low: Float[Array, "*#v"], high: Float[Array, "*#v"]) -> Bool[Array, "*_v"]:
    """Whether a number is beyond limits, which may be infinite, by more than rounding."""
    return (value < low - 1e-5 * jnp.abs(low)) | (value > high + 1e-5 * jnp.abs(high))
