"""Fixtures shared by all rooms."""

import os
import signal
from pathlib import Path

import pytest

from kits_cascade.nnunet_folders import VARIABLES

REPOSITORY = Path(__file__).parent.parent

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start background jobs deaf to Ctrl-C, and children inherit that: tests that press it would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _nnunet_folders_as_before():
    """Commands with --nnunet-dir set nnU-Net's variables for their process: here, for the tests after them too."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def kits23():
    """Folder with the published masks and the challenge's own scores; not part of the repository."""
    folder = Path(os.environ.get("KITS23_MASKS", REPOSITORY.parent / "shared" / "kits23"))
    if not (folder / "masks").is_dir():
        pytest.skip("the KiTS23 masks are not here: set KITS23_MASKS to a folder with masks/ and official_scores/")
    return folder
