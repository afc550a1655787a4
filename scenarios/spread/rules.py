"""The rules of spread."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from scenarios.common.alike import AbstractAlike, numbers
from scenarios.spread.config import SpreadConfig
from swarm.geometry.space import Open
from swarm.geometry.vectors import norm
from swarm.neighbors.questions import AllPairs
from swarm.population.entities import Entities, Spawn, spawn
from swarm.simulation.rules import rows_of
from swarm.simulation.types import Action, Observation, Outcome, Start, World

# Beyond so many margins the contact force is 0 in single precision.
REACH = 100.0


class Fields(eqx.Module):
    """What a world of spread holds besides its agents.

    Attributes:
        landmark: places to cover, metres.
        contact: per agent, the contact force on it (x, y) in newtons, and how many others it touches.
        score: sum over the steps so far of the mean reward.
        collisions: sum over the steps so far of the mean number of others that an agent touches.
    """

    landmark: Float[Array, "l 2"]
    contact: Float[Array, "n 3"]
    score: Float[Array, ""]
    collisions: Float[Array, ""]


class AbstractSpread(AbstractAlike):
    """simple_spread (Lowe et al. 2017) with the dynamics of JaxMARL (Rutherford et al. 2024), for any number.

    Who: `agent`, discs of mass 1; one team; none is born or dies. Agents and landmarks start uniformly in a box about
        the origin; the plane has no edge. Landmarks do not move and are in nobody's way.
    Actions: stay, left, right, down, up: a force of `acceleration` along one axis. With `control = "continuous"` two
        commands in [-1, 1], the share of that force along x and y.
    Motion: position += velocity * time_step; then velocity = (1 - damping) * velocity + force * time_step, where the
        force is the action's plus that of contact: contact_force * margin * log(1 + exp((2 radius - distance) /
        margin)) away from each other agent, at the positions before the move.
    Observation: velocity, position, offset to the nearest `observation.landmarks`, offset to the nearest
        `observation.others`, and two zeros for each of the latter, which are simple_spread's silent messages. The
        nearest are listed by number, not by distance: where all are seen these are the features of simple_spread. Maps
        count agents and landmarks on a raster.
    Reward per step: minus local_ratio times the number of others that the agent touches, minus (1 - local_ratio) times
        the sum over landmarks of the distance to the nearest agent; both after the move.
    End: never terminated, truncated after `steps`. Success is the share of landmarks that have an agent's disc on them.
    """

    Config = SpreadConfig
    kinds = ("agent",)
    actions: ClassVar[dict[str, tuple[str, ...]]] = {"agent": ("stay", "left", "right", "down", "up")}
    success = "covered"
    headline = "return_per_agent"

    raster: tuple[int, int] = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    initial: int = eqx.field(static=True)
    n_landmarks: int = eqx.field(static=True)
    n_seen: tuple[int, int] = eqx.field(static=True)
    continuous: bool = eqx.field(static=True)
    space: Open
    time_step: Float[Array, ""]
    agent: dict[str, Float[Array, ""]]
    local_ratio: Float[Array, ""]

    @classmethod
    def from_config(cls, config: SpreadConfig) -> "AbstractSpread":
        """Build the rules from the validated scenario file."""
        agent, world = config.population.agent, config.world
        size = jnp.asarray(world.size, jnp.float32)
        return cls(
            raster=world.raster,
            capacity=agent.capacity,
            initial=agent.initial,
            n_landmarks=world.landmarks,
            n_seen=(config.observation.landmarks, config.observation.others),
            continuous=world.control == "continuous",
            space=Open(-0.5 * size, size),
            time_step=jnp.float32(world.time_step),
            agent=numbers(agent, but=("capacity", "initial")),
            local_ratio=jnp.float32(config.reward.local_ratio),
        )

    @property
    def centre(self) -> tuple[float, float]:
        """The origin."""
        return 0.0, 0.0

    @property
    def sets(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Landmarks and other agents."""
        n_landmarks, n_others = self.n_seen
        return {"landmarks": rows_of(4, n_landmarks, 2), "others": rows_of(4 + 2 * n_landmarks, n_others, 2)}

    @property
    def n_controls(self) -> int:
        """Two with continuous control: along x and y."""
        return 2 if self.continuous else 0

    def reset(self, key: Key[Array, ""]) -> Start:
        """Place agents and landmarks uniformly, at rest."""
        agent_key, landmark_key = jax.random.split(key)
        n = self.initial
        none = jnp.zeros(n, jnp.int32)
        births = Spawn(jnp.ones(n, bool), none, none, self._places(agent_key, n), jnp.zeros(n), jnp.zeros((n, 0)))
        entities, _ = spawn(Entities.empty(self.capacity, 2, 0), births)
        zero = jnp.zeros(())
        fields = Fields(self._places(landmark_key, self.n_landmarks), self._touch(entities), zero, zero)
        return Start(entities, fields)

    def _places(self, key: Key[Array, ""], n: int) -> Float[Array, "n 2"]:
        # One key each, by number: the draw does not depend on how many there are.
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
        return self.space.lower[None] + self.space.size[None] * jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys)

    def _touch(self, entities: Entities) -> Float[Array, "n 3"]:
        """Contact forces and numbers of contacts (see `Fields.contact`)."""
        diameter, margin = 2 * self.agent["radius"], self.agent["contact_margin"]

        def pair(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
            overlap = margin * jnp.logaddexp(0.0, (diameter - distance) / margin)
            push = self.agent["contact_force"] * overlap / jnp.where(distance > 0, distance, 1.0)
            return jnp.stack([-push * way[0], -push * way[1], jnp.where(distance < diameter, 1.0, 0.0)])

        search = AllPairs(self.space, diameter + REACH * margin)
        return search.find(entities.position, entities.alive).sum(pair, jnp.zeros((self.n_slots, 0)))

    def to_landmarks(self, world: World) -> Float[Array, "n l 2"]:
        """Offset from each agent to each landmark, metres; from the origin for dead slots."""
        position = jnp.where(world.entities.alive[:, None], world.entities.position, 0.0)
        return world.fields.landmark[None] - position[:, None]

    def _uncovered(self, entities: Entities, landmark: Float[Array, "l 2"]) -> Float[Array, " l"]:
        """Distance from each landmark to the nearest agent."""
        way = self.space.displacement(landmark[:, None], entities.position[None])
        distance = norm(way)
        return jnp.min(jnp.where(entities.alive[None], distance, jnp.inf), axis=1)

    def act(self, world: World, action: Action, key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Move, touch, count."""
        entities, fields = world.entities, world.fields
        force = self.agent["acceleration"] * self._direction(action) + fields.contact[:, :2]
        position = entities.position + entities.velocity * self.time_step
        velocity = entities.velocity * (1.0 - self.agent["damping"]) + force * self.time_step
        entities = eqx.tree_at(lambda e: (e.position, e.velocity), entities, (position, velocity))
        contact = self._touch(entities)
        coverage = -jnp.sum(self._uncovered(entities, fields.landmark))
        reward = -self.local_ratio * contact[:, 2] + (1.0 - self.local_ratio) * coverage
        score = fields.score + self._mean(entities, reward)
        fields = Fields(fields.landmark, contact, score, fields.collisions + self._mean(entities, contact[:, 2]))
        return entities, fields, Outcome(reward, jnp.zeros_like(entities.alive), None)

    def _direction(self, action: Action) -> Float[Array, "n 2"]:
        if self.continuous:
            return jnp.clip(action, -1.0, 1.0)
        moves = jnp.asarray([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
        return moves[action]

    @staticmethod
    def _mean(entities: Entities, values: Float[Array, " n"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(entities.alive, values, 0.0)) / jnp.maximum(jnp.sum(entities.alive), 1)

    def observe(self, world: World) -> Observation:
        """Raster, and the features of simple_spread."""
        entities, (h, w) = world.entities, self.raster
        alive = entities.alive
        cell = self._cell(jnp.where(alive[:, None], entities.position, 0.0))
        of_landmark = self._cell(world.fields.landmark)
        agents = jnp.zeros((h, w)).at[cell[:, 0], cell[:, 1]].add(jnp.where(alive, 1.0, 0.0))
        landmarks = jnp.zeros((h, w)).at[of_landmark[:, 0], of_landmark[:, 1]].add(1.0)
        return self.seen(world.entities, self._own(world), jnp.stack([agents, landmarks], axis=-1), cell)

    def _cell(self, position: Float[Array, "m 2"]) -> Int[Array, "m 2"]:
        """Row and column on the raster; those outside it count at its edge."""
        h, w = self.raster
        share = (position - self.space.lower[None]) / self.space.size[None]
        # Clipped before the conversion: who runs far away must not overflow an integer.
        share = jnp.clip(share, 0.0, 1.0)
        column_row = jnp.minimum((share * jnp.asarray([w, h])[None]).astype(jnp.int32), jnp.asarray([w, h])[None] - 1)
        return column_row[:, ::-1]

    def _own(self, world: World) -> Float[Array, "n o"]:
        entities, (n_landmarks, n_others) = world.entities, self.n_seen
        to_landmark = self.to_landmarks(world)
        distance = norm(to_landmark)
        chosen = jnp.sort(jax.lax.top_k(-distance, n_landmarks)[1], axis=1)
        to_landmark = jnp.take_along_axis(to_landmark, chosen[:, :, None], axis=1)
        nearest = AllPairs(self.space, jnp.float32(jnp.inf)).find(entities.position, entities.alive).nearest(n_others)
        uid = jnp.where(nearest.valid, nearest.gather(entities.uid), jnp.iinfo(jnp.int32).max)
        by_identity = jnp.argsort(uid, axis=1)
        to_other = jnp.take_along_axis(nearest.displacement, by_identity[:, :, None], axis=1)
        ways = jnp.concatenate([to_landmark, to_other, jnp.zeros_like(to_other)], axis=1)
        return jnp.concatenate([entities.velocity, entities.position, ways.reshape(self.n_slots, -1)], axis=1)

    def ended(self, world: World) -> Bool[Array, ""]:
        """Never."""
        return jnp.zeros((), bool)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """How well the landmarks are covered.

        return_per_agent: mean over agents of the sum of rewards so far.
        covered: share of landmarks with an agent nearer than its radius.
        distance: from a landmark to the nearest agent, metres; mean over landmarks.
        collisions: mean over agents of the sum over steps of the number of others touched.
        """
        distance = self._uncovered(world.entities, world.fields.landmark)
        return {
            "return_per_agent": world.fields.score,
            "covered": jnp.mean((distance < self.agent["radius"]).astype(jnp.float32)),
            "distance": jnp.mean(distance),
            "collisions": world.fields.collisions,
        }
