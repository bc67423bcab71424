"""What a client sends, as a case on disk: measured before it is unpacked, and under names that are ours alone.

All of it is done by :mod:`.reader`, in a process of its own.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import nibabel as nib
import numpy as np

from kits_cascade.errors import FileFormatError
from kits_cascade.volumes import dicom
from kits_cascade.volumes.find import InputCase

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_NIFTI_MAGIC: Final = {b"n+1\x00": nib.Nifti1Header, b"ni1\x00": nib.Nifti1Header}
_HEADER_BYTES: Final = 348
_MOST_OFFSET: Final = 1 << 20  # where the voxels begin; extensions of a CT are small
_PIECE: Final = 1 << 20
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DICOM_MAGIC_AT: Final = 128


class RefusedError(FileFormatError):
    """What was sent is no CT, or more than may be sent."""


@dataclass(frozen=True)
class Limits:
    """How much a client may send, and how slowly."""

    upload_bytes: int = 2_000_000_000
    unpacked_bytes: int = 4_000_000_000  # of a zip
    files: int = 5000  # in a zip
    voxels: int = 400_000_000  # 1500 slices of 512 x 512
    idle_seconds: float = 30.0  # between two pieces of a request
    request_seconds: float = 900.0  # for the whole of it
    read_seconds: float = 300.0  # for reading what was sent, by the clock and by the processor's
    memory_bytes: int = 8_000_000_000  # of the process that reads: libraries, and the largest scan several times

    @property
    def file_bytes(self) -> int:
        """The largest file that it may write: a slice of a zip, or all voxels in the largest type."""
        return max(self.unpacked_bytes, 4 * self.voxels) + _PIECE


def receive(upload: Path, folder: Path, limits: Limits) -> InputCase:
    """Make of the file ``upload`` a case in ``folder``. Raises RefusedError."""
    with upload.open("rb") as stream:
        start = stream.read(4)
        if start.startswith(_ZIP):
            return _receive_series(stream, folder / "series", limits)
    path = folder / ("image.nii.gz" if start.startswith(_GZIP) else "image.nii")
    upload.replace(path)
    _check_header(path, limits)
    return InputCase("image", path, "nifti")


def _check_header(path: Path, limits: Limits) -> None:
    """The size that a NIfTI header announces, before anybody makes room for it."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise RefusedError("not a NIfTI file: its compression is broken") from error
    kind = _NIFTI_MAGIC.get(head[344:348])
    if kind is None:
        raise RefusedError("neither a NIfTI-1 file (.nii, .nii.gz) nor a zip of DICOM slices")
    try:
        header = kind(head, check=False)
        voxels = int(np.prod([max(1, int(n)) for n in header["dim"][1:8]], dtype=np.float64))
        offset = float(header["vox_offset"])
    except (ValueError, OverflowError) as error:
        raise RefusedError("its NIfTI header cannot be read") from error
    if voxels > limits.voxels:
        raise RefusedError(f"its header announces {voxels:.3g} voxels; at most {limits.voxels:.3g} are taken")
    if not 0 <= offset <= _MOST_OFFSET:
        raise RefusedError(f"its voxels begin at byte {offset:.3g}, behind a header of more than {_MOST_OFFSET} bytes")


def _receive_series(stream: IO[bytes], folder: Path, limits: Limits) -> InputCase:
    folder.mkdir()
    try:
        with zipfile.ZipFile(stream) as archive:
            _unpack(archive, folder, limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, UnicodeError) as error:
        raise RefusedError(f"not a zip that can be unpacked ({type(error).__name__})") from error
    if not any(folder.iterdir()):
        raise RefusedError("no DICOM slice in the zip")
    slices, _ = dicom.series_slices(folder)
    voxels = sum(part.size[0] * part.size[1] for part in slices)
    if voxels > limits.voxels:
        raise RefusedError(f"its slices announce {voxels:.3g} voxels; at most {limits.voxels:.3g} are taken")
    return InputCase("image", folder, "dicom")


def _unpack(archive: zipfile.ZipFile, folder: Path, limits: Limits) -> None:
    """The DICOM files of a zip, numbered: their names in it are of no use, and may be traps."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) > limits.files:
        raise RefusedError(f"{len(members)} files in the zip; at most {limits.files} are taken")
    left = limits.unpacked_bytes
    for number, member in enumerate(members):
        if member.compress_type not in _METHODS or member.flag_bits & 1:
            raise RefusedError("a zip of another kind: files are to be stored or deflated, not encrypted")
        with archive.open(member) as source:
            left -= _copy_dicom(source, folder / f"{number:05d}.dcm", left)


def _copy_dicom(source: IO[bytes], target: Path, most: int) -> int:
    """Copy a DICOM file, and nothing that is none; counted while it is unpacked, since what a zip announces may lie."""
    head = source.read(_DICOM_MAGIC_AT + 4)
    if head[_DICOM_MAGIC_AT:] != b"DICM":
        return len(head)
    size = len(head)
    with target.open("wb") as stream:
        stream.write(head)
        while piece := source.read(_PIECE):
            size += len(piece)
            if size > most:
                raise RefusedError("more in the zip, once unpacked, than is taken")
            stream.write(piece)
    return size
