"""Bundles on Hugging Face: ``hf://OWNER/NAME[@REVISION]``, by huggingface_hub (with its cache, token and endpoint)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import MissingExtraError, ModelError, UsageError

SCHEME: Final = "hf://"
_PART: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_ADDRESS: Final = re.compile(rf"hf://(?P<repository>{_PART}/{_PART})(@(?P<revision>[A-Za-z0-9][A-Za-z0-9_./-]*))?")


@dataclass(frozen=True)
class HubAddress:
    """A repository of models, at a revision (branch, tag or commit) or at its newest state."""

    repository: str
    revision: str | None = None


def is_hub_address(text: str) -> bool:
    """Whether this names a repository, and no file."""
    return text.startswith(SCHEME)


def parse_address(text: str) -> HubAddress:
    """From ``hf://OWNER/NAME[@REVISION]``."""
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in text:
        raise UsageError(f"{text}: no address of a repository; needed is hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return HubAddress(match["repository"], match["revision"])


def fetch_bundle(text: str) -> Path:
    """The one zip of a repository, in the cache of huggingface_hub; nothing in it is believed yet."""
    address = parse_address(text)
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "download") from error
    # The HTTP library behind has changed its name; its root error is the base of huggingface_hub's own.
    root = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    try:
        return _fetch(huggingface_hub, address, text)
    except (root, OSError) as error:  # no such repository or revision, no permission, no network
        raise ModelError(f"{text}: cannot be fetched ({' '.join(str(error).split())[:300]})") from error


def _fetch(huggingface_hub: Any, address: HubAddress, text: str) -> Path:
    names = huggingface_hub.HfApi().list_repo_files(address.repository, revision=address.revision)
    bundles = [name for name in names if name.endswith(".zip")]
    if len(bundles) != 1:
        raise ModelError(
            f"{text}: {len(bundles)} zip files in it, and a bundle is one; download the right one yourself"
        )
    return Path(huggingface_hub.hf_hub_download(address.repository, bundles[0], revision=address.revision))
