"""Kidneys, renal tumours and renal cysts in CT, coarse to fine: a plugin for nnU-Net v2.

The names below are the public ones; the modules behind them may move.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kits_cascade.version import __version__ as __version__

if TYPE_CHECKING:
    from kits_cascade.evaluation.metrics import score_arrays
    from kits_cascade.evaluation.score import evaluate_folder
    from kits_cascade.inference.cascade import Cascade, Speed
    from kits_cascade.inference.pipeline import CascadeOptions
    from kits_cascade.inference.postprocess import PostprocessOptions, postprocess
    from kits_cascade.report.figures import case_panel
    from kits_cascade.runs.predict import predict_folder
    from kits_cascade.volumes.nifti import read_labels, read_volume

# Each is loaded when it is asked for: some bring torch along, which takes seconds.
_HOMES = {
    "Cascade": "inference.cascade",
    "CascadeOptions": "inference.pipeline",
    "PostprocessOptions": "inference.postprocess",
    "Speed": "inference.cascade",
    "case_panel": "report.figures",
    "evaluate_folder": "evaluation.score",
    "postprocess": "inference.postprocess",
    "predict_folder": "runs.predict",
    "read_labels": "volumes.nifti",
    "read_volume": "volumes.nifti",
    "score_arrays": "evaluation.metrics",
}
__all__ = [
    "Cascade",
    "CascadeOptions",
    "PostprocessOptions",
    "Speed",
    "__version__",
    "case_panel",
    "evaluate_folder",
    "postprocess",
    "predict_folder",
    "read_labels",
    "read_volume",
    "score_arrays",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
