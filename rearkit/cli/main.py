"""The command line: its exit codes, and how errors are told. The commands are in `rearkit.cli`."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence

import click

from rearkit import errors
from rearkit.cli import COMMANDS
from rearkit.system.console import is_main_process, stderr
from rearkit.system.signals import Terminations

RANK_DELAY_S = 3.0
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="rearkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--local_rank", hidden=True)  # DeepSpeed's launcher adds it; LOCAL_RANK says the same
def cli(debug: bool, local_rank: str | None) -> None:
    """Train visual autoregressive image models that agree with their tokenizer.

    \b
    Exit codes: 0 done; 1 a bug of ours; 2 a recipe, option or file to mend; 3 data that cannot be used;
    4 a write that failed; 5 training that diverged; 75 stopped by SIGTERM; 130 stopped by Ctrl-C.
    What was stopped goes on when run again.
    """


for _command in COMMANDS:
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; a user's mistake is told without a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments  # wherever it stands: people add it at the end of the command that failed
    arguments = [argument for argument in arguments if argument != "--debug"]
    ranks_arguments = ["--debug", *arguments] if debug else arguments
    with Terminations() as terminations:
        try:
            if "SLURM_STEP_ID" in os.environ:
                from rearkit.system.distributed import adopt_slurm

                adopt_slurm()
            # Without its standalone mode, click returns the code of an Exit.
            code = cli.main(arguments, prog_name="python -m rearkit", standalone_mode=False, obj=ranks_arguments)
            sys.exit(code if isinstance(code, int) else errors.EXIT_OK)
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(errors.EXIT_USAGE)
        except (click.Abort, KeyboardInterrupt):
            code = errors.EXIT_PREEMPTED if terminations.came else errors.EXIT_INTERRUPTED
            _fail("stopped; what is finished is kept, run the same command to go on", code, debug)
        except errors.RearkitError as error:
            _fail(str(error), error.exit_code, debug)
        except BrokenPipeError:
            sys.exit(errors.EXIT_OK)
        except RuntimeError as error:
            if not _tells_of_a_lost_rank(error):
                raise
            message = "another rank has ended, or cannot be reached any more; what is wrong with it, it says itself"
            _fail(message, errors.EXIT_INTERNAL, debug)
        finally:
            if "rearkit.system.distributed" in sys.modules:  # no import of torch for a command that needed none
                sys.modules["rearkit.system.distributed"].leave()


def _tells_of_a_lost_rank(error: RuntimeError) -> bool:
    """Tell whether an error is that of talking to a rank that is gone, as gloo, nccl and torch's store put it."""
    phrases = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "failed to recv")
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(phrase in str(error) for phrase in phrases)


def _fail(message: str, code: int, debug: bool) -> None:
    if not is_main_process():
        # What all ranks meet, the first one tells; its launcher stops the others before they would say it again.
        time.sleep(RANK_DELAY_S)
        message = f"rank {os.environ['RANK']}: {message}"
    if debug:
        traceback.print_exc()
    for line in message.splitlines():
        stderr.print(line if line.startswith(" ") else f"error: {line}", style="red", markup=False)
    sys.exit(code)
