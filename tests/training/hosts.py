"""Small environments that are not JAX, of known answer, for `environment = "hosts:NAME"`."""

import os
import sys
import time

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Signs(gymnasium.Env):
    """A sign is shown in each of eight steps; to name it pays 1, so at random 4. Truncated, never terminated.

    `delay`: seconds that a step takes.
    """

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(2, start=5)

    def __init__(self, delay=0.0):
        self._delay = delay

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step = 0
        return self._look(), {}

    def step(self, action):
        time.sleep(self._delay)
        assert action in (5, 6)
        reward = float((action == 6) == (self._sign > 0))
        self._step += 1
        return self._look(), reward, False, self._step >= 8, {}

    def _look(self):
        self._sign = 2.0 * self.np_random.integers(2) - 1.0
        return np.asarray([self._sign, self._step / 8], np.float32)


class Aim(gymnasium.Env):
    """A place in [2, 6] is shown; the command, in [0, 8], pays minus its distance. Says whether jax is loaded here."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(0.0, 8.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._look(), {}

    def step(self, action):
        assert action.dtype == np.float32
        reward = -abs(float(action[0]) - self._place)
        return self._look(), reward, True, False, {}

    def _look(self):
        self._place = self.np_random.uniform(2.0, 6.0)
        return np.asarray([self._place, "jax" in sys.modules], np.float32)


class Shift(ParallelEnv):
    """Two workers and a late guard. To say yes pays 1; the guard must not say no, which is masked.

    worker_0 terminates in step 2, worker_1 is truncated alone in step 3, guard_0 comes in step 2 and is truncated in
    step 5, which ends the episode. Workers see the step and their number, the guard the step alone.
    """

    metadata = {"name": "shift"}  # noqa: RUF012
    possible_agents = ["worker_0", "worker_1", "guard_0"]  # noqa: RUF012

    def __init__(self):
        row, both = spaces.Box(-1.0, 8.0, (2,), np.float32), spaces.Discrete(2)
        seen = {"observation": spaces.Discrete(8), "action_mask": spaces.Box(0, 1, (3,), np.int8)}
        self._seen = {"worker_0": row, "worker_1": row, "guard_0": spaces.Dict(seen)}
        self._done = {"worker_0": both, "worker_1": both, "guard_0": spaces.Discrete(3)}

    def observation_space(self, agent):
        return self._seen[agent]

    def action_space(self, agent):
        return self._done[agent]

    def reset(self, seed=None, options=None):
        self._step, self.agents = 0, ["worker_0", "worker_1"]
        return self._look(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions):
        assert set(actions) == set(self.agents)
        assert actions.get("guard_0") != 0
        acted, self._step = self.agents, self._step + 1
        ended = {"worker_0": self._step == 2}
        cut = {"worker_1": self._step == 3, "guard_0": self._step == 5}
        newcomers = ["guard_0"] if self._step == 2 else []
        self.agents = [a for a in acted if not ended.get(a) and not cut.get(a)] + newcomers
        shown = [*acted, *newcomers]
        flags = ({agent: bool(x.get(agent, False)) for agent in acted} for x in (ended, cut))
        return self._look(shown), {a: float(actions[a] == 1) for a in acted}, *flags, {agent: {} for agent in shown}

    def _look(self, agents):
        def of(agent):
            if agent == "guard_0":
                return {"observation": self._step, "action_mask": np.asarray([0, 1, 1], np.int8)}
            return np.asarray([self._step, int(agent[-1])], np.float32)

        return {agent: of(agent) for agent in agents}


class Martyrs(ParallelEnv):
    """The probe `Martyr` outside JAX: the first may die for the second, who then gets 1 a step; else the first 0.1."""

    metadata = {"name": "martyrs"}  # noqa: RUF012
    possible_agents = ["player_0", "player_1"]  # noqa: RUF012

    def __init__(self):
        self._row, self._both = spaces.Box(0.0, 1.0, (2,), np.float32), spaces.Discrete(2)

    def observation_space(self, agent):
        return self._row

    def action_space(self, agent):
        return self._both

    def reset(self, seed=None, options=None):
        self._step, self.agents = 0, list(self.possible_agents)
        return self._look(), {}

    def step(self, actions):
        self._step += 1
        acted, dies, alone = self.agents, actions.get("player_0") == 1, len(self.agents) == 1
        self.agents = ["player_1"] if dies or alone else acted
        over = dict.fromkeys(acted, self._step == 4)
        gone = {agent: dies and agent == "player_0" for agent in acted}
        rewards = {agent: 0.1 if agent == "player_0" else float(alone) for agent in acted}
        if self._step == 4:
            self.agents = []
        return self._look(), rewards, gone, over, {}

    def _look(self):
        return dict(zip(self.possible_agents, np.eye(2, dtype=np.float32), strict=True))


class Bomb(Signs):
    """Signs that go wrong in step `fuse` of the process's life: as `how` says; 0: never."""

    def __init__(self, fuse=0, how="raise"):
        super().__init__()
        self._fuse, self._how = fuse, how

    def step(self, action):
        self._fuse -= 1
        if self._fuse == 0:
            match self._how:
                case "raise":
                    raise ZeroDivisionError("the world is flat")
                case "die":
                    os._exit(7)
                case "hang":
                    time.sleep(600)
                case "nan":
                    return np.full(2, np.nan, np.float32), 0.0, False, False, {}
        return super().step(action)


