"""Commands of the training room."""

from __future__ import annotations
