"""Collecting experience: many worlds stepped by the current networks, each restarted where its episode ended."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from swarm.core.status import Status
from swarm.population.entities import Entities
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.restart import chunk_size, for_each_marked, rows, with_rows
from swarm.simulation.simulator import Simulator
from swarm.simulation.types import Observation, TimeStep, World
from training.acting.policy import TeamPolicy
from training.acting.returns import by_team_and_kind, named_returns
from training.credit.trajectories import GroupBy, Membership, People
from training.networks import Memory, Minds
from training.networks.distributions import AbstractDistribution, Raw
from training.networks.normalise import ValueScale


class Actors(eqx.Module):
    """The worlds that experience comes from; every leaf has the leading axis b, which is sharded over devices.

    Attributes:
        world: their states.
        timestep: their last time steps; the observation is of the running episode.
        index: number of the world among all worlds of the run, so that draws do not depend on the sharding.
        n_episodes: episodes started, which seeds the next.
        episode_return: rewards so far in the episode, of all entities that learn, by team and kind.
        memory: what the networks remember of the entities.
        others: what the policies that do not learn remember: those that act for teams, and the teacher.
    """

    world: World
    timestep: TimeStep
    index: Int[Array, " b"]
    n_episodes: Int[Array, " b"]
    episode_return: Float[Array, "b m k"]
    memory: Memory
    others: PyTree


class Rollout(eqx.Module):
    """Experience [t, b, ...]; row t is the step from t to t + 1.

    Attributes:
        observation: what was seen, as far as the networks read it.
        raw: what was drawn, per entity.
        log_prob: its log-probability, per entity.
        value: per group slot and stream, as the critic says it.
        reward: per entity, unscaled.
        mind: number of the network that acted for the entity; -1: none.
        fresh: whether its memory was another's.
        membership: who belonged to which group slot when the step began, of those that learn.
        people: who they were.
        final_value: of the last observation where the world was truncated in the step; else 0; in units of reward,
            since the scale moves on before what acts late is learned from. Worlds that do not run in JAX may truncate
            a group alone.
        final_valid: whether the group lived at that observation.
        ended: whether the world's episode ended in the step.
        taught: what the teacher would have done, per entity; None without one.
    """

    observation: Observation
    raw: Int[Array, "..."] | Float[Array, "..."]
    log_prob: Float[Array, "*t n"]
    value: Float[Array, "*t g v"]
    reward: Float[Array, "*t n"]
    mind: Int[Array, "*t n"]
    fresh: Bool[Array, "*t n"]
    membership: Membership
    people: People
    final_value: Float[Array, "*t g v"]
    final_valid: Bool[Array, "*t g"]
    ended: Bool[Array, "*t"]
    taught: Raw | None


class Last(eqx.Module):
    """How the worlds stand after a rollout, as far as values need it; leading axis b.

    Attributes:
        observation: what is seen, as far as the networks read it.
        mind: number of the network that acts for the entity; -1: none.
        membership: who belongs to which group slot.
        people: who they are.
        state: what the networks remember.
        fresh: whether a memory was another's.
    """

    observation: Observation
    mind: Int[Array, "b n"]
    membership: Membership
    people: People
    state: Float[Array, "b n m"]
    fresh: Bool[Array, "b n"]


class EpisodeSums(eqx.Module):
    """Sums over the episodes that ended.

    Attributes:
        count: their number.
        metrics: of each the sum over the episodes where it is defined.
        defined: of each the number of those.
        status: the bits that they left.
    """

    count: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]
    defined: dict[str, Float[Array, ""]]
    status: Int[Array, " bits"]


class Experience(eqx.Module):
    """All that a learner needs of a rollout; p, t, b lead.

    Attributes:
        rollout: the steps.
        state: memory before each of p equal parts.
        last: how the worlds stand after it.
        index: numbers of the worlds.
        sums: over the episodes that ended.
    """

    rollout: Rollout
    state: Float[Array, "p b n m"]
    last: Last
    index: Int[Array, " b"]
    sums: EpisodeSums


class Stage(eqx.Module):
    """What acts, and where: all that a rollout needs besides the state of the worlds.

    Attributes:
        simulator: for one world; vmapped here.
        grouping: finds the group slots that trajectories belong to.
        minds: the networks that learn.
        scale: of their values, when they were those that learned.
        distribution: of their actions.
        opponents: acts for the teams that do not learn; None where all learn.
        teacher: what those that learn do is compared with what it would do; None: nobody teaches.
        teaching: whether it does so still.
        platform: of the devices that step the worlds; it decides how many of them are restarted at once.
    """

    simulator: Simulator
    grouping: GroupBy
    minds: Minds
    scale: ValueScale
    distribution: AbstractDistribution
    opponents: TeamPolicy | None
    teacher: AbstractPolicy | None
    teaching: Bool[Array, ""]
    platform: str = eqx.field(static=True)

    def members(self, world: World, alive: Bool[Array, " n"]) -> tuple[Membership, Int[Array, " n"]]:
        """Who belongs to which group slot, of those that learn; and the number of each one's network."""
        mind = self.minds.mind(world.entities.team, alive)
        return self.grouping(world).of(mind >= 0), mind

    def earned(self, entities: Entities, reward: Float[Array, " n"]) -> Float[Array, "m k"]:
        """Rewards of a step by team and kind, of those that learn: the others' are 0."""
        return by_team_and_kind(reward, entities.alive, entities, self.simulator.rules)

    def returns(self, reward: Float[Array, "m k"]) -> dict[str, Float[Array, ""]]:
        """An episode's rewards as metrics."""
        judged = tuple(team for team, network in enumerate(self.minds.of_team) if network >= 0)
        return named_returns(reward, self.simulator.rules, judged)


