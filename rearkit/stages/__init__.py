"""The six stages of a run, one file each, and what a stage is."""
