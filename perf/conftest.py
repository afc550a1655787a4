"""Benchmarks compile once per shape and run on whatever device jax finds."""

import os
from pathlib import Path

import jax
import pytest

# A device for each core, so that worlds can be stepped side by side; what does not ask for it runs on the first.
jax.config.update("jax_num_cpu_devices", os.cpu_count())


@pytest.fixture(autouse=True)
def room_for_programs():
    """Forget compiled programs when they are many: each maps memory, and Linux allows a process 65,530 maps."""
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()


@pytest.fixture
def ready():
    """Wait until a result is computed."""
    return jax.block_until_ready
