"""What a command will write is checked before its work, and what cannot be written is one line."""

import os

import pytest

from swarm import evaluate, plot, simulate
from swarm.core.errors import SwarmError
from swarm.core.outputs import check_output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "a_file").write_text("kept")
    return tmp_path


BAD = ["folder.png", "a_file/x.png", "none/x.png", "x" * 300 + ".png", "x/" * 3000 + "x.png", "/proc/x.png", "a\0.png"]


@pytest.mark.parametrize("path", BAD, ids=range(len(BAD)))
def test_a_file_that_cannot_be_written_is_one_line(folder, path):
    with pytest.raises(SwarmError) as caught:
        check_output(path, option="--out")
    assert str(caught.value).startswith("--out ")
    assert len(str(caught.value).splitlines()) == 1


def test_what_can_be_written_is_left_as_it_was(folder):
    check_output("new.png")
    check_output("a_file")
    (folder / "link").symlink_to("target")
    check_output("link")
    assert (folder / "a_file").read_text() == "kept"
    assert sorted(os.listdir(folder)) == ["a_file", "folder.parquet", "folder.png", "link"]
    with pytest.raises(SwarmError, match="exists already"):
        check_output("a_file", new=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_one_line(folder):
    folder.chmod(0o500)
    with pytest.raises(SwarmError, match="Permission denied"):
        check_output("x.png")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        *[(simulate, ["spread", "--render", path]) for path in (*BAD[:6], "x.txt", "x", "x.PNG", ".png")],
        *[(simulate, ["spread", "--record", path.replace("png", "parquet")]) for path in BAD[:6]],
        (simulate, ["spread", "--record", "a_file"]),
        *[(evaluate, ["no_run", "--render", path]) for path in (*BAD[:6], "x.txt")],
        *[(plot, ["no_run", "--out", path]) for path in (*BAD[:6], "x.txt", "x")],
        *[(plot, ["no_run", "--marl-eval", path]) for path in BAD[:6]],
    ],
)
def test_commands_check_their_files_before_they_work(folder, command, words, monkeypatch, capsys):
    def work(*_, **__):
        raise AssertionError("worked first")

    monkeypatch.setattr("swarm.build.scenario_files.load", work)
    monkeypatch.setattr("training.runs.folders.RunFolder.open", work)
    assert command.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words[1] in err


@pytest.mark.parametrize("word", ["x" * 300, "x" * 300 + ".toml"])
def test_names_too_long_for_a_file_are_one_line(folder, word, capsys):
    for command, words in (
        (simulate, [word]),
        (simulate, ["spread", "--policy", word]),
        (simulate, ["--replay", word]),
        (evaluate, [word]),
        (plot, [word]),
    ):
        assert command.main(words) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "9" * 20, "9" * 5000, "2147483648", "x"], ids=range(7))
def test_a_number_of_steps_or_worlds_beyond_use_is_refused(number, capsys):
    for option in ("--steps", "--worlds"):
        with pytest.raises(SystemExit) as caught:
            simulate.main(["spread", option, number])
        assert caught.value.code == 2
        assert f"argument {option}" in capsys.readouterr().err
