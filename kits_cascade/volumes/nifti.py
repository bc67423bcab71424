"""NIfTI files: reading in slabs into the smallest fitting type, writing atomically and repeatably.

A float64 file of a large scan never needs its own size in memory, and a broken file ends in one clear error.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final, cast

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from kits_cascade.errors import FileFormatError, GeometryError
from kits_cascade.files import atomic_path
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import (
    Array,
    StoredAs,
    Volume,
    check_affine,
    to_stored,
    volume_from_array,
    volume_from_stored,
)

NIFTI_ENDINGS: Final = (".nii.gz", ".nii")
_SLAB_BYTES: Final = 1 << 20  # fits the processor's cache, and is as fast as memory comes
_GZIP_LEVEL: Final = 2  # isal: as small as zlib's default, five times as fast


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the many ways in which a file can be broken into one clear error."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileFormatError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise FileFormatError(f"{path}: is a folder, not a file") from error
    except EOFError as error:
        raise FileFormatError(f"{path}: the file ends too early (truncated); copy or download it again") from error
    except (zlib.error, gzip.BadGzipFile, cast("type[Exception]", igzip_lib.IsalError)) as error:
        raise FileFormatError(f"{path}: not a valid gzip file ({error}); copy or download it again") from error
    except (HeaderDataError, ImageFileError, WrapStructError) as error:
        raise FileFormatError(f"{path}: not a valid NIfTI file ({error})") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path.name.endswith(".gz"):
        _check_gzip(path)
        with igzip.open(path, "rb") as stream:
            yield cast("IO[bytes]", stream)
    else:
        with path.open("rb") as stream:
            yield stream


def _check_gzip(path: Path) -> None:
    """A short text named .nii.gz would else be called truncated."""
    with path.open("rb") as stream:
        start = stream.read(348)
    if start and start[:2] != b"\x1f\x8b":
        plain = start[344:347] in {b"n+1", b"ni1"}
        what = "a NIfTI file that is not compressed; rename it to .nii" if plain else "copy or download it again"
        raise FileFormatError(f"{path}: not a valid gzip file: {what}")


def is_nifti(path: Path) -> bool:
    """By its name."""
    return path.name.endswith(NIFTI_ENDINGS)


def case_name(path: Path) -> str:
    """File name without its ending, and without nnU-Net's channel number."""
    name = path.name
    for ending in (*NIFTI_ENDINGS, ".mha", ".mhd", ".nrrd"):
        if name.endswith(ending):
            name = name[: -len(ending)]
            break
    return name.removesuffix("_0000")


def read_header(path: Path) -> tuple[tuple[int, int, int], Array, Any]:
    """Stored shape, affine and header of a NIfTI file, checked, without reading the voxels."""
    with reading(path), _opened(path) as stream:
        return _header(path, stream)


def _header(path: Path, stream: IO[bytes]) -> tuple[tuple[int, int, int], Array, Any]:
    start = stream.read(4)
    if len(start) < 4:
        raise EOFError
    kind = (
        nib.Nifti2Header if 540 in (int.from_bytes(start, order) for order in ("little", "big")) else nib.Nifti1Header
    )
    block = start + stream.read(kind.sizeof_hdr - 4)
    if len(block) < kind.sizeof_hdr:
        raise EOFError
    header = kind(block, check=False)  # nibabel's check would mend a zero voxel size in silence
    if header["magic"].item() not in {b"n+1", b"n+2"}:
        raise ImageFileError("no NIfTI header")
    shape = _shape(path, header)
    zooms = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(zooms).all() or (zooms <= 0).any():
        raise GeometryError(f"{path}: voxel size {tuple(zooms.tolist())} mm; it must be above zero in all three axes")
    affine = header.get_best_affine()
    try:
        check_affine(affine)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error
    return shape, affine, header


def _shape(path: Path, header: Any) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise FileFormatError(f"{path}: {len(shape)}-D image of shape {shape}; a 3-D volume is needed")
    if 0 in shape:
        raise FileFormatError(f"{path}: shape {shape} has no voxels")
    return shape[0], shape[1], shape[2]


def read_volume(path: Path | str, dtype: Any = None) -> Volume:
    """Read a NIfTI file into canonical order.

    ``dtype`` defaults to the stored integer type where there is no scaling, else float32; values that are not finite
    are kept, and the caller decides (see :func:`check_finite`).
    """
    path = Path(path)
    with reading(path), _opened(path) as stream:
        shape, affine, header = _header(path, stream)
        array = _voxels(stream, shape, header, dtype)
    return volume_from_stored(array, affine, header)


