"""The learners: credit per group, networks, losses, M-PPO, run folders."""
