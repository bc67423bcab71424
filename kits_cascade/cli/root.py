"""The Typer app that every file of commands adds its own to; none of them imports torch before a command runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from kits_cascade.errors import KitsCascadeError, UsageError
from kits_cascade.version import __version__

errors = Console(stderr=True, highlight=False, soft_wrap=True)
INTERRUPTED = "interrupted; what is finished is kept, run the same command again to go on"


class InterruptionError(KitsCascadeError):
    """Ctrl-C, or what stands for it."""

    exit_code = 130


# Kept for one version: what was written for 0.1 goes on working. (command, old spelling) -> new spelling.
OLD_SPELLINGS = {
    ("predict", "--output"): "--out",
    ("predict", "-j"): "--threads",
    ("predict", "--jobs"): "--threads",
}
# Switches that are options in a file now.
_STEPS = "small-lesions", "small-kidneys", "detached-lesions"
MOVED = {
    "--min-voxels",
    *(f"--{label}-mm3" for label in ("kidney", "tumor", "cyst")),
    *(f"--{what}-{step}" for what in ("keep", "remove") for step in _STEPS),
}


def respell(args: list[str]) -> list[str]:
    """Arguments with the new spellings of options; each old one is named once."""
    command, result = next((word for word in args if not word.startswith("-")), ""), []
    for word in args:
        name, sign, value = word.partition("=")
        new = OLD_SPELLINGS.get((command, name))
        if new is not None:
            errors.print(f"{command} {name} is called {new} now; the old name goes with the next version", markup=False)
        elif command == "predict" and name in MOVED:
            raise UsageError(
                f"predict has no {name} any more: the steps of the postprocessing are in --options FILE, such as "
                '{"postprocess": {"tumor_mm3": 50, "small_lesions": false}}'
            )
        result.append(word if new is None else f"{new}{sign}{value}")
    return result


class _Commands(TyperGroup):
    """Lets an interruption through as an error of ours: click would make a bare "Aborted!" of it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spellings of the version before still work, with a word about the new one."""
        return super().parse_args(ctx, respell(args))

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
