"""Tells nnU-Net where our trainers are, at the start of every Python process of the environment.

The .pth file beside this module imports it while Python starts: so it must stay tiny, import nothing that Python
has not loaded already, and never fail. What the user has put into ``nnUNet_extTrainer`` stays, and comes first.
"""

import os
import sys

VARIABLE = "nnUNet_extTrainer"


def plugin_folder() -> "str | None":
    """The folder with the trainers of the kits_cascade that this environment would import."""
    for entry in sys.path:
        folder = os.path.join(entry, "kits_cascade", "nnunet_plugin")  # noqa: PTH118 - pathlib is not loaded at start
        if os.path.isdir(folder):  # noqa: PTH112
            return folder
    return None


def register() -> None:
    """Append our folder to the variable, once."""
    folder = plugin_folder()
    if folder is None:
        return
    known = [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
    if folder not in known:
        os.environ[VARIABLE] = os.pathsep.join([*known, folder])


register()
