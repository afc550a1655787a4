"""Scenarios: each is a folder of rules (`rules.py`), a scripted policy, pictures and numbers (`NAME.toml`).

The package of a scenario composes its final class of rules, policy (`policy.py`) and pictures (`view.py`), which never
import the package itself.
"""
