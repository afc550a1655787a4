"""The extension point for rules: what a scenario is made of, and the types it exchanges with the simulator."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from swarm.entities import Entities, Spawn
from swarm.hierarchy import Hierarchy
from swarm.status import Status
from swarm.tables import ScenarioConfig

Action = Int[Array, " n"] | Int[Array, "n f"] | Float[Array, "n a"]
"""One per slot: the index of a discrete action; or of each of `f` choices, where there are several
(`AbstractRules.choices`); or `a` commands in [-1, 1], a being `AbstractRules.n_controls`."""

__all__ = ["AbstractPolicy", "AbstractRules", "Observation", "Outcome", "RandomPolicy", "Spawn", "TimeStep", "World"]


class World(eqx.Module):
    """The state of one world, unbatched.

    Attributes:
        entities: the population.
        hierarchy: its groups.
        fields: what else the rules keep (maps, counters); any pytree.
        key: random key of the episode; a step draws from `fold_in(key, step)`.
        step: number of steps taken.
        status: sticky bits (`swarm.status.Status`).
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


class Outcome(eqx.Module):
    """What the rules decided in a step, before deaths and births are carried out.

    Attributes:
        reward: per entity that was alive when the step began.
        dying: who dies in this step.
        births: who is born; None for scenarios without births.
        n_refused: births that the rules had to refuse because a kind's capacity is reached.
        status: bits of `swarm.status.Status` that the rules raise, like the overflow of a neighbour search.
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


class AbstractPolicy(eqx.Module):
    """Chooses an action per slot. Scripted policies may read the whole world, learned ones read the observation.

    A policy that remembers overrides `start` and `act`, which hand its memory on; whoever plays an episode calls those.
    """

    @abc.abstractmethod
    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Return the actions of all slots; those of dead slots are ignored."""

    def start(self, n_slots: int) -> PyTree:
        """Return the memory at the start of an episode; None for a policy without."""
        return None

    def act(self, world: World, observation: Observation, memory: PyTree, key: Key[Array, ""]) -> tuple[Action, PyTree]:
        """Return the actions of all slots, and what to remember."""
        return self(world, observation, key), memory


class RandomPolicy(AbstractPolicy):
    """Each entity draws uniformly: among its legal actions, or commands from [-1, 1] where there are `n_controls`.

    Attributes:
        n_controls: of the rules.
        choices: of the rules; empty: one, as wide as the action mask.
    """

    n_controls: int = eqx.field(static=True, default=0)
    choices: tuple[int, ...] = eqx.field(static=True, default=())

    @classmethod
    def of(cls, rules: "AbstractRules") -> "RandomPolicy":
        """Return the one that suits some rules."""
        return cls(rules.n_controls, rules.choices)

    def __call__(self, world: World, observation: Observation, key: Key[Array, ""]) -> Action:
        """Draw by identity; Gumbel-max over the legal actions."""
        keys = world.entities.keys(key)
        if self.n_controls:
            return jax.vmap(lambda k: jax.random.uniform(k, (self.n_controls,), minval=-1.0, maxval=1.0))(keys)
        n_actions = observation.action_mask.shape[1]
        noise = jax.vmap(lambda k: jax.random.gumbel(k, (n_actions,)))(keys)
        return best(jnp.where(observation.action_mask, noise, -jnp.inf), self.choices or (n_actions,))


def rows_of(start: int, n_things: int, n_columns: int) -> tuple[tuple[int, ...], ...]:
    """Columns of a set of things laid out one after the other (`AbstractRules.sets`)."""
    return tuple(tuple(range(start + i * n_columns, start + (i + 1) * n_columns)) for i in range(n_things))


def best(scores: Float[Array, "*n a"], choices: tuple[int, ...]) -> Int[Array, "*n"] | Int[Array, "*n f"]:
    """Return the action of the highest score, of each of the choices where there are several."""
    parts = jnp.split(scores, np.cumsum(choices)[:-1], axis=-1)
    indices = [jnp.argmax(part, axis=-1).astype(jnp.int32) for part in parts]
    return indices[0] if len(indices) == 1 else jnp.stack(indices, axis=-1)


