"""Tables of scenario files as frozen models, and what is wrong with one in one line. Nothing here imports jax."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_args

import pydantic

from swarm.core.errors import ConfigError, nearest
from swarm.core.toml import COMMAND_LINE
from swarm.core.values import check_range, fitted, shown


class Table(pydantic.BaseModel):
    """A table of a scenario file: frozen, without unknown keys, each value of the very type that the table names.

    `true` is no number and `"8"` no whole number; a whole number may stand where a real one is meant, a list where a
    tuple is. Numbers fit into the arrays that they become (`swarm.core.values`).

    Attributes:
        on_host: names of numbers that no array ever holds, and that may be as large as they like.
    """

    # What stands in a table that is not ours (`options`) may be infinite, and stays so.
    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, ser_json_inf_nan="constants"
    )

    on_host: ClassVar[tuple[str, ...]] = ()

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _fitted(cls, value: Any, info: Any) -> Any:
        return fitted(cls.model_fields[info.field_name].annotation, value)

    @pydantic.field_validator("*", mode="after")
    @classmethod
    def _in_range(cls, value: Any, info: Any) -> Any:
        check_range(value, on_host=info.field_name in cls.on_host)
        return value


class Population(Table):
    """How many entities of a kind there can be (16 million at most), and are at the start; both per team."""

    capacity: int = pydantic.Field(ge=0, le=2**24)
    initial: int = pydantic.Field(ge=0)

    @pydantic.model_validator(mode="after")
    def _initial_fits(self) -> "Population":
        if self.initial > self.capacity:
            raise ValueError(f"initial = {self.initial} exceeds capacity = {self.capacity}; raise capacity")
        return self


class Randomization(Table):
    """Table `randomization`: how values are drawn for which the file gives distributions (`swarm.build.randomization`).

    Attributes:
        pool: how many draws there are; each world picks one at its reset.
        variants: how many values there are in a world of what differs between entities.
        seed: of the draws.
    """

    on_host = ("seed",)

    pool: int = pydantic.Field(default=64, ge=1, le=10_000)
    variants: int = pydantic.Field(default=16, ge=2, le=10_000)
    seed: int = pydantic.Field(default=0, ge=0, lt=2**32)


class ScenarioConfig(Table):
    """What every scenario file has; rules add their own tables by subclassing.

    Attributes:
        rules: `module:Class` of the rules, so that a user's own class needs no registration.
        groups: names of the levels, and for each above the first the rule that forms it.
        randomization: how values with distributions are drawn.
        training: settings of the learner, validated by `training.config`.
    """

    rules: str
    groups: dict[str, Any] = pydantic.Field(default_factory=lambda: {"levels": ["entity"]})
    randomization: Randomization = Randomization()
    training: dict[str, Any] = pydantic.Field(default_factory=dict)


def validate(
    model: type[Table], table: Mapping[str, Any], label: str, own: Mapping[str, Any] | None = None, prefix: str = ""
) -> Any:
    """Validate a table; the first problem becomes one line with place, key, value, expectation and nearest key.

    Args:
        model: what the table should be.
        table: the values.
        label: the file, as the error names it.
        own: the file's own values where some were overridden: a problem that these have not is the command line's.
        prefix: stands between place and problem.

    Raises:
        ConfigError: a key is unknown or missing, or a value is wrong.
    """
    try:
        return model.model_validate(table)
    except pydantic.ValidationError as error:
        problems, first = error.errors(), _explain(model, error.errors()[0])
    if own is not None:
        try:
            model.model_validate(own)
            label = COMMAND_LINE
        except pydantic.ValidationError as error:
            same = any(first == _explain(model, one) for one in error.errors() if one["loc"] == problems[0]["loc"])
            label = label if same else COMMAND_LINE
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise ConfigError(f"{label}: {prefix}{first}{more}")


def _explain(model: type[Table], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            known = _fields_at(model, problem["loc"][:-1])
            return f"unknown key {shown(key)}{nearest(str(problem['loc'][-1]), known)}"
        case "missing":
            return f"{key}: missing; this table needs it"
        case "value_error":
            return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
        case _:
            return f"{key} = {shown(problem['input'])}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _fields_at(model: type[Table], path: Sequence[Any]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, Table)]
        if not options:
            return []
        model = options[0]
    return list(model.model_fields)
