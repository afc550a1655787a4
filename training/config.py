"""Settings of the learner: recipes and their validation. Nothing here imports jax."""

import importlib.resources
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from swarm.build.scenario_files import Scenario, merged, read_text
from swarm.core.errors import ConfigError, nearest
from swarm.core.tables import Table, validate
from swarm.core.toml import parse_toml
from swarm.core.values import LARGEST_WHOLE, shown

Scope = Literal["group", "global"]
Share = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]


class CreditTable(Table):
    """Which trajectories there are, and which of their quantities are the group's own.

    Attributes:
        grouping: `entity`, `global`, a grouping rule (`kind`, `modulo:4`, `nearest:depot`) or a level of the hierarchy.
        reward: own reward, or that of all groups of the team together.
        value: own value, or the sum over all groups of the team.
        log_prob: own log-probability, or that of all entities of the team together.
        entropy: own entropy, or that of all entities of the team together.
        advantage: own advantage, or the mean over all groups of the team.
        done: a trajectory ends with its group, or only with the world: then what the team gets after a group's end
            still counts for it, as far as it is shared (`reward`, `own_weight`, `value`).
        own_weight: weight of the own reward; the rest is the reward of all groups of the team together.
        learn_own_weight: learn that weight, from `own_weight` on (`training.credit.mixing`).
        posthumous: share that a group is credited, after its death, of what the average survivor of its team earns.
        spawn: share that the group of a builder is credited of what the groups of those it builds earn.
    """

    grouping: str = "entity"
    reward: Scope = "group"
    value: Scope = "group"
    log_prob: Scope = "group"
    entropy: Scope = "group"
    advantage: Scope = "group"
    done: Scope = "group"
    own_weight: Share = 1.0
    learn_own_weight: bool = False
    posthumous: Share = 0.0
    spawn: Share = 0.0

    @pydantic.model_validator(mode="after")
    def _can_move(self) -> "CreditTable":
        if self.learn_own_weight and not 0.0 < self.own_weight < 1.0:
            raise ValueError(
                f"learn_own_weight = true with own_weight = {self.own_weight}: start it between 0 and 1, like 0.5"
            )
        if self.learn_own_weight and self.reward == "global":
            raise ValueError('learn_own_weight = true: there is no own reward with reward = "global"')
        return self

    @pydantic.model_validator(mode="after")
    def _dies_once(self) -> "CreditTable":
        if self.posthumous and self.done == "global":
            raise ValueError(
                f'posthumous = {self.posthumous}: with done = "global" the dead are credited already; set one of them'
            )
        return self


class NetworkTable(Table):
    """Parts and sizes of the network.

    Attributes:
        encoders: what the features of an entity come from, besides its own row: `map`, `entity`, `attention`.
        channels: of the map extractor.
        dilations: one residual block of the map extractor each.
        hidden: width of encoders and heads.
        memory: width of the recurrent memory; 0: none.
        critic: what values are made of: `local` features, the members of a `group`, or in view of the `world`.
    """

    encoders: list[Literal["map", "entity", "attention"]]
    channels: int = pydantic.Field(ge=1, le=4096)
    dilations: list[int]
    hidden: int = pydantic.Field(ge=4, le=16384, multiple_of=4)
    memory: int = pydantic.Field(ge=0, le=16384)
    critic: Literal["local", "group", "world"]

    @pydantic.field_validator("dilations")
    @classmethod
    def _positive(cls, dilations: list[int]) -> list[int]:
        if len(dilations) > 64 or not all(1 <= dilation <= 128 for dilation in dilations):
            raise ValueError(
                f"dilations = {shown(dilations)}: one number of at least 1, 128 at most, for each residual block"
            )
        return dilations

    @pydantic.field_validator("encoders")
    @classmethod
    def _once(cls, encoders: list[str]) -> list[str]:
        if len(set(encoders)) < len(encoders):
            raise ValueError(f"encoders = {shown(encoders)}: name each encoder once")
        return encoders


class ImpalaTable(Table):
    """Of IMPALA.

    Attributes:
        vtrace: correct for the difference between the policy that acted and the one that learns.
        lag: updates by which the parameters that act are older than those that learn; without actors of their own.
        actors: threads that step worlds by themselves, each `worlds` of them; 0: rollouts and steps take turns.
        queue: rollouts that may wait for the learner.
        max_lag: experience older than so many updates is dropped; 0: none is.
        patience: seconds without experience after which the run stops.
    """

    vtrace: bool = True
    lag: int = pydantic.Field(default=0, ge=0, le=1000)
    actors: int = pydantic.Field(default=0, ge=0, le=1024)
    queue: int = pydantic.Field(default=2, ge=1, le=1024)
    max_lag: int = pydantic.Field(default=0, ge=0)
    patience: float = pydantic.Field(default=600.0, gt=1e-3, le=1e6)

    @pydantic.model_validator(mode="after")
    def _lags_one_way(self) -> "ImpalaTable":
        if self.lag and self.actors:
            raise ValueError(
                f"lag = {self.lag} and actors = {self.actors}: actors lag as they do; set one of them to 0"
            )
        return self


class TeacherTable(Table):
    """A policy whose actions are learned beside the rewards, at first (kickstarting: Schmitt et al. 2018, eq. 3).

    Attributes:
        policy: `scripted`, or the folder of a run; empty: nobody teaches.
        weight: of the surprise at what it would do, at the start.
        until: share of the updates over which the weight falls to 0.
    """

    policy: str = ""
    weight: float = pydantic.Field(default=1.0, gt=1e-9, le=1e6)
    until: float = pydantic.Field(default=0.5, gt=0.0, le=1.0)


