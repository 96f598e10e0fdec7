"""The command line: exit codes and error messages. The commands themselves are listed in `rearkit.cli`."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
import traceback
from collections.abc import Sequence

import click

from rearkit import errors
from rearkit.cli import COMMANDS
from rearkit.cli.examples import Group, example_lines, program
from rearkit.cli.full_gpu import told_of_full_gpu
from rearkit.system.console import stderr
from rearkit.system.files import FULL
from rearkit.system.ranks import is_main_process, world_size
from rearkit.system.signals import GUARD, STOPPED, exit_code

# Seconds that other ranks wait before they report an error: enough for the launcher to stop them after the first has.
RANK_DELAY_S = 3.0
EXAMPLES = """run mnist
recipes
show mnist --set train.lr=1e-3
run --help"""
# Errors of a file that are no bug wherever they come up: no permission, a disk that fails, a server that is gone.
UNREACHABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, *FULL)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Group, context_settings=CONTEXT, invoke_without_command=True, example=EXAMPLES)
@click.version_option(package_name="rearkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
# DeepSpeed's launcher adds --local_rank to the command. It is ignored: the variable LOCAL_RANK has the same value.
@click.option("--local_rank", hidden=True)
@click.pass_context
def cli(context: click.Context, debug: bool, local_rank: str | None) -> None:
    """Train visual autoregressive image models that agree with their tokenizer.

    \b
    Exit codes: 0 done; 1 a bug in rearkit; 2 a recipe, option or file to fix; 3 unusable data;
    4 a failed write; 5 training diverged; 6 a bug in a plugin; 75 stopped by SIGTERM; 130 stopped by Ctrl-C.
    A stopped command resumes when run again.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in COMMANDS:
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; a user's mistakes are reported without a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Click takes it before the command only, but people add it at the end of the command that failed.
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # What ``--num-gpus`` starts again in each rank.
    ranks_arguments = ["--debug", *arguments] if debug else arguments
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another language cannot show all letters; a stream may also be closed, or a test's.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with GUARD:
        try:
            GUARD.code = _run(arguments, ranks_arguments, debug)
        except BaseException as error:
            # Whatever was made of the interrupt on its way up here.
            if GUARD.number is None and not isinstance(error, KeyboardInterrupt):
                raise
            GUARD.code = _fail(STOPPED, exit_code(), debug)
            GUARD.end()
        sys.exit(GUARD.code)


def _run(arguments: Sequence[str], ranks_arguments: Sequence[str], debug: bool) -> int:
    """Run a command; report an error that is the user's, and return the exit code."""
    try:
        if "REARKIT_PARENT_FD" in os.environ:
            from rearkit.system.launch import end_with_launcher

            end_with_launcher()
        # Before torch is imported. Once the first rank has ended, NCCL's threads in the others warn of its lost store.
        if not {"RANK", "SLURM_STEP_ID"}.isdisjoint(os.environ):
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        # Before anything asks for the rank: srun sets SLURM's variables, not those that torch reads.
        if "SLURM_STEP_ID" in os.environ:
            from rearkit.system.distributed import adopt_slurm

            adopt_slurm()
        # Without its standalone mode, click returns the code of an Exit.
        code = cli.main(arguments, prog_name=program(), standalone_mode=False, obj=ranks_arguments)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (Exception, SystemExit) as error:
        # Another exception may come of the interrupt; `main` tells of that. So does click's, for Ctrl-C.
        if GUARD.number is not None:
            raise
        GUARD.code = _report(error, debug)
        if world_size() > 1:
            # At once: at its end, NCCL's process group waits for other ranks, which may be waiting for this one.
            GUARD.end()
        return GUARD.code
    # Not imported here: that would import torch, for commands that need none of it.
    if "rearkit.system.distributed" in sys.modules:
        sys.modules["rearkit.system.distributed"].leave()
    return code if isinstance(code, int) else errors.EXIT_OK


