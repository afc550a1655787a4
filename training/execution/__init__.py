"""Where it runs: processes, host environments, actors that run by themselves."""
