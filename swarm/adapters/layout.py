"""How the agents of an environment stand in arrays: a slot each, rows of features, masks and actions of one width."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from swarm.adapters.environments import HostError
from swarm.core.errors import ConfigError

OBSERVATIONS = "Box of one dimension, or Discrete; alone, or with action_mask as Dict(observation, action_mask)"
ACTIONS = "Discrete, MultiDiscrete of one dimension, or Box of one dimension with finite bounds"
# Widths of the rows; beyond it no network fits.
_WIDEST = 1 << 20


class Layout(NamedTuple):
    """Sizes, and whose slot is which; hashable.

    Attributes:
        agents: a slot each.
        kinds: names, by the agents' names without their numbers.
        kind: of each slot.
        n_own: width of the rows; shorter ones are filled up with 0.
        choices: numbers of options of each choice; of an agent that has fewer the others are masked.
        n_controls: number of continuous commands; 0: choices.
    """

    agents: tuple[Any, ...]
    kinds: tuple[str, ...]
    kind: tuple[int, ...]
    n_own: int
    choices: tuple[int, ...]
    n_controls: int

    @property
    def n_actions(self) -> int:
        """Width of the action mask."""
        return self.n_controls or sum(self.choices)

    @classmethod
    def of(cls, environment: Any) -> "Layout":
        """Read it off the spaces.

        Raises:
            ConfigError: a space is none of those that networks read or draw from.
        """
        agents = tuple(environment.possible_agents)
        if not agents:
            raise ConfigError("possible_agents is empty")
        names = [re.sub(r"[_-]?\d+$", "", str(agent)) or "agent" for agent in agents]
        kinds = tuple(dict.fromkeys(names))
        seen = [_n_features(environment.observation_space(agent), agent) for agent in agents]
        done = [_options(environment.action_space(agent), agent) for agent in agents]
        if len({isinstance(x, int) for x in done}) > 1 or len({x for x in done if isinstance(x, int)}) > 1:
            raise ConfigError("action spaces: some agents have another number of continuous commands than others")
        n_controls = done[0] if isinstance(done[0], int) else 0
        several = [x for x in done if not isinstance(x, int)]
        n_choices = max((len(x) for x in several), default=0)
        choices = tuple(max(x[i] if i < len(x) else 1 for x in several) for i in range(n_choices))
        layout = cls(agents, kinds, tuple(kinds.index(name) for name in names), max(seen), choices or (1,), n_controls)
        if max(layout.n_own, layout.n_actions) > _WIDEST:
            widths = f"{layout.n_own:,} features and {layout.n_actions:,} options or commands"
            raise ConfigError(f"spaces: {widths} of an agent are too many; at most {_WIDEST:,} of each")
        return layout


def _n_features(space: Any, agent: Any) -> int:
    space = _seen(space)
    match type(space).__name__:
        case "Discrete":
            return int(space.n)
        case "Box" if len(space.shape) == 1 and space.shape[0]:
            return int(space.shape[0])
    raise ConfigError(f"observation space of {agent}: {_line(space)} is not supported; expected {OBSERVATIONS}")


def _options(space: Any, agent: Any) -> tuple[int, ...] | int:
    """Numbers of options, or the number of commands."""
    match type(space).__name__:
        case "Discrete":
            return (int(space.n),)
        case "MultiDiscrete" if len(space.shape) == 1:
            return tuple(int(n) for n in space.nvec)
        case "Box" if len(space.shape) == 1 and space.shape[0] and _has_ends(space):
            return int(space.shape[0])
    raise ConfigError(f"action space of {agent}: {_line(space)} is not supported; expected {ACTIONS}")


def _has_ends(space: Any) -> bool:
    """Whether a Box is bounded everywhere; one of integers without bounds holds the ends of its type in their place."""
    return bool(np.all(space.bounded_below & space.bounded_above & np.isfinite(space.low) & np.isfinite(space.high)))


def _seen(space: Any) -> Any:
    """The space of what is observed, without the mask beside it."""
    inner = getattr(space, "spaces", None)
    return (
        inner["observation"] if isinstance(inner, Mapping) and set(inner) == {"observation", "action_mask"} else space
    )


def _line(space: Any) -> str:
    return " ".join(str(space).split())


class Converter:
    """Between what an environment takes and returns and the rows of a layout."""

    def __init__(self, layout: Layout, environment: Any) -> None:
        self._layout = layout
        self._spaces = {agent: _seen(environment.observation_space(agent)) for agent in layout.agents}
        self._actions = {agent: environment.action_space(agent) for agent in layout.agents}

    def row(self, agent: Any, observation: Any) -> np.ndarray:
        """Features of an agent; [o].

        Raises:
            HostError: they are not finite in float32, not as many as the space says, or none of its values.
        """
        if isinstance(observation, Mapping):
            observation = observation["observation"]
        space, row = self._spaces[agent], np.zeros(self._layout.n_own, np.float32)
        if type(space).__name__ == "Discrete":
            number = int(observation) - int(space.start)
            if not 0 <= number < int(space.n):
                raise HostError(f"observation of {agent} is {observation}, which is not in its space {_line(space)}")
            row[number] = 1.0
            return row
        with np.errstate(over="ignore"):
            values = np.asarray(observation, np.float32)
        if values.shape != space.shape:
            raise HostError(f"observation of {agent} has shape {list(values.shape)}, its space {list(space.shape)}")
        if not np.isfinite(values).all():
            raise HostError(f"observation of {agent} is NaN or infinite, in float32")
        row[: values.size] = values
        return row

    def mask(self, agent: Any, observation: Any, info: Any) -> np.ndarray:
        """Legal actions of an agent; [a].

        Raises:
            HostError: the mask has another width than the actions, or nothing is legal.
        """
        own, choices = _options(self._actions[agent], agent), self._layout.choices
        if isinstance(own, int):
            return np.ones(own, bool)
        found = observation.get("action_mask") if isinstance(observation, Mapping) else None
        found = (info or {}).get("action_mask") if found is None else found
        if found is None:
            parts = [np.ones(n, bool) for n in own]
        else:
            flat = np.concatenate([np.ravel(x) for x in found]) if isinstance(found, tuple) else np.ravel(found)
            if flat.size != sum(own):
                raise HostError(f"action_mask of {agent} has {flat.size} entries for {sum(own)} options")
            parts = np.split(flat.astype(bool), np.cumsum(own)[:-1])
        if not all(part.any() for part in parts):
            raise HostError(f"action_mask of {agent} leaves no legal action")
        # Of a choice that the agent has not, the first option is the only one.
        parts = [*parts, *[np.ones(1, bool)] * (len(choices) - len(own))]
        return np.concatenate([np.pad(part, (0, n - part.size)) for part, n in zip(parts, choices, strict=True)])

    def action(self, agent: Any, row: Any) -> Any:
        """What the environment takes, from an index, indices or commands in [-1, 1] (numpy).

        Raises:
            HostError: a command is NaN.
        """
        space = self._actions[agent]
        match type(space).__name__:
            case "Discrete":
                return int(np.ravel(row)[0]) + int(space.start)
            case "MultiDiscrete":
                return (np.ravel(row)[: space.nvec.size] + space.start).astype(space.dtype)
        if np.isnan(row).any():
            raise HostError(f"the command of {agent} is NaN: check the policy")
        return within(space, 0.5 * (np.clip(np.asarray(row, np.float64), -1.0, 1.0) + 1.0))


def within(space: Any, share: np.ndarray) -> np.ndarray:
    """The point of a bounded Box at these shares of the way from its low to its high end, in its own type; [a].

    Of whole numbers each stands for an equal part of the way, so that an even share makes all equally likely.
    """
    dtype = np.dtype(space.dtype)
    if dtype.kind == "f":
        wide = np.result_type(dtype, np.float64)
        low, high = space.low.astype(wide), space.high.astype(wide)
        # Not low + share * (high - low), whose difference may be beyond the greatest number.
        return np.clip(low * (1.0 - share) + high * share, low, high).astype(dtype)
    # Differences wrap around: modulo 2^64 they are right for numbers with and without a sign.
    low, high = (x.astype(dtype).astype(np.uint64) for x in (space.low, space.high))
    last = high - low
    part = np.floor(share * (last.astype(np.float64) + 1.0))
    inner = part < last.astype(np.float64)
    return (low + np.where(inner, np.where(inner, part, 0.0).astype(np.uint64), last)).astype(dtype)


def stack(rows: Sequence[Any]) -> Any:
    """Stack named tuples of arrays along a new leading axis."""
    return type(rows[0])(*(np.stack(parts) for parts in zip(*rows, strict=True)))
