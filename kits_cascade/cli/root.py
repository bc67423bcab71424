"""The Typer app that every file of commands adds its own to; none of them imports torch before a command runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from kits_cascade.errors import KitsCascadeError
from kits_cascade.version import __version__

INTERRUPTED = "interrupted; what is finished is kept, run the same command again to go on"


class InterruptionError(KitsCascadeError):
    """Ctrl-C, or what stands for it."""

    exit_code = 130


class _Commands(TyperGroup):
    """Lets an interruption through as an error of ours: click would make a bare "Aborted!" of it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise InterruptionError(INTERRUPTED) from error


app = typer.Typer(
    name="kits-cascade",
    cls=_Commands,
    help="Kidneys, renal tumours and renal cysts in CT, coarse to fine, on top of nnU-Net v2.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


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
