"""Shape and type checks at run time, and strict promotion, for every test."""

from jaxtyping import install_import_hook

# The bare decorator: `beartype.beartype(conf=...)` over several packages leaves all but the first unchecked.
install_import_hook(["swarm", "scenarios", "training"], "beartype.beartype")
