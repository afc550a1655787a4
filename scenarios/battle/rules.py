"""The rules of battle."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from scenarios.battle.config import BattleConfig
from scenarios.battle.layout import KINDS, Layout, layout
from scenarios.common.alike import numbers
from scenarios.common.compass import MOVES
from swarm.geometry.space import AbstractSpace, Open, Walled
from swarm.neighbors.questions import AbstractNeighborSearch, Among, Nearest
from swarm.neighbors.search import neighbor_search
from swarm.population.entities import Entities, Spawn, spawn
from swarm.simulation.rules import AbstractRules, rows_of
from swarm.simulation.types import Observation, Outcome, Start, World

HEALTH, WAIT, AHEAD, LEFT = range(4)
N_STORES = 4
N_SEEN = 8
N_MOVES = len(MOVES)
ACTIONS = (*MOVES, *(f"attack {i}" for i in range(N_SEEN)))
# Unit vectors of the moves. Numpy, because importing must not start a jax backend.
WAYS = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1).round(7)
WAYS = np.concatenate([np.zeros((1, 2)), WAYS]).astype(np.float32)


class Kinds(eqx.Module):
    """Numbers per kind, indexed by kind: metres, seconds, steps, health; see `battle.toml`."""

    health: Float[Array, " k"]
    speed: Float[Array, " k"]
    sensing: Float[Array, " k"]
    reach: Float[Array, " k"]
    damage: Float[Array, " k"]
    accuracy: Float[Array, " k"]
    cooldown: Float[Array, " k"]

    def of(self, name: str, kind: Int[Array, " n"]) -> Float[Array, " n"]:
        """A number for each entity; by selection, because gathers cost several times more on CPU."""
        values = getattr(self, name)
        chosen = jnp.broadcast_to(values[0], kind.shape)
        for i in range(1, len(KINDS)):
            chosen = jnp.where(kind == i, values[i], chosen)
        return chosen


class Fields(eqx.Module):
    """What is kept between steps.

    Attributes:
        seen: the nearest enemies in sight of each entity when all had moved; attack i is aimed at the i-th. Who died
            in the step is not among them, and who was born in it sees nobody, and is seen by nobody, until the next.
        lost_health: health that each army has lost so far.
        fallen: entities that each army has lost so far.
    """

    seen: Nearest
    lost_health: Float[Array, " m"]
    fallen: Float[Array, " m"]


class AbstractBattle(AbstractRules):
    """Two armies fight until one is gone (cf. Lanchester 1916).

    Who: `infantry`, `archer` and `cavalry` of two armies, drawn up in squads face to face, infantry in front, archers
        behind, cavalry on the flanks. Waves of reinforcements, whole squads too, arrive at the far ends every so many
        steps; an army without room for all of its part gets none of it.
    Actions: stay, move at full speed in one of 8 directions, or attack one of the 8 nearest enemies in sight. An attack
        is legal on who is within `reach`, once `cooldown` steps have passed since the last; others do nothing.
    Fight: an attack takes `damage` with probability `accuracy`. All attacks of a step happen at once, before anybody
        moves; who has no health left then dies, so two may kill each other.
    Motion: in continuous plane, walled (one stops there) or open. The ground is divided into squares of side `place`;
        nobody enters a square in which `crowd` or more stood before the step, so armies cannot walk through each other.
    Observation: maps for each army (number and health of its own and of the foreign entities on a raster); for each
        entity its health, wait, kind, place, and the way to the middle of the enemy's army, then the ways to the 8
        nearest enemies in sight (within `sensing`), then health and reach of each.
    Reward: `dealt` per enemy's full health taken and `kill` per enemy killed, both shared in proportion to the damage
        that the enemy took in the step, minus `taken` per own full health lost and `death` at death.
    End: terminated when an army has nobody left, truncated after `steps`. Success is army 0's: 1 when it has more
        health left than the other, 1/2 when both have as much; with one policy for both armies it averages 1/2.
    Units: metres, seconds, health; cooldown and waves in steps.
    """

    Config = BattleConfig
    kinds = KINDS
    actions: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(KINDS, ACTIONS)
    success = "won"
    headline = "balance"

    raster: tuple[int, int] = eqx.field(static=True)
    n_places: tuple[int, int] = eqx.field(static=True)
    capacity: tuple[int, ...] = eqx.field(static=True)
    chance: bool = eqx.field(static=True)
    policy: str = eqx.field(static=True)
    levels: tuple[str, ...] = eqx.field(static=True)
    start: Layout
    wave: Layout
    n_wave: Int[Array, "m k"]
    every: Int[Array, ""]
    n_waves: Int[Array, ""]
    space: AbstractSpace
    search: AbstractNeighborSearch
    time_step: Float[Array, ""]
    place: Float[Array, ""]
    crowd: Int[Array, ""]
    table: Kinds
    reward: dict[str, Float[Array, ""]]

    @classmethod
    def from_config(cls, config: BattleConfig) -> "AbstractBattle":
        """Build the rules from the validated scenario file."""
        world, waves = config.world, config.waves
        tables = [getattr(config.population, kind) for kind in KINDS]
        lower, size = jnp.zeros(2), jnp.asarray(world.size, jnp.float32)
        space = Open(lower, size) if world.edge == "open" else Walled(lower, size, jnp.float32(0.0))
        initial, wave = [(config.squads(0, column), config.squads(1, column)) for column in ("initial", "wave")]
        if waves.count == 0:
            wave = ((0, 0, 0), (0, 0, 0))
        return cls(
            raster=world.raster,
            n_places=(int(np.ceil(world.size[0] / world.place)), int(np.ceil(world.size[1] / world.place))),
            capacity=tuple(table.capacity for table in tables),
            chance=any(table.accuracy < 1.0 for table in tables),
            policy=world.policy,
            levels=tuple(config.groups.get("levels", ())),
            start=jax.tree.map(jnp.asarray, layout(initial, world.squad, world.place, world.size, 0.5 * world.gap)),
            wave=jax.tree.map(jnp.asarray, layout(wave, world.squad, world.place, world.size, None)),
            n_wave=jnp.asarray(wave, jnp.int32) * world.squad,
            every=jnp.int32(waves.every),
            n_waves=jnp.int32(waves.count),
            space=space,
            search=neighbor_search(
                space, max(t.sensing for t in tables), 2 * sum(t.capacity for t in tables), config.search
            ),
            time_step=jnp.float32(world.time_step),
            place=jnp.float32(world.place),
            crowd=jnp.int32(world.crowd),
            table=Kinds(
                **{
                    name: jnp.asarray([getattr(table, name) for table in tables], jnp.float32)
                    for name in Kinds.__dataclass_fields__
                }
            ),
            reward=numbers(config.reward),
        )

    @property
    def n_slots(self) -> int:
        """Slots for every kind of both armies."""
        return 2 * sum(self.capacity)

    @property
    def n_teams(self) -> int:
        """Two."""
        return 2

    @property
    def capacities(self) -> tuple[tuple[int, ...], ...]:
        """The same for each army."""
        return (self.capacity,) * 2

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the field."""
        x, y = (self.space.lower + 0.5 * self.space.size).tolist()
        return x, y

    @property
    def sets(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Enemies in sight: the ways to all of them come first, then what else is seen of each."""
        ways, rest = rows_of(9, N_SEEN, 2), rows_of(9 + 2 * N_SEEN, N_SEEN, 2)
        return {"enemies": tuple(way + more for way, more in zip(ways, rest, strict=True))}

    # Reset

    def reset(self, key: Key[Array, ""]) -> Start:
        """Draw both armies up; nobody stands exactly at its post, so that no two battles are the same."""
        n = self.start.kind.shape[0]
        # One key per entity, by number: the draw does not depend on the capacity.
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
        jitter = jax.vmap(lambda k: jax.random.uniform(k, (2,), minval=-0.25, maxval=0.25))(keys)
        births = self._births(self.start, jnp.ones(n, bool))
        position, _ = self.space.confine(births.position + self.place * jitter, jnp.zeros((n, 2)))
        births = eqx.tree_at(lambda b: b.position, births, position)
        entities, _ = spawn(Entities.empty(self.n_slots, 2, N_STORES), births)
        nothing = jnp.zeros(2)
        seen, status = self._look(entities.position, entities, entities.alive)
        return Start(entities, Fields(seen, nothing, nothing), status)

    def _births(self, plan: Layout, wanted: Bool[Array, " m"]) -> Spawn:
        health = self.table.of("health", plan.kind)
        stores = jnp.concatenate([jnp.stack([health, jnp.zeros_like(health)], axis=1), plan.post], axis=1)
        facing = jnp.pi * plan.team.astype(jnp.float32)
        return Spawn(wanted, plan.kind, plan.team, plan.position, facing, stores)

    # Step

    def _look(self, position: Array, entities: Entities, living: Bool[Array, " n"]) -> tuple[Nearest, Int[Array, ""]]:
        """The nearest enemies that each of the living sees, and status bits; the only search of a step."""
        neighbors = self.search.find(position, living, Among(entities.team, same=False, n_labels=2))
        found = neighbors.nearest(N_SEEN)
        seen = found.distance < self.table.of("sensing", entities.kind)[:, None]
        return Nearest(
            index=jnp.where(seen, found.index, -1),
            distance=jnp.where(seen, found.distance, 0.0),
            displacement=jnp.where(seen[:, :, None], found.displacement, 0.0),
        ), neighbors.status

    def act(self, world: World, action: Int[Array, " n"], key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Fight, then move, look, and call reinforcements."""
        entities, fields = world.entities, world.fields
        stores, dying, lost, reward = self._fight(entities, fields, action, key)
        living = entities.alive & ~dying
        position, velocity = self._move(entities, living, action)
        seen, status = self._look(position, entities, living)
        births, n_refused = self._reinforce(world, entities, living)
        lost = jnp.stack([lost, dying.astype(jnp.float32)])
        by_army = [jnp.sum(jnp.where((entities.team == army)[None], lost, 0.0), axis=1) for army in (0, 1)]
        lost_health, fallen = jnp.stack(by_army, axis=1)
        fields = Fields(seen, fields.lost_health + lost_health, fields.fallen + fallen)
        entities = eqx.tree_at(lambda e: (e.position, e.velocity, e.stores), entities, (position, velocity, stores))
        return entities, fields, Outcome(reward, dying, births, n_refused, status)

    def _fight(
        self, entities: Entities, fields: Fields, action: Array, key: Key[Array, ""]
    ) -> tuple[Float[Array, "n s"], Bool[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
        """Return stores, who dies, the health that each lost, and the rewards."""
        n, alive, kind = entities.n_slots, entities.alive, entities.kind
        health, wait = entities.stores[:, HEALTH], entities.stores[:, WAIT]
        slot = jnp.maximum(action - N_MOVES, 0)[:, None]
        target = jnp.take_along_axis(fields.seen.index, slot, axis=1)[:, 0]
        distance = jnp.take_along_axis(fields.seen.distance, slot, axis=1)[:, 0]
        attacking = alive & (action >= N_MOVES) & (target >= 0)
        attacking = attacking & (distance <= self.table.of("reach", kind)) & (wait <= 0)
        hit = attacking
        if self.chance:
            draw = jax.vmap(jax.random.uniform)(entities.keys(key))
            hit = attacking & (draw < self.table.of("accuracy", kind))
        damage = jnp.where(hit, self.table.of("damage", kind), 0.0)
        target = jnp.maximum(target, 0)
        taken = jnp.where(alive, jax.ops.segment_sum(damage, jnp.where(hit, target, n), n + 1)[:n], 0.0)
        lost = jnp.where(alive, jnp.minimum(taken, health), 0.0)
        dying = alive & (health - taken <= 0)
        share, killed = lost / self.table.of("health", kind), dying.astype(jnp.float32)
        # What each point of damage done to an entity earns; blows beyond its health earn nothing more.
        worth = (self.reward["dealt"] * share + self.reward["kill"] * killed) / jnp.maximum(taken, 1e-6)
        earned = jnp.where(hit, damage * worth[target], 0.0)
        reward = earned - self.reward["taken"] * share - self.reward["death"] * killed
        wait = jnp.maximum(jnp.where(attacking, self.table.of("cooldown", kind), wait) - 1.0, 0.0)
        new = jnp.stack([health - lost, wait], axis=1)
        return jnp.concatenate([new, entities.stores[:, AHEAD:]], axis=1), dying, lost, reward

    def _place_of(self, position: Float[Array, "n 2"], among: Bool[Array, " n"]) -> Int[Array, " n"]:
        """Number of the square that each stands in; outside the field and for others, one beyond the last."""
        n_x, n_y = self.n_places
        here = jnp.where(among[:, None], position - self.space.lower[None], 0.0) / self.place
        column, row = jnp.floor(here[:, 0]), jnp.floor(here[:, 1])
        # Who stands exactly at the far wall stands in the last square.
        column = jnp.where(position[:, 0] == self.space.upper[0], n_x - 1.0, column)
        row = jnp.where(position[:, 1] == self.space.upper[1], n_y - 1.0, row)
        inside = among & (column >= 0) & (column < n_x) & (row >= 0) & (row < n_y)
        # Whole numbers: single precision tells squares apart up to 2^24 of them.
        column, row = (jnp.where(inside, x, 0.0).astype(jnp.int32) for x in (column, row))
        return jnp.where(inside, row * n_x + column, n_x * n_y)

    def _move(
        self, entities: Entities, living: Bool[Array, " n"], action: Array
    ) -> tuple[Float[Array, "n 2"], Float[Array, "n 2"]]:
        """Return positions and velocities; who would enter a full square stays."""
        n_squares = self.n_places[0] * self.n_places[1]
        ways = jnp.asarray(WAYS)[jnp.where(action < N_MOVES, action, 0)]
        velocity = ways * self.table.of("speed", entities.kind)[:, None]
        position, velocity = self.space.confine(entities.position + velocity * self.time_step, velocity)
        old, new = self._place_of(entities.position, living), self._place_of(position, living)
        crowd = jnp.zeros(n_squares, jnp.int32).at[old].add(1, mode="drop")
        room = crowd.at[new].get(mode="fill", fill_value=0) < self.crowd
        free = (living & (room | (new == old)))[:, None]
        return jnp.where(free, position, entities.position), jnp.where(free, velocity, 0.0)

    def _reinforce(
        self, world: World, entities: Entities, living: Bool[Array, " n"]
    ) -> tuple[Spawn | None, Int[Array, ""] | int]:
        """Births of a wave, when one is due; an army without room for all of its part is refused the whole of it."""
        if self.wave.kind.shape[0] == 0:
            return None, 0
        step = world.step + 1
        due = (step % self.every == 0) & (step <= self.every * self.n_waves)
        code = jnp.where(living, entities.team * len(KINDS) + entities.kind, -1)
        count = jnp.sum(code[None] == jnp.arange(2 * len(KINDS))[:, None], axis=1, dtype=jnp.int32).reshape(2, -1)
        room = jnp.all(count + self.n_wave <= jnp.asarray(self.capacity, jnp.int32)[None], axis=1)
        n_refused = jnp.sum(jnp.where(due & ~room, jnp.sum(self.n_wave, axis=1), 0), dtype=jnp.int32)
        return self._births(self.wave, due & room[self.wave.team]), n_refused

    def ended(self, world: World) -> Bool[Array, ""]:
        """An army has nobody left."""
        entities = world.entities
        return ~(jnp.any(entities.alive & (entities.team == 0)) & jnp.any(entities.alive & (entities.team == 1)))

    # What is seen

    def observe(self, world: World) -> Observation:
        """Maps for each army and features for each entity."""
        entities, seen = world.entities, world.fields.seen
        alive = entities.alive
        (h, w), size = self.raster[::-1], self.space.size[None]
        place = jnp.where(alive[:, None], entities.position - self.space.lower[None], 0.0) / size
        column, row = (
            jnp.clip((place[:, axis] * cells).astype(jnp.int32), 0, cells - 1) for axis, cells in ((0, w), (1, h))
        )
        team, kind = jnp.where(alive, entities.team, 0), jnp.where(alive, entities.kind, 0)
        health = jnp.where(alive, entities.stores[:, HEALTH], 0.0) / self.table.of("health", kind)
        return Observation(
            maps=self._maps(alive, team, row, column, health),
            view=team,
            cell=jnp.stack([row, column], axis=1),
            own=self._own(entities, seen, team, kind, place, health),
            kind=kind,
            alive=alive,
            action_mask=self._legal(entities, seen),
        )

    def _maps(self, alive: Array, team: Array, row: Array, column: Array, health: Array) -> Float[Array, "m h w c"]:
        """Number and health of its own and of the foreign entities in each cell, saturating."""
        w, h = self.raster
        rows = jnp.stack([alive.astype(jnp.float32), health], axis=1)
        sums = jax.ops.segment_sum(rows, (team * h + row) * w + column, 2 * h * w).reshape(2, h, w, 2)
        sums = jnp.tanh(sums / 8.0)
        return jnp.concatenate([sums, sums[::-1]], axis=-1)

    def _own(
        self, entities: Entities, seen: Nearest, team: Array, kind: Array, place: Array, health: Array
    ) -> Float[Array, "n o"]:
        alive, table = entities.alive, self.table
        middle = [mean_over(place, alive & (team == army))[None] for army in (1, 0)]
        middle = jnp.where((team == 0)[:, None], *middle)
        wait = jnp.where(alive, entities.stores[:, WAIT], 0.0) / table.of("cooldown", kind)
        columns = [health, wait, *[(kind == k).astype(jnp.float32) for k in range(len(KINDS))]]
        columns += [*(2.0 * place - 1.0).T, *(middle - place).T]
        shown = jnp.stack([health, table.of("reach", kind) / jnp.max(table.reach)], axis=1)
        # All ways, then all the rest: taken enemy by enemy, this costs four times as much.
        enemies = [seen.displacement / self.search.radius, seen.gather(shown)]
        blocks = [jnp.stack(columns, axis=1), *[x.reshape(alive.shape[0], -1) for x in enemies]]
        return jnp.where(alive[:, None], jnp.concatenate(blocks, axis=1), 0.0)

    def _legal(self, entities: Entities, seen: Nearest) -> Bool[Array, "n a"]:
        ready = entities.alive & (entities.stores[:, WAIT] <= 0)
        within = seen.distance <= self.table.of("reach", entities.kind)[:, None]
        moves = jnp.broadcast_to(entities.alive[:, None], (entities.n_slots, N_MOVES))
        return jnp.concatenate([moves, ready[:, None] & seen.valid & within], axis=1)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """Who is winning.

        won: 1 when army 0 has more health left than army 1, 1/2 when as much.
        balance: army 0's health less army 1's, over the sum.
        decided: whether an army is gone.
        survivors_i, health_i: what army i has left; damage_i, killed_i: what it has done to the other.
        """
        entities, fields = world.entities, world.fields
        metrics, left = {}, []
        for army in (0, 1):
            own = entities.alive & (entities.team == army)
            left.append(jnp.sum(jnp.where(own, entities.stores[:, HEALTH], 0.0)))
            metrics |= {
                f"survivors_{army}": jnp.sum(own, dtype=jnp.float32),
                f"health_{army}": left[army],
                f"damage_{army}": fields.lost_health[1 - army],
                f"killed_{army}": fields.fallen[1 - army],
            }
        difference = left[0] - left[1]
        return metrics | {
            "won": 0.5 * (1.0 + jnp.sign(difference)),
            "balance": difference / jnp.maximum(left[0] + left[1], 1e-6),
            "decided": self.ended(world).astype(jnp.float32),
        }


def mean_over(values: Float[Array, "n v"], among: Bool[Array, " n"]) -> Float[Array, " v"]:
    """Mean of the rows of a mask; 0 where it is empty."""
    count = jnp.maximum(jnp.sum(among, dtype=jnp.float32), 1.0)
    return jnp.sum(jnp.where(among[:, None], values, 0.0), axis=0) / count
