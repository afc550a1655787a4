"""Run folders: checkpoints, the loop, evaluations, reports, and what builds a learner from a file."""
