"""What `python -m swarm.train`, `evaluate` and `plot` run."""
