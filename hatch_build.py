"""Build hook: what must lie outside the package folder once installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STARTUP = {
    "kits_cascade/startup/kits_cascade_nnunet.pth": "kits_cascade_nnunet.pth",
    "kits_cascade/startup/_kits_cascade_startup.py": "_kits_cascade_startup.py",
}


class CustomBuildHook(BuildHookInterface):
    """Adds the start-up line to every install, and the plan presets to regular ones (an editable one reads plans/)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        startup = {str(root / source): target for source, target in STARTUP.items()}
        build_data["force_include"] |= {**startup, str(root / "plans"): "kits_cascade/plans"}
        build_data["force_include_editable"] |= startup
