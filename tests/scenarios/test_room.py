"""Shipped scenarios have room for all that their rules let happen: none warns by itself."""

import jax
import numpy as np
import pytest

from swarm import RandomPolicy, load, make
from swarm.build.scenario_files import scenario_names
from swarm.core.status import Status
from swarm.play.episodes import play

NAMES = scenario_names()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["random", "scripted"])
@pytest.mark.parametrize("name", NAMES)
def test_an_episode_raises_no_status_bit(name, policy):
    simulator = make(name)
    acts = RandomPolicy.of(simulator.rules) if policy == "random" else simulator.rules.scripted_policy()
    n_worlds = 4 if simulator.rules.n_slots < 200 else 1
    status = 0
    for chunk in play(simulator, acts, jax.random.key(0), min(int(simulator.max_steps), 400), n_worlds=n_worlds):
        status |= int(np.bitwise_or.reduce(np.asarray(chunk.worlds.status), axis=None))
    assert Status(status) == Status(0)


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_has_room_for_all_that_come_by_schedule(name):
    config = load(name).config
    waves = getattr(getattr(config, "waves", None), "count", 0)
    for kind, table in getattr(config, "population", ()):
        most = max(getattr(table, "share", (1.0,)))
        n = (table.initial + waves * getattr(table, "wave", 0)) * most
        assert n <= table.capacity, kind
