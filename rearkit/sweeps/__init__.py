"""Sweeps: many runs of one recipe with different keys and seeds, and a table that compares them."""
