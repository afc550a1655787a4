"""A host environment in the terms of the engine: agents are entities, a world is what was last seen of it."""

import json
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float, Int, Key

from swarm.adapters.environments import make_environment
from swarm.adapters.layout import Layout
from swarm.adapters.workers import Steps, Task, refuse_inside
from swarm.core.errors import ConfigError
from swarm.core.tables import ScenarioConfig, Table
from swarm.population.entities import Entities
from swarm.population.hierarchy import form, regroup
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.random_policy import RandomPolicy
from swarm.simulation.rules import AbstractRules
from swarm.simulation.simulator import Simulator, judged, visible_status
from swarm.simulation.types import Action, Observation, Outcome, Start, TimeStep, World

# Rules of groups that look at places, which agents of a host environment have not.
_BY_PLACE = ("nearest", "quadrant", "kmeans", "components")


class WorldTable(Table):
    """Table `world`.

    Attributes:
        steps: an episode is truncated after so many, if the environment has not ended it before.
    """

    steps: int = pydantic.Field(default=10_000, ge=1, le=10**9)


class HostConfig(ScenarioConfig):
    """A scenario file that names an environment instead of rules.

    Attributes:
        environment: `gymnasium:ID`, `pettingzoo:MODULE`, or `module:function` of a maker of the user's own.
        options: keyword arguments of its maker.
        processes: that step the worlds of an actor, side by side.
        patience: seconds that a step or a reset may take.
    """

    environment: str
    options: dict[str, Any] = pydantic.Field(default_factory=dict)
    processes: int = pydantic.Field(default=2, ge=1, le=1024)
    patience: float = pydantic.Field(default=60.0, gt=1e-3, le=1e6)
    world: WorldTable = WorldTable()
    groups: dict[str, Any] = pydantic.Field(default_factory=lambda: {"levels": ["entity", "team"], "team": "global"})

    @pydantic.field_validator("options")
    @classmethod
    def _told(cls, options: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(options)
        except TypeError as error:
            raise ValueError(f"{error}; dates and times are not handed on, write them as text") from None
        return options

    @pydantic.model_validator(mode="after")
    def _nobody_has_a_place(self) -> "HostConfig":
        credit = self.training.get("credit", {})
        rules = self.groups | {"training.credit.grouping": credit.get("grouping") if isinstance(credit, dict) else None}
        for name, rule in rules.items():
            if isinstance(rule, str) and rule.partition(":")[0] in _BY_PLACE:
                raise ValueError(
                    f"{name} = {rule!r}: agents of a host environment have no place; use global, kind or modulo:K"
                )
        return self


class Fields(eqx.Module):
    """What a world holds of its environment.

    Attributes:
        own: features of the agents.
        action_mask: what they may do.
        score: rewards so far in the episode, of all agents.
    """

    own: Float[Array, "n o"]
    action_mask: Bool[Array, "n a"]
    score: Float[Array, ""]


class HostRules(AbstractRules):
    """An environment that is not JAX, whose rules are its own.

    Who: a slot for each of `possible_agents`; kinds by their names without numbers; one team. An agent lives as long as
        it is among `agents`; one that terminates dies. One that comes back, or is still listed after its end, begins
        another life, with another identity: nothing is remembered of the one before.
    Observation and actions: the environment's, filled up to one width; see `swarm.adapters.layout`.
    End: when no agent is left; truncated where one was cut off alive in the last step, or after `world.steps`.
    """

    Config = HostConfig
    # Of the instance, not of the class: every environment has others.
    kinds: tuple[str, ...] = eqx.field(static=True)  # pyright: ignore[reportIncompatibleVariableOverride]
    actions: ClassVar[dict[str, tuple[str, ...]]] = {}
    success = "return_per_agent"
    headline = "return_per_agent"

    task: Task = eqx.field(static=True)

    @classmethod
    def from_config(cls, config: HostConfig) -> "HostRules":
        """Make the environment once, to read its spaces."""
        refuse_inside()
        try:
            environment = make_environment(config.environment, config.options)
            layout = Layout.of(environment)
            environment.close()
        except ConfigError as error:
            raise ConfigError(f"environment = {config.environment!r}: {error}") from None
        options = json.dumps(config.options, sort_keys=True)
        steps, processes, patience = config.world.steps, config.processes, config.patience
        return cls(layout.kinds, Task(config.environment, options, layout, steps, processes, patience))

    @property
    def layout(self) -> Layout:
        """How agents stand in arrays."""
        return self.task.layout

    @property
    def n_slots(self) -> int:
        """One for each possible agent."""
        return len(self.layout.agents)

    @property
    def n_teams(self) -> int:
        """One."""
        return 1

    @property
    def capacities(self) -> tuple[tuple[int, ...], ...]:
        """As many of each kind as there are possible agents of it."""
        return (tuple(self.layout.kind.count(kind) for kind in range(len(self.kinds))),)

    @property
    def centre(self) -> tuple[float, float]:
        """There is no space."""
        return 0.0, 0.0

    @property
    def n_actions(self) -> int:
        """Width of the masks."""
        return self.layout.n_actions

    @property
    def n_controls(self) -> int:
        """Of the environment."""
        return self.layout.n_controls

    @property
    def choices(self) -> tuple[int, ...]:
        """Of the environment; as many as there are commands where these are continuous."""
        return self.layout.choices

    def reset(self, key: Key[Array, ""]) -> Start:
        """Return agents that see nothing: the environment itself begins in another process."""
        n = self.n_slots
        fields = Fields(jnp.zeros((n, self.layout.n_own)), jnp.ones((n, self.n_actions), bool), jnp.zeros(()))
        return Start(self.begun(jnp.ones(n, bool)), fields)

    def population(self, alive: Bool[Array, " n"], uid: Array, next_uid: Array | int) -> Entities:
        """Return the agents; the identity of a first life is the number of the slot."""
        n = self.n_slots
        parts = alive, uid, jnp.asarray(self.layout.kind, jnp.int32), jnp.asarray(next_uid, jnp.int32)
        return eqx.tree_at(lambda e: (e.alive, e.uid, e.kind, e.next_uid), Entities.empty(n, 2, 0), parts)

    def begun(self, alive: Bool[Array, " n"]) -> Entities:
        """The agents as an episode begins."""
        return self.population(alive, jnp.where(alive, jnp.arange(self.n_slots, dtype=jnp.int32), -1), self.n_slots)

    def act(self, world: World, action: Action, key: Key[Array, ""]) -> tuple[Entities, Fields, Outcome]:
        """Refuse: only the processes of training and evaluation step this environment."""
        raise ConfigError(
            f"{self.task.environment}: a host environment runs in processes of its own, which only swarm.train and "
            "swarm.evaluate start; it cannot be simulated, drawn or recorded here"
        )

    def observe(self, world: World) -> Observation:
        """Return what was last seen."""
        entities, fields = world.entities, world.fields
        mask = fields.action_mask & entities.alive[:, None]
        return Observation(None, None, None, fields.own, entities.kind, entities.alive, mask)

    def ended(self, world: World) -> Bool[Array, ""]:
        """Whether nobody is left."""
        return ~jnp.any(world.entities.alive)

    def metrics(self, world: World) -> dict[str, Float[Array, ""]]:
        """The sum of rewards so far, by agent that ever lived."""
        n_lived = jnp.sum(world.entities.uid >= 0, dtype=jnp.float32)
        return {"return_per_agent": world.fields.score / jnp.maximum(n_lived, 1.0)}

    def scripted_policy(self) -> AbstractPolicy:
        """At random, for want of anything better."""
        return RandomPolicy.of(self)

    def draw(self, axes: Any, world: World) -> None:
        """Draw nothing."""


def begin(simulator: Simulator, steps: Steps) -> tuple[World, TimeStep]:
    """Return the world that `steps` say comes next (of one world), as `Simulator.reset` would."""
    rules = simulator.rules
    assert isinstance(rules, HostRules)
    world, timestep = simulator.reset(jax.random.key(0))
    entities = rules.begun(jnp.asarray(steps.next_alive))
    fields = Fields(jnp.asarray(steps.next_own), jnp.asarray(steps.next_mask), jnp.zeros(()))
    hierarchy = form(simulator.levels, simulator.groupings, entities)
    parts = entities, hierarchy, fields, visible_status(entities, hierarchy)
    world = eqx.tree_at(lambda w: (w.entities, w.hierarchy, w.fields, w.status), world, parts)
    return world, eqx.tree_at(lambda t: t.observation, timestep, rules.observe(world))


def advance(simulator: Simulator, world: World, steps: Steps) -> tuple[World, World, TimeStep]:
    """Return what a step led to (of one world).

    Returns:
        The world after the step, with those who were cut off in it alive; the world as it goes on, without them; and
        the time step, whose observation is of the first.
    """
    rules, before = simulator.rules, world.entities
    assert isinstance(rules, HostRules)
    terminated, truncated = jnp.asarray(steps.terminated), jnp.asarray(steps.truncated)
    ended = jnp.asarray(steps.ended)
    going_on = jnp.where(ended, truncated, jnp.asarray(steps.next_alive))
    anew = going_on & ~ended & (~before.alive | terminated | truncated)
    again = anew & (before.uid >= 0)
    number = before.next_uid + jnp.cumsum(again, dtype=jnp.int32) - 1
    uid = jnp.where(again, number, jnp.where(anew, jnp.arange(rules.n_slots, dtype=jnp.int32), before.uid))
    next_uid = before.next_uid + jnp.sum(again, dtype=jnp.int32)
    score = world.fields.score + jnp.sum(jnp.asarray(steps.reward))
    fields = Fields(jnp.asarray(steps.own), jnp.asarray(steps.next_mask), score)

    def after(alive: Bool[Array, " n"], uid: Int[Array, " n"]) -> World:
        entities = rules.population(alive, uid, next_uid)
        hierarchy = regroup(world.hierarchy, simulator.groupings, entities)
        status = world.status | visible_status(entities, hierarchy)
        return World(entities, hierarchy, fields, world.key, world.step + 1, status, world.n_overflow)

    # Whoever was cut off is still who it was; who begins another life in its place comes after.
    final = after(going_on | truncated, jnp.where(truncated, before.uid, uid))
    following = after(going_on, uid)
    world_truncated = ended & jnp.any(truncated)
    timestep = TimeStep(
        observation=rules.observe(final),
        reward=jnp.where(before.alive, jnp.asarray(steps.reward), 0.0),
        valid=before.alive,
        terminated=before.alive & terminated,
        truncated=before.alive & truncated,
        world_terminated=ended & ~world_truncated,
        world_truncated=world_truncated,
    )
    return judged(final, timestep), judged(following, timestep), timestep
