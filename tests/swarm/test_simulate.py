"""What the command prints and leaves, and pictures of episodes of any length."""

import equinox as eqx
import imageio.v3 as imageio
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from swarm import load, make
from swarm.core.errors import SwarmError
from swarm.play.episodes import play
from swarm.play.pictures import Renderer, render
from swarm.simulate import main

N_STEPS = 12


@pytest.fixture(scope="module")
def colony(request):
    return str(request.path.parent / "colony.toml")


@pytest.fixture(scope="module")
def chunks(colony):
    simulator = make(load(colony))
    policy = simulator.rules.scripted_policy()
    return list(play(simulator, policy, jax.random.key(0), N_STEPS, chunk_steps=8))


@pytest.mark.parametrize("regrow", [True, False])
def test_the_command_prints_what_happened_and_writes_what_was_asked_for(colony, regrow, tmp_path, capsys):
    table, picture = tmp_path / "a.parquet", tmp_path / "a.png"
    words = [colony, "--steps", "3", "--worlds", "2", "--record", str(table), "--render", str(picture)]
    code = main([*words, "population.worker.capacity=8", *([] if regrow else ["--no-regrow"])])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("grown: world.room 2 -> 4 at step ") == regrow
    steps = pq.read_table(table)["step"].to_numpy()
    head = next(line for line in lines if "agent-steps" in line)
    assert head.startswith(f"3 steps of 2 worlds, means, {np.sum(steps > 0):,} agent-steps in ")
    assert f"  {'alive':20} {np.sum(steps == 3) / 2:.4g}" in lines
    warned = [line for line in lines if line.startswith("warning: NEIGHBORS_FULL at step ") and ", world " in line]
    assert len(warned) == (not regrow)
    assert lines[-2:] == [f"recorded: {table}", f"rendered: {picture}"]
    assert imageio.imread(picture).ndim == 3


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--record", "a.txt"], ["--record a.txt", "ends in .parquet"]),
        (["--replay", "a.parquet"], ["--replay a.parquet", "leave out"]),
        (["--record", "none/a.parquet"], ["--record none/a.parquet", "No such file"]),
        (["--record", "a.parquet", "--render", "none/a.gif"], ["--render none/a.gif", "does not exist"]),
        (["--record", "a.parquet", "--policy", "scriptd"], ["--policy scriptd", "did you mean 'scripted'?"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(colony, words, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([colony, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert list(tmp_path.iterdir()) == []


# Pictures


class Drawn:
    """Stands for a simulator whose rules note which steps they draw."""

    def __init__(self):
        self.steps = []
        self.rules = self

    def draw(self, axes, world):
        self.steps.append(int(world.step))
        axes.set_title(int(world.step))  # lest equal frames be merged


def repeated(chunks, n_times, drawn):
    """A long episode of few compilations: the chunks again and again, with steps that go on."""
    for i in range(n_times):
        for chunk in chunks:
            worlds = jax.tree.map(lambda x: x, chunk.worlds)
            object.__setattr__(worlds, "step", chunk.worlds.step + i * N_STEPS)
            yield chunk._replace(simulator=drawn, worlds=worlds)


@pytest.mark.parametrize(("most", "steps"), [(256, range(1, 13)), (5, range(1, 13, 3))])
def test_a_video_has_a_frame_for_each_stride(chunks, most, steps, tmp_path, monkeypatch):
    monkeypatch.setattr("swarm.play.pictures._MAX_FRAMES", most)
    drawn = Drawn()
    render(repeated(chunks, 1, drawn), tmp_path / "a.gif", N_STEPS)
    assert drawn.steps == list(steps)
    assert len(imageio.imread(tmp_path / "a.gif", index=None)) == len(steps)


def test_a_picture_shows_six_moments_and_keeps_few_worlds(chunks, tmp_path):
    drawn = Drawn()
    with Renderer(tmp_path / "a.png", 10_000) as renderer:
        for chunk in repeated(chunks, 20, drawn):
            renderer.write(chunk)
            assert len(renderer._target._kept) <= 24
    assert drawn.steps[-1] == 240
    np.testing.assert_allclose(drawn.steps, np.linspace(1, 240, 6), atol=8)


def test_a_video_that_is_interrupted_can_be_seen(chunks, tmp_path):
    def interrupted():
        yield chunks[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(interrupted(), tmp_path / "a.gif", N_STEPS)
    assert len(imageio.imread(tmp_path / "a.gif", index=None)) == 8


def test_a_format_that_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(SwarmError, match=r"ends in \.gif, \.mp4, \.png"):
        Renderer(tmp_path / "a.txt", 3)


def test_rules_that_begin_with_a_tuple_are_told(colony):
    simulator = make(load(colony))

    class Older(type(simulator.rules)):
        def reset(self, key):
            start = super().reset(key)
            return start.entities, start.fields

    rules = Older.from_config(load(colony).config)
    with pytest.raises(TypeError, match=r"Older\.reset: expected swarm\.Start\(entities, fields\), got .*tuple"):
        jax.eval_shape(eqx.tree_at(lambda s: s.rules, simulator, rules).reset, jax.random.key(0))
