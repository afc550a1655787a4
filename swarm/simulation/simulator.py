"""Reset, step, rollout: one world at a time; batches by `jax.vmap`, and `reset_ended` for endless batches."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree

from swarm.core.platforms import by_platform
from swarm.core.reproducible import reproducible
from swarm.core.status import Status
from swarm.population.entities import LAST, Entities, counted, spawn
from swarm.population.grouping import AbstractGrouping
from swarm.population.hierarchy import Hierarchy, form, regroup
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.restart import chunk_size, for_each_marked, rows, with_rows
from swarm.simulation.rules import AbstractRules
from swarm.simulation.types import Action, Observation, Start, TimeStep, World

# Sets the key of what is drawn apart from those that `reset` splits off.
_DRAW = 0x64726177


class Draws(eqx.Module):
    """What differs between the draws of values that a scenario gives as distributions.

    Attributes:
        n: number of draws.
        arrays: a simulator with arrays stacked along the draws, and None for all that is the same in all of them.
    """

    n: int = eqx.field(static=True)
    arrays: PyTree


class Simulator(eqx.Module):
    """Steps worlds under the rules of a scenario.

    The order within a step: the rules' `act` (commands, movement, collisions, harvest and the like), deaths, births,
    regrouping, then observation, reward and end flags. A slot freed by a death can serve a birth of the same step.

    What rules compute has the same bits alone and in a batch, and with any number of empty slots
    (`swarm.core.reproducible`).

    Rules never see a bad action: a command that is NaN or infinite becomes 0, an index beyond the actions the nearest
    one. That of a living entity raises BAD_ACTION.

    Attributes:
        rules: the scenario.
        groupings: the rule of each level of the hierarchy above the entities.
        levels: names of the levels, the entities' first.
        max_steps: an episode is truncated after that many steps.
        draws: of values that differ between worlds, for which `rules` and the rest hold the medians; None: none do.
    """

    rules: AbstractRules
    groupings: tuple[AbstractGrouping, ...]
    levels: tuple[str, ...] = eqx.field(static=True)
    max_steps: Int[Array, ""]
    draws: Draws | None = None

    def of(self, world: World) -> "Simulator":
        """The simulator with the values that were drawn for a world; itself where none are drawn."""
        return self._drawn(world.draw)

    def _drawn(self, draw: Int[Array, ""] | None) -> "Simulator":
        if self.draws is None or draw is None:
            return self
        arrays = jax.tree.map(lambda x: x[draw], self.draws.arrays)
        return eqx.combine(arrays, eqx.tree_at(lambda s: s.draws, self, None))

    def reset(self, key: Key[Array, ""]) -> tuple[World, TimeStep]:
        """Start an episode; all of it follows from the key and the actions."""
        return reproducible(self._reset)(key)

    def _reset(self, key: Key[Array, ""]) -> tuple[World, TimeStep]:
        if self.draws is None:
            return self._start(key, None)
        draw = jax.random.randint(jax.random.fold_in(key, _DRAW), (), 0, self.draws.n)
        return self._drawn(draw)._start(key, draw)

    def _start(self, key: Key[Array, ""], draw: Int[Array, ""] | None) -> tuple[World, TimeStep]:
        map_key, episode_key = jax.random.split(key)
        start = self.rules.reset(map_key)
        if not isinstance(start, Start):
            raise TypeError(
                f"{type(self.rules).__name__}.reset: expected swarm.Start(entities, fields), got {type(start)}"
            )
        entities = start.entities
        hierarchy = form(self.levels, self.groupings, entities)
        status = visible_status(entities, hierarchy) | start.status
        zero = jnp.int32(0)
        world = World(entities, hierarchy, start.fields, episode_key, zero, status, zero, draw)
        nobody, never = jnp.zeros_like(entities.alive), jnp.zeros((), bool)
        reward = jnp.zeros(entities.n_slots)
        timestep = TimeStep(self.rules.observe(world), reward, nobody, nobody, nobody, never, never)
        return judged(world, timestep), timestep

    def step(self, world: World, action: Action) -> tuple[World, TimeStep]:
        """Advance a world by one step. Stepping on after the end is allowed; the flags then stay set."""
        return reproducible(self.of(world)._step)(world, action)

    def _step(self, world: World, action: Action) -> tuple[World, TimeStep]:
        before = world.entities.alive
        key = jax.random.fold_in(world.key, world.step)
        action, bad = usable(action, self.rules.choices)
        entities, fields, outcome = self.rules.act(world, action, key)
        dying = before & outcome.dying
        entities = entities.remove(dying)
        n_refused = outcome.n_refused
        if outcome.births is not None:
            entities, n_overflow = spawn(entities, outcome.births)
            n_refused = n_refused + n_overflow
        hierarchy = world.hierarchy if outcome.hierarchy is None else outcome.hierarchy
        hierarchy = regroup(hierarchy, self.groupings, entities)
        status = world.status | outcome.status | visible_status(entities, hierarchy)
        status = status | jnp.where(n_refused > 0, Status.ENTITIES_FULL, 0)
        status = status | jnp.where(jnp.any(before & bad), Status.BAD_ACTION, 0)
        n_overflow = counted(world.n_overflow, n_refused)
        world = World(entities, hierarchy, fields, world.key, world.step + 1, status, n_overflow, world.draw)
        world_terminated = self.rules.ended(world)
        world_truncated = ~world_terminated & (world.step >= self.max_steps)
        terminated = before & (dying | world_terminated)
        timestep = TimeStep(
            observation=self.rules.observe(world),
            reward=jnp.where(before, outcome.reward, 0.0),
            valid=before,
            terminated=terminated,
            truncated=before & ~terminated & world_truncated,
            world_terminated=world_terminated,
            world_truncated=world_truncated,
        )
        return judged(world, timestep), timestep

    def rollout(
        self, policy: AbstractPolicy, world: World, timestep: TimeStep, key: Key[Array, ""], n_steps: int
    ) -> tuple[World, TimeStep, tuple[World, TimeStep]]:
        """Let a policy act for `n_steps`, without resets; its memory starts here.

        Returns:
            The last world, its time step, and both stacked along time (leading axis t).
        """

        def body(carry: tuple[World, TimeStep, PyTree], step_key: Array) -> Any:
            world, timestep, memory = carry
            action, memory = policy.act(world, timestep.observation, memory, step_key)
            world, timestep = self.step(world, action)
            return (world, timestep, memory), (world, timestep)

        carry = (world, timestep, policy.start(world.entities.n_slots))
        (world, timestep, _), history = jax.lax.scan(body, carry, jax.random.split(key, n_steps))
        return world, timestep, history

    def observe(self, world: World) -> Observation:
        """What policies may see of a world."""
        return reproducible(self.of(world).rules.observe)(world)

    def metrics(self, world: World) -> dict[str, Array]:
        """The rules' metrics of a world, with the population and what was refused."""
        return reproducible(self._metrics)(world)

    def _metrics(self, world: World) -> dict[str, Array]:
        counts = {
            f"n_{name}": jnp.sum(world.entities.is_kind(kind), dtype=jnp.float32)
            for kind, name in enumerate(self.rules.kinds)
        }
        general = {"length": world.step, "n_overflow": world.n_overflow}
        return self.of(world).rules.metrics(world) | counts | {k: v.astype(jnp.float32) for k, v in general.items()}


