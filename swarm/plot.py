"""`python -m swarm.plot`: learning curves of runs, over their seeds."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm.commands import Formatter, add_trust, import_training, run
from swarm.errors import ConfigError, SwarmError, nearest
from swarm.outputs import check_output

if TYPE_CHECKING:
    from training.runs import RunFolder

EXAMPLES = """examples:
  python -m swarm.plot runs/outpost-*
  python -m swarm.plot runs/spread-* --metrics return_per_agent covered --out spread.png --marl-eval spread.json

Runs that differ in nothing but their seed are one line: the interquartile mean over the seeds, with its 95 % bootstrap
interval, of the evaluations made during the runs."""


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
    import_training()
    from matplotlib.backend_bases import FigureCanvasBase

    check_output(arguments.out, option="--out", formats=[f".{name}" for name in FigureCanvasBase.filetypes])
    if arguments.marl_eval:
        check_output(arguments.marl_eval, option="--marl-eval")
    from training.marl_eval import marl_eval
    from training.report import curve_of, plot_curves
    from training.runs import EVALUATIONS, RunFolder

    folders = [RunFolder.open(Path(word)) for word in arguments.runs]
    names = {folder.identity()["scenario"] for folder in folders}
    if len(names) > 1:
        raise ConfigError(f"runs of several scenarios ({', '.join(sorted(names))}); plot one scenario at a time")
    for folder in folders:
        if not folder.metrics(EVALUATIONS):
            raise ConfigError(f"{folder.path}: holds no evaluations; train with training.evaluate_every above 0")
    labels = label(folders)
    groups = {text: [f for f, own in zip(folders, labels, strict=True) if own == text] for text in labels}
    rules = folders[0].scenario().rules_class
    metrics = arguments.metrics or list(dict.fromkeys((rules.success, rules.headline, "return")))
    known = list(folders[0].metrics(EVALUATIONS)[0]["metrics"])
    for metric in metrics:
        if metric not in known:
            raise ConfigError(f"--metrics {metric}: no such metric{nearest(metric, known)}")
    curves = {metric: {text: curve_of(group, metric) for text, group in groups.items()} for metric in metrics}
    try:
        plot_curves(curves, Path(arguments.out))
        print(f"written: {arguments.out}")
        if arguments.marl_eval:
            Path(arguments.marl_eval).write_text(json.dumps(marl_eval(folders, labels)), "utf-8")
            print(f"written: {arguments.marl_eval}")
    except OSError as error:
        raise SwarmError(f"cannot write: {error}") from None
    _print(curves)
    return 0


def label(folders: Sequence["RunFolder"]) -> list[str]:
    """Name each run by its recipe, and by the settings in which the runs differ."""
    tables = [dict(_flat(folder.scenario().resolved())) for folder in folders]
    keys = sorted(set().union(*tables))
    differing = [key for key in keys if len({repr(table.get(key)) for table in tables}) > 1]
    recipes = {repr(table.get("training.recipe")) for table in tables}
    # Of another recipe everything may differ, and its name says it.
    shown = [key for key in differing if len(recipes) == 1 or not key.startswith("training.")]

    def text(table: Mapping[str, Any]) -> str:
        parts = [f"{key.removeprefix('training.')}={table.get(key)}" for key in shown]
        return " ".join([Path(str(table.get("training.recipe"))).stem, *parts])

    return [text(table) for table in tables]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _print(curves: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("runs", "seeds", *curves, title="last evaluation: interquartile mean [95 % interval]")
    for text, first in next(iter(curves.values())).items():
        cells = []
        for lines in curves.values():
            middle, low, high = (x[-1] for x in lines[text].middle())
            cells.append(f"{middle:.4g} [{low:.4g}, {high:.4g}]")
        table.add_row(text, str(len(first.values)), *cells)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
