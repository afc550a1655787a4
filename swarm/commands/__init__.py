"""What `python -m swarm.X` runs, and what these share."""
