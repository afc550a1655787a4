"""The extension point for rules: what a scenario is made of."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Bool, Float, Key, PyTree

from swarm.core.status import Status
from swarm.core.tables import ScenarioConfig
from swarm.population.entities import Entities
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.types import Action, Observation, Outcome, Start, World


def rows_of(start: int, n_things: int, n_columns: int) -> tuple[tuple[int, ...], ...]:
    """Columns of a set of things laid out one after the other (`AbstractRules.sets`)."""
    return tuple(tuple(range(start + i * n_columns, start + (i + 1) * n_columns)) for i in range(n_things))


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
            raise; `swarm.build.regrow` doubles those that hold a whole number, or a grouping rule with a number of
            slots. A key that names a kind is doubled only when that kind is full.
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
    def reset(self, key: Key[Array, ""]) -> Start:
        """Return the population and the fields of a new episode."""

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
