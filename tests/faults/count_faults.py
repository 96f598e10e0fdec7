"""Run all tests of this folder and print one table of what was tried, held, lost, silent, let in, and a traceback.

    python tests/faults/count_faults.py [--seconds N] [--seed N] [--workers N]

Exits with 1 if a bar is missed: 2,500 faults or more; none silent, lost or let in; at most 1% tracebacks; or if a test
failed in another way. Kills and signals take most of the time; REARKIT_TRIALS and REARKIT_KILLS say how many.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ledger import FOLDER, Ledger

HERE = Path(__file__).parent
FEWEST, MOST_TRACEBACKS = 2_500, 0.01


def missed(total: Ledger) -> list[str]:
    """Return the bars that a sum of ledgers misses, in words."""
    found = [f"{total.number(one)} {one}" for one in ("lost", "silent", "let in") if total.number(one)]
    if total.tried() < FEWEST:
        found.append(f"only {total.tried()} faults, fewer than {FEWEST:,}")
    if total.number("traceback") > MOST_TRACEBACKS * total.tried():
        found.append(f"{total.number('traceback')} tracebacks, more than {MOST_TRACEBACKS:.0%}")
    return found


def main() -> int:
    """Run the tests; return 0 if all bars are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    seconds, seed = os.environ.get("FAULT_SECONDS", "400"), os.environ.get("FAULT_SEED", "0")
    parser.add_argument("--seconds", type=float, default=seconds, help="of all fuzzers together")
    parser.add_argument("--seed", type=int, default=seed, help="of what is random")
    parser.add_argument("--workers", default="2", help="processes of pytest")
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "REARKIT_TRIALS": "5", "REARKIT_KILLS": "1", **os.environ, "OMP_NUM_THREADS": "1",
            FOLDER: folder, "FAULT_SECONDS": str(given.seconds), "FAULT_SEED": str(given.seed),
        }  # fmt: skip
        # Without the tests of the harness itself, whose faults are made up.
        own = [f"--ignore={HERE / name}" for name in ("test_fuzzing.py", "test_ledger.py")]
        options = ["-q", f"--numprocesses={given.workers}", "--dist=worksteal", *own]
        command = [sys.executable, "-m", "pytest", str(HERE), *options]
        code = subprocess.run(command, env=environment, check=False).returncode
        total = Ledger.added_up(Path(folder).glob("*.json"))
    print(f"\n{total.table()}\n")
    bars = missed(total)
    if code:
        bars.append(f"pytest ended with {code}")
    minutes = (time.monotonic() - started) / 60
    print(f"{total.tried():,} faults, seed {given.seed}, in {minutes:.0f} minutes: {'; '.join(bars) or 'all bars met'}")
    return 1 if bars else 0


if __name__ == "__main__":
    sys.exit(main())
