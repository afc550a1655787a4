"""Whose reward, value and advantage is whose: trajectories of groups, mixtures, losses."""
