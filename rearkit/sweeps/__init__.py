"""Sweeps: many runs of one recipe with other keys and seeds, and their table."""
