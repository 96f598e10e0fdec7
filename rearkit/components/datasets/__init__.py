"""Datasets: where images come from."""
