"""Recordings: a row for each living entity and step, as Parquet or CSV, or a scene for Foxglove (MCAP).

    with Recorder(Path("flight.parquet"), scenario, {"seed": 0}) as recorder:
        for chunk in play(simulator, policy, jax.random.key(0), 1000, scenario=scenario):
            recorder.write(chunk)

    pyarrow.parquet.read_table("flight.parquet")                                    # or pandas, polars, duckdb
    json.loads(pyarrow.parquet.read_schema("flight.parquet").metadata[b"swarm"])    # config, seed, versions

A Parquet recording can be played again without its policy, and is compared bit for bit: `swarm.play.telemetry.replay`.
"""

from swarm.play.telemetry.recorder import Recorder, RecordingError

__all__ = ["Recorder", "RecordingError"]
