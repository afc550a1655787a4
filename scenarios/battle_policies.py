"""The scripted policies of battle; each plays both armies."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from scenarios.battle import AHEAD, HEALTH, LEFT, N_MOVES, WAIT, Battle, mean_over, move_towards
from swarm.hierarchy import reduce_groups
from swarm.scenario import AbstractPolicy, Observation, World
from swarm.space import length

# Who hits farther than this keeps its distance; metres.
RANGED = 5.0


class FocusFire(AbstractPolicy):
    """Everybody attacks the weakest enemy in reach, else walks to the nearest in sight, else to the enemy's middle.

    Mates with the same enemies in reach choose the same one, because they rank them by the same health.
    """

    rules: Battle

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Int[Array, " n"]:
        """Choose for all slots."""
        rules, entities, seen = self.rules, world.entities, world.fields.seen
        middle = [mean_over(entities.position, entities.alive & (entities.team == army)) for army in (1, 0)]
        way = jnp.where((entities.team == 0)[:, None], middle[0][None], middle[1][None]) - entities.position
        way = jnp.where(seen.valid[:, :1], seen.displacement[:, 0], way)
        near = jnp.where(seen.valid[:, 0], 0.9 * rules.table.reach[entities.kind], 0.0)
        return attack_or(world, observation, move_towards(way, near))


class Squads(AbstractPolicy):
    """Squads march in formation on the nearest wing of the enemy, and break up to fight whom their members see.

    Who has enemies in reach attacks the weakest; who sees some closes in; archers stay at their reach, and step back
    from who comes too near while they cannot attack. A wing with less than `retreat` times the health of the wing that
    it faces falls back on the middle of its army and makes a stand there.
    """

    rules: Battle
    retreat: Float[Array, ""]

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Int[Array, " n"]:
        """Choose for all slots."""
        rules, entities, seen = self.rules, world.entities, world.fields.seen
        level = rules.levels.index("squad")
        orders, weak = self._orders(world, level)
        middle, post, ahead = jnp.split(world.hierarchy.broadcast(orders, level), 3, axis=1)
        falling_back = world.hierarchy.broadcast(weak, level)
        offset = entities.stores[:, AHEAD : LEFT + 1] - post
        step = rules.table.speed[entities.kind] * rules.time_step
        turned = [offset[:, 0] * ahead[:, 0] - offset[:, 1] * ahead[:, 1]]
        turned += [offset[:, 0] * ahead[:, 1] + offset[:, 1] * ahead[:, 0]]
        march = middle + jnp.stack(turned, axis=1) + 1.5 * step[:, None] * ahead - entities.position
        closing, near = self._close_in(world)
        fights = seen.valid[:, 0] & ~falling_back
        way = jnp.where(fights[:, None], closing, march)
        return attack_or(world, observation, move_towards(way, jnp.where(fights, near, 0.5 * step)))

    def _close_in(self, world: World) -> tuple[Float[Array, "n 2"], Float[Array, " n"]]:
        """The way to the nearest enemy in sight, or from it, and how near is near enough."""
        entities, seen = world.entities, world.fields.seen
        reach, way = self.rules.table.reach[entities.kind], seen.displacement[:, 0]
        harried = (reach > RANGED) & (entities.stores[:, WAIT] > 0) & (seen.distance[:, 0] < 0.5 * reach)
        return jnp.where(harried[:, None], -way, way), jnp.where(harried, 0.0, 0.9 * reach)

    def _orders(self, world: World, level: int) -> tuple[Float[Array, "g 6"], Bool[Array, " g"]]:
        """For each squad its middle, the mean post of its members and the direction to go, and whether it falls back."""
        entities, hierarchy = world.entities, world.hierarchy
        rows = [jnp.ones_like(entities.heading), entities.team.astype(jnp.float32), entities.stores[:, HEALTH]]
        rows = jnp.concatenate([jnp.stack(rows, axis=1), entities.position, entities.stores[:, AHEAD:]], axis=1)
        sums = hierarchy.reduce(rows, level, "sum", entities.alive)
        count = jnp.maximum(sums[:, :1], 1.0)
        team, middle, post = sums[:, 1] > 0.5 * sums[:, 0], sums[:, 3:5] / count, sums[:, 5:] / count
        wing = hierarchy.parent[level]
        target, theirs, ours, home = (jnp.zeros_like(middle), *(jnp.zeros_like(count) for _ in range(2)), middle)
        for army in (0, 1):
            own, foreign = hierarchy.exists[level - 1] & (team == bool(army)), team != bool(army)
            wings = reduce_groups(sums[:, :5], jnp.where(foreign, wing, -1), hierarchy.n_groups(level + 1), "sum")
            mates = reduce_groups(sums[:, 2:3], jnp.where(own, wing, -1), hierarchy.n_groups(level + 1), "sum")
            centre = wings[:, 3:5] / jnp.maximum(wings[:, :1], 1.0)
            distance = length([centre[None, :, axis] - middle[:, None, axis] for axis in (0, 1)])
            nearest = jnp.argmin(jnp.where(wings[None, :, 0] > 0, distance, jnp.inf), axis=1)
            mine = own[:, None]
            target = jnp.where(mine, centre[nearest], target)
            theirs = jnp.where(mine, wings[nearest, 2:3], theirs)
            ours = jnp.where(mine, mates[jnp.maximum(wing, 0)], ours)
            home = jnp.where(mine, mean_over(middle, own)[None], home)
        weak = (ours < self.retreat * theirs)[:, 0]
        to_home = home - middle
        at_home = length([to_home[:, 0], to_home[:, 1]]) < 5.0
        way = jnp.where(weak[:, None], jnp.where(at_home[:, None], 0.0, to_home), target - middle)
        distance = length([way[:, 0], way[:, 1]])[:, None]
        return jnp.concatenate([middle, post, way / jnp.maximum(distance, 1e-6)], axis=1), weak & ~at_home


def attack_or(world: World, observation: Observation, otherwise: Int[Array, " n"]) -> Int[Array, " n"]:
    """Attack the weakest enemy that may be attacked, of equals the nearest; else do something else."""
    legal = observation.action_mask[:, N_MOVES:]
    health = world.fields.seen.gather(world.entities.stores[:, HEALTH])
    weakest = jnp.argmin(jnp.where(legal, health, jnp.inf), axis=1).astype(jnp.int32)
    # The nearest comes first: if that is out of reach, all are.
    return jnp.where(legal[:, 0], N_MOVES + weakest, otherwise)
