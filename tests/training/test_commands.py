"""The commands around training: several seeds, warm starts, evaluations, curves."""

import ctypes
import gc
import json
import os
import re
import shutil
import threading
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from test_resume import arrays

from swarm import evaluate, plot, simulate, train
from training.runs.folders import RunFolder

# Checkpoints; each takes a third of a second.
FEW = ["training.checkpoint_every=20"]


@pytest.fixture(scope="module")
def seeds(rivals, tmp_path_factory):
    """The folders of seeds 0 and 1, trained at once."""
    runs = tmp_path_factory.mktemp("seeds")
    assert train.main([rivals, *FEW, "--seeds", "2", "--runs", str(runs), "--episodes", "2"]) == 0
    return sorted(runs.iterdir())


@pytest.fixture(scope="module")
def alone(rivals, tmp_path_factory):
    """The folder of seed 1 alone."""
    runs = tmp_path_factory.mktemp("alone")
    assert train.main([rivals, *FEW, "--seed", "1", "--runs", str(runs), "--episodes", "2"]) == 0
    return next(runs.iterdir())


def test_a_seed_among_others_is_the_seed_alone(seeds, alone):
    assert [RunFolder.open(folder).identity()["seed"] for folder in seeds] == [0, 1]
    together, expected = arrays(seeds[1]), arrays(alone)
    for name, value in together.items():
        np.testing.assert_allclose(value.astype(float), expected[name].astype(float), atol=1e-5, err_msg=name)
    assert any(np.any(value != together[name]) for name, value in arrays(seeds[0]).items())


def test_the_absolute_metric_has_ten_times_the_episodes(capsys, seeds):
    assert evaluate.main([str(seeds[0]), "--absolute"]) == 0
    results = json.loads((seeds[0] / "absolute.json").read_text())
    assert results["episodes"] == 40
    trained = results["policies"]["trained"]
    assert trained["taking"]["low"] <= trained["taking"]["mean"] <= trained["taking"]["high"]
    # Both rivals take in each of four steps: 4 - 8 each.
    assert trained["kind/rival/return"]["mean"] == pytest.approx(-8.0, abs=1.0)
    assert trained["kind/rival/population"]["mean"] == 2.0
    assert (seeds[0] / "absolute.png").stat().st_size > 5000
    assert "kind/rival/return" in capsys.readouterr().out


def test_curves_over_seeds_and_the_json_of_marl_eval(capsys, seeds, tmp_path):
    out, table = tmp_path / "curves.png", tmp_path / "table.json"
    assert plot.main([*map(str, seeds), "--out", str(out), "--marl-eval", str(table)]) == 0
    assert out.stat().st_size > 5000
    rows = json.loads(table.read_text())["swarm"]["rivals"]["mppo"]
    assert set(rows) == {"seed_0", "seed_1"}
    steps = [rows["seed_1"][f"step_{i}"]["step_count"] for i in range(3)]
    assert steps == [1024, 2048, 2560]
    assert len(rows["seed_1"]["step_0"]["taking"]) == 4
    assert "," not in json.dumps(list(rows["seed_1"]["step_0"]))[1:-1].replace(", ", "")
    assert "2" in capsys.readouterr().out
    assert plot.main([str(seeds[0]), "--metrics", "takings"]) == 2
    assert "did you mean 'taking'" in capsys.readouterr().err


def test_a_warm_start_takes_over_what_fits(capsys, rivals, alone, tmp_path):
    words = ["training.steps=128", "training.network.encoders=['map', 'entity']", "--runs", str(tmp_path)]
    assert train.main([rivals, *words, "--init-from", str(alone), "--episodes", "2"]) == 0
    said = capsys.readouterr().out
    assert "networks.0.encoders.1" in said
    assert "networks.0.encoders.0" not in said
    # With one more number in each layer only offsets fit, which is nothing.
    nothing = ["training.network.hidden=12", "training.network.channels=3", "--init-from", str(alone)]
    assert train.main([rivals, *nothing, "--runs", str(tmp_path / "b")]) == 2
    assert "none of its weights" in capsys.readouterr().err


def cycle(rivals, folder):
    """Train and evaluate."""
    words = [rivals, *FEW, "training.steps=128", "--runs", str(folder), "--episodes", "2"]
    assert train.main(words) == 0
    assert evaluate.main([str(next(folder.iterdir())), "--episodes", "2"]) == 0


def test_cycles_in_one_process_leave_nothing_behind(rivals, tmp_path):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )

    def left():
        gc.collect()
        # Without what beartype and jax keep of each call until the next.
        ours = ("training.", "swarm.", "scenarios.", "tensorboardX.", "matplotlib.figure", "imageio.", "rich.live")
        names = Counter(f"{type(x).__module__}.{type(x).__name__}" for x in gc.get_objects())
        counts = {name: n for name, n in names.items() if name.startswith((*ours, "orbax.checkpoint.checkpoint_man"))}
        n_open = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        return counts, len(threading.enumerate()), n_open

    for number in range(2):
        cycle(rivals, tmp_path / str(number))
    before, n_compiled = left(), len(compiled)
    cycle(rivals, tmp_path / "last")
    assert len(compiled) == n_compiled
    assert left() == before


@pytest.mark.slow
def test_cycles_in_one_process_do_not_grow(rivals, tmp_path):
    def megabytes():
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    sizes = []
    for number in range(16):
        cycle(rivals, tmp_path / str(number))
        sizes.append(megabytes())
    # What is left is tensorstore's, which forgets to free the JSON of each array of a checkpoint.
    assert np.polyfit(range(12), sizes[4:], 1)[0] < 1.0


def test_elsewhere_too_networks_meet_whom_they_were_trained_against(capsys, rivals, alone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    config = (folder / "config.toml").read_text()
    assert config.count('"learn",') == 1
    (folder / "config.toml").write_text(config.replace('"learn",', '"learn", "random",'))

    def taking(*words):
        assert evaluate.main([str(folder), "--scenario", rivals, "--episodes", "64", *words]) == 0
        results = json.loads((folder / "evaluation.json").read_text())
        return results["policies"]["trained"]["taking"]["mean"]

    # Who was trained takes, who is random does so half the time.
    assert taking() == pytest.approx(0.75, abs=0.08)
    assert taking("training.teams=['learn']") > 0.95
    capsys.readouterr()
    assert simulate.main([rivals, "--policy", str(folder), "--worlds", "64"]) == 0
    found = re.search(r"taking +([0-9.]+)", capsys.readouterr().out)
    assert float(found[1]) == pytest.approx(0.75, abs=0.2)
