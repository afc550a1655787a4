"""Benchmarks compile once per shape and run on whatever device jax finds."""

import jax
import pytest


@pytest.fixture
def ready():
    """Wait until a result is computed."""
    return jax.block_until_ready
