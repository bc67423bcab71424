"""Commands of the inference room."""

from __future__ import annotations
