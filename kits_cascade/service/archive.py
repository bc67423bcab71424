"""To and from an archive: slices by C-STORE (pynetdicom), results back by STOW-RS (dicomweb-client)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import EnvironmentNotReadyError, MissingExtraError
from kits_cascade.files import atomic_path, sweep_temporary
from kits_cascade.service.arrivals import is_uid
from kits_cascade.volumes.dicom_extra import load_pydicom

_STORED, _REFUSED, _NO_ROOM = 0x0000, 0xA900, 0xA700
_CT_CLASSES: Final = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1")  # single slices, and enhanced
_ECHO: Final = "1.2.840.10008.1.1"
_TIMEOUT_SECONDS: Final = 60


class ArchiveError(EnvironmentNotReadyError):
    """An archive that does not answer, or refuses."""


@contextmanager
def receiver(folder: Path, port: int, title: str = "KITS", host: str = "127.0.0.1") -> Iterator[int]:
    """Take CT slices by C-STORE into ``folder`` while the block runs; the port, also where 0 asked for any."""
    try:
        import pynetdicom
    except ImportError as error:
        raise MissingExtraError("pynetdicom", "dicom") from error
    entity = pynetdicom.AE(ae_title=title)
    syntaxes = [*pynetdicom.ALL_TRANSFER_SYNTAXES]
    for sop_class in _CT_CLASSES:
        entity.add_supported_context(sop_class, syntaxes)
    entity.add_supported_context(_ECHO)
    handlers = [(pynetdicom.evt.EVT_C_STORE, _store, [folder])]
    try:
        server = entity.start_server((host, port), block=False, evt_handlers=handlers)
    except OSError as error:
        raise ArchiveError(f"port {port} of {host} cannot be listened to ({error.strerror}); choose another") from error
    for series in folder.glob("*"):
        sweep_temporary(series)  # what a killed receiver has left half-written
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()


def _store(event: Any, folder: Path) -> int:
    """Write one slice, whole or not at all; only UIDs reach a path."""
    try:
        dataset = event.dataset
        series, instance = str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)
        if not (is_uid(series) and is_uid(instance)):
            return _REFUSED
        dataset.file_meta = event.file_meta
    except Exception:  # whatever a sender may have made of it
        return _REFUSED
    try:
        with atomic_path(folder / series / f"{instance}.dcm") as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    except OSError:
        return _NO_ROOM
    return _STORED


def send_stow(url: str, files: Sequence[Path]) -> None:
    """Store DICOM files in an archive by STOW-RS. A password is taken from ``~/.netrc``."""
    try:
        from dicomweb_client.api import DICOMwebClient
    except ImportError as error:
        raise MissingExtraError("dicomweb-client", "dicom") from error
    import requests

    datasets = [load_pydicom().dcmread(path) for path in files]
    try:
        client = DICOMwebClient(url, timeout=_TIMEOUT_SECONDS)
        client.set_http_retry_params(retry=False)  # the watcher tries again by itself, and does not wait
        answer = client.store_instances(datasets)
    except (requests.RequestException, ValueError) as error:
        raise ArchiveError(f"{url}: {' '.join(str(error).split())}") from error
    refused = answer.get("FailedSOPSequence")
    if refused:
        raise ArchiveError(f"{url}: refused {len(refused)} of {len(files)} objects")
