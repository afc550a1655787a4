"""Who acts for each team: networks that learn, scripted and random policies, or the policy of another run."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from swarm.core.errors import ConfigError
from swarm.simulation.policy import AbstractPolicy
from swarm.simulation.random_policy import RandomPolicy
from swarm.simulation.rules import AbstractRules
from training.acting.policy import NetworkPolicy, TeamPolicy
from training.networks import Minds


class Teams(NamedTuple):
    """Who acts for each team.

    Attributes:
        of_team: number of the network that learns for each team; -1: an opponent acts for it.
        opponents: acts for all teams, of which those that learn are overruled; None where all learn.
    """

    of_team: tuple[int, ...]
    opponents: TeamPolicy | None

    def policy(self, minds: Minds, rules: AbstractRules, *, deterministic: bool = False) -> AbstractPolicy:
        """Return the policy of all teams together."""
        learned = NetworkPolicy.of(minds, rules, deterministic=deterministic)
        return self.with_opponents(learned)

    def with_opponents(self, policy: AbstractPolicy) -> AbstractPolicy:
        """Return a policy where some other acts for the teams that learn, by which it is judged."""
        if self.opponents is None:
            return policy
        learns = jnp.asarray(self.of_team) >= 0
        return TeamPolicy((policy, self.opponents), jnp.where(learns, 0, 1), self.learners)

    @property
    def learners(self) -> tuple[int, ...]:
        """Numbers of the teams that learn."""
        return tuple(team for team, network in enumerate(self.of_team) if network >= 0)


def assign(names: Sequence[str], rules: AbstractRules, frozen: Callable[[str], AbstractPolicy], *, where: str) -> Teams:
    """Read the setting `teams`.

    Args:
        names: one for each team, or one for all.
        rules: of the scenario.
        frozen: the policy of a run folder.
        where: file and key, for the message.

    Raises:
        ConfigError: a name is none of those known, or there are not as many as teams, or none learns.
    """
    if len(names) not in (1, rules.n_teams):
        raise ConfigError(
            f"{where} = {list(names)}: {len(names)} names for {rules.n_teams} team(s); one each, or one for all"
        )
    names = [*names] * (rules.n_teams if len(names) == 1 else 1)
    learners = list(dict.fromkeys(name for name in names if name.partition(":")[0] == "learn"))
    if not learners:
        raise ConfigError(f'{where} = {names}: nobody learns; name "learn" for a team')
    of_team = tuple(learners.index(name) if name in learners else -1 for name in names)
    others = list(dict.fromkeys(name for name in names if name not in learners))
    if not others:
        return Teams(of_team, None)

    numbers = jnp.asarray([others.index(name) if name in others else 0 for name in names])
    return Teams(of_team, TeamPolicy(tuple(policy_named(name, rules, frozen) for name in others), numbers))


def policy_named(name: str, rules: AbstractRules, frozen: Callable[[str], AbstractPolicy]) -> AbstractPolicy:
    """Return the policy that does not learn of that name, which may be a run folder's."""
    if name == "scripted":
        return rules.scripted_policy()
    return RandomPolicy.of(rules) if name == "random" else frozen(name)
