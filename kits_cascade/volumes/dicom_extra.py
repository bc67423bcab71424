"""The one place where pydicom and highdicom are imported: they come with the extra ``dicom``."""

from __future__ import annotations

from typing import Any

from kits_cascade.errors import MissingExtraError


def load_pydicom() -> Any:
    """pydicom, or an error that names the extra."""
    try:
        import pydicom
        import pydicom.uid
    except ImportError as error:
        raise MissingExtraError("pydicom", "dicom") from error
    return pydicom


def load_highdicom() -> Any:
    """highdicom with the parts that are used here, or an error that names the extra."""
    try:
        import highdicom
        import highdicom.seg
        import highdicom.sr
    except ImportError as error:
        raise MissingExtraError("highdicom", "dicom") from error
    return highdicom


def load_codes() -> Any:
    """pydicom's dictionary of coded terms: what a code is called is looked up there, never written by hand."""
    load_pydicom()
    from pydicom.sr.codedict import codes

    return codes


def derived_uid(*parts: str) -> str:
    """A UID that follows from ``parts``: the same result, written again, is the same object to an archive."""
    return str(load_pydicom().uid.generate_uid(entropy_srcs=list(parts)))
