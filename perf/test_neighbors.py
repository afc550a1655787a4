"""Sums over neighbours, next to a C++ program that does the same work on one core (`neighbor_sum.cpp`).

Both run in one command, so that the ratio means something on a noisy machine. Without a compiler only ours is timed.
"""

import math
import shutil
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swarm.geometry.space import Open
from swarm.neighbors.questions import Among
from swarm.neighbors.search import neighbor_search

SIZES = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1M": 1_000_000}
DENSITY = 2.5  # entities per square of one radius


def pair(way, distance, mine, theirs):
    x, y = way[0], way[1]
    inverse = 1.0 / (x * x + y * y + 1e-3)
    return jnp.stack([jnp.ones(()), x * inverse, y * inverse, x, y, theirs[0], theirs[1]])


def crowd(n):
    side = math.ceil((n / DENSITY) ** 0.5)
    rng = np.random.default_rng(0)
    position = jnp.asarray(rng.uniform(0, side, (n, 2)), jnp.float32)
    velocity = jnp.asarray(rng.normal(size=(n, 2)), jnp.float32)
    return neighbor_search(Open(jnp.zeros(2), jnp.full(2, float(side))), 1.0, n), position, velocity


def summing(search):
    def run(position, velocity):
        found = search.find(position, jnp.ones(position.shape[0], bool))
        return found.sum(pair, velocity), found.overflow

    return jax.jit(run)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The C++ program, or None where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    source, target = Path(__file__).parent / "neighbor_sum.cpp", tmp_path_factory.mktemp("limit") / "neighbor_sum"
    options = ["-O3", "-march=native", "-ffast-math", "-fopenmp-simd"]
    subprocess.run([compiler, *options, str(source), "-o", str(target)], check=True)
    return target


def seconds_of(program, n):
    run = subprocess.run(
        [str(program), str(n), str(max(1, 1_000_000 // n))], check=True, capture_output=True, text=True
    )
    seconds, mean_count = (float(word) for word in run.stdout.split())
    assert_mean_count(mean_count, n)
    return seconds


def assert_mean_count(mean_count, n):
    """The density times the area of the circle, less what reaches beyond the edge of the square."""
    side = (n / DENSITY) ** 0.5
    expected = DENSITY * (math.pi - 8.0 / 3.0 / side)
    assert mean_count == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("size", SIZES)
def test_sum(benchmark, ready, program, size):
    n = SIZES[size]
    search, position, velocity = crowd(n)
    run = summing(search)
    ready(run(position, velocity))
    sums, overflow = benchmark(lambda: ready(run(position, velocity)))
    assert not overflow
    assert_mean_count(float(sums[:, 0].mean()), n)
    if benchmark.stats:
        ours = benchmark.stats.stats.median
        benchmark.extra_info["ns_per_entity"] = round(1e9 * ours / n)
        if program:
            ratio = ours / seconds_of(program, n)
            benchmark.extra_info["ratio_to_cpp"] = round(ratio, 2)
            print(f" {size}: {1e9 * ours / n:.0f} ns per entity, {ratio:.2f} times the C++ program")
            assert n not in (10_000, 100_000) or ratio < 5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("restricted", [False, True], ids=["all", "other-team"])
def test_nearest_8(benchmark, ready, size, restricted):
    n = SIZES[size]
    search, position, _ = crowd(n)
    team = jnp.arange(n, dtype=jnp.int32) % 2
    among = Among(team, same=False) if restricted else None

    @jax.jit
    def run(position):
        found = search.find(position, jnp.ones(n, bool))
        return found.nearest(8, among), found.overflow

    ready(run(position))
    nearest, overflow = benchmark(lambda: ready(run(position)))
    assert not overflow
    mean = float(nearest.valid.sum(axis=1).mean())
    assert 3.0 < mean < 4.2 if restricted else 6.0 < mean < 8.0
    if benchmark.stats:
        benchmark.extra_info["ns_per_entity"] = round(1e9 * benchmark.stats.stats.median / n)


def test_time_grows_no_faster_than_n_to_1_1(benchmark, ready):
    """From 1k to 1M, medians of interleaved runs."""
    if benchmark.disabled:
        pytest.skip("times matter only where they are measured")
    runs = []
    for n in SIZES.values():
        search, position, velocity = crowd(n)
        run = summing(search)
        ready(run(position, velocity))
        runs.append((n, run, position, velocity, []))

    def round_of_all():
        for _, run, position, velocity, times in runs:
            begin = time.perf_counter()
            ready(run(position, velocity))
            times.append(time.perf_counter() - begin)

    benchmark.pedantic(round_of_all, rounds=7)
    medians = {n: float(np.median(times)) for n, *_, times in runs}
    (small, first), *larger = medians.items()
    for n, median in larger:
        assert median / first < (n / small) ** 1.1, medians
