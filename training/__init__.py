"""The learners: credit per group, networks, losses, M-PPO, run folders."""

# Lets `swarm.train` tell this package from a `training.py` in the user's working folder.
IS_SWARM = True
