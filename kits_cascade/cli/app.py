"""The Typer app, and the one place where errors turn into words and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from kits_cascade import __version__
from kits_cascade.errors import KitsCascadeError

INTERRUPTED = "interrupted; what is finished is kept, run the same command again to go on"


class _InterruptionError(KitsCascadeError):
    exit_code = 130


class _Commands(TyperGroup):
    """Lets an interruption through as an error of ours: click would make a bare "Aborted!" of it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptionError(INTERRUPTED) from error


app = typer.Typer(
    name="kits-cascade",
    cls=_Commands,
    help="Kidneys, renal tumours and renal cysts in CT, coarse to fine, on top of nnU-Net v2.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

# Each module adds its commands to the app; none of them imports torch or nnU-Net before a command runs.
_COMMAND_MODULES = ("setup", "data", "training", "inference", "evaluation")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"kits-cascade {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Kidneys, renal tumours and renal cysts in CT, coarse to fine, on top of nnU-Net v2."""


for _module in _COMMAND_MODULES:
    importlib.import_module(f"kits_cascade.cli.{_module}")


def main() -> None:
    """Entry point: known errors become a message and an exit code, never a traceback."""
    try:
        app()
    except KitsCascadeError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, _InterruptionError.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, code: int) -> None:
    errors.print("error:", message, style="bold red", markup=False)
    sys.exit(code)
