"""Estimates of what a recipe needs; they take no data, no weights and no accelerator."""
