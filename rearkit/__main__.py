"""``python -m rearkit``."""

from rearkit.cli import main

if __name__ == "__main__":
    main()
