"""``python -m rearkit``."""

# Before all other imports, which take long enough to be interrupted.
from rearkit.system.signals import GUARD, NUMBERS


def start() -> None:
    """Run the command line; from here on, a signal has its line and its exit code."""
    try:
        GUARD.__enter__()
        import atexit
        import signal

        # Called last of all: what is left is to take down the interpreter, which would print a traceback.
        atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in NUMBERS])
        from rearkit.cli.main import main

        main()
    except KeyboardInterrupt:
        GUARD.leave()


if __name__ == "__main__":
    start()