def read_cropped(path: Path, slices: tuple[slice, slice, slice], dtype: Any = None) -> Volume:
    """What ``read_volume(path).cropped(slices)`` gives, with no more than that part in memory."""
    with reading(path), _opened(path) as stream:
        shape, affine, header = _header(path, stream)
        part = _stored_slices(affine, shape, slices)
        array = _voxels(stream, shape, header, dtype, part)
    corner = affine.copy()
    corner[:3, 3] += affine[:3, :3] @ [s.start for s in part]
    volume = volume_from_stored(array, corner)
    return volume_from_array(volume.array, volume.affine)


def _stored_slices(
    affine: Array, shape: tuple[int, int, int], slices: tuple[slice, slice, slice]
) -> tuple[slice, slice, slice]:
    """Canonical z, y, x slices as slices of the stored axes."""
    result = []
    for (axis, flip), size in zip(io_orientation(affine), shape, strict=True):
        start, stop, _ = slices[2 - int(axis)].indices(size)
        result.append(slice(start, stop) if flip > 0 else slice(size - stop, size - start))
    return result[0], result[1], result[2]


def _voxels(
    stream: IO[bytes],
    shape: tuple[int, int, int],
    header: Any,
    dtype: Any,
    part: tuple[slice, slice, slice] | None = None,
) -> Array:
    """The stored array, or a part of it, converted bit by bit while it is decompressed."""
    stored_type = header.get_data_dtype()
    if stored_type.kind not in "iuf":
        raise FileFormatError(f"voxels of type {stored_type}; numbers are needed")
    slope, intercept = header.get_slope_inter()
    slope, intercept = (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))
    scaled = (slope, intercept) != (1.0, 0.0)
    target = np.dtype(dtype) if dtype is not None else _smallest(stored_type, scaled, slope, intercept)
    _skip(stream, int(header.get_data_offset()) - header.sizeof_hdr)
    if part is None:
        array = np.empty(shape, dtype=target, order="F")
        pieces = _flat_pieces(array, stored_type, scaled)
    else:
        array = np.empty([s.stop - s.start for s in part], dtype=target, order="F")
        pieces = _part_pieces(array, shape, part, stored_type)
    for buffer, kept, place in pieces:
        _fill(stream, buffer)
        if place is not None:
            place[...] = kept * slope + intercept if scaled else kept
    if isinstance(stream, igzip.IGzipFile):
        stream.read(1)  # reaches the trailer: the checksum of the whole is verified here
    return array


# What to read next, the view of it to keep, and where that goes (None: nowhere).
_Piece = tuple[Array, Array, "Array | None"]


