"""What rules, policies and the simulator exchange: a world, what is seen of it, and what a step returns."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, Key

from swarm.population.entities import Entities, Spawn
from swarm.population.hierarchy import Hierarchy

Action = Int[Array, " n"] | Int[Array, "n f"] | Float[Array, "n a"]
"""One per slot: the index of a discrete action; or of each of `f` choices, where there are several
(`AbstractRules.choices`); or `a` commands in [-1, 1], a being `AbstractRules.n_controls`."""


class World(eqx.Module):
    """The state of one world, unbatched.

    Attributes:
        entities: the population.
        hierarchy: its groups.
        fields: what else the rules keep (maps, counters); any pytree.
        key: random key of the episode; a step draws from `fold_in(key, step)`.
        step: number of steps taken.
        status: sticky bits (`swarm.core.status.Status`).
        n_overflow: births that found no slot in this episode.
        draw: which of `Simulator.draws` its rules are made of; None where no value differs between worlds.
    """

    entities: Entities
    hierarchy: Hierarchy
    fields: Any
    key: Key[Array, ""]
    step: Int[Array, ""]
    status: Int[Array, ""]
    n_overflow: Int[Array, ""]
    draw: Int[Array, ""] | None = None


class Observation(eqx.Module):
    """What policies may see: maps read once for all, and a row per entity slot.

    Attributes:
        maps: `m` views (one per team) of `c` channels over an h by w raster; None, as the next two, without a map.
        view: which of the maps an entity reads.
        cell: its place on the raster.
        own: its own features; 0 for dead slots.
        kind: its kind.
        alive: whether the slot holds an entity that acts.
        action_mask: legal actions, at least one where alive (of each choice, side by side, where there are several);
            with `n_controls`, a column per command, all True where alive.
    """

    maps: Float[Array, "m h w c"] | None
    view: Int[Array, " n"] | None
    cell: Int[Array, "n 2"] | None
    own: Float[Array, "n o"]
    kind: Int[Array, " n"]
    alive: Bool[Array, " n"]
    action_mask: Bool[Array, "n a"]


class Start(eqx.Module):
    """What the rules begin an episode with.

    Attributes:
        entities: the population.
        fields: what else the rules keep (`World.fields`).
        status: bits of `swarm.core.status.Status` that the rules raise, like the overflow of a neighbour search.
    """

    entities: Entities
    fields: Any
    status: Int[Array, ""] | int = 0


class Outcome(eqx.Module):
    """What the rules decided in a step, before deaths and births are carried out.

    Attributes:
        reward: per entity that was alive when the step began.
        dying: who dies in this step.
        births: who is born; None for scenarios without births.
        n_refused: births that the rules had to refuse because a kind's capacity is reached.
        status: bits of `swarm.core.status.Status` that the rules raise, like the overflow of a neighbour search.
        hierarchy: `World.hierarchy` where the rules split or merged groups; None where they left them alone.
    """

    reward: Float[Array, " n"]
    dying: Bool[Array, " n"]
    births: Spawn | None
    n_refused: Int[Array, ""] | int = 0
    status: Int[Array, ""] | int = 0
    hierarchy: Hierarchy | None = None


class TimeStep(eqx.Module):
    """What a step returns, for each entity slot and for the world.

    Attributes:
        observation: after the step; of a truncated episode the final one, to bootstrap from.
        reward: of the step, for those valid.
        valid: whose step it was: alive when it began.
        terminated: its life ended in this step, or the world's task did.
        truncated: it lived on when the world ran out of steps.
        world_terminated: the task ended.
        world_truncated: the episode ran out of steps before the task ended.
    """

    observation: Observation
    reward: Float[Array, " n"]
    valid: Bool[Array, " n"]
    terminated: Bool[Array, " n"]
    truncated: Bool[Array, " n"]
    world_terminated: Bool[Array, ""]
    world_truncated: Bool[Array, ""]

    @property
    def ended(self) -> Bool[Array, "*b"]:
        """Whether the episode is over, either way."""
        return self.world_terminated | self.world_truncated
