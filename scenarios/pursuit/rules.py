"""The rules of pursuit."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from scenarios.common.alike import numbers
from scenarios.common.compass import MOVES
from scenarios.pursuit.config import PursuitConfig
from scenarios.pursuit.steering import Sight, Surface, flee
from swarm.dynamics import Motion, VelocityLag
from swarm.geometry.obstacles import Balls, collide
from swarm.geometry.space import AbstractSpace, Periodic, Walled
from swarm.neighbors.questions import AbstractNeighborSearch, Among, Nearest
from swarm.neighbors.search import neighbor_search
from swarm.population.entities import Entities, Spawn, spawn
from swarm.simulation.rules import AbstractRules, rows_of
from swarm.simulation.types import Action, Observation, Outcome, Start, World

SCOUT, HUNTER, PREY = range(3)


class Fields(eqx.Module):
    """What a world of pursuit holds besides its entities.

    Attributes:
        sight: what each sees of the others when all had moved. Who was caught in the step is not among them, and who
            was born in it sees nobody, and is seen by nobody, until the next.
        obstacles: discs.
        caught: prey caught so far.
    """

    sight: Sight
    obstacles: Balls
    caught: Float[Array, ""]


class AbstractPursuit(AbstractRules):
    """Predators of two kinds chase prey.

    Who: team 0: `scout` (fast, far-sighted, weak) and `hunter` (slow, short-sighted, strong); team 1: `prey`. Prey that
        is caught dies; with `respawn` a new one comes at a random place in the same step.
    Actions: stay or go in one of 8 directions at full speed; with `control = "continuous"` two commands in [-1, 1], the
        share of the speed along x and y, together at most 1. The velocity follows with lag and limited acceleration.
        With `prey = "scripted"` prey do not act: they flee by rule.
    World: a box with walls that stop, or with opposite sides joined; discs that bodies cannot enter, with gaps that any
        body can pass. Bodies do not hinder each other.
    Catch: after the move, prey is caught when the strengths of the predators that have it within their `catch` add up
        to its own strength: two hunters, a hunter and two scouts, or four scouts with the shipped numbers.
    Observation, for each entity: own velocity, place in the box, way to the nearest obstacle, time left; and of the
        nearest foes and mates that it sees: way, relative velocity, whether there is one, strength; of mates the way to
        the nearest foe that they see, as they tell it, and whether they see one. Who was born in a step sees others
        from the next on.
        Maps, one for each team that acts: obstacles, own entities by kind, those foes by kind that somebody of the team
        sees, and the board itself. Obstacles hide nobody.
    Reward: `catch` for each prey caught, in equal shares to the predators within `assist` of it; `tag` per step for
        each prey that a predator has within its own `catch`, caught or not; minus `time` per step. Prey pays `caught`
        when caught and gets `time` per step; prey that do not act get no reward.
    End: terminated when no prey is left; truncated after `steps`. Success is the share of the first prey's number that
        was caught, at most 1.
    """

    Config = PursuitConfig
    kinds = ("scout", "hunter", "prey")
    actions: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(("scout", "hunter", "prey"), MOVES)
    success = "caught_share"
    headline = "caught"

    capacity: tuple[int, ...] = eqx.field(static=True)
    initial: tuple[int, ...] = eqx.field(static=True)
    plots: tuple[int, int] = eqx.field(static=True)
    n_obstacles: int = eqx.field(static=True)
    raster: tuple[int, int] = eqx.field(static=True)
    n_seen: tuple[int, int] = eqx.field(static=True)
    continuous: bool = eqx.field(static=True)
    prey_acts: bool = eqx.field(static=True)
    respawn: bool = eqx.field(static=True)
    search: AbstractNeighborSearch
    dynamics: VelocityLag
    table: dict[str, Float[Array, " kinds"]]
    obstacle_radius: Float[Array, " 2"]
    gap: Float[Array, ""]
    time_step: Float[Array, ""]
    steps: Float[Array, ""]
    panic: Float[Array, ""]
    reward: dict[str, Float[Array, ""]]

    @classmethod
    def from_config(cls, config: PursuitConfig) -> "AbstractPursuit":
        """Build the rules from the validated scenario file."""
        world, population = config.world, config.population
        kinds = [population.scout, population.hunter, population.prey]
        lower, size = jnp.zeros(2), jnp.asarray(world.size, jnp.float32)
        space = Walled(lower, size, jnp.float32(0.0)) if world.edge == "walled" else Periodic(lower, size)
        names = ("speed", "acceleration", "lag", "radius", "sight", "strength", "catch")
        table = {name: jnp.asarray([getattr(k, name, 0.0) for k in kinds], jnp.float32) for name in names}
        return cls(
            capacity=tuple(k.capacity for k in kinds),
            initial=tuple(k.initial for k in kinds),
            plots=world.plots,
            n_obstacles=world.obstacles,
            raster=world.raster,
            n_seen=(config.observation.foes, config.observation.mates),
            continuous=world.control == "continuous",
            prey_acts=world.prey == "acting",
            respawn=world.respawn,
            search=neighbor_search(
                space, max(config.farthest, config.reward.assist), sum(k.capacity for k in kinds), config.search
            ),
            dynamics=VelocityLag(table["lag"], table["acceleration"], table["speed"]),
            table=table,
            obstacle_radius=jnp.asarray(world.obstacle_radius, jnp.float32),
            gap=jnp.float32(config.gap),
            time_step=jnp.float32(world.time_step),
            steps=jnp.float32(world.steps),
            panic=jnp.float32(population.prey.panic),
            reward=numbers(config.reward),
        )

    @property
    def space(self) -> AbstractSpace:
        """The box."""
        return self.search.space

    @property
    def n_slots(self) -> int:
        """Scouts, hunters and prey share them."""
        return sum(self.capacity)

    @property
    def n_teams(self) -> int:
        """Predators and prey."""
        return 2

    @property
    def capacities(self) -> tuple[tuple[int, ...], ...]:
        """Scouts and hunters are one team, prey the other."""
        scouts, hunters, prey = self.capacity
        return (scouts, hunters, 0), (0, 0, prey)

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box."""
        x, y = (0.5 * self.space.size).tolist()
        return x, y

    @property
    def tables(self) -> PyTree:
        """What predators and prey can do."""
        return self.dynamics, self.table

    @property
    def sets(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Foes and mates in sight."""
        n_foes, n_mates = self.n_seen
        return {"foes": rows_of(7, n_foes, 6), "mates": rows_of(7 + 6 * n_foes, n_mates, 9)}

    @property
    def n_controls(self) -> int:
        """Two with continuous control: along x and y."""
        return 2 if self.continuous else 0

    # How an episode starts

    def reset(self, key: Key[Array, ""]) -> Start:
        """Place obstacles, and everybody uniformly outside them, at rest."""
        obstacle_key, *kind_keys = jax.random.split(key, 4)
        obstacles = self._obstacles(obstacle_key)
        # One key each, by kind and number: the draw does not depend on how many there are.
        keys = [
            jax.vmap(lambda i, k=kind_key: jax.random.fold_in(k, i))(jnp.arange(n))
            for kind_key, n in zip(kind_keys, self.initial, strict=True)
        ]
        kind = jnp.repeat(jnp.arange(3), jnp.asarray(self.initial), total_repeat_length=sum(self.initial))
        place = self._places(jnp.concatenate(keys), kind, obstacles)
        n, team = sum(self.initial), (kind == PREY).astype(jnp.int32)
        births = Spawn(jnp.ones(n, bool), kind, team, place, jnp.zeros(n), jnp.zeros((n, 0)))
        entities, _ = spawn(Entities.empty(self.n_slots, 2, 0, variants=self.variants), births)
        sight, status = self.look(entities, entities.alive)
        return Start(entities, Fields(sight, obstacles, jnp.zeros(())), status)

    def _obstacles(self, key: Key[Array, ""]) -> Balls:
        """Draw discs, each in a plot of its own and clear of its border."""
        plot_key, radius_key, place_key = jax.random.split(key, 3)
        columns, rows = self.plots
        plot = jax.lax.top_k(jax.random.uniform(plot_key, (columns * rows,)), self.n_obstacles)[1]
        least, greatest = self.obstacle_radius
        radius = least + (greatest - least) * jax.random.uniform(radius_key, (self.n_obstacles,))
        side = self.space.size / jnp.asarray([columns, rows])
        slack = side[None] - 2.0 * (radius + self.gap)[:, None]
        share = jax.random.uniform(place_key, (self.n_obstacles, 2)) - 0.5
        middle = (jnp.stack([plot % columns, plot // columns], axis=1) + 0.5) * side[None]
        return Balls(middle + share * slack, radius)

    def _places(self, keys: Key[Array, " m"], kind: Int[Array, " m"], obstacles: Balls) -> Float[Array, "m 2"]:
        """Draw places uniformly, and push those in an obstacle out of it."""
        share = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys)
        place = self.space.lower[None] + share * self.space.size[None]
        # Of the largest of a kind: who is born has no identity yet that says what it will be like.
        radius = jnp.max(self.table["radius"].reshape(self.n_variants, -1), axis=0)[kind]
        return collide(obstacles, place, jnp.zeros_like(place), radius, jnp.float32(0.0))[0]

    # How a step goes

    def act(self, world: World, action: Action, key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Move, collide, catch."""
        entities, obstacles = world.entities, world.fields.obstacles
        wanted = self._wanted(action)
        if not self.prey_acts:
            wanted = jnp.where((entities.kind == PREY)[:, None], self.flee(world), wanted)
        command = self.dynamics.command(wanted, entities.row)
        motion = self.dynamics.step(Motion.of(entities), command, entities.row, self.time_step)
        position, velocity = self.space.confine(motion.position, motion.velocity)
        radius = self.table["radius"][entities.row]
        position, velocity = collide(obstacles, position, velocity, radius, jnp.float32(0.0))
        entities = eqx.tree_at(lambda e: (e.position, e.velocity), entities, (position, velocity))
        caught, reward, status = self._catch(entities)
        births = self._reborn(entities, caught, obstacles, key) if self.respawn else None
        sight, more = self.look(entities, entities.alive & ~caught)
        n_caught = jnp.sum(caught, dtype=jnp.int32).astype(jnp.float32)
        fields = Fields(sight, obstacles, world.fields.caught + n_caught)
        return entities, fields, Outcome(reward, caught, births, 0, status | more)

    def _wanted(self, action: Action) -> Float[Array, "n 2"]:
        if self.continuous:
            return jnp.clip(action, -1.0, 1.0)
        angle = (jnp.clip(action, 1, 8) - 1) * (0.25 * jnp.pi)
        way = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        return jnp.where((action > 0)[:, None], way, 0.0)

    def flee(self, world: World) -> Float[Array, "n 2"]:
        """How prey steer by rule, as a share of their speed."""
        entities = world.entities
        # Compiled apart from what is around it, so that it rounds alike in every program: an episode must replay.
        foes, surfaces = world.fields.sight.foes, self.surfaces(world)
        apart: Any = jax.lax.optimization_barrier((entities, foes, surfaces, world.step))
        entities, foes, surfaces, step = apart
        wanted: Any = jax.lax.optimization_barrier(flee(entities, foes, surfaces, self.panic, step * self.time_step))
        return wanted

    def _catch(self, entities: Entities) -> tuple[Bool[Array, " n"], Float[Array, " n"], Int[Array, ""]]:
        """Return who is caught, rewards, and status bits."""
        table, reward, row = self.table, self.reward, entities.row
        found, foes = self.search.find(entities.position, entities.alive), Among(entities.team, same=False)

        def around(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
            catch, strength = theirs
            helps = jnp.where(distance < reward["assist"], 1.0, 0.0)
            return jnp.stack([jnp.where(distance < catch, strength, 0.0), helps])

        strength, n_helpers = found.sum(around, jnp.stack([table["catch"][row], table["strength"][row]], 1), foes).T
        prey = entities.is_kind(PREY)
        caught = prey & (strength >= table["strength"][row])
        share = jnp.where(caught, reward["catch"] / jnp.maximum(n_helpers, 1.0), 0.0)

        def earned(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
            assisted = jnp.where(distance < reward["assist"], theirs[0], 0.0)
            return (assisted + jnp.where(distance < mine[1], reward["tag"], 0.0))[None]

        of_predator = found.sum(earned, jnp.stack([share, table["catch"][row]], 1), foes)[:, 0] - reward["time"]
        of_prey = reward["time"] - jnp.where(caught, reward["caught"], 0.0)
        return caught, jnp.where(prey, of_prey if self.prey_acts else 0.0, of_predator), found.status

    def _reborn(self, entities: Entities, caught: Bool[Array, " n"], obstacles: Balls, key: Key[Array, ""]) -> Spawn:
        """Ask for a new prey for each one caught, the eldest first."""
        n = self.n_slots
        kind = jnp.full(n, PREY, jnp.int32)
        place = self._places(entities.keys(key), kind, obstacles)
        births = Spawn(caught, kind, jnp.ones(n, jnp.int32), place, jnp.zeros(n), jnp.zeros((n, 0)))
        return births.in_order_of(entities.uid)

    def ended(self, world: World) -> Bool[Array, ""]:
        """No prey is left."""
        return ~jnp.any(world.entities.is_kind(PREY))

    # What is seen

    def look(self, entities: Entities, living: Bool[Array, " n"]) -> tuple[Sight, Int[Array, ""]]:
        """Return the nearest foes and mates that each sees, whether a foe sees it, and status bits."""
        found, sight = self.search.find(entities.position, living), self.table["sight"][entities.row]
        n_foes, n_mates = self.n_seen

        def seen(near: Nearest) -> Nearest:
            valid = near.valid & (near.distance < sight[:, None])
            return Nearest(
                jnp.where(valid, near.index, -1),
                jnp.where(valid, near.distance, 0.0),
                jnp.where(valid[:, :, None], near.displacement, 0.0),
            )

        def sees(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
            return jnp.where(distance < theirs, 1.0, 0.0)

        foes, mates = (Among(entities.team, same=same) for same in (False, True))
        watched = found.sum(sees, sight[:, None], foes)[:, 0] > 0
        return Sight(seen(found.nearest(n_foes, foes)), seen(found.nearest(n_mates, mates)), watched), found.status

    def surfaces(self, world: World) -> tuple[Surface, ...]:
        """The nearest obstacle, and the nearest wall along each axis if there are walls; distances from the body."""
        entities, space = world.entities, self.space
        radius = self.table["radius"][entities.row]
        distance, normal = world.fields.obstacles.distance_and_normal(entities.position)
        surfaces = [Surface(distance - radius, normal)]
        if isinstance(space, Walled):
            for axis in range(2):
                place = entities.position[:, axis]
                below, above = place - space.lower[axis], space.upper[axis] - place
                inward = jnp.zeros_like(normal).at[:, axis].set(jnp.where(below < above, 1.0, -1.0))
                surfaces.append(Surface(jnp.minimum(below, above) - radius, inward))
        return tuple(surfaces)

    def observe(self, world: World) -> Observation:
        """A map for each team that acts, and features for each entity."""
        entities = world.entities
        acts = entities.alive & (self.prey_acts | (entities.kind != PREY))
        cell, sight = self._cell(entities), world.fields.sight
        views = range(2 if self.prey_acts else 1)
        return Observation(
            maps=jnp.stack([self._map(world, cell, sight.watched, team) for team in views]),
            view=jnp.where(acts, entities.team, 0),
            cell=cell,
            own=jnp.where(acts[:, None], self._own(world, sight), 0.0),
            kind=jnp.where(acts, entities.kind, 0),
            alive=acts,
            action_mask=jnp.broadcast_to(acts[:, None], (self.n_slots, self.n_actions)),
        )

    def _cell(self, entities: Entities) -> Int[Array, "n 2"]:
        h, w = self.raster
        share = jnp.where(entities.alive[:, None], entities.position - self.space.lower[None], 0.0)
        share = share / self.space.size[None]
        cells = jnp.asarray([w, h])[None]
        return jnp.clip((share * cells).astype(jnp.int32), 0, cells - 1)[:, ::-1]

    def _map(self, world: World, cell: Array, watched: Array, team: int) -> Float[Array, "h w 8"]:
        entities, (h, w) = world.entities, self.raster
        own = entities.alive & (entities.team == team)
        foe = entities.alive & (entities.team != team) & watched
        marks = [side & (entities.kind == kind) for side in (own, foe) for kind in range(3)]
        counts = jnp.zeros((h, w, 6)).at[cell[:, 0], cell[:, 1]].add(jnp.stack(marks, axis=1).astype(jnp.float32))
        row, column = jnp.divmod(jnp.arange(h * w), w)
        middle = (jnp.stack([column, row], axis=1) + 0.5) / jnp.asarray([w, h])[None]
        middle = self.space.lower[None] + middle * self.space.size[None]
        solid = (world.fields.obstacles.distance(middle) < 0).reshape(h, w, 1).astype(jnp.float32)
        return jnp.concatenate([solid, counts, jnp.ones((h, w, 1))], axis=-1)

    def _own(self, world: World, seen: Sight) -> Float[Array, "n o"]:
        entities, table, row = world.entities, self.table, world.entities.row
        sight, speed = table["sight"][row], jnp.max(table["speed"])
        velocity = jnp.where(entities.alive[:, None], entities.velocity, 0.0)
        place = 2.0 * (entities.position - self.space.lower[None]) / self.space.size[None] - 1.0
        nearest = self.surfaces(world)[0]
        nearness = jnp.clip(1.0 - nearest.distance / 4.0, 0.0, 1.0)
        left = jnp.full((self.n_slots, 1), 1.0 - world.step / self.steps)

        def of(near: Nearest) -> list[Array]:
            moves = jnp.where(near.valid[:, :, None], near.gather(velocity) - velocity[:, None], 0.0)
            ways, seen = near.displacement / sight[:, None, None], near.valid.astype(jnp.float32)[:, :, None]
            return [ways, moves / speed, seen, near.gather(strength)[:, :, None]]

        strength = jnp.where(entities.alive, table["strength"][row], 0.0)
        foes = jnp.concatenate(of(seen.foes), axis=-1)
        tells = seen.mates.gather(seen.foes.valid[:, 0])[:, :, None]
        told = seen.mates.displacement + seen.mates.gather(seen.foes.displacement[:, 0])
        told = jnp.where(tells, told / sight[:, None, None], 0.0)
        mates = jnp.concatenate([*of(seen.mates), told, tells.astype(jnp.float32)], axis=-1)
        rows = [x.reshape(self.n_slots, -1) for x in (foes, mates)]
        return jnp.concatenate([velocity / speed, place, nearness[:, None] * nearest.normal, left, *rows], axis=1)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """How the hunt goes.

        caught: number of prey caught so far.
        caught_share: of the number of prey at the start; at most 1.
        chasing: share of predators that see prey.
        distance: from prey to the nearest predator it could see, metres, 0 where there is none; mean over prey.
        """
        entities = world.entities
        foes = world.fields.sight.foes
        predator, prey = entities.alive & (entities.kind != PREY), entities.is_kind(PREY)

        def mean(values: Array, mask: Array) -> Array:
            return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)

        caught = world.fields.caught
        return {
            "caught": caught,
            "caught_share": jnp.minimum(caught / self.initial[PREY], 1.0),
            "chasing": mean(foes.valid[:, 0], predator),
            "distance": mean(foes.distance[:, 0], prey & foes.valid[:, 0]),
        }