N_STATUS_BITS = max(Status).bit_length()


def _status_bits(status: Int[Array, ""]) -> Int[Array, " bits"]:
    return (status >> jnp.arange(N_STATUS_BITS)) & 1


def reset_key(key: Key[Array, ""], index: Int[Array, ""], n_episodes: Int[Array, ""]) -> Key[Array, ""]:
    """Key of an episode, by world and by number of the episode in it."""
    return jax.random.fold_in(jax.random.fold_in(key, index), n_episodes)


def start(stage: Stage, key: Key[Array, ""], index: Int[Array, " b"]) -> Actors:
    """Start the first episode of each world."""
    zero = jnp.zeros_like(index)
    world, timestep = jax.vmap(stage.simulator.reset)(jax.vmap(lambda i: reset_key(key, i, jnp.int32(0)))(index))
    memory, others = _nothing_yet(stage, world)
    nothing = jnp.zeros((*index.shape, stage.simulator.rules.n_teams, len(stage.simulator.rules.kinds)))
    return Actors(world, timestep, index, zero + 1, nothing, memory, others)


def start_others(stage: Stage, n_slots: int) -> PyTree:
    """What policies that do not learn remember before an episode."""
    return tuple(None if policy is None else policy.start(n_slots) for policy in (stage.opponents, stage.teacher))


def _nothing_yet(stage: Stage, worlds: World) -> tuple[Memory, PyTree]:
    """What is remembered at the start of some worlds: by the networks, and by those that do not learn."""

    def of(world: World) -> tuple[Memory, PyTree]:
        n = world.entities.n_slots
        return Memory.empty(n, stage.minds.width), start_others(stage, n)

    return jax.vmap(of)(worlds)


def collect(
    stage: Stage, actors: Actors, reset_base: Key[Array, ""], act_base: Key[Array, ""], n_steps: int, n_parts: int
) -> tuple[Actors, Experience]:
    """Step a batch of worlds `n_steps` times.

    Args:
        stage: what acts, and where.
        actors: the worlds.
        reset_base: key that new episodes derive from; the same during a run.
        act_base: key that actions derive from; another for each call.
        n_steps: t.
        n_parts: p, equal parts of the steps.

    Returns:
        The worlds, and their experience.
    """

    def body(carry: tuple[Actors, EpisodeSums], t: Array) -> tuple[tuple[Actors, EpisodeSums], Rollout]:
        return _step(stage, *carry, reset_base, jax.random.fold_in(act_base, t))

    def part(carry: tuple[Actors, EpisodeSums], times: Array) -> tuple[tuple[Actors, EpisodeSums], Any]:
        state = carry[0].memory.state
        carry, rows = jax.lax.scan(body, carry, times)
        return carry, (state, rows)

    sums = no_episodes(stage, actors)
    times = jnp.arange(n_steps).reshape(n_parts, -1)
    (actors, sums), (state, rollout) = jax.lax.scan(part, (actors, sums), times)
    rollout = jax.tree.map(lambda x: x.reshape(n_steps, *x.shape[2:]), rollout)
    return actors, Experience(rollout, state, last(stage, actors), actors.index, sums)


