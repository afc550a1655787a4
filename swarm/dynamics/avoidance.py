"""Reciprocal collision avoidance: velocities near the preferred ones under which nobody meets within a horizon.

Source: J. van den Berg, S. Guy, M. Lin, D. Manocha, "Reciprocal n-body collision avoidance" (ISRR 2011), and its
library RVO2 (linear programs 2 and 3; in space 3 and 4). The plane and space are one program here: each constraint is a
half-space, and a problem in d dimensions is solved by those of d - 1 dimensions on the planes of the constraints.

Which constraints bind at the solution is found by loops that end when all are looked at, and has no gradient; the
velocity is then the point that these determine, in closed form. So forward and reverse mode give the derivative of the
solution, as the implicit function theorem has it, wherever the same constraints go on binding.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.core.rounding import root, rounded
from swarm.geometry.vectors import clipped, dot, norm, unit

_EPSILON = 1e-5
# So many times the speed away, the nearest point is the farthest along a direction.
_FAR = 1e3


class HalfSpaces(eqx.Module):
    """Velocities x with normal . x >= offset, for each of `k` constraints; metres per second.

    Attributes:
        normal: unit vectors; anything where the constraint is not active.
        offset: metres per second.
        active: whether the constraint holds.
    """

    normal: Float[Array, "*n k d"]
    offset: Float[Array, "*n k"]
    active: Bool[Array, "*n k"]

    def __getitem__(self, i: Int[Array, ""]) -> tuple[Float[Array, " d"], Float[Array, ""], Bool[Array, ""]]:
        return self.normal[i], self.offset[i], self.active[i]

    def given(self, mask: Bool[Array, "*n k"]) -> "HalfSpaces":
        """Only some of them."""
        return HalfSpaces(self.normal, self.offset, self.active & mask)

    def chosen(self, number: Int[Array, " c"]) -> "HalfSpaces":
        """Those of some numbers, in this order; -1: one that does not hold."""
        there, row = number >= 0, jnp.maximum(number, 0)
        normal = jnp.where(there[:, None], self.normal[row], 0.0)
        return HalfSpaces(normal, jnp.where(there, self.offset[row], 0.0), there)

    def lack(self, x: Float[Array, " d"]) -> Float[Array, " k"]:
        """By how much a velocity misses each; not above 0 where it does not."""
        return jnp.where(self.active, self.offset - dot(self.normal, x[None]), -jnp.inf)


def reciprocal(
    velocity: Float[Array, "n d"],
    displacement: Float[Array, "n k d"],
    others: Float[Array, "n k d"],
    valid: Bool[Array, "n k"],
    reach: Float[Array, "n k"],
    horizon: Float[Array, ""],
    time_step: Float[Array, ""],
) -> HalfSpaces:
    """The ORCA half-spaces of entities that share the effort of avoiding each other (sections 3 and 4).

    Args:
        velocity: own, metres per second.
        displacement: to others, metres.
        others: their velocities.
        valid: which of them there are.
        reach: sum of the radii of both, metres.
        horizon: seconds without a collision.
        time_step: seconds until those that overlap shall be apart.
    """
    # What the dead hold must not reach gradients.
    own = jnp.where(valid[:, :, None], velocity[:, None], 0.0)
    relative = jnp.where(valid[:, :, None], own - others, 0.0)
    way = jnp.where(valid[:, :, None], displacement, 1.0)
    square, reach2 = dot(way, way), jnp.square(reach)
    apart = square > reach2
    seconds = jnp.where(apart, horizon, time_step)
    # The nearer end of the cone of velocities that collide is a ball about way / seconds.
    from_ball = relative - way / seconds[..., None]
    inward = dot(from_ball, way)
    on_ball = ~apart | ((inward < 0) & (jnp.square(inward) > rounded(reach2 * dot(from_ball, from_ball))))
    # Elsewhere the nearest point of its side: the line to it starts on the axis, at `share` of the way. Written so that
    # nothing cancels; what is across the way decides the side.
    square, free = jnp.where(apart, square, 1.0), jnp.sqrt(jnp.where(apart, square - reach2, 1.0))
    along, area = dot(relative, way) / square, root(_square_area(way, relative))
    slope = rounded(reach * area) / (square * free)
    across = relative - rounded(along[..., None] * way)
    middle = jnp.where(on_ball, 1.0 / seconds, along + slope)
    outward = jnp.where(on_ball[..., None], from_ball, across - rounded(slope[..., None] * way))
    size = norm(outward)
    # Both on one course: any way out will do, and the opposite one for the other.
    normal = jnp.where((size > 0)[..., None], outward / jnp.where(size > 0, size, 1.0)[..., None], -unit(way))
    change = rounded(reach * middle) - size
    point = own + rounded(0.5 * change[..., None] * normal)
    return HalfSpaces(normal, dot(normal, point), valid)


def walls(
    distance: Float[Array, "n w"], normal: Float[Array, "n w d"], horizon: Float[Array, ""], time_step: Float[Array, ""]
) -> HalfSpaces:
    """Half-spaces that keep clear of surfaces at a distance (metres, less the radius), with normals away from them.

    No surface is reached within the horizon; who is inside one leaves it within a step.
    """
    seconds = jnp.where(distance > 0, horizon, time_step)
    finite = jnp.isfinite(distance)
    return HalfSpaces(normal, -jnp.where(finite, distance, 0.0) / seconds, finite)


def avoid(
    preferred: Float[Array, "n d"], speed: Float[Array, " n"], hard: HalfSpaces, soft: HalfSpaces
) -> Float[Array, "n d"]:
    """The velocity nearest to the preferred one that all constraints allow.

    Where there is none, the one that misses no `soft` constraint by more than it must, and the `hard` ones not at all
    (as far as these agree).

    Args:
        preferred: metres per second, in the plane or in space.
        speed: highest; metres per second.
        hard: constraints of walls.
        soft: constraints of others.
    """
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), hard, soft)
    # What the others hold must not reach gradients.
    held = HalfSpaces(
        jnp.where(both.active[..., None], both.normal, 0.0), jnp.where(both.active, both.offset, 0.0), both.active
    )
    n_hard = hard.active.shape[1]
    return jax.vmap(lambda goal, top, spaces: _solve(goal, top, spaces, n_hard))(preferred, speed, held)


class _Choice(eqx.Module):
    """Which constraints a velocity follows from.

    Attributes:
        worst: number of the constraint that had to be missed by most; -1: none had.
        binding: numbers of those on whose planes it lies, in the order in which they were met; -1: no more.
    """

    worst: Int[Array, ""]
    binding: Int[Array, " d"]


def _solve(goal: Float[Array, " d"], speed: Float[Array, ""], spaces: HalfSpaces, n_hard: int) -> Float[Array, " d"]:
    choice = _search(*jax.lax.stop_gradient((goal, speed, spaces)), n_hard)
    missed = choice.worst >= 0
    programs = _relaxed(jnp.maximum(choice.worst, 0), speed, spaces, n_hard), (goal, spaces)
    goal, spaces = jax.tree.map(lambda a, b: jnp.where(missed, a, b), *programs)
    return _point(goal, speed, spaces.chosen(choice.binding))


def _search(goal: Float[Array, " d"], speed: Float[Array, ""], spaces: HalfSpaces, n_hard: int) -> _Choice:
    k = spaces.active.shape[0]
    found, failed, binding = _closest(goal, speed, spaces)

    def relax(carry: tuple[Array, Array, _Choice, Array]) -> tuple[Array, Array, _Choice, Array]:
        """Miss constraint i by no more than those before it (RVO2's linear program 3, in space 4)."""
        x, worst, choice, i = carry
        normal, offset, active = spaces[i]
        worse = active & (offset - dot(normal, x) > worst)
        towards, ways = _relaxed(i, speed, spaces, n_hard)
        better, fault, binding = _closest(towards, speed, ways)
        moved = worse & (fault >= k)
        x = jnp.where(moved, better, x)
        choice = jax.tree.map(lambda a, b: jnp.where(moved, a, b), _Choice(i, binding), choice)
        return x, jnp.where(worse, offset - dot(normal, x), worst), choice, i + 1

    start = found, jnp.zeros_like(speed), _Choice(jnp.int32(-1), binding), jnp.maximum(failed, n_hard)
    # Nothing is done for a batch in which all is allowed.
    return jax.lax.while_loop(lambda carry: carry[3] < k, relax, start)[2]


def _relaxed(
    i: Int[Array, ""], speed: Float[Array, ""], spaces: HalfSpaces, n_hard: int
) -> tuple[Float[Array, " d"], HalfSpaces]:
    """The goal and the constraints of missing constraint i by as little as those before it."""
    normal, offset, _ = spaces[i]
    number = jnp.arange(spaces.active.shape[0])
    # Where both are missed alike.
    between = spaces.normal - normal[None]
    size = norm(between)
    rigid, tells = number < n_hard, size > _EPSILON
    size = jnp.where(tells, size, 1.0)
    ways = HalfSpaces(
        jnp.where(rigid[:, None], spaces.normal, between / size[:, None]),
        jnp.where(rigid, spaces.offset, (spaces.offset - offset) / size),
        spaces.active & (rigid | (tells & (number < i))),
    )
    return normal * (_FAR * speed), ways


def _closest(
    goal: Float[Array, " d"], radius: Float[Array, ""], spaces: HalfSpaces
) -> tuple[Float[Array, " d"], Int[Array, ""], Int[Array, " d"]]:
    """The point of a ball about the origin that is nearest to a goal and in all half-spaces, one after the other.

    Returns:
        The point; the number of the first constraint that those before it leave no room for, k: none; and those on
        whose planes the point lies, as `_Choice.binding`.
    """
    k, d = spaces.normal.shape
    if d == 1:
        return _closest_on_line(goal, radius, spaces)
    number = jnp.arange(k)

    def missed(carry: tuple[Array, Array, Array, Array]) -> Bool[Array, " k"]:
        x, failed, last, _ = carry
        return (spaces.lack(x) > 0) & (number > last) & (failed == k)

    def add(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, failed, _, binding = carry
        i = jnp.argmax(missed(carry)).astype(jnp.int32)
        moved, fits, others = _closest_on_plane(goal, radius, *spaces[i][:2], spaces.given(number < i))
        binding = jnp.where(fits, jnp.concatenate([i[None], others]), binding)
        return jnp.where(fits, moved, x), jnp.where(fits, failed, i), i, binding

    start = clipped(goal, radius), jnp.int32(k), jnp.int32(-1), jnp.full(d, -1, jnp.int32)
    x, failed, _, binding = jax.lax.while_loop(lambda carry: jnp.any(missed(carry)), add, start)
    return x, failed, binding


def _closest_on_plane(
    goal: Float[Array, " d"],
    radius: Float[Array, ""],
    normal: Float[Array, " d"],
    offset: Float[Array, ""],
    spaces: HalfSpaces,
) -> tuple[Float[Array, " d"], Bool[Array, ""], Int[Array, " e"]]:
    """The same on a plane, and whether there is such a point."""
    plane = _Plane(normal, offset, radius)
    projected, slanted = plane.cut(spaces)
    never = jnp.any(spaces.active & ~slanted & (spaces.offset - dot(spaces.normal, plane.origin[None]) > _EPSILON))
    place, failed, binding = _closest(plane.inside(goal - plane.origin), plane.radius, projected)
    fits = (jnp.abs(offset) <= radius) & ~never & (failed >= spaces.active.shape[0])
    return plane.outside(place), fits, binding


def _closest_on_line(
    goal: Float[Array, " 1"], radius: Float[Array, ""], spaces: HalfSpaces
) -> tuple[Float[Array, " 1"], Int[Array, ""], Int[Array, " 1"]]:
    """The same on a line: an interval. Which constraint leaves no room does not matter there."""
    upward, bound = spaces.normal[:, 0] > 0, _bound(spaces)
    lows, highs = jnp.where(upward, bound, -jnp.inf), jnp.where(upward, jnp.inf, bound)
    lows, highs = (jnp.where(spaces.active, x, y) for x, y in ((lows, -jnp.inf), (highs, jnp.inf)))
    low, high = jnp.max(lows, initial=-jnp.inf), jnp.min(highs, initial=jnp.inf)
    k = spaces.active.shape[0]
    x = jnp.clip(goal, jnp.maximum(low, -radius), jnp.minimum(high, radius))
    below, above = (x <= low) & (goal < low), (x >= high) & (goal > high)
    binding = jnp.full(1, -1) if k == 0 else jnp.where(below, jnp.argmax(lows), jnp.where(above, jnp.argmin(highs), -1))
    room = jnp.maximum(low, -radius) <= jnp.minimum(high, radius)
    return x, jnp.where(room, k, 0).astype(jnp.int32), binding.astype(jnp.int32)


def _point(goal: Float[Array, " d"], radius: Float[Array, ""], binding: HalfSpaces) -> Float[Array, " d"]:
    """The point of a ball that is nearest to a goal on the planes of up to d constraints, one after the other."""
    normal, offset, active = binding[jnp.int32(0)]
    if goal.shape[0] == 1:
        return jnp.where(active, _bound(binding), jnp.clip(goal, -radius, radius))
    plane = _Plane(jnp.where(active, normal, jnp.zeros_like(normal).at[0].set(1.0)), offset, radius)
    rest, _ = plane.cut(jax.tree.map(lambda x: x[1:], binding))
    place = plane.outside(_point(plane.inside(goal - plane.origin), plane.radius, rest))
    return jnp.where(active, place, clipped(goal, radius))


def _bound(spaces: HalfSpaces) -> Float[Array, " k"]:
    """Where the constraints of a line begin or end."""
    return spaces.offset * jnp.where(spaces.normal[:, 0] > 0, 1.0, -1.0)


class _Plane:
    """A plane normal . x = offset, in its own coordinates about the point of it that is nearest to the origin.

    Attributes:
        origin: that point.
        axes: unit vectors along the plane.
        radius: of the circle in which it cuts a ball about the origin.
    """

    def __init__(self, normal: Float[Array, " d"], offset: Float[Array, ""], radius: Float[Array, ""]) -> None:
        self.origin, self.axes = offset * normal, _axes(normal)
        self.radius = root(jnp.maximum((radius - offset) * (radius + offset), 0.0))

    def inside(self, vector: Float[Array, "*v d"]) -> Float[Array, "*v e"]:
        """Parts of vectors along the plane."""
        axes = [axis.reshape((1,) * (vector.ndim - 1) + axis.shape) for axis in self.axes]
        return jnp.stack([dot(vector, axis) for axis in axes], axis=-1)

    def outside(self, place: Float[Array, " e"]) -> Float[Array, " d"]:
        """The point of space that is a place on the plane."""
        parts = [rounded(part * axis) for part, axis in zip(place, self.axes, strict=True)]
        return sum(parts, start=self.origin)

    def cut(self, spaces: HalfSpaces) -> tuple[HalfSpaces, Bool[Array, " k"]]:
        """Half-spaces as half-spaces of the plane, and which of them its points can be in or not."""
        normals = self.inside(spaces.normal)
        size = norm(normals)
        slanted = size > _EPSILON
        size = jnp.where(slanted, size, 1.0)
        offsets = spaces.offset - dot(spaces.normal, self.origin[None])
        return HalfSpaces(normals / size[:, None], offsets / size, spaces.active & slanted), slanted


def _axes(normal: Float[Array, " d"]) -> list[Float[Array, " d"]]:
    """Unit vectors at right angles to a unit vector and each other (in space: Duff et al. 2017)."""
    if normal.shape[0] == 2:
        return [jnp.stack([-normal[1], normal[0]])]
    x, y, z = normal
    sign = jnp.where(z < 0, -1.0, 1.0)
    a = -1.0 / (sign + z)
    b = x * y * a
    return [
        jnp.stack([1.0 + sign * x * x * a, sign * b, -sign * x]),
        jnp.stack([b, sign + y * y * a, -y]),
    ]


def _square_area(a: Float[Array, "*v d"], b: Float[Array, "*v d"]) -> Float[Array, "*v"]:
    """Square of the area that two vectors span (Lagrange's identity)."""
    d = a.shape[-1]
    pairs = [(i, j) for i in range(d) for j in range(i + 1, d)]
    parts = [jnp.square(rounded(a[..., i] * b[..., j]) - rounded(a[..., j] * b[..., i])) for i, j in pairs]
    return sum(parts[1:], parts[0])
