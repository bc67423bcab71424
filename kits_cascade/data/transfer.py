"""One file over HTTP until it is right: resumed where it broke off, waited for where the server asks, checked in full.

huggingface_hub gives the addresses, the checksums, the credentials and the HTTP session (with the user's proxy and
certificates); see ``hub()``. Its own ``hf_hub_download`` starts a broken file from the beginning and compares sizes
only, hence the loop here.
"""

from __future__ import annotations

import errno
import hashlib
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import DatasetError, KitsCascadeError, MissingExtraError
from kits_cascade.files import checksum, sha256
from kits_cascade.version import __version__

_LATER: Final = {408, 425, 429}  # of the 4xx answers, those that may turn out differently
_DISK: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}
_LONGEST_PAUSE: Final = 300.0
_HINTS: Final = {
    401: ": access is restricted, log in with `hf auth login`",
    403: ": access is refused",
    404: ": there is no such file",
}


class TransferError(KitsCascadeError):
    """A file that could not be had; the others go on."""

    def __init__(self, reason: str, *, lasting: bool) -> None:
        super().__init__(reason)
        self.lasting = lasting  # the server gave a clear no, as against one that does not answer


class Stopped(Exception):  # noqa: N818 - the user's wish, not an error
    """The whole download is to end."""


class _Again(Exception):  # noqa: N818 - caught where it is raised for
    """This attempt failed; another may not."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server."""

    stall_s: float = 30.0  # without a byte
    retries: int = 5  # in a row without progress
    pause_s: float = 1.0  # before the first retry; doubled from one to the next


@dataclass(frozen=True)
class Expected:
    """What the publisher says of a file."""

    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def digest(self) -> str:
        """Any of the checksums: the name of this content."""
        return self.sha256 or self.git_sha1 or f"size-{self.size}"

    @property
    def has_checksum(self) -> bool:
        """Whether the content can be checked, and not only its size."""
        return bool(self.sha256 or self.git_sha1)

    def mismatch(self, path: Path) -> str | None:
        """Why a file is not the one that was published; None when it is."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size} bytes, {self.size} were published"
        for kind, wanted in (("sha256", self.sha256), ("git_sha1", self.git_sha1)):
            if wanted is not None and _digest(path, kind, size) != wanted:
                return "the checksum differs from the published one"
        return None


def _digest(path: Path, kind: str, size: int) -> str:
    """Checksum of a file, plain or as git's name of a blob."""
    if kind == "sha256":
        return sha256(path)
    return checksum(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))


class Meter:
    """Bytes of all workers together, for progress."""

    def __init__(self, files: int, changed: Callable[[Meter], None] | None = None) -> None:
        self.done = 0
        self.files, self.files_done = files, 0
        self._expected, self._unknown, self._sized = 0, files, 0
        self._changed, self._lock = changed, threading.Lock()

    @property
    def total(self) -> int | None:
        """Bytes in all: of files whose size is not known yet, the mean of the others is taken."""
        if self._unknown and not self._sized:
            return None
        mean = self._expected / self._sized if self._sized else 0
        return round(self._expected + self._unknown * mean)

    def add(self, done: int = 0, expected: int = 0, sized: int = 0, files: int = 0) -> None:
        """Bytes that came (or, negative, were for nothing), or are to come."""
        with self._lock:
            self.done += done
            self.files_done += files
            self._expected += expected
            self._sized += sized
            self._unknown -= sized
            if self._changed is not None:
                self._changed(self)


@dataclass(frozen=True)
class Hub:
    """What is used of huggingface_hub."""

    session: Any
    url: Callable[..., str]
    metadata: Callable[..., Any]
    headers: dict[str, str]
    transport_error: type[Exception]
    offline: type[Exception]


def hub() -> Hub:
    """Import the optional package: the only place that does."""
    try:
        from huggingface_hub import errors, get_hf_file_metadata, get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "download") from error
    headers = build_hf_headers(library_name="kits-cascade", library_version=__version__)
    # The HTTP library behind has changed its name; its root error is the base of huggingface_hub's own.
    root = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return Hub(get_session(), hf_hub_url, get_hf_file_metadata, headers, root, errors.OfflineModeIsEnabled)


