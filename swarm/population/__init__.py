"""Entities, groups of groups, and the rules that form them."""
