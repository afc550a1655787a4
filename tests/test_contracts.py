"""What the packages promise each other: who imports whom, that shapes are checked, and that the compiler is sound."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import scenarios
import swarm
import training
from scenarios.flocking import Fields
from swarm.population.entities import Entities, Spawn, spawn
from swarm.population.hierarchy import reduce_groups
from training.losses import generalised_advantage

pytestmark = pytest.mark.optimised

# The command line stands above all packages: it may use any. `commands` holds what the commands share.
COMMANDS = {"__main__", "parsing", "evaluate", "plot", "simulate", "train"}


def modules(package):
    return sorted(Path(package.__file__).parent.glob("**/*.py"))


def imports(path):
    """Dotted names of what a module imports, anywhere in it, and of the modules that it takes names from."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported(path):
    """Top-level names of the packages that a module imports, anywhere in it."""
    return {name.partition(".")[0] for name in imports(path)}


ENGINE = [path for path in modules(swarm) if path.stem not in COMMANDS]


def test_the_walk_finds_modules_and_their_imports():
    # Otherwise the tests below would pass on nothing.
    assert {"entities", "simulator", "tables"} <= {path.stem for path in ENGINE}
    assert {"swarm", "jax", "equinox"} <= imported(Path(scenarios.__file__).parent / "outpost" / "rules.py")
    assert "swarm" in imported(Path(training.__file__).parent / "credit.py")


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.stem)
def test_the_engine_imports_neither_scenarios_nor_training(path):
    assert not imported(path) & {"scenarios", "training"}


@pytest.mark.parametrize("path", modules(scenarios), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_scenarios_do_not_import_training(path):
    assert "training" not in imported(path)


def test_modules_of_scenarios_import_each_other_in_no_circle():
    home = Path(scenarios.__file__).parents[1]
    names = {".".join(path.relative_to(home).with_suffix("").parts): path for path in modules(scenarios)}
    graph = {name.removesuffix(".__init__"): imports(path) for name, path in names.items()}
    assert "scenarios.outpost.rules" in graph["scenarios.outpost"]
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", modules(training), ids=lambda path: path.stem)
def test_training_knows_no_scenario(path):
    assert "scenarios" not in imported(path)


@pytest.mark.parametrize(
    "statement",
    [
        "import swarm",
        "import swarm.build.scenario_files",
        "import swarm.__main__",
        "import training.config",
        "import swarm.adapters.workers",
    ],
)
def test_importing_does_not_load_jax(statement):
    code = f"{statement}; import sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_names_are_all_there():
    for name in swarm.__all__:
        assert getattr(swarm, name).__name__ == name


# A canary for each package: were the import hook not at work, wrong shapes would pass unnoticed in every other test.


def test_swarm_refuses_wrong_shapes():
    births = Spawn(
        jnp.ones(2, bool),
        jnp.zeros(2, jnp.int32),
        jnp.zeros(2, jnp.int32),
        jnp.zeros((2, 2)),
        jnp.zeros(2),
        jnp.zeros((2, 1)),
    )
    spawn(Entities.empty(3, 2, 1), births)
    with pytest.raises(TypeCheckError):
        Spawn(births.wanted, births.kind, births.team, births.position, jnp.zeros(3), births.stores)
    with pytest.raises(TypeCheckError):
        reduce_groups(jnp.zeros(3), jnp.zeros(4, jnp.int32), 2, "sum")


def test_scenarios_refuse_wrong_shapes():
    seen = (jnp.zeros(3), jnp.zeros((3, 2)), jnp.zeros((3, 2)), jnp.zeros(3))
    Fields(*seen, jnp.zeros((3, 2)))
    with pytest.raises(TypeCheckError):
        Fields(*seen, jnp.zeros((3, 3)))


def test_training_refuses_wrong_shapes():
    row, on = jnp.zeros(4), jnp.ones(4, bool)
    generalised_advantage(row, row, row, row, on, 0.5)
    with pytest.raises(TypeCheckError):
        generalised_advantage(row, row, row, jnp.zeros(5), on, 0.5)


def test_a_sum_of_squares_under_vmap_is_computed_right():
    # jax 0.10.2 computes wrong values here (jax issue 39103); this fails should such a version come back.
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 3)).astype(np.float32)
    rows = rng.normal(size=(40_000, 3)).astype(np.float32)
    found = jax.jit(jax.vmap(lambda r: jnp.sum((jnp.asarray(matrix) @ r) ** 2)))(jnp.asarray(rows))
    expected = ((rows.astype(np.float64) @ matrix.T.astype(np.float64)) ** 2).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
