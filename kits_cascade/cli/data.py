"""Commands of the data room."""

from __future__ import annotations
