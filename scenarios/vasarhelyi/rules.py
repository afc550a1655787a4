"""The rules of drones that flock in a walled arena."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from scenarios.common import order
from scenarios.common.alike import AbstractAlike, numbers
from scenarios.vasarhelyi.config import VasarhelyiConfig, grid_side
from swarm.comms.radios import Letters, Loss, Mail, NearestRadio
from swarm.core.rounding import rounded
from swarm.dynamics import Motion, VelocityLag
from swarm.geometry.obstacles import Balls, collide
from swarm.geometry.space import Open
from swarm.geometry.vectors import clipped, norm, unit
from swarm.neighbors.questions import AbstractNeighborSearch
from swarm.neighbors.search import neighbor_search
from swarm.population.entities import Entities, Spawn, spawn
from swarm.sensing.instruments import Sensor, Track, gps
from swarm.simulation.rules import rows_of
from swarm.simulation.types import Action, Observation, Outcome, Start, World

N_OWN, N_FEATURES = 7, 5


class Fields(eqx.Module):
    """What drones know, and what has happened.

    Attributes:
        track: state of the receivers.
        own: what they say: position (metres), velocity (metres per second).
        mail: what is under way.
        letters: the last words of others: the same four numbers, a delay old.
        least: smallest distance between two drones so far, metres.
        collided: sum over steps of the share of pairs that collide.
        outside: sum over steps of the share of drones outside of the arena or in a pillar.
    """

    track: Track
    own: Float[Array, "n 4"]
    mail: Mail
    letters: Letters
    least: Float[Array, ""]
    collided: Float[Array, ""]
    outside: Float[Array, ""]


class AbstractVasarhelyi(AbstractAlike):
    """The drones of Vasarhelyi et al. 2018, in the plane.

    Who: `drone`; one team; none is born or dies.
    Actions: two commands in [-1, 1]: velocity as a share of the highest speed, together at most 1.
    Motion: the velocity follows its command with a lag of `tau`, at most `acceleration`, exactly within a step; then it
        is pushed at random. The authors' controller acts on the measured velocity, this one on the true one.
    World: an arena whose walls do not stop anybody, and pillars that do not, either: who is beyond one is counted, and
        so is who is too near another one; nobody is hurt. Distances are looked at once a step.
    Knowledge: a GPS tells a drone where it is and how fast it flies. It sends that to those within range, who get it a
        delay later, unless it is lost.
    Observation, for each drone: measured velocity, place in the arena, nearness of the nearest pillar and way out of
        it; of the nearest others that it has word of: way and relative velocity, whether there is one. No maps.
    Reward: `alignment` times the mean cosine between own velocity and those within range; `speed` times 1 less the
        share that the speed is off by; minus `collision` for each other nearer than `collision_distance`; minus
        `outside`.
    End: never terminated, truncated after `steps`. Success is an end with a correlation above 0.9 and no collision.
    """

    Config = VasarhelyiConfig
    kinds = ("drone",)
    actions: ClassVar[dict[str, tuple[str, ...]]] = {"drone": ("east", "north")}
    success = "flocked"
    headline = "correlation"

    capacity: int = eqx.field(static=True)
    initial: int = eqx.field(static=True)
    n_seen: int = eqx.field(static=True)
    search: AbstractNeighborSearch
    dynamics: VelocityLag
    gps: Sensor
    radio: NearestRadio
    pillars: Balls
    size: Float[Array, " 2"]
    speed: Float[Array, ""]
    push: Float[Array, ""]
    collision_distance: Float[Array, ""]
    time_step: Float[Array, ""]
    reward: dict[str, Float[Array, ""]]
    flock: dict[str, Float[Array, ""]]

    @classmethod
    def from_config(cls, config: VasarhelyiConfig) -> "AbstractVasarhelyi":
        """Build the rules from the validated scenario file."""
        world, drone, radio, dt = config.world, config.population.drone, config.radio, config.world.time_step
        size, errors = jnp.asarray(world.size, jnp.float32), config.gps
        discs = jnp.asarray(world.pillars, jnp.float32).reshape(-1, 3)
        loss = Loss.of(0.0, radio.loss, radio.reference)
        return cls(
            capacity=drone.capacity,
            initial=drone.initial,
            n_seen=config.observation.others,
            search=neighbor_search(Open(jnp.zeros(2), size), radio.range, drone.capacity, config.search),
            dynamics=VelocityLag(*(jnp.full(1, x, jnp.float32) for x in (drone.tau, drone.acceleration, drone.speed))),
            gps=gps(dt, 1.0 / dt, 2, errors.drift, errors.drift_time, 0.0, errors.velocity_noise, 0, errors.common),
            radio=NearestRadio(loss, delay=round(radio.delay / dt), k=radio.heard),
            pillars=Balls(discs[:, :2], discs[:, 2]),
            size=size,
            speed=jnp.float32(drone.speed),
            push=jnp.float32(drone.push),
            collision_distance=jnp.float32(drone.collision_distance),
            time_step=jnp.float32(dt),
            reward=numbers(config.reward),
            flock=numbers(config.flock),
        )

    @property
    def n_controls(self) -> int:
        """A velocity."""
        return 2

    @property
    def centre(self) -> tuple[float, ...]:
        """Middle of the arena."""
        return tuple((0.5 * self.size).tolist())

    @property
    def tables(self) -> PyTree:
        """How drones follow commands."""
        return self.dynamics

    @property
    def sets(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Others that a drone has word of."""
        return {"others": rows_of(N_OWN, self.n_seen, N_FEATURES)}

    def reset(self, key: Key[Array, ""]) -> Start:
        """Place drones at rest, each in its cell of a grid, at least twice `collision_distance` apart."""
        n, (place_key, gps_key, mail_key) = self.initial, jax.random.split(key, 3)
        side, apart = grid_side(n), self.collision_distance
        draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(place_key, i), (2,)))(jnp.arange(n))
        cell, width = jnp.stack([jnp.arange(n) % side, jnp.arange(n) // side], axis=1), self.size[None] / side
        place = rounded((cell + 0.5) * width) + rounded((draw - 0.5) * (width - 2.0 * apart))
        place, _ = collide(self.pillars, place, jnp.zeros_like(place), jnp.full(n, apart), jnp.float32(0.0))
        none = jnp.zeros(n, jnp.int32)
        births = Spawn(jnp.ones(n, bool), none, none, place, jnp.zeros(n), jnp.zeros((n, 0)))
        entities, _ = spawn(Entities.empty(self.n_slots, 2, 0, variants=self.variants), births)
        zero, empty = jnp.float32(0.0), self.radio.nothing(self.n_slots, 4)
        track, mail = self.gps.init(entities), self.radio.init(self.n_slots, 4)
        fields = Fields(track, jnp.zeros((self.n_slots, 4)), mail, empty, jnp.float32(jnp.inf), zero, zero)
        fields, _, status = self._look(entities, fields, gps_key, mail_key)
        return Start(entities, fields, status)

    def act(self, world: World, action: Action, key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Fly, measure, talk."""
        entities, (push_key, gps_key, mail_key) = world.entities, jax.random.split(key, 3)
        alive, top = entities.alive[:, None], jnp.broadcast_to(self.speed, entities.alive.shape)
        command = clipped(jnp.where(alive, action, 0.0) * self.speed, top)
        motion = self.dynamics.step(Motion.of(entities), command, entities.row, self.time_step)
        draw = jax.vmap(lambda k: jax.random.normal(k, (2,)))(entities.keys(push_key))
        velocity = motion.velocity + rounded(jnp.sqrt(2.0 * self.push * self.time_step) * draw)
        entities = eqx.tree_at(lambda m: m.velocity, motion, jnp.where(alive, velocity, 0.0)).into(entities)
        fields, sums, status = self._look(entities, world.fields, gps_key, mail_key)
        nobody = jnp.zeros_like(entities.alive)
        return entities, fields, Outcome(self._reward(entities, sums), nobody, None, status=status)

    def _look(
        self, entities: Entities, fields: Fields, gps_key: Key[Array, ""], mail_key: Key[Array, ""]
    ) -> tuple[Fields, Float[Array, "n 4"], Int[Array, ""]]:
        """Measure, send and receive, and count.

        Returns:
            New fields; of others within range how many collide, how many there are, and their unit velocities, summed;
            status bits.
        """
        alive = entities.alive
        # Instruments and draws belong to identities: those of dead slots are to be nobody's.
        named = eqx.tree_at(lambda e: e.uid, entities, jnp.where(alive, entities.uid, -1))
        truth = jnp.where(alive[:, None], jnp.concatenate([entities.position, entities.velocity], axis=1), 0.0)
        track, reading = self.gps.step(fields.track, named, truth, gps_key)
        found = self.search.find(entities.position, alive)
        mail, letters = self.radio.step(fields.mail, found, named, reading.value, mail_key)

        def pair(way: Array, distance: Array, mine: Array, theirs: Array) -> Array:
            return jnp.stack(
                [jnp.where(distance < self.collision_distance, 1.0, 0.0), jnp.ones_like(distance), *theirs]
            )

        sums = found.sum(pair, unit(truth[:, 2:]))
        nearest = found.min(lambda way, distance, mine, theirs: distance[None], truth[:, :0])
        n = jnp.maximum(jnp.sum(alive), 2)
        fields = Fields(
            track=track,
            own=reading.value,
            mail=mail,
            letters=letters,
            least=jnp.minimum(fields.least, jnp.min(nearest)),
            collided=fields.collided + jnp.sum(sums[:, 0]) / (n * (n - 1)),
            outside=fields.outside + order.mean(self._beyond(entities).astype(jnp.float32), alive),
        )
        return fields, sums, found.status

    def walls(self, place: Float[Array, "n 2"]) -> tuple[Float[Array, "n w"], Float[Array, "n w 2"]]:
        """Distances to the four walls and to each pillar, metres, negative beyond; and unit ways out of them."""
        inward = jnp.concatenate([jnp.eye(2), -jnp.eye(2)])  # in the order of `distance`
        distance = jnp.concatenate([place, self.size[None] - place], axis=1)
        normal = jnp.broadcast_to(inward[None], (place.shape[0], 4, 2))
        way = place[:, None] - self.pillars.centre[None]
        far = norm(way) - self.pillars.radius[None]
        return jnp.concatenate([distance, far], axis=1), jnp.concatenate([normal, unit(way)], axis=1)

    def _beyond(self, entities: Entities) -> Bool[Array, " n"]:
        """Who is outside of the arena, or in a pillar."""
        return entities.alive & (jnp.min(self.walls(entities.position)[0], axis=1) < 0)

    def _reward(self, entities: Entities, sums: Float[Array, "n 4"]) -> Float[Array, " n"]:
        reward, velocity = self.reward, jnp.where(entities.alive[:, None], entities.velocity, 0.0)
        direction, count = unit(velocity), jnp.maximum(sums[:, 1], 1.0)
        cosine = (rounded(direction[:, 0] * sums[:, 2]) + rounded(direction[:, 1] * sums[:, 3])) / count
        off = jnp.abs(norm(velocity) - self.flock["v_flock"]) / self.flock["v_flock"]
        good = rounded(reward["alignment"] * cosine) + rounded(reward["speed"] * jnp.maximum(1.0 - off, 0.0))
        bad = rounded(reward["collision"] * sums[:, 0]) + jnp.where(self._beyond(entities), reward["outside"], 0.0)
        return good - bad

    def ended(self, world: World) -> Bool[Array, ""]:
        """Never."""
        return jnp.zeros((), bool)

    def observe(self, world: World) -> Observation:
        """A row for each drone."""
        fields, reach = world.fields, self.search.radius
        place, velocity = fields.own[:, :2], fields.own[:, 2:]
        distance, normal = self.pillars.distance_and_normal(place)
        near = jnp.clip(1.0 - distance / reach, 0.0, 1.0)[:, None]
        known = fields.letters.sender[:, : self.n_seen, None] >= 0
        way, moves = (self.of_others(fields)[i][:, : self.n_seen] for i in (0, 1))
        others = [jnp.where(known, way / reach, 0.0), jnp.where(known, moves / self.speed, 0.0), known]
        others = jnp.concatenate([x.astype(jnp.float32) for x in others], axis=2)
        missing = self.n_seen - others.shape[1]
        others = jnp.pad(others, ((0, 0), (0, missing), (0, 0))).reshape(self.n_slots, -1)
        own = [velocity / self.speed, 2.0 * place / self.size[None] - 1.0, near, near * normal, others]
        return self.seen(world.entities, jnp.concatenate(own, axis=1))

    def of_others(self, fields: Fields) -> tuple[Float[Array, "n k 2"], Float[Array, "n k 2"]]:
        """Ways to where others said they were (metres), and their velocities less the own one; of `letters`."""
        difference = fields.letters.message - fields.own[:, None]
        return difference[..., :2], difference[..., 2:]

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """Order parameters of the paper.

        correlation: mean cosine between the velocities of two drones that are joined by chains of drones within range.
        flocked: whether it is above 0.9 and nobody has collided.
        speed: mean, metres per second.
        collisions: share of pairs nearer than `collision_distance`, mean over the steps so far.
        least: smallest distance between two drones so far, metres; at most the range.
        outside: share of drones outside of the arena or in a pillar, mean over the steps so far.
        clusters: sets joined by chains of drones within range.
        """
        entities, fields = world.entities, world.fields
        alive, found = entities.alive, self.search.find(entities.position, entities.alive)
        velocity = jnp.where(alive[:, None], entities.velocity, 0.0)
        correlation = order.correlation(found, unit(velocity), alive)
        steps = (world.step + 1).astype(jnp.float32)
        return {
            "correlation": correlation,
            "flocked": ((correlation > 0.9) & (fields.collided == 0)).astype(jnp.float32),
            "speed": order.mean(norm(velocity), alive),
            "collisions": fields.collided / steps,
            "least": jnp.minimum(fields.least, self.search.radius),
            "outside": fields.outside / steps,
            "clusters": order.cluster_count(found, alive),
        }