class TrainingConfig(Table):
    """Settings of a learner; `training/algorithms/recipes/mppo.toml` says what each is for.

    `teams` names who acts for each team (one name: for all): `learn`, `learn:NAME` for a network of its own,
    `scripted`, `random`, or the folder of a run, whose last policy acts and stays as it is.
    """

    recipe: str
    algorithm: Literal["ppo", "impala"] = "ppo"
    on_host = ("steps",)

    steps: int = pydantic.Field(ge=1, le=10**15)
    worlds: int = pydantic.Field(ge=1, le=2**20)
    rollout: int = pydantic.Field(ge=1, le=2**20)
    epochs: int = pydantic.Field(ge=1, le=10_000)
    minibatches: int = pydantic.Field(ge=1, le=2**20)
    learning_rate: float = pydantic.Field(gt=1e-12, le=1.0)
    anneal: list[Literal["learning_rate", "clip", "entropy_weight"]]
    discount: float = pydantic.Field(ge=0.0, le=1.0)
    gae_lambda: float = pydantic.Field(ge=0.0, le=1.0)
    clip: float = pydantic.Field(ge=0.0, le=1e6)
    value_clip: float = pydantic.Field(ge=0.0, le=1e6)
    value_weight: float = pydantic.Field(ge=0.0, le=1e6)
    entropy_weight: float = pydantic.Field(ge=0.0, le=1e6)
    max_grad_norm: float = pydantic.Field(gt=1e-9, le=1e6)
    max_kl: float = pydantic.Field(ge=0.0, le=1e6)
    normalise_advantage: bool
    normalise_value: bool
    reward_scale: float = pydantic.Field(gt=1e-9, le=1e9)
    checkpoint_every: int = pydantic.Field(ge=1)
    evaluate_every: int = pydantic.Field(ge=0)
    evaluation_episodes: int = pydantic.Field(ge=1, le=1_000_000)
    keep_checkpoints: int = pydantic.Field(ge=1)
    teams: list[str] = pydantic.Field(min_length=1, max_length=256)
    credit: CreditTable
    network: NetworkTable
    impala: ImpalaTable = ImpalaTable()
    teacher: TeacherTable = TeacherTable()

    @pydantic.field_validator("anneal")
    @classmethod
    def _once(cls, anneal: list[str]) -> list[str]:
        if len(set(anneal)) < len(anneal):
            raise ValueError(f"anneal = {shown(anneal)}: name each once")
        return anneal

    @pydantic.model_validator(mode="after")
    def _one_stream(self) -> "TrainingConfig":
        if self.algorithm == "ppo" and (self.impala.actors or self.impala.lag):
            raise ValueError('impala.actors and impala.lag are for algorithm = "impala" alone; use recipe = "impala"')
        if self.algorithm == "ppo" and not self.clip:
            raise ValueError('clip = 0: only algorithm = "impala" does without; give the limit, like 0.2')
        if self.algorithm == "impala" and self.credit.learn_own_weight:
            raise ValueError('credit.learn_own_weight = true: only algorithm = "ppo" learns it')
        return self

    @pydantic.model_validator(mode="after")
    def _minibatches_divide(self) -> "TrainingConfig":
        if self.algorithm == "ppo" and self.rollout % self.minibatches:
            raise ValueError(
                f"minibatches = {self.minibatches} does not divide rollout = {self.rollout}; "
                "each minibatch takes the same number of time steps of every world"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _counted(self) -> "TrainingConfig":
        if max(self.steps_per_update, self.n_updates) > LARGEST_WHOLE:
            raise ValueError(
                f"steps = {self.steps}, worlds = {self.worlds}, rollout = {self.rollout}: more than {LARGEST_WHOLE} "
                "updates, or steps between two of them; change one of these"
            )
        return self

    @property
    def steps_per_update(self) -> int:
        """World steps between two updates."""
        return self.worlds * self.rollout

    @property
    def n_updates(self) -> int:
        """Updates of a whole run, at least one."""
        return max(1, self.steps // self.steps_per_update)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.name[:-5] for p in _recipes().iterdir() if p.name.endswith(".toml"))


def _recipes() -> Any:
    return importlib.resources.files("training") / "algorithms" / "recipes"


def load_training(scenario: Scenario) -> TrainingConfig:
    """Read the recipe that a scenario file names, with the file's own values over it.

    Raises:
        ConfigError: no such recipe, or a key or value of it is wrong.
    """
    values = dict(scenario.config.training)
    recipe = values.pop("recipe", "mppo")
    if isinstance(recipe, str) and recipe.endswith(".toml"):
        table = parse_toml(read_text(Path(recipe)), recipe)
    elif recipe in recipe_names():
        table = parse_toml((_recipes() / f"{recipe}.toml").read_text("utf-8"), recipe)
    else:
        hint = nearest(str(recipe), recipe_names())
        raise ConfigError(f"{scenario.place('training.recipe')}: training.recipe = {recipe!r}: no such recipe{hint}")
    table["recipe"] = recipe
    own = None if scenario.own is None else merged(table, scenario.own.get("training", {}))
    return validate(TrainingConfig, merged(table, values), scenario.source, own, prefix="training: ")
