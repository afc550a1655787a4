"""`python -m swarm.plot`: learning curves of runs, over their seeds."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm.commands.parsing import Formatter, add_trust, run
from swarm.core import strict_json
from swarm.core.errors import ConfigError, SwarmError, nearest
from swarm.core.outputs import check_output

if TYPE_CHECKING:
    from training.runs.folders import RunFolder

EXAMPLES = """examples:
  python -m swarm.plot runs/outpost-*
  python -m swarm.plot runs/spread-* --metrics return_per_agent covered --out spread.png --marl-eval spread.json

Runs that differ in nothing but their seed are one line: the interquartile mean over the seeds, with its 95 % bootstrap
interval, of the evaluations made during the runs. A line ends where the shortest of its runs does. A run that is named
twice, or in two copies, counts once."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and plot."""
    parser = argparse.ArgumentParser(
        prog="python -m swarm.plot",
        description="Compare runs of one scenario: curves over seeds, and a table of their ends.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--metrics", nargs="+", help="what to plot; the scenario's success and headline, and the return"
    )
    parser.add_argument("--out", default="curves.png", help="picture")
    parser.add_argument("--marl-eval", metavar="FILE", help="also write the JSON that marl-eval reads")
    add_trust(parser)
    return run(_plot, parser, argv)


def _plot(arguments: argparse.Namespace) -> int:
    from matplotlib.backend_bases import FigureCanvasBase

    check_output(arguments.out, option="--out", formats=[f".{name}" for name in FigureCanvasBase.filetypes])
    if arguments.marl_eval:
        check_output(arguments.marl_eval, option="--marl-eval")
    from training.runs.folders import EVALUATIONS, RunFolder
    from training.runs.marl_eval import marl_eval
    from training.runs.report import curve_of, plot_curves

    paths: dict[Path, Path] = {}
    for word in arguments.runs:
        paths.setdefault(Path(word).resolve(), Path(word))
    folders = [RunFolder.open(path) for path in paths.values()]
    names = {folder.identity()["scenario"] for folder in folders}
    if len(names) > 1:
        raise ConfigError(f"runs of several scenarios ({', '.join(sorted(names))}); plot one scenario at a time")
    for folder in folders:
        bad = folder.unreadable(EVALUATIONS)
        if not folder.metrics(EVALUATIONS):
            raise ConfigError(bad or f"{folder.path}: holds no evaluations; train with training.evaluate_every above 0")
        if bad:
            _note(f"{bad}, left out")
    folders, labels = _once(folders, label(folders))
    groups = {text: [f for f, own in zip(folders, labels, strict=True) if own == text] for text in labels}
    rules = folders[0].scenario().rules_class
    metrics = arguments.metrics or list(dict.fromkeys((rules.success, rules.headline, "return")))
    known = sorted({name for folder in folders for row in folder.metrics(EVALUATIONS) for name in row["metrics"]})
    for metric in metrics:
        if metric not in known:
            raise ConfigError(f"--metrics {metric}: no such metric{nearest(metric, known)}")
    curves = {metric: {text: curve_of(group, metric) for text, group in groups.items()} for metric in metrics}
    _tell_lengths(curves)
    try:
        plot_curves(curves, Path(arguments.out))
        print(f"written: {arguments.out}")
        if arguments.marl_eval:
            Path(arguments.marl_eval).write_text(strict_json.dumps(marl_eval(folders, labels)), "utf-8")
            print(f"written: {arguments.marl_eval}")
    except OSError as error:
        raise SwarmError(f"cannot write: {error}") from None
    _print(curves)
    return 0


def label(folders: Sequence["RunFolder"]) -> list[str]:
    """Name each run by its recipe, and by the settings in which the runs differ."""
    from training.runs.folders import history

    tables = [history(folder) for folder in folders]
    keys = sorted(set().union(*tables))
    differing = [key for key in keys if len({repr(table.get(key)) for table in tables}) > 1]
    recipes = {repr(table.get("training.recipe")) for table in tables}
    # Of another recipe everything may differ, and its name says it.
    shown = [key for key in differing if len(recipes) == 1 or not key.startswith("training.")]

    def text(table: Mapping[str, Any]) -> str:
        parts = [f"{key.removeprefix('training.')}={table.get(key)}" for key in shown]
        return " ".join([Path(str(table.get("training.recipe"))).stem, *parts])

    return [text(table) for table in tables]


def _once(folders: Sequence["RunFolder"], labels: Sequence[str]) -> tuple[list["RunFolder"], list[str]]:
    """Each seed of each kind of run once: a copy of a run is no further seed."""
    first: dict[tuple[str, int], RunFolder] = {}
    for folder, text in zip(folders, labels, strict=True):
        known = first.setdefault((text, folder.identity()["seed"]), folder)
        if known is not folder:
            _note(f"{folder.path} has the settings and the seed of {known.path}, and is left out")
    return list(first.values()), [text for text, _ in first]


def _tell_lengths(curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Say which lines end before some of their runs do, and that lines which end elsewhere are not comparable there."""
    lines = next(iter(curves.values()))
    for text, curve in lines.items():
        if not curve.steps.size:
            _note(f"{text}: no evaluation at a number of steps that all its runs share; no line")
        elif curve.ends.max() > curve.steps[-1]:
            ends = f"{curve.steps[-1]:,} steps, the last that all its runs share"
            _note(f"{text}: ends at {ends}; some go on to {curve.ends.max():,}")
    if len({int(curve.steps[-1]) for curve in lines.values() if curve.steps.size}) > 1:
        _note("the last evaluations below are after different numbers of steps")


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def _print(curves: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "last evaluation that all seeds have made: interquartile mean [95 % interval]"
    table = Table("runs", "seeds", "steps", *curves, title=title)
    for text, first in next(iter(curves.values())).items():
        cells = []
        for lines in curves.values():
            if not lines[text].steps.size:
                cells.append("-")
                continue
            middle, low, high = (x[-1] for x in lines[text].middle())
            cells.append(f"{middle:.4g} [{low:.4g}, {high:.4g}]")
        steps = dict.fromkeys(f"{lines[text].steps[-1]:,}" for lines in curves.values() if lines[text].steps.size)
        table.add_row(text, str(len(first.values)), " or ".join(steps) or "-", *cells)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
