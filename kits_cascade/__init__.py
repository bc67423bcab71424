"""Kidneys, renal tumours and renal cysts in CT, coarse to fine: a plugin for nnU-Net v2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kits_cascade.version import __version__ as __version__

if TYPE_CHECKING:
    from kits_cascade.inference.cascade import Cascade

__all__ = ["Cascade", "__version__"]


def __getattr__(name: str) -> Any:
    """Load ``Cascade`` when it is asked for: it brings torch along, which takes seconds."""
    if name == "Cascade":
        from kits_cascade.inference.cascade import Cascade

        return Cascade
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
