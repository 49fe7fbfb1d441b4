"""The `meddelinea` command: its sub-commands, and how errors are shown."""

from __future__ import annotations

import io
import logging
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated, NoReturn

import typer
from typer import Option

from meddelinea.cli import benchmark
from meddelinea.cli.adapt import adapt
from meddelinea.cli.check import check
from meddelinea.cli.demo import demo
from meddelinea.cli.evaluate import evaluate
from meddelinea.cli.fit import fit
from meddelinea.cli.import_weights import import_weights
from meddelinea.cli.info import info
from meddelinea.cli.leak_check import leak_check
from meddelinea.cli.predict import predict
from meddelinea.cli.prepare import prepare
from meddelinea.cli.push import push
from meddelinea.cli.serve import serve
from meddelinea.cli.train import curves, train
from meddelinea.errors import MedDelineaError
from meddelinea.temporary import TERMINATIONS
from meddelinea.version import __version__

#: Exit code of a command that was stopped from the keyboard, as shells have it.
INTERRUPTED = 130

app = typer.Typer(
    name="meddelinea",
    help="Segment organs in CT and MRI volumes with a controllable diffusion transformer.",
    add_completion=False,
    rich_markup_mode=None,  # plain help takes half the start-up time and fits a narrow terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 1000},  # as wide as the terminal
)
for command in (
    predict, demo, check, info, prepare, fit, train, adapt, curves, evaluate, leak_check, serve, import_weights, push,
):  # fmt: skip
    app.command()(command)
app.add_typer(benchmark.app, name="benchmark")


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show warnings, and the traceback of an error.")] = False,
) -> None:
    if version:
        typer.echo(f"meddelinea {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 unexpected error, 130 interrupted, otherwise the error's exit code.

    A process that is asked by a signal to end tidies up before it does.

    Parameters
    ----------
    arguments
        Words after the program's name, by default those of this process. `--debug` may stand anywhere among them.
    """
    for asked in TERMINATIONS:
        if signal.getsignal(asked) is signal.SIG_DFL:  # and not ignored, as nohup has it
            with suppress(ValueError):  # not the main thread: it is another program's
                signal.signal(asked, _unwind)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text that the screen can show
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words
    if not debug:  # warnings of libraries would bury the one line that explains an error
        logging.disable(logging.WARNING)
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
    words = [word for word in words if word != "--debug"]
    message = ""
    try:
        code = app(words, prog_name="meddelinea", standalone_mode=False)
    except _AskedToEnd as asked_to:
        code = asked_to.args[0]
        signal.signal(code, signal.SIG_DFL)
        signal.raise_signal(code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, message = _explain(error, words)
    if code == INTERRUPTED:
        message = "interrupted"
    if message:
        print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


class _AskedToEnd(BaseException):
    """A signal asks the process to end; its number is the argument."""


def _unwind(number: int, _: object) -> NoReturn:
    for asked in TERMINATIONS:  # those that stop a whole group of processes ask again and again
        signal.signal(asked, signal.SIG_IGN)
    raise _AskedToEnd(number)


def _explain(error: Exception, words: list[str]) -> tuple[int, str]:
    """Exit code and message of an error that ended the command that `words` called."""
    if isinstance(error, MedDelineaError):
        flag = _flag(error.parameter, words)
        return error.exit_code, f"{error} ({flag})" if flag else str(error)
    if isinstance(error, typer.Abort) and not isinstance(error.__cause__, EOFError):
        return INTERRUPTED, ""
    usage_error = typer.BadParameter.__base__
    if usage_error is not None and isinstance(error, usage_error):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "meddelinea"
        message = getattr(error, "format_message", lambda: str(error))()  # names the option or argument meant
        return 2, f"{message.rstrip('.')}; see `{command} --help`"
    cause = error.__cause__ if isinstance(error, typer.Abort) and error.__cause__ is not None else error
    detail = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
    return 1, f"{detail} (unexpected; --debug shows where)"


def _flag(parameter: str | None, words: list[str]) -> str | None:
    """The flag that sets `parameter` in the command that `words` called; None where it has none."""
    if parameter is None:
        return None
    command = typer.main.get_command(app)
    for word in words:  # only a group of commands has any, so the words after the command's name change nothing
        command = getattr(command, "commands", {}).get(word, command)
    flags = [flag for option in command.params if option.name == parameter for flag in option.opts]
    return next((flag for flag in flags if flag.startswith("--")), None)
