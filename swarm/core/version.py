"""The version of this package, as runs and recordings keep it."""

__version__ = "0.1.0"
