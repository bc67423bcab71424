"""The command line as a whole, and the one place where errors turn into words and exit codes."""

from __future__ import annotations

import gc
import os
import sys
import warnings

from kits_cascade.cli import data, doctor, evaluation, models, recipes, report, runs, service, synthetic, watch
from kits_cascade.cli.root import INTERRUPTED, InterruptionError, app, errors
from kits_cascade.errors import KitsCascadeError

# What help lists, in this order; each file has added its commands by being imported.
COMMAND_FILES = (doctor, synthetic, data, recipes, runs, watch, models, evaluation, report, service)


def main() -> None:
    """Entry point: known errors become a message and an exit code, never a traceback."""
    # What PyTorch says to those who build on it tells a user nothing.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    try:
        app()
    except KitsCascadeError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, InterruptionError.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    finally:
        # Python ends by looking for garbage among all that PyTorch has made, for up to a second; it dies all the same.
        gc.freeze()


def _fail(message: str, code: int) -> None:
    errors.print("error:", message, style="bold red", markup=False)
    sys.exit(code)
