"""From a validated scenario file to a simulator."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from swarm.build.randomization import variants_of
from swarm.build.scenario_files import Scenario, load
from swarm.core.errors import ConfigError, nearest
from swarm.core.values import shown
from swarm.population.grouping import AbstractGrouping, parse_grouping
from swarm.simulation.simulator import Draws, Simulator


def make(source: str | Path | Scenario, overrides: Mapping[str, Any] | None = None) -> Simulator:
    """Build the simulator of a scenario.

    Args:
        source: a shipped scenario's name ("outpost"), the path of a TOML file, or what `load` made of one.
        overrides: dotted keys and their values, like {"population.heavy.capacity": 64}; `load` takes its own.

    Raises:
        ConfigError: the file, a key or a value is wrong; the message names it and a remedy.
    """
    if isinstance(source, Scenario):
        if overrides:
            raise TypeError("a loaded scenario has its values; give overrides to load()")
        return build_simulator(source)
    return build_simulator(load(source, overrides))


def build_simulator(scenario: Scenario) -> Simulator:
    """Build the rules and the hierarchy, and what differs between the draws of values that are drawn at random.

    Raises:
        ConfigError: a level of `groups` is missing, unknown, or its rule is not one; or what is drawn at random sets
            the shape or the structure of what is compiled.
    """
    simulator = _build(scenario)
    draws = scenario.draws()
    if not draws:
        return simulator
    drawn, shapes = _drawn(scenario, draws), _shapes(simulator)
    if any(_shapes(other) != shapes for variants in drawn for other in variants):
        numbers = [one for values in draws for one in variants_of(values)]
        ones = ((key, scenario.drawn({key: one[key]})) for key in scenario.random for one in numbers)
        key = next((key for key, one in ones if _shapes(_build(one)) != shapes), ", ".join(scenario.random))
        raise ConfigError(
            f"{scenario.place(key)}: {key} sets a size or a choice that is compiled in and cannot differ between "
            "worlds; give one value"
        )
    n_variants = len(drawn[0])
    if n_variants > 1:
        _check_tables(scenario, drawn[0])
        drawn, simulator = [[_merged(one)] for one in drawn], _merged([simulator] * n_variants)
    draws = Draws(len(drawn), _stacked([one for [one] in drawn]))
    return eqx.tree_at(lambda s: s.draws, simulator, draws, is_leaf=lambda x: x is None)


def _drawn(scenario: Scenario, draws: list[dict[str, Any]]) -> list[list[Simulator]]:
    """For each draw the simulators of its variants, each built once though many draws have it."""
    built: dict[Any, Simulator] = {}

    def build(values: dict[str, Any]) -> Simulator:
        key = tuple(values.items())
        if key not in built:
            built[key] = _build(scenario.drawn(values))
        return built[key]

    return [[build(one) for one in variants_of(values)] for values in draws]


def _check_tables(scenario: Scenario, variants: list[Simulator]) -> None:
    """Raise where a value is to differ between entities that the rules hold for all of them together."""

    def shared(simulator: Simulator) -> list[np.ndarray]:
        if simulator.rules.tables is not None:
            simulator = eqx.tree_at(lambda s: s.rules.tables, simulator, replace_fn=lambda _: None)
        return jax.device_get(jax.tree.leaves(eqx.filter(simulator, eqx.is_array)))

    def alike(one: Simulator, other: Simulator) -> bool:
        return all(np.array_equal(x, y) for x, y in zip(shared(one), shared(other), strict=True))

    if all(alike(variants[0], other) for other in variants[1:]):
        return
    medians = _build(scenario.drawn({}))
    entities = {key: d for key, d in scenario.random.items() if d.per == "entity"}
    ones = ((key, scenario.drawn({key: d.quantile(share)})) for key, d in entities.items() for share in (0.01, 0.99))
    key = next((key for key, one in ones if not alike(medians, _build(one))), ", ".join(entities))
    raise ConfigError(
        f'{scenario.place(key)}: {key}: all entities share what it sets, or part of it; leave out per = "entity"'
    )


def _merged(variants: list[Simulator]) -> Simulator:
    """A simulator whose tables hold the rows of each variant, one variant after the other."""

    def joined(*tables: Any) -> Any:
        return jnp.concatenate(tables) if eqx.is_array(tables[0]) else tables[0]

    tables = jax.tree.map(joined, *(one.rules.tables for one in variants))
    merged = eqx.tree_at(lambda s: s.rules.tables, variants[0], tables)
    rules = dataclasses.replace(merged.rules, n_variants=len(variants))
    return eqx.tree_at(lambda s: s.rules, merged, rules)


def _shapes(simulator: Simulator) -> Any:
    """All about a simulator but the values of its arrays."""
    arrays, rest = eqx.partition(simulator, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    return structure, [(x.shape, x.dtype) for x in leaves], jax.tree.leaves(rest)


def _stacked(drawn: list[Simulator]) -> Any:
    """The arrays that are not the same in all draws."""

    def stack(*values: Any) -> Any:
        first, *others = jax.device_get(values)
        return None if all(np.array_equal(first, x) for x in others) else jnp.asarray(np.stack([first, *others]))

    return jax.tree.map(stack, *(eqx.filter(one, eqx.is_array) for one in drawn))


def _build(scenario: Scenario) -> Simulator:
    rules = scenario.rules_class.from_config(scenario.config)
    groups = dict(scenario.config.groups)
    levels = groups.pop("levels", None)
    where = f"{scenario.place('groups.levels')}: groups.levels = {shown(levels)}"
    if not (isinstance(levels, list) and levels and all(isinstance(level, str) for level in levels)):
        raise ConfigError(f'{where}: expected a list of names, like ["unit", "crew", "team"]')
    if len(set(levels)) != len(levels):
        raise ConfigError(f"{where}: each level needs a name of its own")
    for name in groups:
        if name not in levels[1:]:
            hint = nearest(name, levels[1:] or ["levels"])
            raise ConfigError(f"{_place_of_level(scenario, name)}: groups: unknown key {shown(name)}{hint}")
    groupings = tuple(
        grouping_of(rules, groups.get(level, level), where=f"{_place_of_level(scenario, level)}: groups.{level}")
        for level in levels[1:]
    )
    return Simulator(rules, groupings, tuple(levels), jnp.int32(scenario.config.world.steps))


def _place_of_level(scenario: Scenario, level: str) -> str:
    """Where a level comes from: its rule or, where that is the file's own, the list of levels."""
    place = scenario.place(f"groups.{level}")
    return scenario.place("groups.levels") if place == scenario.source else place


def grouping_of(rules: Any, text: Any, *, where: str) -> AbstractGrouping:
    """Parse a grouping rule in the terms of a scenario's kinds, teams and space."""
    if not isinstance(text, str):
        raise ConfigError(f"{where} = {shown(text)}: expected a grouping rule, like 'nearest:depot'")
    # Rules without a space of their own (a grid) measure straight lines; without capacities, any slot may be an anchor.
    per_team = getattr(rules, "capacity", None)
    if isinstance(per_team, tuple):
        capacity = {kind: rules.n_teams * most for kind, most in zip(rules.kinds, per_team, strict=True)}
    else:
        capacity = None
    return parse_grouping(
        text,
        where=f"{where} = {shown(text)}",
        kinds=rules.kinds,
        n_teams=rules.n_teams,
        n_slots=rules.n_slots,
        centre=rules.centre,
        space=getattr(rules, "space", None),
        capacity=capacity,
    )
