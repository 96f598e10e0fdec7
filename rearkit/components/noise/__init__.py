"""Schedules of context noise (paper: "noisy context regularization")."""
