"""Pictures and videos of episodes."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Key

from swarm.errors import SwarmError
from swarm.scenario import AbstractPolicy, World
from swarm.simulator import Simulator

FORMATS = (".gif", ".mp4", ".png")
_FRAMES_PER_SECOND = 15
_MAX_FRAMES = 256


def check_format(path: Path) -> None:
    """Refuse a file that cannot be rendered, before anything else is done.

    Raises:
        SwarmError: of another format, or in a folder that does not exist.
    """
    if path.suffix not in FORMATS:
        raise SwarmError(f"--render {path}: expected a file that ends in {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise SwarmError(f"--render {path}: the folder {path.absolute().parent} does not exist")


@eqx.filter_jit
def _history(simulator: Simulator, policy: AbstractPolicy, key: Key[Array, ""], n_steps: int) -> tuple[World, Any]:
    reset_key, act_key = jax.random.split(key)
    world, timestep = simulator.reset(reset_key)
    _, _, (worlds, timesteps) = simulator.rollout(policy, world, timestep, act_key, n_steps)
    return worlds, (timesteps.ended, jax.vmap(simulator.metrics)(worlds))


def play(
    simulator: Simulator, policy: AbstractPolicy, key: Key[Array, ""], n_steps: int
) -> tuple[World, dict[str, np.ndarray]]:
    """Play one episode and return its worlds and metrics, stacked along time, up to its end (host arrays)."""
    worlds, (ended, metrics) = _history(simulator, policy, key, n_steps)
    ended = np.asarray(ended)
    length = int(np.argmax(ended)) + 1 if ended.any() else n_steps

    def cut(tree: Any) -> Any:
        return jax.tree.map(lambda x: x if _is_key(x) else np.asarray(x)[:length], tree)

    return cut(worlds), cut(metrics)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def render(simulator: Simulator, worlds: World, path: Path) -> None:
    """Render stacked worlds: a video (.gif, .mp4), or six moments side by side (.png)."""
    length = len(worlds.step)
    if path.suffix == ".png":
        _picture(simulator, worlds, np.linspace(0, length - 1, 6).astype(int), path)
        return
    stride = -(-length // _MAX_FRAMES)
    frames = _frames(simulator, worlds, range(0, length, stride))
    import imageio.v2 as imageio

    if path.suffix == ".mp4":
        writer = imageio.get_writer(path, fps=_FRAMES_PER_SECOND, macro_block_size=8)
    else:
        writer = imageio.get_writer(path, duration=1000 / _FRAMES_PER_SECOND, loop=0)
    with writer, warnings.catch_warnings():
        # The writer starts ffmpeg; jax warns of any fork, though this one executes another program at once.
        warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
        for frame in frames:
            writer.append_data(frame)


def _at(worlds: World, t: int) -> World:
    return jax.tree.map(lambda x: x[t], worlds)


def _frames(simulator: Simulator, worlds: World, times: Any) -> Iterator[np.ndarray]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for t in times:
        figure.clear()
        simulator.rules.draw(figure.add_subplot(), _at(worlds, t))
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _picture(simulator: Simulator, worlds: World, times: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, t in zip(figure.subplots(2, 3).ravel(), times, strict=True):
        simulator.rules.draw(axes, _at(worlds, t))
    figure.savefig(path)