class AbstractRules(eqx.Module):
    """The rules of a scenario for one world.

    A subclass is an `equinox.Module` built by `from_config`; its class docstring is the card of the decision process
    (who, observation, action, reward, units, end). Sizes are static fields, numbers are arrays.

    Attributes:
        Config: the model that validates its scenario file.
        kinds: names of the kinds, in the order of `Entities.kind`.
        actions: names of the actions for each kind; the longest list sets the width of the action mask. Where the
            rules take continuous commands (`n_controls`), names of the commands.
        success: the metric in [0, 1] that says whether an episode went well.
        headline: the metric that says how well, compared between policies.
        stores: names of the goods, in the order of `Entities.stores`; s0, s1, ... where left out.
        room: config keys, `*` for any name, that give more room when doubled, for each overflow bit that the rules can
            raise; `swarm.regrow` doubles those that hold a whole number, or a grouping rule with a number of slots. A
            key that names a kind is doubled only when that kind is full.
        n_variants: how many different entities of a kind there are (`tables`); set by who builds the simulator.
    """

    Config: ClassVar[type[ScenarioConfig]]
    kinds: ClassVar[tuple[str, ...]]
    actions: ClassVar[dict[str, tuple[str, ...]]]
    success: ClassVar[str]
    headline: ClassVar[str]
    stores: ClassVar[tuple[str, ...]] = ()
    room: ClassVar[Mapping[Status, tuple[str, ...]]] = {
        Status.ENTITIES_FULL: ("population.*.capacity",),
        Status.NEIGHBORS_FULL: ("search.room",),
        Status.GROUPS_FULL: ("groups.*",),
    }

    n_variants: int = eqx.field(static=True, default=1, kw_only=True)

    @property
    @abc.abstractmethod
    def n_slots(self) -> int:
        """Entity slots of a world."""

    @property
    @abc.abstractmethod
    def n_teams(self) -> int:
        """Teams of a world."""

    @property
    def capacities(self) -> tuple[tuple[int, ...], ...] | None:
        """For each team, the most entities of each kind that can live at once; None: any number.

        Networks compute no more than that for each kind.
        """
        return None

    @property
    @abc.abstractmethod
    def centre(self) -> tuple[float, ...]:
        """Centre of the space."""

    @property
    def n_actions(self) -> int:
        """Width of the action mask: the number of actions, or with continuous control of commands."""
        return self.n_controls or max(len(names) for names in self.actions.values())

    @property
    def n_controls(self) -> int:
        """Number of continuous commands per entity, each in [-1, 1]; 0: actions are discrete."""
        return 0

    @property
    def choices(self) -> tuple[int, ...]:
        """Numbers of options of the choices made in a step: one among the actions, unless overridden."""
        return (self.n_actions,)

    @property
    def sets(self) -> Mapping[str, tuple[tuple[int, ...], ...]]:
        """Sets of like things in `Observation.own`, such as the nearest foes: for each thing its columns.

        Who looks at a set by attention treats its things alike. Columns that are all 0 stand for nobody.
        """
        return {}

    @property
    def variants(self) -> tuple[int, int]:
        """Numbers of kinds, and of variants of each: what rules with `tables` hand to `Entities.empty`."""
        return len(self.kinds), self.n_variants

    @property
    def tables(self) -> PyTree:
        """Those parts whose arrays hold a row for each kind, all of which the rules look up by `Entities.row`.

        Entities of a kind can differ in what stands there; None: they cannot.
        """
        return None

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: Any) -> "AbstractRules":
        """Build the rules from the validated scenario file."""

    @abc.abstractmethod
    def reset(self, key: Key[Array, ""]) -> tuple[Entities, Any] | tuple[Entities, Any, Int[Array, ""]]:
        """Return the population and the fields of a new episode, and the bits of `Outcome.status`, if any."""

    @abc.abstractmethod
    def act(self, world: World, action: Action, key: Key[Array, ""]) -> tuple[Entities, Any, Outcome]:
        """Carry out the actions: commands, movement, collisions, rules. Deaths and births are only decided here."""

    @abc.abstractmethod
    def observe(self, world: World) -> Observation:
        """Return what policies may see of a world."""

    @abc.abstractmethod
    def ended(self, world: World) -> Bool[Array, ""]:
        """Whether the task is over, won or lost."""

    @abc.abstractmethod
    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """Scalars that say how an episode goes; read at its end, and by telemetry at any step."""

    @abc.abstractmethod
    def scripted_policy(self) -> AbstractPolicy:
        """Return the scripted policy that learned ones are compared with."""

    @abc.abstractmethod
    def draw(self, axes: Any, world: World) -> None:
        """Draw a world (host arrays) on matplotlib axes."""
