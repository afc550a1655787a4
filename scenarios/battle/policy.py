"""The scripted policies of battle; each plays both armies."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from scenarios.battle.rules import AHEAD, HEALTH, LEFT, N_MOVES, WAIT, AbstractBattle, mean_over
from scenarios.common.compass import move_towards
from swarm.geometry.space import length
from swarm.geometry.vectors import norm
from swarm.population.hierarchy import reduce_groups
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import Observation, World

# Who hits farther than this keeps its distance; metres.
RANGED = 5.0


class FocusFire(AbstractPolicy):
    """Everybody attacks the weakest enemy in reach, else walks to the nearest in sight, else to the enemy's middle.

    Mates with the same enemies in reach choose the same one, because they rank them by the same health.
    """

    rules: AbstractBattle

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Int[Array, " n"]:
        """Choose for all slots."""
        rules, entities, seen = self.rules, world.entities, world.fields.seen
        middle = [mean_over(entities.position, entities.alive & (entities.team == army)) for army in (1, 0)]
        way = jnp.where((entities.team == 0)[:, None], middle[0][None], middle[1][None]) - entities.position
        way = jnp.where(seen.valid[:, :1], seen.displacement[:, 0], way)
        near = jnp.where(seen.valid[:, 0], 0.9 * rules.table.of("reach", entities.kind), 0.0)
        return attack_or(world, observation, move_towards(way, near))


class Squads(AbstractPolicy):
    """Squads march in formation on the nearest wing of the enemy, and break up to fight whom their members see.

    Who has enemies in reach attacks the weakest; who sees some closes in; archers stay at their reach, and step back
    from who comes too near while they cannot attack. A wing with less than `retreat` times the health of the wing that
    it faces falls back on the middle of its army and makes a stand there.
    """

    rules: AbstractBattle
    retreat: Float[Array, ""]

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Int[Array, " n"]:
        """Choose for all slots."""
        rules, entities, seen = self.rules, world.entities, world.fields.seen
        level = rules.levels.index("squad")
        orders, weak = self._orders(world, level)
        middle, post, ahead = jnp.split(world.hierarchy.broadcast(orders, level), 3, axis=1)
        falling_back = world.hierarchy.broadcast(weak, level)
        offset = entities.stores[:, AHEAD : LEFT + 1] - post
        step = rules.table.of("speed", entities.kind) * rules.time_step
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
        reach, way = self.rules.table.of("reach", entities.kind), seen.displacement[:, 0]
        harried = (reach > RANGED) & (entities.stores[:, WAIT] > 0) & (seen.distance[:, 0] < 0.5 * reach)
        return jnp.where(harried[:, None], -way, way), jnp.where(harried, 0.0, 0.9 * reach)

    def _orders(self, world: World, level: int) -> tuple[Float[Array, "g 6"], Bool[Array, " g"]]:
        """For each squad its middle, its members' mean post and the direction to go, and whether it falls back."""
        entities, hierarchy = world.entities, world.hierarchy
        rows = jnp.stack([jnp.ones_like(entities.heading), entities.stores[:, HEALTH]], axis=1)
        team = entities.team.astype(jnp.float32)[:, None]
        rows = jnp.concatenate([rows, entities.position, entities.stores[:, AHEAD:], team], axis=1)
        sums = hierarchy.reduce(rows, level, "sum", entities.alive)
        count, n_wings = jnp.maximum(sums[:, :1], 1.0), hierarchy.n_groups(level + 1)
        middle, post, army = (
            sums[:, 2:4] / count,
            sums[:, 4:6] / count,
            (sums[:, 6] > 0.5 * sums[:, 0]).astype(jnp.int32),
        )
        parent = hierarchy.parent[level]
        wing = jnp.where(parent >= 0, army * n_wings + parent, -1)
        wings = reduce_groups(sums[:, :4], wing, 2 * n_wings, "sum").reshape(2, n_wings, 4)
        target, outnumbered = self._targets(wings)
        home = jnp.sum(wings[..., 2:], axis=1) / jnp.maximum(jnp.sum(wings[..., :1], axis=1), 1.0)
        wing, to_home = jnp.maximum(wing, 0), home[army] - middle
        at_home = norm(to_home) < 5.0
        falls_back = outnumbered.ravel()[wing] & ~at_home
        way = jnp.where(falls_back[:, None], to_home, target.reshape(-1, 2)[wing] - middle)
        way = jnp.where((outnumbered.ravel()[wing] & at_home)[:, None], 0.0, way)
        distance = norm(way)[:, None]
        return jnp.concatenate([middle, post, way / jnp.maximum(distance, 1e-6)], axis=1), falls_back

    def _targets(self, wings: Float[Array, "m g 4"]) -> tuple[Float[Array, "m g 2"], Bool[Array, "m g"]]:
        """The middle of the enemy's wing that is nearest to each wing, and whether that is too strong."""
        foreign = wings[::-1]
        here, there = (w[..., 2:] / jnp.maximum(w[..., :1], 1.0) for w in (wings, foreign))
        distance = length([there[:, None, :, axis] - here[:, :, None, axis] for axis in (0, 1)])
        nearest = jnp.argmin(jnp.where(foreign[:, None, :, 0] > 0, distance, jnp.inf), axis=2)[..., None]
        theirs = jnp.take_along_axis(foreign[..., 1:2], nearest, axis=1)[..., 0]
        return jnp.take_along_axis(there, nearest, axis=1), wings[..., 1] < self.retreat * theirs


def attack_or(world: World, observation: Observation, otherwise: Int[Array, " n"]) -> Int[Array, " n"]:
    """Attack the weakest enemy that may be attacked, of equals the nearest; else do something else."""
    legal = observation.action_mask[:, N_MOVES:]
    health = world.fields.seen.gather(world.entities.stores[:, HEALTH])
    weakest = jnp.argmin(jnp.where(legal, health, jnp.inf), axis=1).astype(jnp.int32)
    # The nearest comes first: if that is out of reach, all are.
    return jnp.where(legal[:, 0], N_MOVES + weakest, otherwise)
