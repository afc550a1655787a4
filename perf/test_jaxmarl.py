"""Training beside JaxMARL on its own task: independent PPO on MPE simple_spread, the same worlds, network and updates.

Needs `pip install jaxmarl`. The other side is JaxMARL's environment (Rutherford et al. 2024) in the loop that its IPPO
baseline has: agents flattened into one batch, generalised advantages, epochs over shuffled minibatches.
"""

import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

from swarm.build.scenario_files import load
from training.config import load_training
from training.networks.layers import Perceptron
from training.runs.build import build_learner

# The settings of JaxMARL's baseline for MPE.
WORLDS, ROLLOUT, EPOCHS, MINIBATCHES, RATE = 16, 128, 4, 4, 2.5e-4
DISCOUNT, GAE_LAMBDA, CLIP, HIDDEN = 0.99, 0.95, 0.2, 64


class Net(eqx.Module):
    """The layers of recipe ippo: an encoder of two layers, and two heads of two that see it and the row."""

    encoder: Perceptron
    actor: Perceptron
    critic: Perceptron

    def __init__(self, n_in, n_actions, key):
        keys = jax.random.split(key, 3)
        self.encoder = Perceptron(n_in, HIDDEN, HIDDEN, 2**0.5, keys[0])
        self.actor = Perceptron(n_in + HIDDEN, HIDDEN, n_actions, 0.01, keys[1])
        self.critic = Perceptron(n_in + HIDDEN, HIDDEN, 1, 0.01, keys[2])

    def __call__(self, row):
        features = jnp.concatenate([jax.nn.relu(self.encoder(row)), row], axis=-1)
        return self.actor(features), self.critic(features)[..., 0]


class Peer:
    """Independent PPO on JaxMARL's environment."""

    def __init__(self, env, worlds):
        self.env, self.worlds = env, worlds
        self.optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(RATE, eps=1e-5))

    def start(self, seed):
        net_key, world_key, key = jax.random.split(jax.random.key(seed), 3)
        agent = self.env.agents[0]
        n_in, n_actions = self.env.observation_space(agent).shape[0], self.env.action_space(agent).n
        net = Net(n_in, n_actions, net_key)
        seen, state = jax.vmap(self.env.reset)(jax.random.split(world_key, self.worlds))
        return net, self.optimizer.init(net), seen, state, key

    def flat(self, of_agent):
        """[worlds] of each agent to one batch [agents * worlds]."""
        x = jnp.stack([of_agent[a] for a in self.env.agents])
        return x.reshape(-1, *x.shape[2:])

    @eqx.filter_jit
    def update(self, carry):
        net, optimizer, seen, state, key = carry
        key, shuffle_key = jax.random.split(key)

        def step(carry, _):
            seen, state, key = carry
            key, act_key, step_key = jax.random.split(key, 3)
            row = self.flat(seen)
            logits, value = net(row)
            action = jax.random.categorical(act_key, logits)
            log_prob = log_prob_of(logits, action)
            of_agent = action.reshape(len(self.env.agents), self.worlds)
            actions = {a: of_agent[i] for i, a in enumerate(self.env.agents)}
            keys = jax.random.split(step_key, self.worlds)
            seen, state, reward, done, _ = jax.vmap(self.env.step)(keys, state, actions)
            return (seen, state, key), (row, action, log_prob, value, self.flat(reward), self.flat(done))

        (seen, state, key), rows = jax.lax.scan(step, (seen, state, key), length=ROLLOUT)
        row, action, log_prob, value, reward, done = rows
        last_value = net(self.flat(seen))[1]

        def backward(carry, t):
            advantage, next_value = carry
            value, reward, done = t
            delta = reward + DISCOUNT * next_value * (1 - done) - value
            advantage = delta + DISCOUNT * GAE_LAMBDA * (1 - done) * advantage
            return (advantage, value), advantage

        start = jnp.zeros_like(last_value), last_value
        advantage = jax.lax.scan(backward, start, (value, reward, done), reverse=True, unroll=8)[1]
        n = advantage.size
        batch = jax.tree.map(
            lambda x: x.reshape(n, *x.shape[2:]), (row, action, log_prob, value, advantage, advantage + value)
        )

        def learn(carry, chosen):
            net, optimizer = carry
            gradient = eqx.filter_grad(loss)(net, jax.tree.map(lambda x: x[chosen], batch))
            change, optimizer = self.optimizer.update(gradient, optimizer)
            return (eqx.apply_updates(net, change), optimizer), optax.tree.norm(gradient)

        keys = jax.random.split(shuffle_key, EPOCHS)
        order = jax.vmap(lambda k: jax.random.permutation(k, n))(keys).reshape(EPOCHS * MINIBATCHES, -1)
        (net, optimizer), norms = jax.lax.scan(learn, (net, optimizer), order)
        return (net, optimizer, seen, state, key), (n, norms[-1])


def log_prob_of(logits, action):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=1)[:, 0]


def loss(net, batch):
    row, action, old_log_prob, old_value, advantage, target = batch
    logits, value = net(row)
    ratio = jnp.exp(log_prob_of(logits, action) - old_log_prob)
    advantage = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
    policy = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    clipped = old_value + jnp.clip(value - old_value, -CLIP, CLIP)
    values = 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))
    entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=1)
    return jnp.mean(policy) + 0.5 * jnp.mean(values) - 0.01 * jnp.mean(entropy)


def ours(worlds):
    settings = {
        "worlds": worlds,
        "rollout": ROLLOUT,
        "epochs": EPOCHS,
        "minibatches": MINIBATCHES,
        "learning_rate": RATE,
        "network.hidden": HIDDEN,
        "entropy_weight": 0.01,
        "discount": DISCOUNT,
        "anneal": [],
    }
    scenario = load("spread", {f"training.{key}": value for key, value in settings.items()})
    return build_learner(scenario, load_training(scenario))


def n_floats(network):
    return sum(x.size for x in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))


@pytest.mark.parametrize("worlds", [16, 128])
def test_updates_beside_jaxmarl(benchmark, ready, worlds):
    """Rounds of both in turn; the ratio of their medians is what counts."""
    jaxmarl = pytest.importorskip("jaxmarl")
    peer = Peer(jaxmarl.make("MPE_simple_spread_v3"), worlds)
    learner = ours(worlds)
    theirs = peer.start(0)
    learned, actors = learner.init(0)
    # The rows differ: JaxMARL's agents also hear each other, two numbers from each.
    assert 0 <= n_floats(theirs[0]) - n_floats(learned.network) < 0.1 * n_floats(theirs[0])
    ready(peer.update(theirs))
    ready(learner.update(learned, actors))
    agent_steps, seconds = worlds * ROLLOUT * 3, []

    def both():
        started = time.perf_counter()
        _, (n, norm) = ready(peer.update(theirs))
        between = time.perf_counter()
        _, _, metrics = ready(learner.update(learned, actors))
        seconds.append((between - started, time.perf_counter() - between))
        assert n == float(metrics["agent_steps"]) == agent_steps
        assert float(norm) > 0
        assert float(metrics["grad_norm"]) > 0

    benchmark.pedantic(both, rounds=15)
    theirs_seconds, ours_seconds = (statistics.median(x) for x in zip(*seconds, strict=True))
    benchmark.extra_info["agent_steps_per_second"] = round(agent_steps / ours_seconds)
    benchmark.extra_info["of_jaxmarl"] = round(agent_steps / theirs_seconds)
