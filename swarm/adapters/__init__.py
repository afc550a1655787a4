"""Environments of other libraries as worlds of ours."""
