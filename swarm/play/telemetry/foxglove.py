"""MCAP (https://mcap.dev): scenes and poses, as Foxglove and its relatives show them.

Messages are JSON of the published types, on these topics, which begin with `/world_<number>` where there are several:

    /scene          foxglove.SceneUpdate: an entity by its uid, in the shape of its kind and the colour of its team; it
                    is deleted when it dies
    /poses/<kind>   foxglove.PosesInFrame: the living ones of a kind

All is in the frame `world`, in the scenario's units; in two dimensions z is 0. The orientation is the heading, about z.
A message's time is that of its step, in seconds: `world.time_step` apart where the scenario has one, else one. What is
NaN or infinite is not shown. The metadata record `swarm` says what was simulated; of several, the last one counts.
"""

import contextlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from swarm.core.errors import SwarmError
from swarm.play.telemetry.foxglove_schemas import POSES_IN_FRAME, SCENE_UPDATE, UNUSED
from swarm.play.telemetry.rows import Batch

_CHUNK_BYTES = 2**18
_FRAME = "world"
_SHAPES = ("arrows", "cubes", "spheres")
# Red, green, blue of the teams, in turn: Okabe and Ito's (2008), whom the colour-blind tell apart, too.
_COLORS = ((0.0, 0.45, 0.7), (0.84, 0.37, 0.0), (0.0, 0.62, 0.45), (0.8, 0.47, 0.65), (0.9, 0.62, 0.0))


