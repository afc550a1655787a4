"""A damaged run folder is one line, or nothing is lost by it; altered arrays are never taken for what was saved."""

import json
import re
import shutil
import sys
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
from runs import copy_of, make_run, state_of, take_up

from swarm import evaluate, plot
from training.runs.checkpoints import Checkpoints
from training.runs.folders import RunFolder

NUMBER = re.compile(rb"-?\d+(\.\d+)?(e[-+]?\d+)?")


def replaced(data, rng, by):
    """With another text in the place of some number; at the end where there is none."""
    found = list(NUMBER.finditer(data))
    start, end = found[rng.integers(len(found))].span() if found else (len(data), len(data))
    return data[:start] + by + data[end:]


def flipped(data, rng, n):
    bits = np.frombuffer(data, np.uint8).copy()
    for place in rng.integers(max(1, bits.size), size=n if bits.size else 0):
        bits[place] ^= 1 << rng.integers(8)
    return bits.tobytes()


DAMAGES = {
    "empty": lambda data, rng: b"",
    "truncated": lambda data, rng: data[: rng.integers(max(1, len(data)))],
    "a flipped bit": lambda data, rng: flipped(data, rng, 1),
    "flipped bits": lambda data, rng: flipped(data, rng, 20),
    "text": lambda data, rng: b"this is not what was here\n" * 3,
    "bytes": lambda data, rng: rng.bytes(max(16, len(data))),
    "zeros": lambda data, rng: bytes(len(data)),
    "longer": lambda data, rng: data + rng.bytes(40),
    "a line of garbage": lambda data, rng: b"{]\n" + data,
    "NaN": lambda data, rng: replaced(data, rng, b"NaN"),
    "a text for a number": lambda data, rng: replaced(data, rng, b'"eight"'),
    "a list for a number": lambda data, rng: replaced(data, rng, b"[[]]"),
    "nothing for a number": lambda data, rng: replaced(data, rng, b"null"),
    "a large number": lambda data, rng: replaced(data, rng, b"9" * 30),
    "a huge number": lambda data, rng: replaced(data, rng, b"9" * 5000),
    "a huge float": lambda data, rng: replaced(data, rng, b"1e999"),
    "less than nothing": lambda data, rng: replaced(data, rng, b"-1"),
}
# Of what is there, file or folder, instead of its content.
ELSE = ("absent", "a folder")


def damage(path, how, rng):
    if how in ELSE:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if how == "a folder":
            path.mkdir()
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes(), rng))


def cases_of(run, n, seed):
    """Pairs of a file or folder of a run, and what is done to it; each of either comes up."""
    rng = np.random.default_rng(seed)
    paths = sorted(str(p.relative_to(run)) for p in run.rglob("*") if "tfevents" not in p.name and p.name != "lock")
    found = []
    for i in range(n):
        path = paths[rng.integers(len(paths))] if i % 2 else ("run.json", "config.toml", "metrics.jsonl")[i % 6 // 2]
        path = "evaluations.jsonl" if i % 8 == 0 else path
        hows = ELSE if (run / path).is_dir() else (*DAMAGES, *ELSE)
        found.append((path, hows[rng.integers(len(hows))] if i % 2 else hows[i % len(hows)]))
    return found


@pytest.fixture(scope="module")
def ready(rivals, tmp_path_factory):
    """A run, and its state after each of the updates that are saved."""
    run = make_run(rivals, tmp_path_factory.mktemp("ready"))
    assert evaluate.main([str(run), "--episodes", "2"]) == 0
    states = {}
    for update in (4, 3, 2):
        code, groups = take_up(copy_of(run, tmp_path_factory.mktemp("state") / str(update)), "--from", update)
        assert code == 0
        states[update] = state_of(groups[0][0])
    return run, states


def told(code, capsys):
    """The line of an error, if there was one."""
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if "error: " in line]
    assert code in (0, 2)
    assert len(lines) == (code == 2), err
    return lines[0] if lines else ""


def try_all(ready, folder, path, how, rng, capsys):
    """Damage a copy, and use it; returns what is wrong with what came of it."""
    run, states = ready
    copy_of(run, folder)
    damage(folder / path, how, rng)
    out = str(folder.parent / "curves.png")
    saved = path.startswith("checkpoints/")
    before = json.loads((run / "evaluation.json").read_text())["values"]
    try:
        code = plot.main([str(folder), "--out", out, "--marl-eval", f"{out}.json"])
        told(code, capsys)
        code = evaluate.main([str(folder), "--episodes", "2"])
        told(code, capsys)
        values = json.loads((folder / "evaluation.json").read_text())["values"] if code == 0 and saved else before
        if values != before:
            return "evaluated from altered arrays"
        code, groups = take_up(folder)
        line = told(code, capsys)
        if code:
            return "" if len(line) < 1000 else f"a long line: {line[:200]}"
        found = state_of(groups[0][0])
        expected = states[groups[0][0].done]
        same = found.keys() == expected.keys() and all(np.array_equal(x, expected[k]) for k, x in found.items())
        return "" if same else "resumed from altered arrays"
    except (Exception, SystemExit):
        return traceback.format_exc(limit=-3)
    finally:
        shutil.rmtree(folder)


def check(ready, tmp_path, capsys, n, seed):
    rng, found = np.random.default_rng(seed), []
    for path, how in cases_of(ready[0], n, seed):
        problem = try_all(ready, tmp_path / "run", path, how, rng, capsys)
        if problem:
            found.append(f"{path}, {how}: {problem}")
    assert not found, "\n\n".join(found)


def test_a_damaged_run_folder_is_one_line(ready, tmp_path, capsys):
    check(ready, tmp_path, capsys, 10, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 17))
def test_two_thousand_damages_are_one_line_each(ready, tmp_path, capsys, seed):
    check(ready, tmp_path, capsys, 125, seed)


def test_reads_that_orbax_leaves_behind_say_nothing_and_others_are_heard(ready, monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    Checkpoints(RunFolder(ready[0]), 3).is_whole(4)
    for text in ("Event loop is closed", "Encountered error while reading array index: (slice(0, 8, 1),).", "mine"):
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
    assert [str(one.exc_value) for one in heard] == ["mine"]
