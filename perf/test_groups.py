"""Milliseconds per step of births, deaths and regrouping of a large population, and of asking its groups."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.population.entities import Entities, Spawn, spawn
from swarm.population.grouping import parse_grouping
from swarm.population.hierarchy import form, regroup

N, N_BIRTHS, N_TEAMS, SIDE = 100_000, 1_000, 2, 1000.0
LEVELS = ("unit", "squad", "wing", "team")
CASES = {
    "fixed": ("fixed:16", "fixed:16", "team"),
    "nearest": ("nearest:leader", "fixed:8", "team"),
    "kmeans": ("kmeans:32", "kmeans:4", "team"),
}


def births(key, m):
    """Four of 4000 are leaders, of both teams."""
    place = jax.random.uniform(key, (m, 2), maxval=SIDE)
    kind = (jnp.arange(m) % 4000 >= 4).astype(jnp.int32)
    return Spawn(jnp.ones(m, bool), kind, jnp.arange(m) // 2 % N_TEAMS, place, jnp.zeros(m), jnp.zeros((m, 1)))


def turn_over(entities, key):
    """1 % die, among them no leaders, and as many are born; all take a step."""
    die_key, born_key, walk_key = jax.random.split(key, 3)
    dying = (jax.random.uniform(die_key, (N,)) < N_BIRTHS / N) & (entities.kind > 0)
    walk = jax.random.uniform(walk_key, entities.position.shape, minval=-1.0, maxval=1.0)
    entities = eqx.tree_at(lambda e: e.position, entities, entities.position + walk).remove(dying)
    return spawn(entities, births(born_key, N_BIRTHS))[0]


@functools.cache
def start(case):
    rules = [
        parse_grouping(
            text,
            where="here",
            kinds=("leader", "unit"),
            n_teams=N_TEAMS,
            n_slots=N,
            centre=(SIDE / 2, SIDE / 2),
            capacity={"leader": 128},
        )
        for text in CASES[case]
    ]
    entities, _ = spawn(Entities.empty(N, 2, 1), births(jax.random.key(0), N - 2 * N_BIRTHS))
    return tuple(rules), entities, jax.jit(form, static_argnums=0)(LEVELS, tuple(rules), entities)


@pytest.mark.parametrize("case", [*CASES, "none"])
def test_a_step_of_births_deaths_and_regrouping(benchmark, ready, case):
    # "none" turns over without regrouping: the difference is what groups cost.
    rules, entities, hierarchy = start("fixed" if case == "none" else case)

    @jax.jit
    def step(rules, entities, hierarchy, key):
        entities = turn_over(entities, key)
        return entities, hierarchy if case == "none" else regroup(hierarchy, rules, entities)

    ready(step(rules, entities, hierarchy, jax.random.key(1)))
    later, regrouped = benchmark(lambda: ready(step(rules, entities, hierarchy, jax.random.key(1))))
    n_born = int(later.next_uid - entities.next_uid)
    n_died = int(entities.alive.sum()) + n_born - int(later.alive.sum())
    assert n_born == N_BIRTHS
    assert 0.8 * N_BIRTHS < n_died < 1.2 * N_BIRTHS
    if case == "none":
        return
    member, was = np.asarray(regrouped.parent[0]), np.asarray(hierarchy.parent[0])
    assert (member[np.asarray(later.alive)] >= 0).all()
    assert (member[~np.asarray(later.alive)] == -1).all()
    assert (member != was).sum() > 0.8 * N_BIRTHS
    assert all(int(n) == 0 for n in regrouped.overflow)
    assert [int(n) for n in regrouped.exists[2]] == [1] * N_TEAMS


@pytest.mark.parametrize("operation", ["sum", "mean", "max"])
def test_asking_each_level(benchmark, ready, operation):
    _, entities, hierarchy = start("fixed")

    @jax.jit
    def ask(hierarchy, values):
        up = [hierarchy.reduce(values, level, operation) for level in (1, 2, 3)]
        return up, [hierarchy.broadcast(x, level) for level, x in enumerate(up, start=1)]

    values = jnp.where(entities.alive, 1.0, 0.0)
    ready(ask(hierarchy, values))
    up, down = benchmark(lambda: ready(ask(hierarchy, values)))
    n = int(entities.alive.sum())
    if operation == "sum":
        assert [float(x.sum()) for x in up] == [n] * 3
        assert float(down[2].max()) == n / N_TEAMS
    else:
        assert [float(x.max()) for x in up] == [1.0] * 3
    assert [float((x > 0).sum()) for x in down] == [n] * 3
