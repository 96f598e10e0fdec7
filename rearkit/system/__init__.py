"""What the rest asks of the operating system: files, locks, signals, ranks, devices, the terminal."""
