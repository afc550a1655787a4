"""How the update scales over devices and over processes of one machine, and what it moves between them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from scaling import all_reduces

# Each device has a core to itself as far as there are cores; the machine's number bounds what can be said.
N_CORES = len(os.sched_getaffinity(0))
WORLDS = 64
TINY = {"training.worlds": 8, "training.rollout": 10, "training.minibatches": 2, "training.network.hidden": 8}


def measured(processes, devices, overrides, scenario="spread", rounds=5):
    """What each process found; with a time-out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    told = {"scenario": scenario, "overrides": overrides, "rounds": rounds, "coordinator": where}
    told |= {"processes": processes, "devices": devices}
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    script, pipe = Path(__file__).with_name("scaling.py"), subprocess.PIPE
    started = [
        subprocess.Popen(
            [sys.executable, str(script), json.dumps(told | {"process": i})], env=environment, stdout=pipe, stderr=pipe
        )
        for i in range(processes)
    ]
    try:
        ends = [process.communicate(timeout=900) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, ends
    return json.loads(ends[0][0].decode().strip().splitlines()[-1])


@pytest.fixture(scope="module")
def alone(request):
    """One device on one core, with all worlds and with a quarter of them."""
    if not request.config.getoption("benchmark_enable"):
        return {}
    return {worlds: measured(1, 1, {"training.worlds": worlds}) for worlds in (WORLDS, WORLDS // 4)}


@pytest.mark.parametrize("kind", ["strong", "weak"])
@pytest.mark.parametrize("over", ["devices", "processes"])
@pytest.mark.parametrize("n", [2, 4])
def test_update(benchmark, alone, over, kind, n):
    """The same worlds over more devices (strong), or more worlds (weak, 16 each); next to one device on one core."""
    worlds, per_device = (WORLDS, WORLDS) if kind == "strong" else (WORLDS // 4 * n, WORLDS // 4)
    split = (1, n) if over == "devices" else (n, 1)
    small = {} if benchmark.enabled else TINY
    overrides = {"training.worlds": worlds} | small
    found = benchmark.pedantic(lambda: measured(*split, overrides), rounds=1)
    assert found["agent_steps"] > 0
    assert found["all_reduces"] > 0
    if alone:
        one = alone[per_device]
        speedup = (found["agent_steps"] / found["seconds"]) / (one["agent_steps"] / one["seconds"])
        found |= {"speedup": round(speedup, 2), "efficiency": round(speedup / min(n, N_CORES), 2)}
        found |= {"one_device_seconds": one["seconds"], "cores": N_CORES}
        benchmark.extra_info.update(found)


@pytest.mark.parametrize("scenario", ["spread", "outpost", "flocking"])
def test_bytes(benchmark, scenario):
    """What an update of the shipped settings moves is the gradients, and a few numbers beside them."""
    small = {"training.worlds": 2} | ({} if benchmark.enabled else TINY)
    found = benchmark.pedantic(lambda: measured(1, 2, small, scenario, rounds=1), rounds=1)
    gradients = 4 * found["parameters"] * found["optimiser_steps"]
    assert gradients <= found["bytes"] <= gradients + 100 * found["optimiser_steps"] + 1000
    assert found["all_reduces"] <= 2 * found["optimiser_steps"] + 10
    benchmark.extra_info.update(found)


def test_loops_multiply():
    text = """%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}
%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r.1 = (f32[2,3]{1,0}, f32[]) all-reduce(%x, %y), to_apply=%sum
}
%cond (p: (s32[], f32[8])) -> pred[] {
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %z = f32[8]{0} all-reduce(%v), to_apply=%sum
}
"""
    assert all_reduces(text) == [(5, 28), (1, 32)]
