"""Shape and type checks at run time, strict rank promotion, and eight simulated devices, for every test."""

import contextlib
import gc
import os
import sys
from pathlib import Path

import jax
import jaxlib
import pytest
from jax._src import compiler
from jaxtyping import install_import_hook

# The bare decorator: `beartype.beartype(conf=...)` over several packages leaves all but the first unchecked.
install_import_hook(["swarm", "scenarios", "training"], "beartype.beartype")

# Programs are compiled in a hurry, and once for all workers, for the commands that tests start, and for the next run.
SETTINGS = {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.3,
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name.upper(), str(value))
    jax.config.update(name, value)

# The older emitters of loops take half the time to compile; jaxlib 0.11 no longer has them.
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
if jaxlib.version.__version_info__ < (0, 11):
    if OLDER_EMITTERS not in (flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{flags} {OLDER_EMITTERS}"
    compile_options = compiler.get_compile_options

    def compile_options_of_users(*args, env_options_overrides=None, **kwargs):
        """Flags hold for a whole process: where it is not in a hurry, each program has the emitters users have."""
        overrides = dict(env_options_overrides or {})
        if not jax.config.read("jax_disable_most_optimizations"):
            overrides["xla_cpu_use_fusion_emitters"] = True
        return compile_options(*args, env_options_overrides=overrides, **kwargs)

    compiler.get_compile_options = compile_options_of_users

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects, few of them in cycles: to look for those as often as usual takes a tenth of the time.
gc.set_threshold(50_000, 20, 50)

# So that `rules = "rivals:Rivals"` finds the probe game, as a user's own module on PYTHONPATH would be found.
sys.path.insert(0, str(Path(__file__).parent / "training"))


@pytest.fixture(autouse=True, scope="session")
def own_rules():
    """Run folders and recordings may name the rules of these tests, as if the user had named them."""
    from swarm.core import resolve

    for text in ("rivals:Rivals", "colony:Colony"):
        resolve.name(text)


MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True, scope="module")
def programs(request):
    """Compile in a hurry, but for modules marked `optimised`, where it matters how users' programs are compiled.

    Compiled programs are forgotten when they are many: each maps memory, and Linux allows a process 65,530 maps.
    """
    hurry = request.node.get_closest_marker("optimised") is None
    if hurry != jax.config.read("jax_disable_most_optimizations"):
        jax.config.update("jax_disable_most_optimizations", hurry)
        jax.clear_caches()
    yield
    if MAPS.is_file() and MAPS.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()


@contextlib.contextmanager
def compiling_as_users():
    """Programs compiled within are as users have them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def unhurried():
    """A context in which programs are compiled as users compile: for those that run for longer than that takes."""
    return compiling_as_users


@pytest.fixture
def optimised():
    """Compile as users compile."""
    with compiling_as_users():
        yield


@pytest.fixture(scope="session")
def rivals() -> str:
    """Path of the probe game's scenario file."""
    return str(Path(__file__).parent / "training" / "rivals.toml")
