"""Environments of other libraries: their spaces in arrays, their ends, their processes and their failures."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import equinox as eqx
import hosts
import numpy as np
import pytest

import swarm
from swarm.adapters.environments import HostError, make_environment
from swarm.adapters.host import advance, begin
from swarm.adapters.layout import Converter, Layout
from swarm.adapters.workers import HostWorld, Stopped, Task, Workers
from swarm.build.scenario_files import load
from swarm.core.errors import ConfigError


def task(name, processes=1, max_steps=10_000, patience=30.0, **options):
    environment = name if ":" in name else f"hosts:{name}"
    layout = Layout.of(make_environment(environment, options))
    return Task(environment, json.dumps(options), layout, max_steps, processes, patience)


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_agents_of_different_spaces_share_one_width():
    layout = Layout.of(hosts.Shift())
    assert layout.kinds == ("worker", "guard")
    assert layout.kind == (0, 0, 1)
    assert (layout.n_own, layout.choices, layout.n_controls, layout.n_actions) == (8, (3,), 0, 3)
    convert = Converter(layout, hosts.Shift())
    seen = {"observation": 6, "action_mask": np.asarray([0, 1, 1])}
    np.testing.assert_array_equal(convert.row("guard_0", seen), np.eye(8)[6])
    np.testing.assert_array_equal(convert.row("worker_1", np.asarray([3.0, 1.0])), [3, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(convert.mask("guard_0", seen, None), [False, True, True])
    np.testing.assert_array_equal(convert.mask("worker_0", None, None), [True, True, False])
    np.testing.assert_array_equal(convert.mask("worker_0", None, {"action_mask": [0, 1]}), [False, True, False])
    with pytest.raises(HostError, match="3 entries for 2 options"):
        convert.mask("worker_0", None, {"action_mask": [0, 1, 1]})
    with pytest.raises(HostError, match="no legal action"):
        convert.mask("worker_0", None, {"action_mask": [0, 0]})


def test_commands_span_the_box():
    layout = Layout.of(make_environment("hosts:Aim", {}))
    assert (layout.n_controls, layout.n_actions) == (1, 1)
    convert = Converter(layout, make_environment("hosts:Aim", {}))
    found = [convert.action("agent", np.asarray([x], np.float32)) for x in (-1.0, 0.0, 1.0)]
    np.testing.assert_allclose(found, [[0.0], [4.0], [8.0]])


def test_several_choices_at_once():
    class Two:
        possible_agents = ("a_0", "b_0")

        def observation_space(self, agent):
            return hosts.spaces.Discrete(2)

        def action_space(self, agent):
            both = hosts.spaces.MultiDiscrete([2, 3]), hosts.spaces.Discrete(4)
            return both[agent == "b_0"]

    layout = Layout.of(Two())
    assert layout.choices == (4, 3)
    convert = Converter(layout, Two())
    np.testing.assert_array_equal(convert.mask("a_0", None, None), [1, 1, 0, 0, 1, 1, 1])
    # Of a choice that it has not, an agent takes the first option.
    np.testing.assert_array_equal(convert.mask("b_0", None, None), [1, 1, 1, 1, 1, 0, 0])
    mask = (np.asarray([1, 0]), np.asarray([0, 1, 1]))
    np.testing.assert_array_equal(convert.mask("a_0", None, {"action_mask": mask}), [1, 0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(convert.action("a_0", np.asarray([1, 2])), [1, 2])
    assert convert.action("b_0", np.asarray([3, 0])) == 3


def test_agents_come_and_end_each_in_its_way():
    world = HostWorld(task("Shift"), (0,), 0, 0)
    steps = [world.reset(), *(world.step(np.ones(3, np.int32)) for _ in range(5))]
    acting = [[True, True, False], [True, True, False], [False, True, True], [False, False, True], [False, False, True]]
    np.testing.assert_array_equal([s.next_alive for s in steps], [*acting, [True, True, False]])
    np.testing.assert_array_equal([s.reward for s in steps[1:]], np.asarray(acting, float))
    assert [list(np.flatnonzero(s.terminated)) for s in steps] == [[], [], [0], [], [], []]
    assert [list(np.flatnonzero(s.truncated)) for s in steps] == [[], [], [], [1], [], [2]]
    assert [bool(s.ended) for s in steps] == [False] * 5 + [True]
    # Whoever is cut off is seen a last time; whoever terminates is not.
    np.testing.assert_array_equal(steps[3].own[1, :2], [3, 1])
    np.testing.assert_array_equal(steps[2].own[0], np.zeros(8))
    # The last observation is of the old episode, the next of the new one.
    np.testing.assert_array_equal(steps[5].own[2], np.eye(8)[5])
    np.testing.assert_array_equal(steps[5].next_own[0, :2], [0, 0])


@pytest.mark.parametrize("stays", ["", "terminated", "truncated"])
def test_whoever_is_listed_acts_and_whoever_comes_back_begins_anew(stays, tmp_path):
    world = HostWorld(task("Returns", stays=stays), (0,), 0, 0)
    # The environment asserts that exactly those listed act.
    rows = [world.reset(), *(world.step(np.zeros((2, 1), np.int32)) for _ in range(6))]
    assert [bool(r.ended) for r in rows] == [False] * 6 + [True]
    assert [bool(r.next_alive[0]) for r in rows] == [True, True, bool(stays), True, True, True, True]
    ends = [(bool(r.terminated[0]), bool(r.truncated[0])) for r in rows]
    assert ends[2] == (stays != "truncated", stays == "truncated")
    assert sum(t or c for t, c in ends) == 2

    simulator = swarm.make(write(tmp_path, f'environment = "hosts:Returns"\noptions.stays = "{stays}"'))
    scene, _ = eqx.filter_jit(begin)(simulator, rows[0])
    uids = [np.asarray(scene.entities.uid).tolist()]
    for row in rows[1:-1]:
        final, scene, timestep = eqx.filter_jit(advance)(simulator, scene, row)
        uids.append(np.asarray(scene.entities.uid).tolist())
        if row is rows[2]:
            # Who is cut off is still who it was, as far as the value of its last observation goes.
            assert int(final.entities.uid[0]) == (0 if stays != "terminated" else 2)
            assert bool(timestep.terminated[0]) != bool(timestep.truncated[0])
    first = [[0, 1], [0, 1]]
    assert uids == [*first, [2, 1] if stays else [0, 1], *[[2, 1]] * 3]


def test_a_gymnasium_episode_is_truncated_or_terminated_as_it_says():
    cartpole = task("gymnasium:CartPole-v1", max_steps=3)
    world = HostWorld(cartpole, (0,), 0, 0)
    first = world.reset()
    last = [world.step(np.asarray([[t % 2]])) for t in range(3)][-1]
    assert bool(last.ended)
    assert bool(last.truncated[0])
    assert not last.terminated[0]
    assert np.any(last.own != last.next_own)
    world = HostWorld(cartpole._replace(max_steps=500), (0,), 0, 0)
    np.testing.assert_array_equal(world.reset().next_own, first.next_own)
    # Pushed one way only, the pole falls.
    while not (last := world.step(np.asarray([[1]]))).ended:
        pass
    assert bool(last.terminated[0])
    assert not last.truncated[0]
    assert not last.own.any()


def test_steps_do_not_depend_on_the_number_of_processes():
    found = []
    for processes in (1, 3):
        workers = Workers(task("Signs", processes), (7,), [(i, 0) for i in range(4)])
        assert len(workers.pids) == processes
        rows = [workers.reset(), *(workers.step(np.full((4, 1), t % 2)) for t in range(10))]
        workers.close()
        found.append(rows)
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    # Episodes differ by world and by number.
    signs = np.stack([row.next_own[:, 0, 0] for row in found[0]], axis=1)
    assert len({tuple(s) for s in signs}) > 1


def test_processes_do_not_load_jax():
    assert "jax" in sys.modules
    workers = Workers(task("Aim"), (0,), [(0, 0)])
    assert workers.reset().next_own[0, 0, 1] == 0
    workers.close()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", r"process 1 of worlds 1 to 1: ZeroDivisionError: the world is flat \(.*hosts.py:\d+\)"),
        ("die", "process [01] of worlds . to . died with exit code 7"),
        ("hang", "did not answer within 3 s; .* raise patience"),
        ("nan", "observation of agent is NaN or infinite"),
    ],
)
def test_a_failure_is_one_line_and_leaves_nobody_behind(how, said):
    workers = Workers(task("Bomb", 2, patience=3.0, fuse=2, how=how), (0,), [(0, 0), (1, 0)])
    actions = np.zeros((2, 1), np.int32)
    workers.reset()
    workers.step(actions)
    began = time.monotonic()
    with pytest.raises(HostError, match=said.replace("process 1 of worlds 1 to 1", "process . of worlds . to .")):
        workers.step(actions)
    assert time.monotonic() - began < 10
    pids = workers.pids
    workers.close()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("environments-")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"ValueError: xxx.* \.\.\. xxx.* \(5,000,012 characters\) \(.*hosts.py:\d+\)"),
        ({"mute": True}, "Unspeakable"),
    ],
)
def test_an_error_of_many_words_or_none_is_a_line_and_its_trace(options, said):
    workers = Workers(task("Talker", **options), (0,), [(0, 0)])
    workers.reset()
    workers.step(np.zeros((1, 1, 1), np.int32))
    with pytest.raises(HostError, match=said) as error:
        workers.step(np.zeros((1, 1, 1), np.int32))
    workers.close()
    assert len(str(error.value)) < 1000
    assert "in step\n" in error.value.details
    assert len(error.value.details) > (0 if options else 5_000_000)


SCRIPT = """
import gymnasium, numpy as np
from swarm.adapters.environments import HostError, make_environment
from swarm.adapters.layout import Layout
from swarm.adapters.workers import Task, Workers
import swarm

