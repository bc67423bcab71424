"""A file with the options of a prediction: some of them, or those that the run.json of another prediction holds."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from kits_cascade.errors import UsageError
from kits_cascade.files import read_json
from kits_cascade.inference.cascade import Speed
from kits_cascade.inference.pipeline import CascadeOptions
from kits_cascade.json_options import build_options

_TAKES = 'such as {"margin_mm": 25, "postprocess": {"tumor_mm3": 50}}; or the run.json of a run'


def read_options(path: Path) -> tuple[CascadeOptions, Speed]:
    """The options in a file; what it does not name is as usual."""
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; needed is one with options, {_TAKES}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a file of options ({error}); it looks {_TAKES}") from error
    if isinstance(content, dict) and "schema" in content and "options" in content:
        content = content["options"]
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not an object of options; it looks {_TAKES}")
    pace = {field.name for field in fields(Speed)}
    known = pace | {field.name for field in fields(CascadeOptions)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise UsageError(f"{path}: unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    result = build_options(CascadeOptions, {k: v for k, v in content.items() if k not in pace}, str(path))
    return result, build_options(Speed, {k: v for k, v in content.items() if k in pace}, str(path))
