"""Commands of the setup room."""

from __future__ import annotations
