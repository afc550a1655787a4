"""Values that differ between worlds: a scenario file may give a distribution in the place of a number.

    speed = {uniform = [3.0, 5.0]}                          # least, greatest
    mass = {log_uniform = [0.02, 0.2]}
    lag = {normal = [0.2, 0.05], low = 0.1, high = 0.4}     # mean, standard deviation; may be cut off
    day = {choice = [20, 30, 40]}

`[randomization] pool` draws are made of all such values together, stratified (a Latin hypercube: McKay, Beckman and
Conover 1979), so that each value's draws fill its distribution evenly; at its reset a world picks one by its key.
They follow from `[randomization] seed` and the value's key, and from nothing else. Nothing here imports jax.
"""

import math
import random
from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

from swarm.errors import ConfigError

_FORMS = {
    "uniform": "uniform = [3.0, 5.0] (least, greatest)",
    "log_uniform": "log_uniform = [0.1, 10.0] (least, greatest; above 0)",
    "normal": "normal = [4.0, 0.3] (mean, standard deviation above 0), and if need be low = 3.0, high = 5.0",
    "choice": "choice = [2.0, 4.0]",
}
_LIMITS = ("low", "high")
# Their numbers belong to the learner, or are names.
_FIXED = ("rules", "groups", "training", "randomization")


class Distribution(NamedTuple):
    """Of a value.

    Attributes:
        form: `uniform`, `log_uniform`, `normal` or `choice`.
        numbers: its parameters, or what it chooses from.
        low: least value of a normal one.
        high: greatest value of a normal one.
    """

    form: str
    numbers: tuple[Any, ...]
    low: float = -math.inf
    high: float = math.inf

    def table(self) -> dict[str, Any]:
        """As it stands in a file."""
        limits = zip(_LIMITS, (self.low, self.high), strict=True)
        return {self.form: list(self.numbers), **{name: value for name, value in limits if math.isfinite(value)}}

    def quantile(self, share: float) -> Any:
        """The value below which a share in (0, 1) of the draws lies."""
        match self.form:
            case "choice":
                return self.numbers[int(share * len(self.numbers))]
            case "normal":
                normal = NormalDist(*self.numbers)
                least, greatest = (normal.cdf(limit) for limit in (self.low, self.high))
                value = normal.inv_cdf(least + (greatest - least) * share)
                return min(max(value, self.low), self.high)
            case "log_uniform":
                least, greatest = self.numbers
                return min(max(least * (greatest / least) ** share, least), greatest)
            case _:
                least, greatest = self.numbers
                return least + (greatest - least) * share

    def extremes(self) -> tuple[Any, ...]:
        """The values that draws come near to, or all there are."""
        if self.form == "normal":
            return tuple(limit for limit in (self.low, self.high) if math.isfinite(limit))
        return self.numbers

    def draws(self, n: int, seed: str) -> list[Any]:
        """One value from each of `n` parts of equal probability, in random order."""
        stream = random.Random(seed)
        order = sorted((stream.random(), rank) for rank in range(n))
        # In the open interval, where all quantiles are finite.
        return [self.quantile((rank + 0.001 + 0.998 * stream.random()) / n) for _, rank in order]


def is_distribution(value: Any) -> bool:
    """Whether a value of a scenario file stands for a distribution."""
    return isinstance(value, Mapping) and not value.keys() - {*_FORMS, *_LIMITS} and bool(value.keys() & _FORMS.keys())


def distributions(table: Mapping[str, Any], label: str) -> dict[str, Distribution]:
    """The distributions in a scenario file's table, by dotted key.

    Raises:
        ConfigError: a distribution is none; `label` says where it stands.
    """
    places = (item for name, value in table.items() if name not in _FIXED for item in _walk(value, name))
    return {key: _parse(value, f"{label}: {key} = {dict(value)}") for key, value in places}


def _walk(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if is_distribution(value):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walk(inner, f"{key}.{name}")


def _parse(table: Mapping[str, Any], where: str) -> Distribution:
    forms = [name for name in _FORMS if name in table]
    if len(forms) != 1:
        raise ConfigError(f"{where}: {' and '.join(forms)} exclude each other; give one")
    [form] = forms
    numbers, limits = table[form], {name: table[name] for name in _LIMITS if name in table}
    good = isinstance(numbers, list) and len(numbers) == 2
    good = bool(numbers) and isinstance(numbers, list) if form == "choice" else good
    if not (good and all(_is_number(x) for x in [*numbers, *limits.values()]) and (form == "normal" or not limits)):
        raise ConfigError(f"{where}: expected {_FORMS[form]}")
    found = Distribution(form, tuple(numbers), **limits)
    least, greatest = (found.low, found.high) if form == "normal" else (min(numbers), max(numbers))
    ordered = form == "choice" or (least < greatest and [least, greatest] in (numbers, [found.low, found.high]))
    positive = (form != "log_uniform" or least > 0) and (form != "normal" or numbers[1] > 0)
    if not (ordered and positive):
        raise ConfigError(f"{where}: expected {_FORMS[form]}")
    if form == "normal" and not NormalDist(*numbers).cdf(greatest) - NormalDist(*numbers).cdf(least) > 1e-6:
        raise ConfigError(f"{where}: hardly any draw lies between low and high; bring them nearer to the mean")
    return found


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def pool(of: Mapping[str, Distribution], n: int, seed: int) -> list[dict[str, Any]]:
    """`n` draws of all values together, by dotted key; a value's draws do not depend on what else is drawn."""
    columns = {key: distribution.draws(n, f"{seed} {key}") for key, distribution in of.items()}
    return [{key: column[i] for key, column in columns.items()} for i in range(n)]