class SceneFile:
    """Writes messages to an MCAP file, in compressed chunks.

    A program that is killed leaves a file without its end: `mcap recover`, and readers that take it as a stream, get
    the messages up to the last whole chunk.
    """

    def __init__(self, path: Path) -> None:
        try:
            writer: Any = importlib.import_module("mcap.writer").Writer
        except ImportError:
            raise SwarmError(f"--record {path}: needs the package mcap: pip install mcap") from None
        self._path, self._file = path, path.open("xb")
        self._writer = writer(self._file, chunk_size=_CHUNK_BYTES)
        self._writer.start()
        self._schemas = {
            schema["title"]: self._writer.register_schema(schema["title"], "jsonschema", json.dumps(schema).encode())
            for schema in (SCENE_UPDATE, POSES_IN_FRAME)
        }
        self._channels: dict[str, int] = {}
        self._about: Mapping[str, Any] = {}
        self._shown: dict[int, np.ndarray] = {}
        self._size: float | None = None
        self._n_bytes = 0

    def write(self, batch: Batch, about: Mapping[str, Any]) -> None:
        """Append the messages of each state."""
        if about != self._about:
            self._writer.add_metadata("swarm", {name: json.dumps(value) for name, value in about.items()})
            self._about = about
        table, n_worlds = _drawable(batch.table), about["worlds"]
        if self._size is None and table.num_rows:
            self._size = _extent(table) / 50
        texts = _Texts(table, self._size or 1.0)
        # Rows and states are in the same order, so that those of a state stand together.
        rows = table["step"].to_numpy().astype(np.int64) * n_worlds + table["world"].to_numpy()
        states = batch.step.astype(np.int64) * n_worlds + batch.world
        bounds = np.searchsorted(rows, states), np.searchsorted(rows, states, "right")
        for step, world, start, end in zip(batch.step.tolist(), batch.world.tolist(), *bounds, strict=True):
            self._write_state(texts, slice(start, end), step, world)
        self._file.flush()
        self._n_bytes = self._file.tell()

    def _write_state(self, texts: "_Texts", rows: slice, step: int, world: int) -> None:
        time = round(step * self._about["config"].get("world", {}).get("time_step", 1.0) * 1e9)
        prefix = f"/world_{world}" if self._about["worlds"] > 1 else ""
        living = texts.uid[rows]
        gone = np.setdiff1d(self._shown.get(world, living), living)
        self._shown[world] = living
        self._send(f"{prefix}/scene", SCENE_UPDATE, time, texts.scene(rows, gone, time))
        for kind, name in enumerate(texts.kinds):
            self._send(f"{prefix}/poses/{name}", POSES_IN_FRAME, time, texts.poses(rows, kind, time))

    def _send(self, topic: str, schema: Mapping[str, Any], time: int, text: str) -> None:
        if topic not in self._channels:
            self._channels[topic] = self._writer.register_channel(topic, "json", self._schemas[schema["title"]])
        self._writer.add_message(self._channels[topic], time, text.encode(), time)

    def finish(self) -> None:
        """Write the index and close the file."""
        self._writer.finish()
        self._file.close()
        if not self._n_bytes:
            self._path.unlink()

    def give_up(self) -> Path:
        """Cut off what was written in part."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._n_bytes:
            with self._path.open("r+b") as file:
                file.truncate(self._n_bytes)
        else:
            self._path.unlink()
        return self._path


class _Texts:
    """Rows as pieces of JSON: made by arrow for all rows at once, because there may be millions."""

    def __init__(self, table: Any, size: float) -> None:
        import pyarrow as pa

        self.uid: np.ndarray = table["uid"].to_numpy()
        self._kind = table["kind"].combine_chunks().indices.to_numpy()
        self.kinds: list[str] = table["kind"].combine_chunks().dictionary.to_pylist()
        n_teams = int(np.max(table["team"].to_numpy(), initial=0)) + 1
        looks = [_look(kind, name, team, size) for kind, name in enumerate(self.kinds) for team in range(n_teams)]
        which = self._kind * n_teams + table["team"].to_numpy()
        before, after = (pa.array(texts).take(pa.array(which)) for texts in zip(*looks, strict=True))
        self._poses = _poses(table)
        self._entities = _join(table["uid"].cast("string"), before, self._poses, after)

    def scene(self, rows: slice, gone: np.ndarray, time: int) -> str:
        """A SceneUpdate of some rows that deletes who is gone."""
        at = f'{{"timestamp":{_stamp(time)},'
        deletions = [f'{at}"type":0,"id":"{uid}"}}' for uid in gone.tolist()]
        entities = _list(_join(f'{at}"frame_id":"{_FRAME}","id":"', self._entities[rows]))
        return f'{{"deletions":[{",".join(deletions)}],"entities":[{entities}]}}'

    def poses(self, rows: slice, kind: int, time: int) -> str:
        """PosesInFrame of those of a kind among some rows."""
        poses = _list(self._poses[rows].filter(self._kind[rows] == kind))
        return f'{{"timestamp":{_stamp(time)},"frame_id":"{_FRAME}","poses":[{poses}]}}'


def _drawable(table: Any) -> Any:
    """The rows in which all that is shown is finite, so that it can be a number of JSON."""
    columns = [table[name].to_numpy() for name in ("x", "y", "z", "heading") if name in table.column_names]
    return table.filter(np.isfinite(columns).all(axis=0))


def _extent(table: Any) -> float:
    """The longest side of the box around all; 1 if they are at one place."""
    axes = [table[axis].to_numpy() for axis in "xyz" if axis in table.column_names]
    return max(float(np.ptp(axis)) for axis in axes) or 1.0


def _poses(table: Any) -> Any:
    import pyarrow as pa

    half = table["heading"].to_numpy() / 2
    z = table["z"].cast("string") if "z" in table.column_names else "0"
    sin, cos = (pa.array(turn).cast("string") for turn in (np.sin(half), np.cos(half)))
    x, y = (table[axis].cast("string") for axis in "xy")
    place = ('{"position":{"x":', x, ',"y":', y, ',"z":', z, '},"orientation":{"x":0,"y":0,"z":')
    return _join(*place, sin, ',"w":', cos, "}}")


def _look(kind: int, name: str, team: int, size: float) -> tuple[str, str]:
    """What stands between the uid and the pose, and after the pose, in the JSON of a SceneEntity."""
    shape, (r, g, b) = _SHAPES[kind % len(_SHAPES)], _COLORS[team % len(_COLORS)]
    rest: dict[str, Any] = {
        "lifetime": {"sec": 0, "nsec": 0},
        "frame_locked": False,
        "metadata": [{"key": "kind", "value": name}, {"key": "team", "value": str(team)}],
        **{unused: [] for unused in (*_SHAPES, *UNUSED) if unused != shape},
    }
    lengths = {"shaft_length": 0.6 * size, "head_length": 0.4 * size}
    widths = {"shaft_diameter": 0.25 * size, "head_diameter": 0.5 * size}
    form = lengths | widths if shape == "arrows" else {"size": dict.fromkeys("xyz", size)}
    form |= {"color": {"r": r, "g": g, "b": b, "a": 1.0}}
    return f'",{json.dumps(rest)[1:-1]},"{shape}":[{{"pose":', f",{json.dumps(form)[1:-1]}}}]}}"


def _stamp(time: int) -> str:
    return f'{{"sec":{time // 10**9},"nsec":{time % 10**9}}}'


def _join(*pieces: Any) -> Any:
    """Texts row by row; a piece is the same for all rows, or a column of strings."""
    import pyarrow as pa
    import pyarrow.compute

    # Its functions are made at import, unknown to type checkers.
    pc: Any = pyarrow.compute
    columns = [piece.combine_chunks() if isinstance(piece, pa.ChunkedArray) else piece for piece in pieces]
    return pc.binary_join_element_wise(*columns, "")


def _list(texts: Any) -> str:
    return ",".join(texts.to_pylist())
