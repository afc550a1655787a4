"""Functions whose results have the same bits alone, in a batch of any size, and with any number of empty slots.

XLA keeps the order of arithmetic, but not its rounding: on CPUs a product and the sum it enters may become one
multiply-add, which rounds once instead of twice, a division by a number that many share a multiplication by its
reciprocal, and a sum along an axis is added up in whatever order suits the shapes. Which of these happens changes with
the shapes of a batch, and a chaotic world makes much of a last bit. `reproducible` writes a function's operations anew
with those choices taken away, whoever wrote them: rules need no care of their own.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float, PyTree

from swarm.core import numerics
from swarm.core.rounding import rounded

# Operations that cannot become one with a product they take.
_COMPARED = ("lt", "le", "gt", "ge", "eq", "ne", "max", "min", "clamp", "argmax", "argmin", "reduce_max", "reduce_min")
_CURVED = ("sqrt", "rsqrt", "exp", "exp2", "log", "log1p", "expm1", "erf_inv", "logistic", "sin", "cos", "tan", "tanh")
_OTHERS = ("mul", "div", "square", "rem", "abs", "sign", "is_finite", "floor", "ceil", "round", "asin", "acos", "atan2")
_APART = frozenset((*_COMPARED, *_CURVED, *_OTHERS))
_PRODUCTS = frozenset({"mul", "square", "integer_pow", "pow"})
# Axes up to that length are added up number by number.
_SHORT = 4


def reproducible(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function, of arguments that are pytrees of arrays, with rounding that does not depend on shapes.

    It can be batched, differentiated and compiled as before. Matrix products, cumulative sums, sums by index
    (`segment_sum`, `.at[].add`) and what custom kernels compute are left as they are; of these, sums by index are added
    up in the order of their index on CPUs.
    """

    @functools.wraps(function)
    def wrapped(*args: PyTree) -> PyTree:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shape), _run(closed, jax.tree.leaves(args)))

    return wrapped


def _run(closed: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """Evaluate the operations of a function one by one, each in its reproducible form."""
    jaxpr, users = closed.jaxpr, defaultdict(set)
    for eqn in jaxpr.eqns:
        for var in eqn.invars:
            if isinstance(var, core.Var):
                users[var].add(_name(eqn))
    for var in jaxpr.outvars:
        if isinstance(var, core.Var):
            users[var].add("result")
    values: dict[Any, Array] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        name, inputs, out = eqn.primitive.name, [read(atom) for atom in eqn.invars], next(iter(eqn.outvars), None)
        if name in ("jit", "pjit"):
            results = _run(eqn.params["jaxpr"], inputs)
        elif out is None or not jnp.issubdtype(out.aval.dtype, jnp.float32):
            results = _bind(eqn, inputs)
        elif name in _PRODUCTS:
            results = _bind(eqn, inputs)
            if users[out] - _APART and not any(_is_power_of_two(atom) for atom in eqn.invars):
                results = [rounded(results[0])]
        elif name == "div":
            # A divisor of its own for each number, for all that XLA knows.
            number, over = inputs
            results = _bind(eqn, [number, jnp.where(number == number, over, 2.0 * over)])
        elif name == "reduce_sum":
            results = [_sum(jnp.asarray(inputs[0]), [int(axis) for axis in eqn.params["axes"]])]
        elif name in ("exp", "log"):
            results = [getattr(numerics, name)(jnp.asarray(inputs[0]))]
        else:
            results = _bind(eqn, inputs)
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _name(eqn: core.JaxprEqn) -> str:
    """What an operation is; long sums take products apart themselves."""
    name = eqn.primitive.name
    if name == "custom_jvp_call" and eqn.params["call_jaxpr"].jaxpr.debug_info.func_name == "rounded":
        return "abs"
    if name == "reduce_sum":
        shape = eqn.invars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
        return "abs" if all(shape[axis] > _SHORT for axis in eqn.params["axes"]) else name
    return name


def _bind(eqn: core.JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """Carry out an operation; functions inside it (loops, branches) are made reproducible, too."""
    params = {name: _inside(value) for name, value in eqn.params.items()}
    bound = eqn.primitive.get_bind_params(params)
    # Before jax 0.10.1, functions come apart from the other parameters.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*functions, *inputs, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def _inside(value: Any) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        avals = [var.aval for var in value.jaxpr.invars]
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]
        return jax.make_jaxpr(lambda *args: _run(value, args))(*shapes)
    if isinstance(value, tuple) and value and all(isinstance(part, core.ClosedJaxpr) for part in value):
        return tuple(_inside(part) for part in value)
    return value


def _is_power_of_two(atom: Any) -> bool:
    """Whether a product by it is exact, however it is rounded."""
    return isinstance(atom, core.Literal) and math.frexp(abs(float(atom.val)))[0] == 0.5


def _sum(values: Float[Array, "*v"], axes: Sequence[int]) -> Array:
    """Sum along axes: short ones number by number, others independent of order."""
    for axis in sorted(axes, reverse=True):
        if values.shape[axis] > _SHORT:
            values = numerics.total(jnp.moveaxis(values, axis, 0))
        else:
            parts = [jax.lax.index_in_dim(values, i, axis, keepdims=False) for i in range(values.shape[axis])]
            values = functools.reduce(jnp.add, parts) if parts else jnp.zeros_like(jnp.sum(values, axis))
    return values