class Strange(gymnasium.Env):
    """Spaces that are not supported."""

    def __init__(self, seen="picture", done="two"):
        choices = {
            "picture": spaces.Box(0, 255, (8, 8), np.uint8),
            "two": spaces.Discrete(2),
            "several": spaces.MultiDiscrete([2, 3]),
            "boundless": spaces.Box(-np.inf, np.inf, (2,)),
            "bits": spaces.MultiBinary(3),
        }
        self.observation_space, self.action_space = choices[seen], choices[done]


def nothing():
    return 3


class Returns(ParallelEnv):
    """The player leaves after its second step and comes back a step later; the witness stays. Ends after six steps.

    `stays`: the player is still listed where it ends ("terminated" or "truncated"), and has to act at once.
    """

    metadata = {"name": "returns"}  # noqa: RUF012
    possible_agents = ["player_0", "witness_0"]  # noqa: RUF012

    def __init__(self, stays=""):
        self._stays, self._row, self._both = stays, spaces.Box(0.0, 8.0, (1,), np.float32), spaces.Discrete(2)

    def observation_space(self, agent):
        return self._row

    def action_space(self, agent):
        return self._both

    def reset(self, seed=None, options=None):
        self._step, self.agents = 0, list(self.possible_agents)
        return self._look(), {}

    def step(self, actions):
        assert set(actions) == set(self.agents), "everyone listed acts"
        self._step += 1
        acted, leaves = self.agents, self._step == 2
        here = self._stays or self._step != 2
        self.agents = (["player_0"] if here else []) + ["witness_0"]
        over = dict.fromkeys(acted, self._step == 6)
        dies = over | {"player_0": leaves and self._stays != "truncated"}
        cut = dict.fromkeys(acted, False) | {"player_0": leaves and self._stays == "truncated"}
        # Nobody is struck off the list at the end, as in many an environment.
        return self._look(), dict.fromkeys(acted, 1.0), dies | over if self._step == 6 else dies, cut, {}

    def _look(self):
        return {agent: np.asarray([self._step], np.float32) for agent in self.possible_agents}


class Odd(gymnasium.Env):
    """Shows and pays what it is told, as `numpy` makes it of a text."""

    action_space = spaces.Discrete(2)

    def __init__(self, seen="0.0", reward="0.0", space="Box(-inf, inf, (1,))"):
        names = {name: getattr(np, name) for name in ("inf", "nan", "float64", "int64", "uint8", "bool_", "array")}
        self._seen, self._reward = (eval(text, names) for text in (seen, reward))
        self.observation_space = eval(space, names | {"Box": spaces.Box, "Discrete": spaces.Discrete})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._seen, {}

    def step(self, action):
        return self._seen, self._reward, False, False, {}


class Talker(Signs):
    """Fails in its second step with many words, or with an error that cannot be told."""

    def __init__(self, n_characters=5_000_000, mute=False):
        super().__init__()
        self._n, self._mute = n_characters, mute

    def step(self, action):
        if self._step == 1:
            raise Unspeakable() if self._mute else ValueError("x" * self._n)
        return super().step(action)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")
