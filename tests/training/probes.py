"""Probe games of known answer, each learned in seconds: what they reward tells which part of the learner works."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import pydantic

from swarm.core.tables import ScenarioConfig, Table
from swarm.population.entities import Entities, Spawn, spawn
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.random_policy import RandomPolicy
from swarm.simulation.rules import AbstractRules
from swarm.simulation.types import Observation, Outcome, Start


class WorldTable(Table):
    steps: int = pydantic.Field(ge=1)


class ProbeConfig(ScenarioConfig):
    world: WorldTable


class Probe(AbstractRules):
    """What the games share: entities in a row, no space, and a sum of rewards as the only metric."""

    Config = ProbeConfig
    kinds: ClassVar[tuple[str, ...]] = ("player",)
    actions: ClassVar[dict[str, tuple[str, ...]]] = {"player": ("no", "yes")}
    success = "score"
    headline = "score"
    n_start: ClassVar[int] = 1
    n_slots = 1
    n_teams = 1
    centre = (0.0, 0.0)

    @classmethod
    def from_config(cls, config) -> "Probe":
        return cls()

    def reset(self, key):
        m = self.n_start
        births = Spawn(
            jnp.ones(m, bool),
            jnp.zeros(m, jnp.int32),
            jnp.arange(m) % self.n_teams,
            jnp.zeros((m, 2)),
            jnp.zeros(m),
            jnp.zeros((m, 0)),
        )
        entities, _ = spawn(Entities.empty(self.n_slots, 2, 0, builders=True), births)
        return Start(entities, {"score": jnp.zeros(()), "secret": self.secret(key)})

    def secret(self, key):
        """What an episode is about."""
        return jnp.zeros(1)

    def act(self, world, action, key):
        reward, dying, births = self.play(world, action)
        alive = world.entities.alive
        fields = world.fields | {"score": world.fields["score"] + jnp.sum(jnp.where(alive, reward, 0.0))}
        return world.entities, fields, Outcome(jnp.where(alive, reward, 0.0), dying, births)

    def play(self, world, action):
        """Rewards, deaths and births."""
        raise NotImplementedError

    def row(self, world):
        """Features."""
        return jnp.eye(self.n_slots)

    def observe(self, world):
        alive = world.entities.alive
        mask = jnp.broadcast_to(alive[:, None], (self.n_slots, self.n_controls or sum(self.choices)))
        own = jnp.where(alive[:, None], self.row(world), 0.0)
        return Observation(None, None, None, own, world.entities.kind, alive, mask)

    def ended(self, world):
        return jnp.zeros((), bool)

    def metrics(self, world):
        return {"score": world.fields["score"]}

    def scripted_policy(self) -> AbstractPolicy:
        return RandomPolicy.of(self)

    def draw(self, axes, world):
        axes.plot(world.entities.team)


def nobody(world):
    return jnp.zeros_like(world.entities.alive)


class Recall(Probe):
    """A sign is shown in the first of four steps; to name it in the last pays 1. Without memory: 1/2 at best."""

    def secret(self, key):
        return jax.random.randint(key, (1,), 0, 2).astype(jnp.float32)

    def row(self, world):
        sign = 2.0 * world.fields["secret"] - 1.0
        return jnp.stack([jnp.where(world.step == 0, sign, 0.0), jnp.full(1, world.step / 3.0)], axis=1)

    def play(self, world, action):
        right = action == world.fields["secret"].astype(jnp.int32)
        return jnp.where((world.step == 3) & right, 1.0, 0.0), nobody(world), None

    def ended(self, world):
        return world.step >= 4


class Steer(Probe):
    """A number in [-0.8, 0.8] is shown; the command pays minus the square of its distance from it."""

    n_controls = 1
    choices = (1,)

    def secret(self, key):
        return jax.random.uniform(key, (1,), minval=-0.8, maxval=0.8)

    def row(self, world):
        return world.fields["secret"][:, None]

    def play(self, world, action):
        return -jnp.square(action[:, 0] - world.fields["secret"]), nobody(world), None


class Rote(Probe):
    """Nothing pays; the scripted policy says yes in every other step, from the first on, which is what scores."""

    def act(self, world, action, key):
        entities, fields, outcome = super().act(world, action, key)
        right = (action[0] == 1) == (world.step % 2 == 0)
        return entities, fields | {"score": fields["score"] + right}, outcome

    def play(self, world, action):
        return jnp.zeros(1), nobody(world), None

    def row(self, world):
        return jax.nn.one_hot(world.step[None], 5)

    def scripted_policy(self):
        return Alternating()


class Alternating(AbstractPolicy):
    """What it said last is what it remembers."""

    def start(self, n_slots):
        return jnp.zeros(n_slots, jnp.int32)

    def act(self, world, observation, memory, key):
        return 1 - memory, 1 - memory

    def __call__(self, world, observation, key):
        return jnp.ones_like(world.entities.kind)


class Lock(Probe):
    """Two choices at once, of two and three options; a number is shown, and both right pays 1."""

    choices = (2, 3)

    def secret(self, key):
        return jax.random.randint(key, (1,), 0, 6).astype(jnp.float32)

    def row(self, world):
        return jax.nn.one_hot(world.fields["secret"].astype(jnp.int32), 6)

    def play(self, world, action):
        first, second = jnp.divmod(world.fields["secret"].astype(jnp.int32), 3)
        right = (action[:, 0] == first) & (action[:, 1] == second)
        return right.astype(jnp.float32), nobody(world), None


class Martyr(Probe):
    """Of two mates the first may die for the second, who then gets 1 a step; living on pays the first 0.1 a step."""

    n_start = 2
    n_slots = 2

    def play(self, world, action):
        first = world.entities.uid == 0
        alone = ~jnp.any(world.entities.alive & first)
        reward = jnp.where(first, 0.1, jnp.where(alone, 1.0, 0.0))
        return reward, first & (action == 1), None


class Foundry(Probe):
    """A founder may build a child once, which costs it 0.5; the child gets 1 in each of the steps that are left."""

    n_slots = 2

    def row(self, world):
        both = jnp.full(self.n_slots, jnp.sum(world.entities.alive) > 1)
        return jnp.concatenate([jnp.eye(2), both[:, None].astype(jnp.float32)], axis=1)

    def play(self, world, action):
        entities = world.entities
        founder = entities.alive & (entities.uid == 0)
        builds = founder & (action == 1) & (jnp.sum(entities.alive) < 2)
        reward = jnp.where(founder, jnp.where(builds, -0.5, 0.0), 1.0)
        births = Spawn(
            builds,
            entities.kind,
            entities.team,
            entities.position,
            entities.heading,
            entities.stores,
            jnp.arange(self.n_slots),
        )
        return reward, nobody(world), births


class Bandits(Probe):
    """Eight players far from each other: yes pays a player 1, and nothing to anybody else."""

    n_start = 8
    n_slots = 8

    def play(self, world, action):
        return action.astype(jnp.float32), nobody(world), None


class Turns(Probe):
    """Four players who cannot tell each other apart: it pays when one of them says yes; at best in 27 of 64 steps."""

    n_start = 4
    n_slots = 4

    def play(self, world, action):
        return jnp.full(4, jnp.where(jnp.sum(action) == 1, 0.25, 0.0)), nobody(world), None

    def row(self, world):
        return jnp.ones((4, 1))


class Duel(Probe):
    """Three teams of one: whoever says yes takes 1 from the next team."""

    n_start = 3
    n_slots = 3
    n_teams = 3

    def play(self, world, action):
        yes = action.astype(jnp.float32)
        return yes - jnp.roll(yes, 1), nobody(world), None

    def metrics(self, world):
        return {"score": world.fields["score"]}