def usable(action: Action, choices: tuple[int, ...]) -> tuple[Action, Bool[Array, " n"]]:
    """Replace what no rules could carry out, and mark whose action that was."""
    if jnp.issubdtype(action.dtype, jnp.floating):
        good = jnp.isfinite(action)
        return jnp.where(good, action, 0.0), ~jnp.all(good, axis=1)
    if action.ndim == 1:
        nearest = jnp.clip(action, 0, choices[0] - 1)
        return nearest, nearest != action
    nearest = jnp.clip(action, 0, jnp.asarray(choices)[None] - 1)
    return nearest, jnp.any(nearest != action, axis=1)


def finite(entities: Entities) -> Bool[Array, " n"]:
    """Whose position, heading, velocity and stores are all finite."""
    vectors = (entities.position, entities.velocity, entities.stores)
    checks = [jnp.all(jnp.isfinite(vector), axis=1) for vector in vectors]
    return checks[0] & checks[1] & checks[2] & jnp.isfinite(entities.heading)


def visible_status(entities: Entities, hierarchy: Hierarchy) -> Int[Array, ""]:
    """Status bits that can be read off a population and its groups."""
    lost = jnp.any(entities.alive & ~finite(entities))
    full = functools.reduce(jnp.logical_or, [n > 0 for n in hierarchy.overflow], jnp.zeros((), bool))
    # Of the groups each may open another one in the next step.
    spent = [jnp.any(identity > LAST - identity.shape[0]) for identity in hierarchy.identity]
    spent = functools.reduce(jnp.logical_or, spent, entities.next_uid == LAST)
    bits = ((lost, Status.NON_FINITE), (full, Status.GROUPS_FULL), (spent, Status.IDENTITIES_SPENT))
    return functools.reduce(jnp.bitwise_or, [jnp.where(raised, jnp.int32(bit), 0) for raised, bit in bits])


def judged(world: World, timestep: TimeStep) -> World:
    """Set the bits of a world in which a living entity sees or earns what is NaN or infinite, though its state is not.

    Where the state of any is, that explains the rest.
    """
    seen, calm = timestep.observation, world.status & Status.NON_FINITE == 0
    blind = jnp.any(seen.alive & ~jnp.all(jnp.isfinite(seen.own), axis=1))
    if seen.maps is not None:
        blind = blind | (jnp.any(seen.alive) & ~jnp.all(jnp.isfinite(seen.maps)))
    lost = jnp.any(timestep.valid & ~jnp.isfinite(timestep.reward))
    bits = jnp.where(blind, jnp.int32(Status.BAD_OBSERVATION), 0) | jnp.where(lost, jnp.int32(Status.BAD_REWARD), 0)
    return eqx.tree_at(lambda w: w.status, world, world.status | jnp.where(calm, bits, 0))


def reset_ended(
    simulator: Simulator, worlds: World, timesteps: TimeStep, keys: Key[Array, " b"], chunk: int | None = None
) -> tuple[World, TimeStep]:
    """Start a new episode in the worlds of a batch whose episode is over, and only there.

    The end flags, rewards and validity of the step that ended them are kept; observation and world are new.

    Args:
        simulator: of one world.
        worlds: the batch.
        timesteps: their last time steps.
        keys: of the episodes that may begin.
        chunk: so many worlds are reset at once; by default what suits the device. It changes no result.
    """

    def restart(index: Int[Array, " c"], carry: tuple[World, Observation]) -> tuple[World, Observation]:
        world, timestep = jax.vmap(simulator.reset)(rows(keys, index))
        return with_rows(carry, index, (world, timestep.observation))

    def all_of_them(platform: str) -> tuple[World, Observation]:
        at_once = chunk_size(carry, platform) if chunk is None else chunk
        return for_each_marked(restart, timesteps.ended, carry, at_once)

    carry = worlds, timesteps.observation
    worlds, observation = by_platform(all_of_them) if chunk is None else all_of_them("")
    return worlds, eqx.tree_at(lambda t: t.observation, timesteps, observation)
