"""What the spaces of host environments become: rows of features, and actions that are always in their space."""

import numpy as np
import pytest
from gymnasium import spaces
from test_adapters import task

from swarm.adapters.environments import HostError
from swarm.adapters.layout import Converter, Layout, within
from swarm.adapters.workers import HostWorld
from swarm.core.errors import ConfigError

LARGEST = float(np.finfo(np.float32).max)
BOXES = [
    *(spaces.Box(np.iinfo(t).min, np.iinfo(t).max, (1,), t) for t in (np.int8, np.int16, np.int32, np.int64)),
    *(spaces.Box(np.iinfo(t).min, np.iinfo(t).max, (1,), t) for t in (np.uint8, np.uint32, np.uint64)),
    *(spaces.Box(low, high, (1,), np.int64) for low, high in ((0, 10), (-2, 2), (3, 3), (-7, -5), (0, 2**53 + 1))),
    spaces.Box(0, 1, (1,), np.bool_),
    *(spaces.Box(-LARGEST, LARGEST, (1,), t) for t in (np.float32, np.float64)),
    spaces.Box(-np.finfo(np.float64).max, np.finfo(np.float64).max, (1,), np.float64),
    *(spaces.Box(low, high, (1,), np.float16) for low, high in ((-65504, 65504), (0.1, 0.7), (-1e-7, 1e-7))),
    *(spaces.Box(low, high, (1,), np.float32) for low, high in ((-2, 2), (0.1, 0.7), (-0.3, 17.3), (1e-45, 3e-45))),
    *(spaces.Box(low, high, (1,), np.float64) for low, high in ((0.1, 0.7), (1e308, 1.7e308), (5.0, 5.0))),
    spaces.Box(np.array([-1, 0.1], np.float32), np.array([3, 0.2], np.float32)),
]


class Boxed:
    possible_agents = ("agent",)

    def __init__(self, space):
        self._space = space

    def observation_space(self, agent):
        return spaces.Discrete(2)

    def action_space(self, agent):
        return self._space


@pytest.mark.parametrize("space", BOXES, ids=str)
def test_commands_reach_all_of_a_box_and_nothing_else(space):
    convert, n = Converter(Layout.of(Boxed(space)), Boxed(space)), space.shape[0]

    def act(x):
        found = convert.action("agent", np.full(n, x, np.float32))
        assert found.dtype == space.dtype
        assert space.contains(found), (x, found)
        return found

    for end, x in ((space.low, -1), (space.high, 1)):
        np.testing.assert_array_equal(act(x), end)
        # What is beyond, as a policy of the user's own may command, is the end.
        np.testing.assert_array_equal(act(5 * x), end)
    near = [act(x)[0].item() for x in np.linspace(-1, 1, 101)]
    assert near == sorted(near)
    middle = 0.5 * float(space.low[0]) + 0.5 * float(space.high[0])
    error = 0.5 if space.dtype.kind in "iub" else 1e-3 * abs(middle) + 1e-7
    assert abs(float(act(0.0)[0]) - middle) <= error


@pytest.mark.parametrize(("low", "high", "dtype"), [(0, 10, np.int64), (-128, 127, np.int8), (0, 1, np.bool_)])
def test_an_even_command_makes_all_whole_numbers_equally_likely(low, high, dtype):
    space = spaces.Box(low, high, (1,), dtype)
    n = 40 * (high - low + 1)
    _, counts = np.unique(within(space, (np.arange(n) + 0.5) / n), return_counts=True)
    assert len(counts) == high - low + 1
    np.testing.assert_allclose(counts, 40, atol=1)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-7),
        spaces.Discrete(2, start=2**40),
        spaces.MultiDiscrete([2, 3], start=[5, -9]),
        spaces.MultiDiscrete([2, 3], dtype=np.int8),
    ],
    ids=str,
)
def test_every_choice_is_in_its_space(space):
    layout = Layout.of(Boxed(space))
    convert = Converter(layout, Boxed(space))
    found = [convert.action("agent", np.asarray(row)) for row in np.ndindex(layout.choices)]
    assert all(space.contains(x) for x in found)
    assert len({str(x) for x in found}) == np.prod(layout.choices)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0.0, np.inf, (1,)),
        spaces.Box(-np.inf, 1.0, (1,)),
        spaces.Box(np.array([0.0, -np.inf], np.float32), np.array([1.0, 1.0], np.float32)),
        spaces.Box(0, 1, (2, 2)),
        spaces.Discrete(10**9),
        spaces.MultiDiscrete([10**9, 2]),
        spaces.MultiBinary(4),
    ],
    ids=str,
)
def test_a_space_that_cannot_be_commanded_is_refused(space):
    with pytest.raises(ConfigError, match=r"at most|expected .*finite bounds"):
        Layout.of(Boxed(space))


def test_whole_numbers_without_bounds_are_unbounded(recwarn):
    for low, high in ((-np.inf, np.inf), (0, np.inf)):
        space = spaces.Box(low, high, (1,), np.int64)
        with pytest.raises(ConfigError, match="finite bounds"):
            Layout.of(Boxed(space))


def test_a_command_that_is_nan_is_said():
    convert = Converter(Layout.of(Boxed(BOXES[0])), Boxed(BOXES[0]))
    with pytest.raises(HostError, match="the command of agent is NaN"):
        convert.action("agent", np.asarray([np.nan], np.float32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seen": "[nan]"}, "observation of agent is NaN or infinite, in float32"),
        ({"seen": "array([1e300])"}, "observation of agent is NaN or infinite, in float32"),
        ({"seen": "[-inf]"}, "observation of agent is NaN or infinite, in float32"),
        ({"seen": "[0, 1]"}, r"has shape \[2\], its space \[1\]"),
        ({"seen": "None"}, "has shape"),
        ({"seen": "3", "space": "Discrete(3)"}, "observation of agent is 3, which is not in its space"),
        ({"seen": "-1", "space": "Discrete(3)"}, "observation of agent is -1, which is not in its space"),
        ({"seen": "[0.0]", "reward": "nan"}, "reward of agent is NaN or infinite, in float32"),
        ({"seen": "[0.0]", "reward": "1e300"}, "reward of agent is NaN or infinite, in float32"),
        ({"seen": "[0.0]", "reward": "None"}, "reward of agent is NaN"),
        ({"seen": "[0.0]", "reward": "array([1, 2])"}, r"reward of agent has shape \[2\]"),
    ],
)
def test_what_an_environment_must_not_show_or_pay_is_said(options, said):
    world = HostWorld(task("Odd", **options), (0,), 0, 0)

    def play():
        world.reset()
        world.step(np.zeros((1, 1), np.int32))

    with pytest.raises(HostError, match=said):
        play()


@pytest.mark.parametrize(
    ("seen", "space", "row"),
    [
        ("[2**62]", "Box(-2**63, 2**63 - 1, (1,), int64)", [2.0**62]),
        ("[True, False]", "Box(0, 1, (2,), bool_)", [1.0, 0.0]),
        ("array([255], uint8)", "Box(0, 255, (1,), uint8)", [255.0]),
        ("array([1e-300])", "Box(-inf, inf, (1,), float64)", [0.0]),
        ("7", "Discrete(2, start=6)", [0.0, 1.0]),
    ],
)
def test_what_an_environment_may_show_is_shown(seen, space, row):
    world = HostWorld(task("Odd", seen=seen, space=space, reward="array([2])"), (0,), 0, 0)
    np.testing.assert_array_equal(world.reset().next_own[0], row)
    assert world.step(np.zeros((1, 1), np.int32)).reward == 2.0
