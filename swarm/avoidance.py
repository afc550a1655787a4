"""Reciprocal collision avoidance: velocities near the preferred ones under which nobody meets within a horizon.

Source: J. van den Berg, S. Guy, M. Lin, D. Manocha, "Reciprocal n-body collision avoidance" (ISRR 2011), and its
library RVO2 (linear programs 2 and 3; in space 3 and 4). The plane and space are one program here: each constraint is a
half-space, and a problem in d dimensions is solved by those of d - 1 dimensions on the planes of the constraints.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from swarm.space import rounded
from swarm.vectors import clipped, dot, norm, unit

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
    own = velocity[:, None]
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
    along, area = dot(relative, way) / square, jnp.sqrt(_square_area(way, relative))
    slope = rounded(reach * area) / (square * jnp.sqrt(jnp.where(apart, square - reach2, 1.0)))
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
    n_hard = hard.active.shape[1]
    return jax.vmap(lambda goal, top, spaces: _solve(goal, top, spaces, n_hard))(preferred, speed, both)


def _solve(goal: Float[Array, " d"], speed: Float[Array, ""], spaces: HalfSpaces, n_hard: int) -> Float[Array, " d"]:
    found, failed = _closest(goal, speed, spaces)
    number = jnp.arange(spaces.active.shape[0])

    def relax(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Miss constraint i by no more than those before it (RVO2's linear program 3, in space 4)."""
        x, worst, i = carry
        normal, offset, active = spaces[i]
        lack = offset - dot(normal, x)
        # Where both are missed alike.
        between = spaces.normal - normal[None]
        size = norm(between)
        tells = (size > _EPSILON) & (number < i) & (number >= n_hard)
        size = jnp.where(size > _EPSILON, size, 1.0)
        ridge = HalfSpaces(between / size[:, None], (spaces.offset - offset) / size, spaces.active & tells)
        rigid = spaces.given(number < n_hard)
        ways = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), rigid, ridge)
        better, fault = _closest(normal * (_FAR * speed), speed, ways)
        worse = active & (lack > worst)
        x = jnp.where(worse & (fault >= ways.active.shape[0]), better, x)
        return x, jnp.where(worse, offset - dot(normal, x), worst), i + 1

    start = found, jnp.zeros_like(speed), jnp.maximum(failed, n_hard)
    # Nothing is done for a batch in which all is allowed.
    return jax.lax.while_loop(lambda carry: carry[2] < spaces.active.shape[0], relax, start)[0]


def _closest(
    goal: Float[Array, " d"], radius: Float[Array, ""], spaces: HalfSpaces
) -> tuple[Float[Array, " d"], Int[Array, ""]]:
    """The point of a ball about the origin that is nearest to a goal and in all half-spaces, one after the other.

    Returns:
        The point, and the number of the first constraint that those before it leave no room for; k: none.
    """
    k, d = spaces.normal.shape
    if d == 1:
        return _closest_on_line(goal, radius, spaces)
    number = jnp.arange(k)

    def missed(carry: tuple[Array, Array, Array]) -> Bool[Array, " k"]:
        x, failed, last = carry
        return (spaces.lack(x) > 0) & (number > last) & (failed == k)

    def add(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, failed, _ = carry
        i = jnp.argmax(missed(carry)).astype(jnp.int32)
        normal, offset, _ = spaces[i]
        moved, fits = _closest_on_plane(goal, radius, normal, offset, spaces.given(number < i))
        return jnp.where(fits, moved, x), jnp.where(fits, failed, i), i

    start = clipped(goal, radius), jnp.int32(k), jnp.int32(-1)
    x, failed, _ = jax.lax.while_loop(lambda carry: jnp.any(missed(carry)), add, start)
    return x, failed


def _closest_on_plane(
    goal: Float[Array, " d"],
    radius: Float[Array, ""],
    normal: Float[Array, " d"],
    offset: Float[Array, ""],
    spaces: HalfSpaces,
) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
    """The same on a plane, in its own coordinates about the point of it that is nearest to the origin."""
    origin, axes = offset * normal, _axes(normal)
    room = jnp.square(radius) - jnp.square(offset)

    def inside(vector: Array) -> Array:
        return jnp.stack([dot(vector, axis.reshape((1,) * (vector.ndim - 1) + axis.shape)) for axis in axes], axis=-1)

    normals = inside(spaces.normal)
    size = norm(normals)
    slanted = size > _EPSILON
    size = jnp.where(slanted, size, 1.0)
    offsets = spaces.offset - dot(spaces.normal, origin[None])
    never = jnp.any(spaces.active & ~slanted & (offsets > _EPSILON))
    projected = HalfSpaces(normals / size[:, None], offsets / size, spaces.active & slanted)
    place, failed = _closest(inside(goal - origin), jnp.sqrt(jnp.maximum(room, 0.0)), projected)
    x = origin
    for part, axis in zip(place, axes, strict=True):
        x = x + rounded(part * axis)
    return x, (room >= 0) & ~never & (failed >= spaces.active.shape[0])


def _closest_on_line(
    goal: Float[Array, " 1"], radius: Float[Array, ""], spaces: HalfSpaces
) -> tuple[Float[Array, " 1"], Int[Array, ""]]:
    """The same on a line: an interval. Which constraint leaves no room does not matter there."""
    upward = spaces.normal[:, 0] > 0
    bound = spaces.offset * jnp.where(upward, 1.0, -1.0)
    low = jnp.max(jnp.where(spaces.active & upward, bound, -radius), initial=-jnp.inf)
    high = jnp.min(jnp.where(spaces.active & ~upward, bound, radius), initial=jnp.inf)
    low, high = jnp.maximum(low, -radius), jnp.minimum(high, radius)
    k = spaces.active.shape[0]
    return jnp.clip(goal, low, high), jnp.where(low <= high, k, 0).astype(jnp.int32)


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
