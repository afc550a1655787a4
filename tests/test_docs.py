"""The Python blocks of the documentation run, in order, in one namespace per file."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_blocks(name):
    """Execute the blocks of a file; a traceback shows the file's own lines."""
    text, namespace = (ROOT / name).read_text("utf-8"), {"__name__": "docs"}
    for block in _BLOCK.finditer(text):
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], str(ROOT / name), "exec"), namespace)
    return namespace


@pytest.fixture
def lenient():
    """As a reader runs them: without this suite's ban on implicit broadcasting."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_the_blocks_of_embedding_run(tmp_path, monkeypatch, lenient):
    monkeypatch.chdir(tmp_path)
    names = run_blocks("docs/embedding.md")
    # What the page says of the results.
    assert names["by_gain"] < 0
    assert names["by_speed"] < 0
    assert names["worlds"].entities.position.shape == (8 * len(jax.devices()), 16, 2)
    assert len(names["worlds"].entities.position.sharding.device_set) == len(jax.devices())
    assert names["members"].sum() == names["entities"].alive.sum() == 8
    assert len(names["table"]) == 8 * 11
    np.testing.assert_array_equal(names["last"]["uid"], np.arange(8))
    assert float(names["count"][1].sum()) == 0 < float(names["count"][2].sum())  # two steps late
    # Rules with births: the base launched one in the tenth step, and one of its kind in the twentieth.
    assert int(jnp.max(names["worlds"].entities.next_uid)) > 8

    # Everybody holds the place within a span, and the lower ones feel those above.
    assert float(jnp.linalg.norm(names["track"][-1] - names["places"], axis=1).max()) < 0.5
    low = np.asarray(names["places"][:, 2]) == 2.0
    assert (np.asarray(names["pushed"][-1]) < -0.01)[low].all()
    assert float(jnp.abs(names["pushed"][-1])[~low].max()) < 0.03


def test_the_blocks_of_physics_run(lenient):
    names = run_blocks("docs/physics.md")
    assert names["losses"][-1] < 0.8 * names["losses"][0]
    assert float(names["battery"].capacity[0] / names["hovering"][0]) == pytest.approx(7 * 60, abs=10)
    assert names["lost"].tolist() == [True, True, True, False]
    assert names["trespassing"].tolist() == [False, False, False, True]
    seen, hidden = (float((names["heard"] == u).any(axis=1).mean()) for u in (1, 2))
    assert 0.6 < seen < 0.8
    assert 0 < hidden < 0.2


def test_the_block_of_the_readme_runs(capsys, lenient):
    assert np.isfinite(float(run_blocks("README.md")["metrics"]["ice_delivered"].mean()))
    assert capsys.readouterr().out
