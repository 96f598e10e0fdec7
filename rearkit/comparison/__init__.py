"""Runs side by side: one table and one page, for the variants of a sweep or for any runs."""
