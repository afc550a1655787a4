"""What the packages promise each other: who imports whom, that shapes are checked, and that the compiler is sound."""

import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import swarm
from scenarios.flocking import Fields
from swarm.population.entities import Entities, Spawn, spawn
from swarm.population.hierarchy import reduce_groups
from training.credit.losses import generalised_advantage

pytestmark = pytest.mark.optimised

ROOT = Path(swarm.__file__).parents[1]


def lint_imports(folder):
    """Exit code and output of import-linter, in a process of its own: it sets up logging for good."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_imports_point_down_and_no_two_files_import_each_other():
    code, text = lint_imports(ROOT)
    assert code == 0, text
    assert "4 kept, 0 broken" in text


def test_the_contracts_see_what_breaks_them(tmp_path):
    # A house of the same shape, whose lowest floor imports the highest, and whose files import each other.
    for floor in ("core", "geometry"):
        (tmp_path / "house" / floor).mkdir(parents=True)
        (tmp_path / "house" / floor / "__init__.py").touch()
    (tmp_path / "house" / "__init__.py").touch()
    (tmp_path / "house/core/one.py").write_text("def f():\n    import house.geometry\n")
    (tmp_path / "house/geometry/one.py").write_text("import house.geometry.two\n")
    (tmp_path / "house/geometry/two.py").write_text("def f():\n    import house.geometry.one\n")
    contracts = """
        [tool.importlinter]
        root_package = "house"
        [[tool.importlinter.contracts]]
        name = "floors"
        type = "layers"
        containers = ["house"]
        layers = ["geometry", "core"]
        [[tool.importlinter.contracts]]
        name = "circles"
        type = "acyclic_siblings"
        ancestors = ["house"]
    """
    (tmp_path / "pyproject.toml").write_text(textwrap.dedent(contracts))
    code, text = lint_imports(tmp_path)
    assert code == 1, text
    assert {"floors BROKEN", "circles BROKEN"} <= {line.strip() for line in text.splitlines()}


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
