"""The command line: `stenograf`.

A command is one module here and one line in `COMMANDS`. The module is imported when its command is called, so that
`stenograf --help` answers at once.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import click

from stenograf._version import __version__
from stenograf.errors import StenografError, UsageError

COMMANDS = {
    "transcribe": "Write down what is said in recordings.",
    "serve": "Run the service: REST API, OpenAI's audio API, and workers.",
    "worker": "Run workers alone, on the database of a service.",
    "jobs": "List, look at, cancel, retry and remove jobs of the service.",
    "keys": "Make, list and revoke API keys of the service.",
    "models": "List, download and remove models.",
    "config": "Show every setting, its value and where it came from.",
    "doctor": "Tell what works on this machine.",
}
"""Command -> what `stenograf --help` says of it. The command is the function `command` of the module of its name."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"stenograf.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if os.path.lexists(args[0]) or Path(args[0]).suffix:
                meant = f"{args[0]!r} is no command. Did you mean: stenograf transcribe {args[0]!r}"
                raise click.UsageError(meant, ctx) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with: stenograf transcribe RECORDING. Each command tells more with --help.",
)
@click.version_option(__version__, "-V", "--version", prog_name="stenograf", message="%(prog)s %(version)s")
def cli() -> None:
    """Speech to text on your own machine: a recording in, a transcript out."""


def main() -> NoReturn:
    """The entry of the program: runs the command and ends the process with its exit status.

    0: done; 1: something failed; 2: used wrongly; 130: stopped by Ctrl-C.
    """
    _prepare_streams()
    asked: dict[str, bool] = {}
    try:
        _expect_working_directory()
        status = cli.main(standalone_mode=False, obj=asked)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except StenografError as error:
        if asked.get("verbose"):
            traceback.print_exc()
        show_error(error)
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        if not asked.get("told"):
            click.echo("Stopped.", err=True)
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`stenograf ... | head`): nothing left to say, and no one to say it to.
        from stenograf.cli.console import discard_output

        discard_output()
        status = 1
    except OSError as error:
        if asked.get("verbose"):
            raise
        click.echo(f"Error: {error.filename or 'standard output'}: {error.strerror or error}.", err=True)
        from stenograf.cli.console import discard_output

        discard_output()
        status = 1
    except Exception as error:
        if asked.get("verbose"):
            raise
        click.echo(f"Error: something unexpected happened: {type(error).__name__}: {error}", err=True)
        click.echo("Hint: run it again with -v to see where, and please report it.", err=True)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _expect_working_directory() -> None:
    try:
        Path.cwd()
    except OSError as error:  # some libraries end the whole process without one
        raise UsageError("The folder you are in does not exist any more.", "Change to another one.") from error


def _prepare_streams() -> None:
    """A name that is no valid UTF-8, or a terminal that cannot show a letter, must not end the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # what is written to a file is UTF-8, as the files we write are


def show_error(error: StenografError) -> None:
    """An error and its hint, on stderr."""
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(error.message, err=True)
    if error.hint:
        click.secho("Hint: ", fg="yellow", nl=False, err=True)
        click.echo(error.hint, err=True)