def _flat_pieces(array: Array, stored_type: np.dtype[Any], scaled: bool) -> Iterator[_Piece]:
    flat = array.reshape(-1, order="F")
    if array.dtype == stored_type and not scaled:
        yield flat, flat, None  # read to where it belongs
        return
    buffer = np.empty(min(len(flat), max(1, _SLAB_BYTES // stored_type.itemsize)), dtype=stored_type)
    for begin in range(0, len(flat), len(buffer)):
        slab = buffer[: len(flat) - begin]
        yield slab, slab, flat[begin : begin + len(slab)]


def _part_pieces(
    array: Array, shape: tuple[int, int, int], part: tuple[slice, slice, slice], stored_type: np.dtype[Any]
) -> Iterator[_Piece]:
    buffer = np.empty(shape[0] * shape[1], dtype=stored_type)
    kept = buffer.reshape(shape[:2], order="F")[part[0], part[1]]
    for index in range(shape[2]):
        inside = part[2].start <= index < part[2].stop
        yield buffer, kept, array[:, :, index - part[2].start] if inside else None


def _smallest(stored_type: np.dtype[Any], scaled: bool, slope: float, intercept: float) -> np.dtype[Any]:
    whole = slope.is_integer() and intercept.is_integer() and stored_type.kind in "iu" and stored_type.itemsize <= 2
    if scaled:
        # A rescale intercept of -1024 on 12 bits fits 16 bits; scaled further, take float.
        return np.dtype(np.int16) if whole and stored_type.itemsize == 1 and abs(slope) <= 64 else np.dtype(np.float32)
    if stored_type.kind == "f" or stored_type.itemsize > 4:
        return np.dtype(np.float32) if stored_type.kind == "f" else np.dtype(np.int32)
    return stored_type.newbyteorder("=")


def _skip(stream: IO[bytes], count: int) -> None:
    if count > 0 and len(stream.read(count)) < count:
        raise EOFError


def _fill(stream: IO[bytes], slab: Array) -> None:
    view = memoryview(cast("Any", slab.view(np.uint8)))
    while view.nbytes:
        got = cast("Any", stream).readinto(view[:_SLAB_BYTES])
        if not got:
            raise EOFError
        view = view[got:]


def check_finite(volume: Volume, path: Path) -> None:
    """Raise where voxels are NaN or infinite: no network can answer for them."""
    if volume.array.dtype.kind != "f":
        return
    bad = volume.array.size - sum(int(np.isfinite(part).sum()) for part in volume.array)
    if bad:
        raise FileFormatError(f"{path}: {bad} voxels are NaN or infinite; export the scan again or fill them")


def read_labels(path: Path | str) -> Volume:
    """Read a label map as uint8; values that are not whole numbers in 0..255 are an error."""
    volume = read_volume(path)
    if volume.array.dtype == np.uint8:
        return volume
    labels = np.empty_like(volume.array, dtype=np.uint8)
    for index, part in enumerate(volume.array):
        labels[index] = np.nan_to_num(part, nan=0).clip(0, 255)
        if not np.array_equal(labels[index], part):
            raise FileFormatError(f"{path}: label values must be whole numbers from 0 to 255")
    return replace(volume, array=labels)


def write_volume(path: Path, volume: Volume, array: Array | None = None) -> None:
    """Write an array in the place, shape and orientation of the file that ``volume`` was read from, atomically.

    The same input gives the same bytes: the gzip header holds no time and no name.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as raw:
        _write_to(raw, volume, array, path.name.endswith(".gz"))


def packed_volume(volume: Volume, array: Array) -> bytes:
    """What :func:`write_volume` writes to a .nii.gz: small, for a label map."""
    stream = io.BytesIO()
    _write_to(stream, volume, array, compressed=True)
    return stream.getvalue()


def _write_to(raw: Any, volume: Volume, array: Array | None, compressed: bool) -> None:
    data = to_stored(volume, array)
    if data.dtype == np.bool_:
        data = data.astype(np.uint8)
    header = _header_for(volume.stored, data)
    if not compressed:
        _write(raw, header, data)
        return
    with igzip.IGzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0) as stream:
        _write(stream, header, data)


def _header_for(stored: StoredAs, data: Array) -> Any:
    header = stored.header.copy()
    header.set_data_shape(stored.shape)
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        # No world space in the header: as nibabel does for a new file.
        header.set_qform(stored.affine, code=0)
        header.set_sform(stored.affine, code=2)
    header.extensions.clear()
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    return header


def _write(stream: Any, header: Any, data: Array) -> None:
    stream.write(header.binaryblock)
    stream.write(b"\0" * (int(header["vox_offset"]) - header.sizeof_hdr))
    order = header.get_data_dtype()
    # Fortran order in slabs of the slowest axis: no second copy of a large volume, and it stays in cache.
    step = max(1, _SLAB_BYTES // max(1, data.shape[0] * data.shape[1] * order.itemsize))
    box = Box.around(data) if data.dtype == np.uint8 and data.size else Box.full(data.shape)
    for begin in range(0, data.shape[2], step):
        stream.write(_slab(data, slice(begin, min(begin + step, data.shape[2])), order, box).ravel(order="F").data)


def _slab(data: Array, planes: slice, order: np.dtype[Any], box: Box | None) -> Array:
    """Planes in the order of the file. Label maps are mostly empty: only the box around the rest is looked at."""
    if box == Box.full(data.shape):
        return np.asfortranarray(data[:, :, planes], dtype=order)
    slab = np.zeros((*data.shape[:2], planes.stop - planes.start), dtype=order, order="F")
    if box is not None:
        first, second, third = box.slices
        start, stop = max(planes.start, third.start), min(planes.stop, third.stop)
        if start < stop:
            slab[first, second, start - planes.start : stop - planes.start] = data[first, second, start:stop]
    return slab
