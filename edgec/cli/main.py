"""`edgec`: the commands, and the one place where an error becomes an exit code.

Exit codes: 0 done, 1 a check or a budget failed or a bundle was refused, 2 the input is wrong, 3 a device or a file
system failed, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Final

# Before anything can import onnxruntime; see edgec_runtime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# torch's threads wait for each other by spinning; where anything else runs that takes many times the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Each of several processes would be told that looking for unused parameters costs a little.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import typer

from edgec import __version__
from edgec.cli import (
    ask,
    audit,
    bench,
    compress,
    console,
    doctor,
    evaluate,
    export,
    index,
    recipes,
    report,
    run,
    sensitivity,
    targets,
    verify,
)
from edgec.errors import EdgecError
from edgec.processes import is_main, rank

INTERRUPTED: Final = 130
_TAKEN_UP: Final = {
    "compress": "--resume takes up the finished passes, and a training where it was",
    "index": "--resume takes up what was committed",
}

app = typer.Typer(
    name="edgec",
    help="Make a transformer small and fast for a device, with proof that it is right and faster there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(compress.compress)
app.command()(export.export)
app.command()(verify.verify)
app.command()(audit.audit)
app.command()(bench.bench)
app.command()(run.run)
app.command()(evaluate.evaluate)
app.command()(index.index)
app.command()(ask.ask)
app.command()(report.report)
app.command()(sensitivity.sensitivity)
app.command()(doctor.doctor)
app.add_typer(targets.app, name="targets")
app.add_typer(recipes.app, name="recipes")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for as long as the process lives
    # A polite kill (a service manager, a cancelled job) cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(invoke(sys.argv[1:]))


def invoke(args: list[str]) -> int:
    """Run `args` and give the exit code; errors are told on stderr, with their remedy."""
    from edgec_runtime.errors import BundleError
    from edgec_runtime.notices import BundleWarning

    # What the runtime has to tell is for the user, not for a developer: one line, without a place in our code.
    warnings.showwarning = lambda message, category, *_: (
        console.info(f"warning: {message}") if issubclass(category, BundleWarning) else None
    )
    try:
        command = typer.main.get_command(app)
        # Not `app(args)`: typer would turn Ctrl-C into an exit without a word.
        with command.make_context("edgec", args) as context:
            command.invoke(context)
        return 0
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        if not is_main():
            return INTERRUPTED
        return _fail("interrupted", _TAKEN_UP.get(args[0] if args else "", ""), INTERRUPTED)
    except BrokenPipeError:
        # The reader of stdout has gone (as in `… | head`); Python must not try to flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (EdgecError, BundleError) as error:
        _traceback_if_wanted()
        return _fail(error.message, error.hint, error.exit_code)
    except OSError as error:
        _traceback_if_wanted()
        place = error.filename or ("stdout" if error.errno == errno.ENOSPC else "")
        where = f"{place}: " if place else ""
        return _fail(f"{where}{error.strerror or error}", "check the path, its permissions and the free space", 3)
    except Exception as error:
        # Typer's own usage errors: it vendors click, so they are recognised by what they can do.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            console.info(error.format_message())
            return 2
        place = getattr(error, "ctx", None)
        hint = f"`{place.command_path} --help` explains the command" if place else ""
        return _fail(error.format_message(), hint, 2)
    finally:
        console.stop_progress()


def _fail(message: str, hint: str, code: int) -> int:
    console.stop_progress()
    # The first process tells what all run into, and the others what they alone may know.
    console.info(f"error: {message}" if is_main() else f"error (process {rank()}): {message}")
    if hint:
        console.info(f"hint: {hint}")
    return code


def _traceback_if_wanted() -> None:
    if os.environ.get("EDGEC_TRACEBACK") == "1":
        import traceback

        traceback.print_exc()
