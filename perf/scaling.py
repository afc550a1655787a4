"""One process of a scaling measurement: times updates and reads off the program what it moves. For `test_scaling`."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator

_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=(%[\w.\-]+)")


def all_reduces(text: str) -> list[tuple[int, int]]:
    """Each all-reduce of a compiled program: how often it runs, and its bytes.

    Loops count as often as the program's text says that they turn; one that does not say must hold none.
    """
    parts: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?(%[\w.\-]+) .*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            parts[name] = []
        elif name:
            parts[name].append(line)

    def walk(name: str, times: int | None) -> Iterator[tuple[int, int]]:
        for line in parts[name]:
            if found := re.search(r"= (.*?) all-reduce(?:-start)?\(", line):
                assert times is not None, line
                yield times, sum(_bytes(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", found[1]))
                continue
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            within = (
                times if " while(" not in line else None if turns is None or times is None else times * int(turns[1])
            )
            for called in _CALLED.findall(line):
                yield from walk(called, within)

    return list(walk(entry, 1))


def _bytes(kind: str, shape: str) -> int:
    size = _WIDTH[kind]
    for side in shape.split(","):
        size *= int(side or 1)
    return size


def measure(scenario: str, overrides: dict, n_devices: int, rounds: int) -> dict:
    """Seconds of an update, wall and processor, and what it moves."""
    import equinox as eqx
    import jax

    from swarm.build.scenario_files import load
    from training.config import load_training
    from training.runs.build import build_learner

    loaded = load(scenario, overrides)
    learner = build_learner(loaded, load_training(loaded), n_devices)
    learned, actors = learner.init(0)
    program = eqx.filter_jit(learner.update).lower(learned, actors).compile()
    moved = all_reduces(program.compiled.as_text())
    learned, actors, metrics = jax.block_until_ready(program(learned, actors))
    seconds, used = [], []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        learned, actors, metrics = jax.block_until_ready(program(learned, actors))
        seconds.append(time.perf_counter() - wall)
        used.append(time.process_time() - processor)
    assert int(learned.n_updates) == rounds + 1
    parameters = jax.tree.leaves(eqx.filter(learned.network, eqx.is_inexact_array))
    return {
        "seconds": min(seconds),
        "processor_seconds": min(used),
        "agent_steps": float(metrics["agent_steps"]),
        "grad_norm": float(metrics["grad_norm"]),
        "parameters": sum(x.size for x in parameters),
        "optimiser_steps": learner.config.epochs * learner.config.minibatches,
        "all_reduces": sum(times for times, _ in moved),
        "bytes": sum(times * size for times, size in moved),
    }


def main(words: str) -> None:
    """Measure as told, in one process of several or alone, on as many cores as devices."""
    told = json.loads(words)
    n, n_devices, i = told["processes"], told["devices"], told["process"]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[(i * n_devices + d) % len(cores)] for d in range(n_devices)})
    from training.execution.processes import connected

    place = (told["coordinator"], n, i) if n > 1 else (None, None, None)
    with connected(*place, n_devices):
        print(json.dumps(measure(told["scenario"], told["overrides"], n_devices, told["rounds"])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
