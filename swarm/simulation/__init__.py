"""Worlds, and what steps them: rules, policies, the simulator."""
