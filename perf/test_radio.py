"""Radios of 100,000 entities through the cell grid: a search, and a step of what is sent and what arrives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from swarm.comms.radios import Bursts, Jitter, Loss, NearestRadio, SumRadio
from swarm.geometry.space import Open
from swarm.neighbors.search import neighbor_search
from swarm.population.entities import Entities

N, N_NUMBERS, K, PER_SQUARE = 100_000, 4, 8, 2.5
LOSS = Loss.of(0.1, 0.2, 1.0)
LATE, BAD = Jitter.of([0.6, 0.3, 0.1]), Bursts.of(50, 5)
RADIOS = {
    "sum": SumRadio(LOSS, 2),
    "sum_jitter_bursts": SumRadio(LOSS, 2, LATE, BAD),
    "nearest": NearestRadio(LOSS, 2, K),
    "nearest_jitter_bursts": NearestRadio(LOSS, 2, K, LATE, BAD),
}


@pytest.mark.parametrize("name", RADIOS)
def test_radio(benchmark, ready, name):
    radio, side = RADIOS[name], (N / PER_SQUARE) ** 0.5
    entities = eqx.tree_at(
        lambda e: (e.alive, e.uid, e.position),
        Entities.empty(N, 2, 0),
        (jnp.ones(N, bool), jnp.arange(N, dtype=jnp.int32), side * jax.random.uniform(jax.random.key(0), (N, 2))),
    )
    search = neighbor_search(Open(jnp.zeros(2), jnp.full(2, side)), 1.0, N)
    message = jax.random.normal(jax.random.key(1), (N, N_NUMBERS))

    @eqx.filter_jit
    def step(radio, mail, entities, message, key):
        found = search.find(entities.position, entities.alive)
        mail, inbox = radio.step(mail, found, entities, message, key)
        return mail, inbox, found.overflow

    mail, arrived, offered = radio.init(N, N_NUMBERS), 0.0, 0.0
    for t in range(6):
        mail, inbox, overflow = ready(step(radio, mail, entities, message, jax.random.key(t)))
        assert not overflow
        arrived, offered = arrived + float(inbox.count.mean()), offered + float(mail.offered.mean())
    # Of some 7 neighbours within the radius, or up to 8 of them, about two thirds get through.
    assert 6.5 < offered / 6 < 8.0
    assert 0.2 < arrived / offered < 0.7
    benchmark.pedantic(lambda: ready(step(radio, mail, entities, message, jax.random.key(9))), rounds=10)
    if benchmark.stats:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["messages_per_second"] = round(N * offered / 6 / seconds)
        print(f" {1e3 * seconds:.0f} ms, {1e9 * seconds / N:.0f} ns an entity")
