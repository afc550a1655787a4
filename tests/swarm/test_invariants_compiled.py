"""What holds for every scenario holds of programs compiled as users compile them: of all scenarios in slow tests."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import same_bits
from jax.sharding import Mesh, PartitionSpec
from test_invariants import (  # noqa: F401
    CASES,
    N_STEPS,
    PLAY_KEYS,
    RESET_KEYS,
    SEGMENT,
    among,
    case,
    episode,
    pick,
    play,
    play_batch,
    play_segment,
    played_together,
    pytest_generate_tests,
    quick,
    reset,
    reset_batch,
    test_a_task_that_ends_is_terminated_and_not_truncated,
    test_a_world_alone_is_the_world_in_a_batch,
    test_an_episode_is_truncated_exactly_at_its_last_step,
    test_other_slots_change_nothing_but_the_order_of_sums,
    test_reset_ended_restarts_the_worlds_that_ended_and_no_other,
    test_something_happens_in_the_episodes_compared,
    test_the_same_key_and_actions_replay_the_episode,
    test_twice_the_capacity_changes_nothing,
    test_what_dead_slots_hold_influences_nothing,
)

from swarm import make
from swarm.build.scenario_files import scenario_names

pytestmark = pytest.mark.optimised


@among(CASES, compiled=("crossing",))
@pytest.mark.parametrize("n_devices", quick((1, 2, 8), (8,)))
def test_any_number_of_devices_gives_the_same_bits(case, n_devices):  # noqa: F811
    simulator = case.simulator
    mesh = Mesh(np.array(jax.devices()[:n_devices]), "worlds")
    all_of, part, later = PartitionSpec(), PartitionSpec("worlds"), PartitionSpec(None, "worlds")

    def shared(function, n_arguments, out):
        inside = (all_of, *[part] * n_arguments)
        return eqx.filter_jit(jax.shard_map(function, mesh=mesh, in_specs=inside, out_specs=out, check_vma=False))

    together = shared(lambda s, keys: jax.vmap(s.reset)(keys), 1, part)
    on = shared(lambda s, *now: jax.vmap(functools.partial(play, s), out_axes=(0, 0, 1))(*now), 3, (part, part, later))
    keys = [keys[jnp.arange(8) % 3] for keys in (RESET_KEYS, PLAY_KEYS)]
    start, batch = played_together(simulator, *keys, together, on)
    for number in (0, 7):
        alone, _, whole = episode(simulator, number % 3)
        same_bits(alone, pick(start, number), "reset ")
        same_bits(whole, jax.tree.map(lambda x, i=number: x[:, i], batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", scenario_names())
def test_a_shipped_world_alone_is_the_world_in_a_batch(name):
    simulator, keys = make(name), jax.random.split(jax.random.key(3), 8)
    now, together = reset(simulator, keys[5]), reset_batch(simulator, keys)
    same_bits(now, pick(together, 5), "reset ")
    for key in jax.random.split(jax.random.key(4), 7):
        *now, history = play_segment(simulator, *now, key)
        *together, batch = play_batch(simulator, *together, jnp.stack([key] * 8))
        same_bits(history, jax.tree.map(lambda x: x[:, 5], batch))