def _report(error: Exception | SystemExit, debug: bool) -> int:
    """Print an error that is the user's, and return its exit code; any other is raised, or printed by a rank."""
    if isinstance(error, SystemExit):
        return _code_of_first(error)
    if isinstance(error, click.Abort):
        return _fail(STOPPED, errors.EXIT_INTERRUPTED, debug)
    if isinstance(error, click.ClickException):
        error.show()
        _show_example(error)
        return errors.EXIT_USAGE
    if isinstance(error, errors.RearkitError):
        return _fail(str(error), error.exit_code, debug)
    # The reader of a pipe, such as head, has seen enough.
    if isinstance(error, BrokenPipeError):
        return errors.EXIT_OK
    if isinstance(error, OSError) and error.filename is None and error.errno in (*FULL, errno.EIO):
        return _fail(f"output cannot be written: {error.strerror}", errors.EXIT_STORAGE, debug)
    # Also in a plugin's code, whose authors cannot help it.
    if message := told_of_full_gpu(error):
        return _fail(message, errors.EXIT_USAGE, debug)
    if message := _tells_of_a_plugin(error):
        return _fail(message, errors.EXIT_PLUGIN, debug)
    if isinstance(error, OSError) and error.filename is not None and error.errno in UNREACHABLE:
        message = f"{error.filename}: {error.strerror}; fix that, or choose another folder"
        return _fail(message, errors.EXIT_STORAGE, debug)
    if _tells_of_a_lost_rank(error):
        return _fail("lost contact with another rank; see that rank's error message", errors.EXIT_INTERNAL, debug)
    if world_size() == 1:
        raise error
    traceback.print_exception(error)
    return errors.EXIT_INTERNAL


def _code_of_first(error: SystemExit) -> int:
    """Return what the first rank exits with, which `rearkit.system.distributed.from_main` raises on the others."""
    if not (world_size() > 1 and isinstance(error.code, int)):
        raise error
    # A launcher that saw this rank end would stop the first one, which has yet to tell why.
    time.sleep(RANK_DELAY_S)
    return error.code


def _show_example(error: click.ClickException) -> None:
    """Print how the command is used that an error is about."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        for line in example_lines(context.command, context)[:1]:
            click.echo(line, err=True)


def _tells_of_a_plugin(error: Exception) -> str:
    """Return what to report of an error that came out of a plugin's component; empty if it did not."""
    # Not imported here: where no command has loaded plugins, none is to blame.
    plugins = sys.modules.get("rearkit.registry.plugins")
    found = None if plugins is None else plugins.blamed(error)
    if found is None:
        return ""
    said = f"{type(error).__name__}: {errors.first_line(error)}"
    return f"{found.owner} failed with {said} ({found.place}); tell its authors, with the traceback that --debug shows"


def _tells_of_a_lost_rank(error: Exception) -> bool:
    """Return whether an error means that another rank is gone, by the words of gloo, nccl and torch's store."""
    # torch raises plain RuntimeErrors here, so only their text distinguishes them from bugs.
    phrases = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "failed to recv")
    if not isinstance(error, RuntimeError):
        return False
    return world_size() > 1 and any(phrase in str(error) for phrase in phrases)


def _fail(message: str, code: int, debug: bool) -> int:
    """Print an error, each line of it in red, and return the exit code."""
    if not is_main_process():
        # All ranks are stopped together, which the first one says.
        if code in (errors.EXIT_INTERRUPTED, errors.EXIT_PREEMPTED):
            return code
        # An error of all ranks is reported by the first; the launcher stops the others before they repeat it.
        time.sleep(RANK_DELAY_S)
        message = f"rank {os.environ['RANK']}: {message}"
    if debug:
        traceback.print_exc()
    # Without markup: square brackets in a message, such as [train], are meant as they stand. Indented lines belong to
    # the error above them.
    for line in map(errors.shortened, message.splitlines()):
        stderr.print(line if line.startswith(" ") else f"error: {line}", style="red", markup=False)
    return code