print("imported as", __name__, flush=True)

class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return 1, {}

GUARD
    swarm.make("NAME.toml")
    task = Task("NAME", "{}", Layout.of(make_environment("NAME", {})), 8, 2, 60.0)
    workers = Workers(task, (0,), [(0, 0), (1, 0)])
    try:
        print("first", workers.reset().next_own.tolist())
    except HostError as error:
        print("error", error)
    workers.close()
"""


@pytest.mark.parametrize(
    ("environment", "guard", "said"),
    [
        # Nobody needs a guard unless the script itself holds the environment.
        ("hosts:Signs", "if True:", "first [[["),
        pytest.param("script:Mine", 'if __name__ == "__main__":', "first [[[", marks=pytest.mark.slow),
        pytest.param("__main__:Mine", 'if __name__ == "__main__":', "first [[[", marks=pytest.mark.slow),
        ("script:Mine", "if True:", 'put that under if __name__ == "__main__":'),
        pytest.param("__main__:Mine", "if True:", 'put that under if __name__ == "__main__":', marks=pytest.mark.slow),
    ],
)
def test_a_script_starts_processes_once_guarded_or_not(environment, guard, said, tmp_path):
    (tmp_path / f"{environment}.toml").write_text(f'environment = "{environment}"')
    (tmp_path / "script.py").write_text(SCRIPT.replace("GUARD", guard).replace("NAME", environment))
    path = os.pathsep.join([*(p for p in sys.path if p), str(tmp_path)])
    words = [sys.executable, "script.py"]
    settings = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": path}, "capture_output": True, "text": True}
    found = subprocess.run(words, **settings, timeout=120, check=False)
    assert found.returncode == 0
    assert said in found.stdout.splitlines()[-1]
    assert not found.stderr
    assert found.stdout.count("imported as") <= 3
    assert found.stdout.count("imported as __main__") == 1


def test_a_process_that_is_killed_is_missed_at_once():
    workers = Workers(task("Signs", 2), (0,), [(0, 0), (1, 0)])
    workers.reset()
    os.kill(workers.pids[0], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(HostError, match="process 0 of worlds 0 to 0 died with exit code -9"):
        workers.step(np.zeros((2, 1), np.int32))
    assert time.monotonic() - began < 5
    workers.close()


def test_a_wait_can_be_ended_from_outside():
    stopping = threading.Event()
    workers = Workers(task("Bomb", 1, fuse=1, how="hang"), (0,), [(0, 0)], stopping)
    workers.reset()
    stopping.set()
    with pytest.raises(Stopped):
        workers.step(np.zeros((1, 1), np.int32))
    began = time.monotonic()
    workers.close()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('environment = "gymnasium:CartPol-v1"', "Did you mean: `CartPole`"),
        ('environment = "CartPole-v1"', 'expected "gymnasium:ID", "pettingzoo:ID or MODULE" or "module:function"'),
        ('environment = "pettingzoo:pettingzoo.mpe.simple_spread_v3"', "mpe2"),
        ('environment = "pettingzoo:sisl/persuit_v4"', "cannot be made: .*persuit"),
        ('environment = "nowhere:Signs"', "cannot import 'nowhere'"),
        ('environment = "hosts:Sings"', "module 'hosts' has no function 'Sings'"),
        ('environment = "hosts:nothing"', "returned int, neither a Gymnasium environment nor a parallel one"),
        ('environment = "hosts:Signs"\noptions = {dealy = 1}', "unexpected keyword argument 'dealy'"),
        ('environment = "hosts:Strange"', r"observation space of agent: Box\(0, 255, \(8, 8\).* expected Box of one"),
        ('environment = "hosts:Strange"\noptions = {seen = "two", done = "bits"}', "MultiBinary.* expected Discrete"),
        ('environment = "hosts:Strange"\noptions = {seen = "two", done = "boundless"}', "finite bounds"),
        ('environment = "hosts:Signs"\nproceses = 2', "did you mean 'processes'"),
        ('environment = "hosts:Signs"\n[training.credit]\ngrouping = "quadrant"', "have no place"),
        ('environment = "hosts:Signs"\nrules = "rivals:Rivals"\nworld.steps = 4', "unknown key 'environment'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as error:
        swarm.make(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_package_that_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"gymnasium is not installed; .*pip install 'swarm-engine\[host\]'"):
        swarm.make(write(tmp_path, 'environment = "gymnasium:CartPole-v1"'))


def test_a_host_environment_cannot_be_simulated_here(tmp_path, capsys):
    from swarm import simulate

    assert simulate.main([write(tmp_path, 'environment = "hosts:Signs"')]) == 2
    assert "runs in processes of its own" in capsys.readouterr().err


def test_the_resolved_file_can_be_read_again(tmp_path):
    import tomli_w

    scenario = load(write(tmp_path, 'environment = "hosts:Signs"\n[options]\ndelay = 0.5'))
    again = load(write(tmp_path, tomli_w.dumps(scenario.resolved())))
    assert again.config == scenario.config
    assert again.config.groups["levels"] == ["entity", "team"]
