"""Drones under the solvers of diffrax: any of them inside the simulation, adaptive or with noise for studies."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from swarm.dynamics import quaternion
from swarm.dynamics.differential import Differential
from swarm.dynamics.flight import Air
from swarm.dynamics.motion import Motion
from swarm.dynamics.quadrotor import Quadrotor, Turning
from swarm.dynamics.quaternion import components, joined
from swarm.geometry.angles import wrapped

Field = Callable[[Any, Motion], Motion]


class RotorField(eqx.Module):
    """The vector field of a `Quadrotor` in still air, as `Differential` takes it; its parameter is the kind."""

    quadrotor: Quadrotor

    def __call__(self, motion: Motion, command: Float[Array, " c"], kind: Int[Array, ""]) -> Motion:
        """Derivatives of one entity's motion."""
        return self.quadrotor.derivative(motion, command, kind, Air.still(motion.position))


def rotor_differential(quadrotor: Quadrotor, solver: diffrax.AbstractSolver, n_substeps: int) -> Differential:
    """A rigid body with rotors under a solver of diffrax with fixed sub-steps, heading along the first axis at first.

    An explicit solver is stable where the sub-step is short against the motors' time constant.
    """
    kinds = jnp.arange(quadrotor.mass.shape[0], dtype=jnp.int32)
    n_rotors = quadrotor.rotors.spin.shape[1]
    low, high = (jnp.tile(speed[:, None], (1, n_rotors)) for speed in quadrotor.rotors.speed.T)
    hover = jnp.full(n_rotors, quadrotor.hover_speed(kinds)[0])
    start = Turning(jnp.asarray([0.0, 0.0, 0.0, 1.0]), jnp.zeros(3), hover)
    return Differential(RotorField(quadrotor), kinds, low, high, start, solver, n_substeps)


def solve(
    field: Field,
    motion: Motion,
    times: Float[Array, " t"],
    solver: diffrax.AbstractSolver | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 16_384,
) -> Motion:
    """Integrate with steps adapted to a tolerance; differentiable in all that the field and the start depend on.

    Args:
        field: `field(t, motion)`, derivatives in time as a Motion, as `Quadrotor.derivative` gives them; a controller
            of your own is part of it.
        motion: at `times[0]`.
        times: seconds, ascending, two or more.
        solver: of diffrax; Tsit5 if None.
        tolerance: relative, and absolute in the units of the state.
        max_steps: at most; diffrax raises an error where they do not suffice.

    Returns:
        The motion at `times`, with a leading axis.
    """
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(t, y)),
        solver or diffrax.Tsit5(),
        times[0],
        times[-1],
        None,
        motion,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=max_steps,
    )
    return _normal(solution.ys)


def solve_noisy(
    field: Field,
    noise: Float[Array, " d"],
    motion: Motion,
    times: Float[Array, " t"],
    key: Key[Array, ""],
    dt: float,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 16_384,
) -> Motion:
    """Integrate under Brownian forcing, dv = a dt + noise dW: additive, so that Ito's and Stratonovich's are one.

    Args:
        field: as for `solve`.
        noise: along the axes of the world, metres per second per root second.
        motion: of one entity at `times[0]`.
        times: seconds, ascending, two or more.
        key: for the path, which is the same for each solver and step.
        dt: step, seconds.
        solver: for stochastic equations with additive noise; ShARK (strong order 3/2, Foster et al. 2023) if None.
        max_steps: at most.

    Returns:
        The motion at `times`, with a leading axis.
    """
    start, end = times[0], times[-1]
    forces = diffrax.VirtualBrownianTree(
        start, end, 0.5 * dt, jax.ShapeDtypeStruct(noise.shape, noise.dtype), key, diffrax.SpaceTimeLevyArea
    )

    flat, whole = ravel_pytree(motion)

    def column(push: Float[Array, " d"]) -> Float[Array, " m"]:
        return ravel_pytree(eqx.tree_at(lambda m: m.velocity, jax.tree.map(jnp.zeros_like, motion), push))[0]

    columns = jax.vmap(column, out_axes=1)(jnp.diag(noise))
    drift = diffrax.ODETerm(lambda t, y, args: ravel_pytree(field(t, whole(y)))[0])
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(drift, diffrax.ControlTerm(lambda t, y, args: columns, forces)),
        solver or diffrax.ShARK(),
        start,
        end,
        dt,
        flat,
        saveat=diffrax.SaveAt(ts=times),
        max_steps=max_steps,
    )
    return _normal(jax.vmap(whole)(jnp.asarray(solution.ys)))


def _normal(motion: Any) -> Motion:
    """Headings within a turn, unit quaternions."""
    inner = motion.inner
    if isinstance(inner, Turning):
        inner = Turning(joined(quaternion.unit(components(inner.attitude))), inner.rates, inner.rotors)
    return Motion(motion.position, motion.velocity, wrapped(motion.heading), inner)
