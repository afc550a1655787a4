"""What learns: M-PPO and IMPALA, and their recipes."""
