"""Benchmarks compile once per shape and run on whatever device jax finds."""

import os

import jax
import pytest

# A device for each core, so that worlds can be stepped side by side; what does not ask for it runs on the first.
jax.config.update("jax_num_cpu_devices", os.cpu_count())


@pytest.fixture
def ready():
    """Wait until a result is computed."""
    return jax.block_until_ready
