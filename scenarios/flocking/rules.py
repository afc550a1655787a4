"""The rules of flocking."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from scenarios.common import order
from scenarios.common.alike import AbstractAlike, numbers
from scenarios.flocking.config import FlockingConfig
from swarm.core.rounding import rounded
from swarm.geometry.space import Periodic, square_length
from swarm.geometry.vectors import dot, norm
from swarm.neighbors.questions import AbstractNeighborSearch, Neighbors
from swarm.neighbors.search import neighbor_search
from swarm.population.entities import Entities
from swarm.sensing.exact import Raster
from swarm.simulation.types import Action, Observation, Outcome, Start, World

N_TURNS = 9


class Fields(eqx.Module):
    """What the birds saw when they last looked, so that a step looks once: sums over those in sight.

    Attributes:
        count: how many they are.
        direction: their unit velocities.
        way: ways to them, metres.
        too_near: how many are nearer than `crowding`.
        away: ways from those nearer than `spacing`, as shares q of it, each times 1 - q^2.
    """

    count: Float[Array, " n"]
    direction: Float[Array, "n d"]
    way: Float[Array, "n d"]
    too_near: Float[Array, " n"]
    away: Float[Array, "n d"]


class AbstractFlocking(AbstractAlike):
    """Reynolds' birds (1987) with constant speed: they steer only.

    Who: `bird`; one team; none is born or dies.
    Actions: one of 9. In two dimensions turns from full right to full left: rates -1, -3/4, ..., 1 of `turn_rate`. In
        three, action 3 c + t: to the right, straight on or to the left (t = 0, 1, 2), and down, level or up (c = 0, 1,
        2) in the bird's own frame. With continuous control: those one or two rates as commands in [-1, 1]. Both
        together turn no faster than `turn_rate`.
    Motion: the direction turns by rate * time_step, then position += speed * direction * time_step, in a periodic box.
        `Entities.heading` is the azimuth; a bird's left is level.
    Observation: maps (density and mean velocity on a raster, seen from above), and for each bird, in its own frame
        (forward, left, up): mean direction of those within `radius`, way to their centre, way from those nearer than
        `spacing`, how many they are, how many are nearer than `crowding`, and its direction.
    Reward per step: `alignment` times the mean cosine between own direction and those in sight (0 when alone), minus
        `crowding` for each bird that is too near.
    End: never terminated, truncated after `steps`. Success is an end with polarisation above 0.9.
    """

    Config = FlockingConfig
    kinds = ("bird",)
    actions: ClassVar[dict[str, tuple[str, ...]]] = {"bird": tuple(f"turn {i - 4:+d}/4" for i in range(N_TURNS))}
    success = "aligned"
    headline = "polarisation"

    raster: tuple[int, int] = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    initial: int = eqx.field(static=True)
    continuous: bool = eqx.field(static=True)
    scripted: str = eqx.field(static=True)
    space: Periodic
    search: AbstractNeighborSearch
    time_step: Float[Array, ""]
    speed: Float[Array, ""]
    turn_rate: Float[Array, ""]
    spacing: Float[Array, ""]
    crowding: Float[Array, ""]
    reward: dict[str, Float[Array, ""]]
    boids: dict[str, Float[Array, ""]]
    vicsek: dict[str, Float[Array, ""]]

    @classmethod
    def from_config(cls, config: FlockingConfig) -> "AbstractFlocking":
        """Build the rules from the validated scenario file."""
        bird, world = config.population.bird, config.world
        space = Periodic(jnp.zeros(len(world.size)), jnp.asarray(world.size, jnp.float32))

        return cls(
            raster=world.raster,
            capacity=bird.capacity,
            initial=bird.initial,
            continuous=world.control == "continuous",
            scripted=world.scripted,
            space=space,
            search=neighbor_search(space, bird.radius, bird.capacity, config.search),
            time_step=jnp.float32(world.time_step),
            speed=jnp.float32(bird.speed),
            turn_rate=jnp.float32(bird.turn_rate),
            spacing=jnp.float32(bird.spacing),
            crowding=jnp.float32(bird.crowding),
            reward=numbers(config.reward),
            boids=numbers(config.boids),
            vicsek=numbers(config.vicsek),
        )

    @property
    def n_controls(self) -> int:
        """Turn, and climb in three dimensions, if control is continuous."""
        return self.space.n_dimensions - 1 if self.continuous else 0

    @property
    def centre(self) -> tuple[float, ...]:
        """Middle of the box."""
        return tuple((0.5 * self.space.size).tolist())

    @property
    def radius(self) -> Float[Array, ""]:
        """How far a bird sees; metres."""
        return self.search.radius

    def reset(self, key: Key[Array, ""]) -> Start:
        """Place birds uniformly, with directions uniform on the circle or the sphere."""
        d, slot = self.space.n_dimensions, jnp.arange(self.capacity, dtype=jnp.int32)
        # One key per bird, by number: the draw does not depend on how many there are.
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(slot)
        draw = jax.vmap(lambda k: jax.random.uniform(k, (2 * d - 1,)))(keys)
        heading = jnp.mod(2 * jnp.pi * draw[:, d] + jnp.pi, 2 * jnp.pi) - jnp.pi
        direction = jnp.stack([jnp.cos(heading), jnp.sin(heading)], axis=1)
        if d == 3:
            # Evenly on a sphere: its height is uniform (Archimedes).
            height = 2.0 * draw[:, 4:] - 1.0
            across = jnp.sqrt(jnp.maximum(1.0 - height**2, 0.0))
            direction = jnp.concatenate([across * direction, height], axis=1)
        # Not by `spawn`: who takes which slot is known beforehand.
        alive, none = slot < self.initial, jnp.zeros_like(slot)
        entities = Entities(
            alive=alive,
            uid=jnp.where(alive, slot, -1),
            kind=none,
            team=none,
            position=rounded(draw[:, :d] * self.space.size[None]),
            heading=heading,
            velocity=rounded(self.speed * direction),
            stores=jnp.zeros((self.capacity, 0)),
            next_uid=jnp.int32(self.initial),
        )
        return Start(entities, *self._look(entities))

    def _direction(self, entities: Entities) -> Float[Array, "n d"]:
        # Whether the compiler makes this of a division, and fuses it, depends on what else it sees, and on the batch.
        return rounded(entities.velocity * rounded(1.0 / self.speed))

    def _find(self, entities: Entities) -> Neighbors:
        return self.search.find(entities.position, entities.alive)

    def _look(self, entities: Entities) -> tuple[Fields, Int[Array, ""]]:
        """What the birds see, and status bits."""
        d = self.space.n_dimensions
        inverse_square = rounded(1.0 / jnp.square(self.spacing))

        def pair(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
            # Of the square alone: a root and a division for each pair would double the cost of a step.
            square = square_length(list(way))
            close = jnp.where(square < jnp.square(self.crowding), 1.0, 0.0)
            push = jnp.minimum(rounded(square * inverse_square) - 1.0, 0.0)
            return jnp.stack([jnp.ones_like(close), *theirs, *way, close, *(push * way)])

        near = self._find(entities)
        sums = near.sum(pair, self._direction(entities))
        count, direction, way = sums[:, 0], sums[:, 1 : d + 1], sums[:, d + 1 : 2 * d + 1]
        away = sums[:, 2 * d + 2 :] * rounded(1.0 / self.spacing)
        return Fields(count, direction, way, sums[:, 2 * d + 1], away), near.status

    def action_of(self, command: Float[Array, "n c"]) -> Action:
        """The action nearest to commands of turn and, in three dimensions, climb, both shares of the turn rate."""
        command = jnp.clip(command, -1.0, 1.0)
        if self.continuous:
            return command
        half = N_TURNS // 2 if command.shape[1] == 1 else 1
        index = jnp.round(command * half).astype(jnp.int32) + half
        return index[:, 0] if command.shape[1] == 1 else 3 * index[:, 1] + index[:, 0]

    def _command(self, action: Action) -> Float[Array, "n c"]:
        if self.continuous:
            return jnp.clip(action, -1.0, 1.0)
        if self.space.n_dimensions == 2:
            return ((action - N_TURNS // 2) / (N_TURNS // 2))[:, None]
        return (jnp.stack([action % 3, action // 3], axis=1) - 1).astype(jnp.float32)

    def _turned(self, entities: Entities, command: Float[Array, "n c"]) -> tuple[Array, Array]:
        """Heading and direction after a step's turn."""
        full = self.turn_rate * self.time_step
        if command.shape[1] == 1:
            heading = entities.heading + rounded(command[:, 0] * full)
            heading = jnp.mod(heading + jnp.pi, 2 * jnp.pi) - jnp.pi
            return heading, jnp.stack([jnp.cos(heading), jnp.sin(heading)], axis=1)
        forward, left, up = self._frame(entities)
        size = norm(command)
        angle = rounded(jnp.minimum(size, 1.0) * full)
        share = jnp.where(size > 0, jnp.sin(angle) / jnp.where(size > 0, size, 1.0), full)[:, None]
        share = rounded(share * command)
        direction = rounded(share[:, :1] * left) + rounded(share[:, 1:] * up)
        direction = direction + rounded(jnp.cos(angle)[:, None] * forward)
        rounding = norm(direction)[:, None]
        direction = direction / jnp.where(rounding > 0, rounding, 1.0)
        # Straight up or down there is no azimuth: the last one stays, and with it the frame.
        level = jnp.maximum(jnp.abs(direction[:, 0]), jnp.abs(direction[:, 1])) > 1e-6
        azimuth = jnp.arctan2(jnp.where(level, direction[:, 1], 0.0), jnp.where(level, direction[:, 0], 1.0))
        return jnp.where(level, azimuth, entities.heading), direction

    def _frame(self, entities: Entities) -> list[Float[Array, "n d"]]:
        """Unit vectors forward, left and, in three dimensions, up, of each bird."""
        forward = self._direction(entities)
        if forward.shape[1] == 2:
            return [forward, jnp.stack([-forward[:, 1], forward[:, 0]], axis=1)]
        x, y, z = forward.T
        sin, cos = jnp.sin(entities.heading), jnp.cos(entities.heading)
        left, up = [-sin, cos, jnp.zeros_like(sin)], [-z * cos, -z * sin, rounded(x * cos) + rounded(y * sin)]
        return [forward, jnp.stack(left, axis=1), jnp.stack(up, axis=1)]

    def act(self, world: World, action: Action, key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Turn, fly, look."""
        entities = world.entities
        heading, direction = self._turned(entities, self._command(action))
        velocity = rounded(self.speed * direction)
        position = entities.position + rounded(velocity * self.time_step)
        position, velocity = self.space.confine(position, velocity)
        entities = eqx.tree_at(lambda e: (e.position, e.heading, e.velocity), entities, (position, heading, velocity))
        seen, status = self._look(entities)
        aligned = dot(seen.direction, direction) / jnp.maximum(seen.count, 1.0)
        reward = rounded(self.reward["alignment"] * aligned) - rounded(self.reward["crowding"] * seen.too_near)
        nobody = jnp.zeros_like(entities.alive)
        return entities, seen, Outcome(reward, nobody, None, status=status)

    def bearings(self, world: World) -> tuple[Float[Array, "n d"], Float[Array, "n d"], Float[Array, "n d"]]:
        """Mean direction of those in sight, way to their centre in radii, and way from those too near.

        Each in the bird's own frame: forward, left, up.
        """
        seen, frame = world.fields, self._frame(world.entities)
        count = jnp.maximum(seen.count, 1.0)[:, None]
        ways = (seen.direction / count, seen.way / count / self.radius, seen.away)
        mean, centre, away = (jnp.stack([dot(axis, way) for axis in frame], axis=1) for way in ways)
        return mean, centre, away

    def observe(self, world: World) -> Observation:
        """Raster and bearings."""
        entities, seen = world.entities, world.fields
        alive, (h, w) = entities.alive, self.raster
        direction = self._direction(entities)
        raster = Raster(self.space.lower[:2], self.space.size[:2], self.raster)
        cell = raster.cell(entities.position[:, :2], alive)
        rows = jnp.concatenate([jnp.ones((self.n_slots, 1)), direction], axis=1)
        sums = raster.sum(entities.position[:, :2], alive, rows)
        density = sums[..., :1] * (h * w / self.initial)
        maps = jnp.concatenate([jnp.tanh(density / 4.0), sums[..., 1:] / jnp.maximum(sums[..., :1], 1.0)], axis=-1)
        crowd = jnp.tanh(jnp.stack([seen.count / 8.0, seen.too_near], axis=1))
        own = jnp.concatenate([*self.bearings(world), crowd, direction], axis=1)
        return self.seen(world.entities, own, maps, cell)

    def ended(self, world: World) -> Bool[Array, ""]:
        """Never."""
        return jnp.zeros((), bool)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """Order parameters (`scenarios.common.order`).

        polarisation: length of the mean unit velocity.
        milling: rotation about the centre of mass.
        nearest: mean distance to the nearest neighbour, metres.
        clusters: sets joined by chains of birds that see each other.
        neighbours: mean number in sight.
        too_near: share of birds with another one nearer than `crowding`.
        """
        entities, seen = world.entities, world.fields
        alive, direction, near = entities.alive, entities.velocity / self.speed, self._find(entities)
        polarisation = order.polarisation(direction, alive)
        return {
            "polarisation": polarisation,
            "aligned": (polarisation > 0.9).astype(jnp.float32),
            "milling": order.milling(self.space, entities.position, direction, alive),
            "nearest": order.nearest_distance(near, alive),
            "clusters": order.cluster_count(near, alive),
            "neighbours": order.mean(seen.count, alive),
            "too_near": order.mean((seen.too_near > 0).astype(jnp.float32), alive),
        }
