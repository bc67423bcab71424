"""Commands of the evaluation room."""

from __future__ import annotations
