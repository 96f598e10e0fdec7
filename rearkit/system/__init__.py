"""Wrappers around the operating system: files, locks, signals, ranks, devices, memory, the terminal."""
