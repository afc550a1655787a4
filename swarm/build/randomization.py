"""Values that differ between worlds or entities: a scenario file may give a distribution in the place of a number.

    speed = {uniform = [3.0, 5.0]}                          # least, greatest
    mass = {log_uniform = [0.02, 0.2]}
    lag = {normal = [0.2, 0.05], low = 0.1, high = 0.4}     # mean, standard deviation; may be cut off
    day = {choice = [20, 30, 40]}
    radius = {uniform = [0.2, 0.3], per = "entity"}         # or "world", unless told

`[randomization] pool` draws are made of all values of worlds together, stratified (a Latin hypercube: McKay, Beckman
and Conover 1979), so that each value's draws fill its distribution evenly; at its reset a world picks one by its key.
Of the values of entities `[randomization] variants` draws are made likewise, which each draw of a world has in an order
of its own; the entity of identity u is the variant u modulo their number. All follow from `[randomization] seed` and
the value's key, and from nothing else. Nothing here imports jax.
"""

import math
import random
from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

from swarm.core.errors import ConfigError
from swarm.core.values import LARGEST

_FORMS = {
    "uniform": "uniform = [3.0, 5.0] (least, greatest)",
    "log_uniform": "log_uniform = [0.1, 10.0] (least, greatest; above 0)",
    "normal": "normal = [4.0, 0.3] (mean, standard deviation above 0), and if need be low = 3.0, high = 5.0",
    "choice": "choice = [2.0, 4.0]",
}
_LIMITS = ("low", "high")
_OWNERS = ("world", "entity")
# Their numbers belong to the learner, or are names.
_FIXED = ("rules", "groups", "training", "randomization")


class Distribution(NamedTuple):
    """Of a value.

    Attributes:
        form: `uniform`, `log_uniform`, `normal` or `choice`.
        numbers: its parameters, or what it chooses from.
        low: least value of a normal one.
        high: greatest value of a normal one.
        per: whether each `world` or each `entity` has a value of its own.
    """

    form: str
    numbers: tuple[Any, ...]
    low: float = -math.inf
    high: float = math.inf
    per: str = _OWNERS[0]

    def table(self) -> dict[str, Any]:
        """As it stands in a file."""
        limits = zip(_LIMITS, (self.low, self.high), strict=True)
        rest = {name: value for name, value in limits if math.isfinite(value)}
        rest |= {} if self.per == _OWNERS[0] else {"per": self.per}
        return {self.form: list(self.numbers), **rest}

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
    known = {*_FORMS, *_LIMITS, "per"}
    return isinstance(value, Mapping) and not value.keys() - known and bool(value.keys() & _FORMS.keys())


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
    per = table.get("per", _OWNERS[0])
    if per not in _OWNERS:
        raise ConfigError(f'{where}: per = {per!r}: expected per = "world" or per = "entity"')
    found = Distribution(form, tuple(numbers), **limits, per=per)
    least, greatest = (found.low, found.high) if form == "normal" else (min(numbers), max(numbers))
    ordered = form == "choice" or (least < greatest and [least, greatest] in (numbers, [found.low, found.high]))
    positive = (form != "log_uniform" or least > 0) and (form != "normal" or numbers[1] > 0)
    if not (ordered and positive):
        raise ConfigError(f"{where}: expected {_FORMS[form]}")
    if form == "normal" and not NormalDist(*numbers).cdf(greatest) - NormalDist(*numbers).cdf(least) > 1e-6:
        raise ConfigError(f"{where}: hardly any draw lies between low and high; bring them nearer to the mean")
    return found


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= LARGEST


def pool(of: Mapping[str, Distribution], n: int, n_variants: int, seed: int) -> list[dict[str, Any]]:
    """`n` draws of all values together, by dotted key: a number, or where entities differ a tuple with each variant's.

    A value's draws do not depend on what else is drawn. What differs between entities has the same numbers in all
    draws, in another order.
    """
    worlds = {key: d.draws(n, f"{seed} {key}") for key, d in of.items() if d.per == "world"}
    variants = {key: d.draws(n_variants, f"{seed} {key}") for key, d in of.items() if d.per == "entity"}
    orders = [random.Random(f"{seed} order {i}").sample(range(n_variants), n_variants) for i in range(n)]
    entities = [{key: tuple(column[j] for j in order) for key, column in variants.items()} for order in orders]
    return [{key: column[i] for key, column in worlds.items()} | entities[i] for i in range(n)]


def variants_of(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The numbers of each variant of a draw; one where entities do not differ."""
    n = next((len(value) for value in values.values() if isinstance(value, tuple)), 1)
    return [{key: value[j] if isinstance(value, tuple) else value for key, value in values.items()} for j in range(n)]