def no_episodes(stage: Stage, actors: Actors) -> EpisodeSums:
    """Sums over nothing."""
    metrics = jax.eval_shape(stage.simulator.metrics, jax.tree.map(lambda x: x[0], actors.world))
    returns = jax.eval_shape(stage.returns, actors.episode_return[0])
    zeros = {name: jnp.zeros(()) for name in (*metrics, *returns)}
    return EpisodeSums(jnp.zeros(()), zeros, zeros, jnp.zeros(N_STATUS_BITS, jnp.int32))


def defined_part(metric: Array) -> Array:
    """A metric where it is a number, and 0 where it is none, as a mean over nobody."""
    return jnp.where(jnp.isfinite(metric), metric, 0)


def last(stage: Stage, actors: Actors) -> Last:
    """How the worlds stand now."""
    observation, entities = actors.timestep.observation, actors.world.entities
    membership, mind = jax.vmap(stage.members)(actors.world, observation.alive)
    people = _people(membership, entities)
    fresh = actors.memory.uid != entities.uid
    return Last(stage.minds.keep(observation), mind, membership, people, actors.memory.state, fresh)


def _people(membership: Membership, entities: Entities) -> People:
    nobody = jnp.full_like(entities.uid, -1)
    builder = nobody if entities.builder is None else entities.builder
    return People(membership.index, entities.uid, entities.team, builder)


def decide(
    stage: Stage, actors: Actors, step_key: Key[Array, ""]
) -> tuple[Rollout, Int[Array, "b n *c"] | Float[Array, "b n *c"], Float[Array, "b n m"], PyTree]:
    """Let everybody choose.

    Returns:
        The row of experience, in which what follows from the step is still 0; the actions; and what the networks and
        those that do not learn remember.
    """
    observation, entities = actors.timestep.observation, actors.world.entities
    membership, mind = jax.vmap(stage.members)(actors.world, observation.alive)
    fresh = actors.memory.uid != entities.uid
    parameters, value, state = stage.minds.step(
        observation, mind, membership.index, membership.n_groups, actors.memory.state, fresh
    )
    keys = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(actors.index)
    mask = observation.action_mask
    raw = jax.vmap(lambda p, m, e, k: stage.distribution.sample(p, m, e.keys(k)))(parameters, mask, entities, keys)
    log_prob, _ = stage.distribution.log_prob_and_entropy(parameters, mask, raw)
    action, opponents = _with_opponents(stage, actors, mind, stage.distribution.command(raw), keys)
    taught, teacher = _taught(stage, actors, action, keys)
    rows = Rollout(
        observation=stage.minds.keep(observation),
        raw=raw,
        log_prob=log_prob,
        value=value,
        reward=jnp.zeros_like(log_prob),
        mind=mind,
        fresh=fresh,
        membership=membership,
        people=_people(membership, entities),
        final_value=jnp.zeros_like(value),
        final_valid=jnp.zeros(value.shape[:-1], bool),
        ended=jnp.zeros(mind.shape[0], bool),
        taught=taught,
    )
    return rows, action, state, (opponents, teacher)


def _step(
    stage: Stage, actors: Actors, sums: EpisodeSums, reset_base: Key[Array, ""], step_key: Key[Array, ""]
) -> tuple[tuple[Actors, EpisodeSums], Rollout]:
    """One step of all worlds."""
    rows, action, state, others = decide(stage, actors, step_key)
    world, timestep = jax.vmap(stage.simulator.step)(actors.world, action)
    reward = jnp.where(rows.mind >= 0, timestep.reward, 0.0)
    after = Actors(
        world=world,
        timestep=timestep,
        index=actors.index,
        n_episodes=actors.n_episodes,
        episode_return=actors.episode_return + jax.vmap(stage.earned)(actors.world.entities, reward),
        memory=Memory(state, actors.world.entities.uid),
        others=others,
    )
    final = rows.final_value, rows.final_valid
    after, sums, (value, lives) = _finish(stage, reset_base, after, sums, rows.membership.identity, final)
    return (after, sums), outcome(rows, reward, stage.scale.restore(value, lives), lives, timestep.ended)


def outcome(rows: Rollout, reward: Any, final_value: Any, final_valid: Any, ended: Any) -> Rollout:
    """Fill in what followed from the step."""
    parts = lambda r: (r.reward, r.final_value, r.final_valid, r.ended)  # noqa: E731
    return eqx.tree_at(parts, rows, (reward, final_value, final_valid, ended))


def _with_opponents(
    stage: Stage, actors: Actors, mind: Int[Array, "b n"], action: Raw, keys: Key[Array, " b"]
) -> tuple[Raw, PyTree]:
    """Fill in the actions of those that do not learn."""
    if stage.opponents is None:
        return action, None
    other_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
    observation = actors.timestep.observation
    other, memory = jax.vmap(stage.opponents.act)(actors.world, observation, actors.others[0], other_keys)
    return jnp.where((mind >= 0).reshape(mind.shape + (1,) * (action.ndim - 2)), action, other), memory


