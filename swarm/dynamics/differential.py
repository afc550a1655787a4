"""Any ordinary differential equation, integrated by a solver of diffrax with fixed sub-steps."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from swarm.core.errors import ConfigError
from swarm.dynamics.motion import AbstractDynamics, Motion, outside
from swarm.geometry.angles import wrapped
from swarm.population.entities import Entities


class Differential(AbstractDynamics):
    """Moves entities along a vector field, each by itself.

    Command: `c` numbers in the units of the field, limited to [low, high].

    Runge-Kutta solvers of diffrax have reverse mode only; with `scan_kind="bounded"` they have forward mode, too.

    Attributes:
        field: `field(motion, command, parameters)` of one entity, as a Motion that holds the derivatives in time. The
            derivative of the position is reported as the velocity after a step, so that the field of a first-order
            system may leave the derivative of the velocity at 0.
        parameters: what the field needs of a kind; arrays with leading axis kinds.
        low: lowest commands of a kind.
        high: highest commands of a kind.
        inner: start values of `Motion.inner` for one entity; None where there is nothing.
        solver: a solver of diffrax; an explicit one for speed (`Heun`, `Tsit5`).
        n_substeps: equal steps of the solver in a step of the simulation.
    """

    field: Callable[[Motion, Array, PyTree], Motion]
    parameters: PyTree
    low: Float[Array, "kinds c"]
    high: Float[Array, "kinds c"]
    inner: PyTree
    solver: diffrax.AbstractSolver
    n_substeps: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.n_substeps < 1:
            raise ConfigError(f"Differential: n_substeps = {self.n_substeps}: expected at least 1")

    def n_commands(self, n_dimensions: int) -> int:
        """As many as have limits."""
        return self.low.shape[-1]

    def command(self, action: Float[Array, "n c"], kind: Int[Array, " n"]) -> Float[Array, "n c"]:
        """-1 is the lowest, 1 the highest command."""
        low, high = self.low[kind], self.high[kind]
        return low + 0.5 * (action + 1.0) * (high - low)

    def limited(self, command: Float[Array, "n c"], kind: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Whose command is not within the limits of its kind."""
        return jnp.any(outside(command, self.low[kind], self.high[kind]), axis=1)

    def init(self, entities: Entities) -> Motion:
        """The same inner state for all."""
        n = entities.n_slots
        return Motion.of(entities, jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), self.inner))

    def step(
        self, motion: Motion, command: Float[Array, "n c"], kind: Int[Array, " n"], dt: Float[Array, ""]
    ) -> Motion:
        """Take the sub-steps."""
        command = jnp.clip(command, self.low[kind], self.high[kind])
        parameters = jax.tree.map(lambda x: x[kind], self.parameters)
        return jax.vmap(self._one, in_axes=(0, 0, 0, None))(motion, command, parameters, dt)

    def _one(self, motion: Motion, command: Float[Array, " c"], parameters: PyTree, dt: Float[Array, ""]) -> Motion:
        def derivative(t: Any, motion: Motion, args: Any) -> Motion:
            return self.field(motion, command, parameters)

        terms, h = diffrax.ODETerm(derivative), dt / self.n_substeps
        zero = jnp.zeros_like(h)

        def substep(carry: tuple[Motion, PyTree], _: None) -> tuple[tuple[Motion, PyTree], None]:
            motion, state = carry
            stepped = self.solver.step(terms, zero, h, motion, None, state, made_jump=False)
            return (stepped[0], stepped[3]), None

        start = motion, self.solver.init(terms, zero, h, motion, None)
        (motion, _), _ = jax.lax.scan(substep, start, None, length=self.n_substeps)
        velocity = derivative(zero, motion, None).position
        return Motion(motion.position, velocity, wrapped(motion.heading), motion.inner)
