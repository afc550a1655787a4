"""Scenarios: each is two files side by side, the rules (`outpost.py`) and the numbers (`outpost.toml`)."""