def _taught(stage: Stage, actors: Actors, action: Raw, keys: Key[Array, " b"]) -> tuple[Raw | None, PyTree]:
    """What the teacher would do, while it teaches."""
    teacher, memory = stage.teacher, actors.others[1]
    if teacher is None:
        return None, None

    def teach() -> tuple[Raw, PyTree]:
        own_keys = jax.vmap(lambda k: jax.random.fold_in(k, 2))(keys)
        return jax.vmap(teacher.act)(actors.world, actors.timestep.observation, memory, own_keys)

    return jax.lax.cond(stage.teaching, teach, lambda: (jnp.zeros_like(action), memory))


def _finish(
    stage: Stage,
    reset_base: Key[Array, ""],
    actors: Actors,
    sums: EpisodeSums,
    identity: Int[Array, "b g"],
    final: tuple[Float[Array, "b g v"], Bool[Array, "b g"]],
) -> tuple[Actors, EpisodeSums, tuple[Float[Array, "b g v"], Bool[Array, "b g"]]]:
    """Bootstrap, tally and restart the worlds whose episode ended; they are few at most steps, and many at some."""
    ended, truncated = actors.timestep.ended, actors.timestep.world_truncated
    metrics = {name: jnp.zeros(ended.shape) for name in sums.metrics}

    def finish(i: Int[Array, " c"], carry: tuple[Actors, Any, Any]) -> tuple[Actors, Any, Any]:
        actors, metrics, final = carry
        world, observation, memory, cut, before, earned = rows(
            (actors.world, actors.timestep.observation, actors.memory, truncated, identity, actors.episode_return), i
        )
        members, mind = jax.vmap(stage.members)(world, observation.alive)
        fresh = memory.uid != world.entities.uid
        _, value, _ = stage.minds.step(observation, mind, members.index, members.n_groups, memory.state, fresh)
        lives = cut[:, None] & jax.vmap(lambda m: m.any(m.index >= 0))(members)
        # A slot that passed on in the very step of the end has nothing to do with the trajectory before it.
        lives = lives & (members.identity == before)
        told = jax.vmap(stage.simulator.metrics)(world) | jax.vmap(stage.returns)(earned)
        final = with_rows(final, i, (jnp.where(lives[..., None], value, 0.0), lives))
        return _restart(stage, reset_base, actors, i), with_rows(metrics, i, told), final

    status = actors.world.status
    chunk = chunk_size((actors.world, actors.timestep.observation), stage.platform)
    actors, metrics, final = for_each_marked(finish, ended, (actors, metrics, final), chunk)
    return actors, _tally(sums, ended, metrics, status), final


def _tally(
    sums: EpisodeSums, ended: Bool[Array, " b"], metrics: dict[str, Float[Array, " b"]], status: Int[Array, " b"]
) -> EpisodeSums:
    """Add the episodes that ended, in an order that does not depend on how many were restarted at once."""
    bits = jnp.where(ended[:, None], jax.vmap(_status_bits)(status), 0)
    told = {name: jnp.where(ended, metric, jnp.nan) for name, metric in metrics.items()}
    return EpisodeSums(
        sums.count + jnp.sum(ended, dtype=jnp.float32),
        {name: total + jnp.sum(defined_part(told[name])) for name, total in sums.metrics.items()},
        {name: number + jnp.sum(jnp.isfinite(told[name])) for name, number in sums.defined.items()},
        jnp.maximum(sums.status, jnp.max(bits, axis=0)),
    )


def _restart(stage: Stage, reset_base: Key[Array, ""], actors: Actors, i: Int[Array, " c"]) -> Actors:
    """Begin the next episode of some worlds; nobody remembers the last one."""

    def parts(a: Actors) -> tuple:
        return a.world, a.timestep.observation, a.n_episodes, a.episode_return, a.memory, a.others

    index, n_episodes = rows((actors.index, actors.n_episodes), i)
    begun, timestep = jax.vmap(lambda j, n: stage.simulator.reset(reset_key(reset_base, j, n)))(index, n_episodes)
    nothing = jnp.zeros((*i.shape, *actors.episode_return.shape[1:]))
    new = (begun, timestep.observation, n_episodes + 1, nothing, *_nothing_yet(stage, begun))
    return eqx.tree_at(parts, actors, with_rows(parts(actors), i, new), is_leaf=lambda x: x is None)
