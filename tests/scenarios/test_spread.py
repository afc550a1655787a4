"""Spread: parity with the equations of simple_spread, and the returns that policies are known to have on it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scenarios.spread.policy import Cover
from swarm import RandomPolicy, make
from swarm.core.errors import ConfigError
from swarm.simulation.policy import AbstractPolicy

reset = eqx.filter_jit(lambda simulator, key: simulator.reset(key))
step = eqx.filter_jit(lambda simulator, world, action: simulator.step(world, action))
CROWD = {"world.size": [1.2, 1.2], "world.landmarks": 4, "population.agent.capacity": 6, "population.agent.initial": 6}
CROWD |= {"observation.landmarks": 4, "observation.others": 5}


class Still(AbstractPolicy):
    """Nobody moves."""

    def __call__(self, world, observation, key):
        return jnp.zeros(world.entities.n_slots, jnp.int32)


def simple_spread(position, velocity, force, landmark):
    """One step of the particle environment in double precision, pair by pair: state, reward and features."""
    n = len(position)
    force = 5.0 * np.asarray(force, float)
    for i in range(n):
        for j in range(n):
            if i != j:
                way = position[i] - position[j]
                distance = np.linalg.norm(way)
                overlap = 1e-3 * np.logaddexp(0.0, -(distance - 0.3) / 1e-3)
                force[i] += 1e2 * way / distance * overlap
    position, velocity = position + 0.1 * velocity, 0.75 * velocity + 0.1 * force
    between = np.linalg.norm(position[:, None] - position[None], axis=-1) + 9.0 * np.eye(n)
    touched = (between < 0.3).sum(axis=1)
    uncovered = np.linalg.norm(landmark[:, None] - position[None], axis=-1).min(axis=1)
    reward = -0.5 * touched - 0.5 * uncovered.sum()
    others = [np.delete(position, i, 0) - position[i] for i in range(n)]
    silence = [0.0] * (2 * (n - 1))
    own = [
        [*velocity[i], *position[i], *(landmark - position[i]).ravel(), *others[i].ravel(), *silence] for i in range(n)
    ]
    return position, velocity, reward, np.asarray(own), touched.sum()


@pytest.mark.parametrize("control", ["discrete", "continuous"])
def test_every_step_is_a_step_of_simple_spread(control):
    simulator = make("spread", CROWD | {"world.control": control})
    rng = np.random.default_rng(0)
    n_touched = 0
    for episode in range(3):
        world, _ = reset(simulator, jax.random.key(episode))
        for _ in range(25):
            before = world.entities
            if control == "discrete":
                action = jnp.asarray(rng.integers(5, size=6), jnp.int32)
                force = np.asarray([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])[np.asarray(action)]
            else:
                action = jnp.asarray(rng.uniform(-1, 1, size=(6, 2)), jnp.float32)
                force = action
            landmark = np.asarray(world.fields.landmark, float)
            position, velocity = np.asarray(before.position, float), np.asarray(before.velocity, float)
            position, velocity, reward, own, touched = simple_spread(position, velocity, force, landmark)
            world, timestep = step(simulator, world, action)
            np.testing.assert_allclose(world.entities.position, position, atol=1e-5)
            np.testing.assert_allclose(world.entities.velocity, velocity, atol=1e-4)
            np.testing.assert_allclose(timestep.reward, reward, atol=1e-4)
            np.testing.assert_allclose(timestep.observation.own, own, atol=1e-4)
            n_touched += touched
        assert bool(timestep.world_truncated)
    assert n_touched > 30


@eqx.filter_jit
def play(simulator, policy, keys):
    """Metrics at the end of whole episodes, with the return of each agent."""

    def one(key):
        reset_key, act_key = jax.random.split(key)
        world, timestep = simulator.reset(reset_key)
        world, _, (_, timesteps) = simulator.rollout(policy, world, timestep, act_key, 25)
        return simulator.metrics(world), jnp.sum(timesteps.reward, axis=0)

    return jax.vmap(one)(keys)


def mean_return(simulator, policy):
    """Per agent, over 2,000 episodes, and its standard error."""
    metrics, rewards = play(simulator, policy, jax.random.split(jax.random.key(0), 2000))
    found = np.asarray(metrics["return_per_agent"])
    np.testing.assert_allclose(found, np.asarray(rewards).mean(axis=1), rtol=1e-4)
    return found.mean(), found.std() / np.sqrt(len(found))


# Returns measured on another implementation over 2,000 episodes, with a standard error of up to 0.2 of their own.
@pytest.mark.parametrize(
    ("name", "known"), [("random", -26.2), ("still", -24.4), ("nearest", -16.3), ("assigned", -7.6)]
)
def test_policies_have_their_known_returns(name, known):
    simulator = make("spread")
    rules = simulator.rules
    policies = {
        "random": RandomPolicy(),
        "still": Still(),
        "nearest": Cover.of(rules, assign=False),
        "assigned": Cover.of(rules),
    }
    found, error = mean_return(simulator, policies[name])
    assert error < 0.2
    assert found == pytest.approx(known, abs=3 * np.hypot(error, 0.2 if known < -10 else 0.07))


def test_continuous_commands_cover_as_well_as_is_known():
    # How it was controlled is not known; this controller reaches -5.85, above the -6.3 that were measured.
    simulator = make("spread", {"world.control": "continuous"})
    found, error = mean_return(simulator, simulator.rules.scripted_policy())
    assert error < 0.2
    assert -6.3 < found < -5.5


def test_the_assignment_is_the_best_of_all():
    from scipy.optimize import linear_sum_assignment

    overrides = {"population.agent.capacity": 14, "population.agent.initial": 9, "world.landmarks": 6}
    simulator = make("spread", overrides)
    policy = Cover.of(simulator.rules)
    for seed in range(5):
        world, _ = reset(simulator, jax.random.key(seed))
        entities = eqx.tree_at(lambda e: e.position, world.entities, world.entities.position.at[9:].set(jnp.nan))
        goals = np.asarray(policy.goals(eqx.tree_at(lambda w: w.entities, world, entities)))[:9]
        way = np.asarray(world.entities.position)[:9, None] - np.asarray(world.fields.landmark)[None]
        distance = np.linalg.norm(way, axis=-1)
        agent, landmark = linear_sum_assignment(distance)
        np.testing.assert_array_equal(goals[agent], landmark)
        spare = np.setdiff1d(np.arange(9), agent)
        np.testing.assert_array_equal(goals[spare], distance[spare].argmin(axis=1))


def test_an_agent_sees_the_nearest_in_order_of_number():
    overrides = {"world.landmarks": 7, "population.agent.capacity": 12, "population.agent.initial": 9}
    simulator = make("spread", overrides | {"observation.landmarks": 3, "observation.others": 4})
    world, timestep = reset(simulator, jax.random.key(3))
    position, landmark = np.asarray(world.entities.position)[:9], np.asarray(world.fields.landmark)
    own = np.asarray(timestep.observation.own)
    assert not own[9:].any()
    for i in range(9):
        to_landmark, others = landmark - position[i], np.delete(position, i, 0) - position[i]
        seen = np.sort(np.linalg.norm(to_landmark, axis=1).argsort()[:3])
        near = np.sort(np.linalg.norm(others, axis=1).argsort()[:4])
        expected = [*to_landmark[seen].ravel(), *others[near].ravel(), *np.zeros(8)]
        np.testing.assert_allclose(own[i, 4:], expected, atol=1e-6)
    maps = np.asarray(timestep.observation.maps)[0]
    assert maps[..., 0].sum() == 9
    assert maps[..., 1].sum() == 7


def test_a_hundred_agents_cover_a_hundred_landmarks():
    overrides = {"world.size": [14.0, 14.0], "world.landmarks": 100, "world.steps": 40}
    overrides |= {"population.agent.capacity": 100, "population.agent.initial": 100, "world.raster": [32, 32]}
    simulator = make("spread", overrides)

    @eqx.filter_jit
    def play(policy, key):
        world, timestep = simulator.reset(key)
        world, _, _ = simulator.rollout(policy, world, timestep, key, 40)
        return simulator.metrics(world)

    metrics = play(simulator.rules.scripted_policy(), jax.random.key(0))
    assert float(metrics["covered"]) > 0.9


def test_two_agents_in_one_place_are_no_division_by_zero():
    simulator = make("spread")
    world, _ = reset(simulator, jax.random.key(0))

    def score(position):
        entities = eqx.tree_at(lambda e: e.position, world.entities, position)
        fields = eqx.tree_at(lambda f: f.contact, world.fields, simulator.rules._touch(entities))
        now = eqx.tree_at(lambda w: (w.entities, w.fields), world, (entities, fields))
        after, timestep = simulator.step(now, jnp.zeros(3, jnp.int32))
        return jnp.sum(timestep.reward) + jnp.sum(after.entities.velocity)

    slope = jax.jit(jax.grad(score))(jnp.zeros((3, 2)))
    assert bool(jnp.all(jnp.isfinite(slope)))


def test_more_landmarks_seen_than_there_are_is_an_error():
    with pytest.raises(ConfigError, match=r"observation.landmarks = 3 exceeds world.landmarks = 2"):
        make("spread", {"world.landmarks": 2})
