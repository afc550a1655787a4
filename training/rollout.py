"""Collecting experience: many worlds stepped by the current network, each restarted where its episode ended."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from swarm.scenario import Observation, TimeStep, World
from swarm.simulator import Simulator, for_each_marked
from training.credit import GroupBy, Membership
from training.networks import Network
from training.policy import log_prob_and_entropy, sample


class Actors(eqx.Module):
    """The worlds that experience comes from; every leaf has the leading axis b, which is sharded over devices.

    Attributes:
        world: their states.
        timestep: their last time steps; the observation is of the running episode.
        index: number of the world among all worlds of the run, so that draws do not depend on the sharding.
        n_episodes: episodes started, which seeds the next.
        episode_return: rewards of all entities so far in the episode.
    """

    world: World
    timestep: TimeStep
    index: Int[Array, " b"]
    n_episodes: Int[Array, " b"]
    episode_return: Float[Array, " b"]


class Rollout(eqx.Module):
    """Experience [t, b, ...]; row t is the step from t to t + 1.

    Attributes:
        observation: what was seen.
        action: what was done, per entity.
        log_prob: its log-probability, per entity.
        value: per entity.
        reward: per entity, unscaled.
        membership: who belonged to which group slot when the step began.
        final_value: per group slot, of the last observation where the world was truncated in the step; else 0.
        final_valid: whether the group lived at that observation.
        ended: whether the world's episode ended in the step.
    """

    observation: Observation
    action: Int[Array, "*t b n"]
    log_prob: Float[Array, "*t b n"]
    value: Float[Array, "*t b n"]
    reward: Float[Array, "*t b n"]
    membership: Membership
    final_value: Float[Array, "*t b g"]
    final_valid: Bool[Array, "*t b g"]
    ended: Bool[Array, "*t b"]


class EpisodeSums(eqx.Module):
    """Sums over the episodes that ended: their number, their metrics, and the status bits they left."""

    count: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]
    status: Int[Array, " bits"]


N_STATUS_BITS = 8


def _status_bits(status: Int[Array, ""]) -> Int[Array, " bits"]:
    return (status >> jnp.arange(N_STATUS_BITS)) & 1


def reset_key(key: Key[Array, ""], index: Int[Array, ""], n_episodes: Int[Array, ""]) -> Key[Array, ""]:
    """Key of an episode, by world and by number of the episode in it."""
    return jax.random.fold_in(jax.random.fold_in(key, index), n_episodes)


def start(simulator: Simulator, key: Key[Array, ""], index: Int[Array, " b"]) -> Actors:
    """Start the first episode of each world."""
    zero = jnp.zeros_like(index)
    world, timestep = jax.vmap(simulator.reset)(jax.vmap(lambda i: reset_key(key, i, jnp.int32(0)))(index))
    return Actors(world, timestep, index, zero + 1, zero.astype(jnp.float32))


def collect(
    simulator: Simulator,
    grouping: GroupBy,
    network: Network,
    actors: Actors,
    reset_base: Key[Array, ""],
    act_base: Key[Array, ""],
    n_steps: int,
) -> tuple[Actors, Rollout, EpisodeSums]:
    """Step a batch of worlds `n_steps` times.

    Args:
        simulator: for one world; vmapped here.
        grouping: finds the group slots that trajectories belong to.
        network: acts for every entity.
        actors: the worlds.
        reset_base: key that new episodes derive from; the same during a run.
        act_base: key that actions derive from; another for each call.
        n_steps: t.
    """
    b = actors.index.shape[0]

    def body(carry: tuple[Actors, EpisodeSums], t: Array) -> tuple[tuple[Actors, EpisodeSums], Rollout]:
        actors, sums = carry
        observation = actors.timestep.observation
        logits, value = network(observation)
        step_key = jax.random.fold_in(act_base, t)
        keys = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(actors.index)
        action = jax.vmap(sample)(logits, actors.world.entities, keys)
        log_prob, _ = jax.vmap(log_prob_and_entropy)(logits, action)
        membership = jax.vmap(grouping)(actors.world)
        world, timestep = jax.vmap(simulator.step)(actors.world, action)
        episode_return = actors.episode_return + jnp.sum(timestep.reward, axis=1)
        after = Actors(world, timestep, actors.index, actors.n_episodes, episode_return)
        final = (jnp.zeros((b, membership.n_groups)), jnp.zeros((b, membership.n_groups), bool))
        after, sums, final = _finish(simulator, grouping, network, reset_base, after, sums, membership.identity, final)
        rows = Rollout(
            observation=observation,
            action=action,
            log_prob=log_prob,
            value=value,
            reward=timestep.reward,
            membership=membership,
            final_value=final[0],
            final_valid=final[1],
            ended=timestep.ended,
        )
        return (after, sums), rows

    metrics = jax.eval_shape(simulator.metrics, jax.tree.map(lambda x: x[0], actors.world))
    zeros = {name: jnp.zeros(()) for name in (*metrics, "return")}
    sums = EpisodeSums(jnp.zeros(()), zeros, jnp.zeros(N_STATUS_BITS, jnp.int32))
    (actors, sums), rollout = jax.lax.scan(body, (actors, sums), jnp.arange(n_steps))
    return actors, rollout, sums


def _finish(
    simulator: Simulator,
    grouping: GroupBy,
    network: Network,
    reset_base: Key[Array, ""],
    actors: Actors,
    sums: EpisodeSums,
    identity: Int[Array, "b g"],
    final: tuple[Float[Array, "b g"], Bool[Array, "b g"]],
) -> tuple[Actors, EpisodeSums, tuple[Float[Array, "b g"], Bool[Array, "b g"]]]:
    """Bootstrap, tally and restart the worlds whose episode ended, one by one, since they are few at any step."""
    ended, truncated = actors.timestep.ended, actors.timestep.world_truncated

    def finish(i: Array, carry: tuple[Actors, EpisodeSums, Any]) -> tuple[Actors, EpisodeSums, Any]:
        actors, sums, (final_value, final_valid) = carry
        world, observation = jax.tree.map(lambda x: x[i], (actors.world, actors.timestep.observation))
        _, value = network(observation)
        members = grouping(world)
        # A slot that passed on in the very step of the end has nothing to do with the trajectory before it.
        lives = truncated[i] & members.any(world.entities.alive) & (members.identity == identity[i])
        value = jnp.where(lives, members.total(value), 0.0)
        metrics = simulator.metrics(world) | {"return": actors.episode_return[i]}
        sums = EpisodeSums(
            sums.count + 1,
            {name: total + metrics[name] for name, total in sums.metrics.items()},
            jnp.maximum(sums.status, _status_bits(world.status)),
        )
        fresh, timestep = simulator.reset(reset_key(reset_base, actors.index[i], actors.n_episodes[i]))
        new = (fresh, timestep.observation, actors.n_episodes[i] + 1, jnp.float32(0))
        parts = (actors.world, actors.timestep.observation, actors.n_episodes, actors.episode_return)
        parts = jax.tree.map(lambda old, x: old.at[i].set(x), parts, new)
        actors = eqx.tree_at(lambda a: (a.world, a.timestep.observation, a.n_episodes, a.episode_return), actors, parts)
        return actors, sums, (final_value.at[i].set(value), final_valid.at[i].set(lives))

    return for_each_marked(finish, ended, (actors, sums, final))