class Transfer:
    """Fetches files for as many threads as call it."""

    def __init__(self, patience: Patience, meter: Meter, stop: threading.Event) -> None:
        self.hub = hub()
        self.patience, self.meter, self.stop = patience, meter, stop

    def persistently(self, attempt: Callable[[], Any], progress: Callable[[], int] = lambda: 0) -> Any:
        """Call ``attempt`` until it succeeds, or fails for good, or has failed too often without progress."""
        failures, best = 0, progress()
        while True:
            try:
                with self._errors():
                    return attempt()
            except _Again as again:
                reached = progress()
                failures = 1 if reached > best else failures + 1
                best = max(best, reached)
                if failures > self.patience.retries:
                    raise TransferError(f"{again} ({failures} attempts)", lasting=False) from again
                pause = self.patience.pause_s * 2 ** (failures - 1) * random.uniform(0.8, 1.2)
                if self.stop.wait(min(_LONGEST_PAUSE, again.pause if again.pause is not None else pause)):
                    raise Stopped from again

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Which errors deserve another attempt."""
        if self.stop.is_set():
            raise Stopped
        try:
            yield
        except self.hub.offline as error:
            raise DatasetError(f"huggingface_hub is set to offline (HF_HUB_OFFLINE): {error}") from error
        except self.hub.transport_error as error:
            response = getattr(error, "response", None)
            if response is not None:
                _judge(response.status_code, response.headers, error)
            raise _Again(_first_line(error)) from error
        except OSError as error:
            if error.errno in _DISK:
                raise DatasetError(f"cannot write: {error}") from error
            raise _Again(_first_line(error)) from error

    def published(self, repository: str, revision: str, path: str, endpoint: str | None) -> tuple[str, Expected]:
        """Address and checksum of a file in a data set on Hugging Face."""
        url = self.hub.url(repository, path, repo_type="dataset", revision=revision, endpoint=endpoint)

        def ask() -> Any:
            return self.hub.metadata(url, timeout=self.patience.stall_s, endpoint=endpoint)

        found = self.persistently(ask)
        etag = str(found.etag or "")
        return url, Expected(
            found.size,
            sha256=etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None,
            git_sha1=etag if re.fullmatch(r"[0-9a-f]{40}", etag) else None,
        )

    def fetch(self, url: str, target: Path, expected: Expected, *, credentials: bool = False) -> None:
        """Download to ``target``; what an earlier, interrupted call has left is continued."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{expected.digest[:12]}.part")
        headers = {**(self.hub.headers if credentials else {}), "accept-encoding": "identity"}
        counted = (expected.size or 0) - _size(part)
        self.meter.add(expected=counted, sized=1)

        def attempt() -> None:
            if expected.size is None or _size(part) != expected.size:
                self._continue(url, part, headers, expected)
            wrong = expected.mismatch(part)
            if wrong is not None:
                self._discard(part)
                raise _Again(f"the server sent something else: {wrong}")
            part.replace(target)

        self.persistently(attempt, progress=lambda: _size(part))

    def _continue(self, url: str, part: Path, headers: dict[str, str], expected: Expected) -> None:
        """Append what is missing."""
        begin = _size(part)
        if expected.size is not None and begin > expected.size:
            begin = self._discard(part)
        if begin:
            headers = {**headers, "range": f"bytes={begin}-"}
        with self.hub.session.stream("GET", url, headers=headers, timeout=self.patience.stall_s) as response:
            if response.status_code == 416:
                self._discard(part)
            _judge(response.status_code, response.headers)
            if begin and not _continues(response, begin):
                self._discard(part)  # the server sends the whole file again
            with part.open("ab") as stream:
                self._append(response, stream)

    def _append(self, response: Any, stream: Any) -> None:
        for chunk in response.iter_raw():  # no chunk size: what came before a cut would stay in its buffer
            if self.stop.is_set():
                raise Stopped
            stream.write(chunk)
            stream.flush()
            self.meter.add(done=len(chunk))

    def _discard(self, part: Path) -> int:
        """Start from the beginning; what had come is to come again."""
        self.meter.add(expected=_size(part))
        part.unlink(missing_ok=True)
        return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _continues(response: Any, begin: int) -> bool:
    return response.status_code == 206 and str(response.headers.get("content-range", "")).startswith(f"bytes {begin}-")


def _judge(status: int, headers: Any, error: Exception | None = None) -> None:
    """Raise for an answer that is none."""
    if status < 400:
        return
    text = f"the server answered {status}"
    if 400 <= status < 500 and status not in {*_LATER, 416}:
        raise TransferError(text + _HINTS.get(status, ""), lasting=True) from error
    raise _Again(text, _retry_after(headers)) from error


def _retry_after(headers: Any) -> float | None:
    value = str(headers.get("retry-after", ""))
    return float(value) if value.isdigit() else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
