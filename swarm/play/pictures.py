"""Pictures and videos of episodes, drawn while they are played."""

import contextlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from swarm.core.outputs import PICTURES, check_output
from swarm.play.episodes import Chunk
from swarm.simulation.rules import AbstractRules
from swarm.simulation.types import World

_FRAMES_PER_SECOND = 15
_MAX_FRAMES = 256
_MOMENTS = 6


def render(chunks: Iterable[Chunk], path: Path, n_steps: int) -> None:
    """Play what is left of an episode and render its first world; arguments as for `Renderer`."""
    with Renderer(path, n_steps) as renderer:
        for chunk in chunks:
            renderer.write(chunk)


class Renderer:
    """Draws the first world of an episode, chunk by chunk, as a context: a video, or six moments side by side."""

    def __init__(self, path: Path, n_steps: int) -> None:
        """Prepare a file.

        Args:
            path: .gif and .mp4 hold 256 frames at most, .png six moments.
            n_steps: steps of the episode, or more.
        """
        check_output(path, option="--render", formats=PICTURES)
        self._path, self._stack = path, contextlib.ExitStack()
        stride = -(-n_steps // _MAX_FRAMES)
        self._target = _Picture() if path.suffix == ".png" else _Video(path, stride, self._stack)

    def __enter__(self) -> "Renderer":
        return self

    def write(self, chunk: Chunk) -> None:
        """Draw the steps of a chunk, or keep those that may be drawn."""
        for t in range(int(chunk.length[0])):
            self._target.add(chunk, t)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Complete the file; a video that was interrupted ends where it was."""
        self._stack.close()
        if isinstance(self._target, _Picture) and error is None:
            self._target.save(self._path)


class _Video:
    """Each `stride`-th step becomes a frame."""

    def __init__(self, path: Path, stride: int, stack: contextlib.ExitStack) -> None:
        self._path, self._stride, self._stack = path, stride, stack
        self._n_seen, self._writer = 0, None
        self._figure, self._canvas = _figure(5.2, 5.6)

    def add(self, chunk: Chunk, t: int) -> None:
        if self._n_seen % self._stride == 0:
            self._figure.clear()
            chunk.simulator.rules.draw(self._figure.add_subplot(), chunk.world(t))
            self._canvas.draw()
            self._append(np.asarray(self._canvas.buffer_rgba())[..., :3].copy())
        self._n_seen += 1

    def _append(self, frame: np.ndarray) -> None:
        import imageio.v2 as imageio

        if self._writer is None:
            settings: dict[str, Any] = {"duration": 1000 / _FRAMES_PER_SECOND, "loop": 0}
            if self._path.suffix == ".mp4":
                settings = {"fps": _FRAMES_PER_SECOND, "macro_block_size": 8}
            self._writer: Any = self._stack.enter_context(imageio.get_writer(self._path, **settings))
        with warnings.catch_warnings():
            # The writer starts ffmpeg; jax warns of any fork, though this one executes another program at once.
            warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
            self._writer.append_data(frame)


class _Picture:
    """Moments evenly spread over an episode whose length shows only at its end.

    Keeps worlds at an even stride, which doubles when they become many, and the last one.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[AbstractRules, World]] = {}
        self._stride, self._n_seen = 1, 0

    def add(self, chunk: Chunk, t: int) -> None:
        if (self._n_seen - 1) % self._stride:
            self._kept.pop(self._n_seen - 1, None)
        # A copy, since a view would keep the whole chunk in memory.
        self._kept[self._n_seen] = chunk.simulator.rules, jax.tree.map(lambda x: x.copy(), chunk.world(t))
        self._n_seen += 1
        if len(self._kept) > 4 * _MOMENTS:
            self._stride *= 2
            self._kept = {n: kept for n, kept in self._kept.items() if n % self._stride == 0}

    def save(self, path: Path) -> None:
        figure, _ = _figure(12.0, 8.4)
        wanted = np.linspace(0, self._n_seen - 1, _MOMENTS) if self._kept else ()
        for axes, moment in zip(figure.subplots(2, 3).ravel(), wanted, strict=False):
            rules, world = self._kept[min(self._kept, key=lambda n: abs(n - moment))]
            rules.draw(axes, world)
        figure.savefig(path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, FigureCanvasAgg(figure)
