"""Who may name code by `module:Class`, and the module of that name. Nothing here imports jax.

A scenario file, like the command line, is its user's own word and may name any module; what it names is then checked
before it is called. Run folders and recordings are data: they may name what is ours, and what the user named in this
program; the option `--trust`, or `trusting()`, lets them name anything.
"""

import contextlib
import importlib
import importlib.util
import site
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

from swarm.core.errors import ConfigError

OURS = ("swarm", "scenarios", "training")
_HOME = Path(__file__).resolve().parents[2]
# What the user has named in this program, as it was written.
_named: set[str] = set()
_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextlib.contextmanager
def trusting(everything: bool = True) -> Iterator[None]:
    """Let data name any code inside; for files whose origin you know."""
    token = _trusted.set(everything or _trusted.get())
    try:
        yield
    finally:
        _trusted.reset(token)


def name(text: str) -> None:
    """Let data name this, because the user did."""
    _named.add(text)


def is_trusted() -> bool:
    """Whether the user trusts the data that is read here."""
    return _trusted.get()


def may_name(text: str) -> bool:
    """Whether data may name this, though it is not ours: the user did, or trusts the data."""
    return is_trusted() or text in _named


def refuse(where: str) -> ConfigError:
    """The error of data that names what it may not; `where` says which file, and what it names."""
    return ConfigError(
        f"{where}: this is data, and names code that is not swarm's own; if you know who made it, allow it with --trust"
    )


def is_ours(text: str) -> bool:
    """Whether `module:Class` is of one of our packages: of those beside this one, not of some other of that name."""
    top = _top(text)
    return top in OURS and _origin(top) == _HOME / top / "__init__.py"


def is_library(text: str) -> bool:
    """Whether `environment = text` names an environment of Gymnasium or PettingZoo, as they are installed."""
    library, _, name = text.partition(":")
    if library == "pettingzoo" and "/" not in name:
        return _top(name) in ("pettingzoo", "mpe2") and not is_users(name)
    # Gymnasium imports what stands before a colon.
    return library in ("gymnasium", "pettingzoo") and ":" not in name and not is_users(library)


def is_users(text: str) -> bool:
    """Whether a module is anywhere but where packages are installed."""
    origin = _origin(_top(text))
    places = [*site.getsitepackages(), site.getusersitepackages()]
    return origin is not None and not any(origin.is_relative_to(Path(place).resolve()) for place in places)


def _top(text: str) -> str:
    return text.partition(":")[0].partition(".")[0]


def _origin(top: str) -> Path | None:
    """The file that a package or module of the topmost level is imported from; nothing is imported here."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).resolve() if spec is not None and spec.has_location and spec.origin else None


def import_named(module: str) -> ModuleType:
    """Import a module that a file names.

    Raises:
        ConfigError: it is Python's own, where nothing is that we could use, or it stands in our way; without the place.
        ImportError: there is none; as all else that goes wrong in its own code.
    """
    top = _top(module)
    if top in sys.stdlib_module_names:
        raise ConfigError(f"{top!r} is a module of Python itself; expected one of yours, under another name")
    if top in OURS and not is_ours(top):
        raise ConfigError(f"{_origin(top)} shadows the package {top!r} that swarm needs; rename it")
    try:
        return importlib.import_module(module)
    except SystemExit as error:
        raise ConfigError(f"importing {module!r} ends the program (exit code {error.code}): it is a script") from None
