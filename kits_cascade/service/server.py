"""The HTTP service (extra ``serve``): who may speak, how much and how slowly; what is said is in :mod:`.jobs`."""

from __future__ import annotations

import asyncio
import hmac
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from kits_cascade.errors import FileFormatError, KitsCascadeError, UsageError
from kits_cascade.inference.cascade import Cascade
from kits_cascade.service.jobs import BusyError, Job, Jobs
from kits_cascade.service.uploads import Limits
from kits_cascade.version import __version__

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_CONNECTIONS: Final = 64
_HEADER_BYTES: Final = 16384
_TYPES: Final = {".html": "text/html", ".gz": "application/gzip", ".dcm": "application/dicom"}
_App = Callable[[Any, Any, Any], Awaitable[None]]


def build_app(jobs: Jobs, token: str | None = None, hosts: tuple[str, ...] = LOOPBACK) -> _App:
    """The service as an ASGI application. Without a token only requests to ``hosts`` are answered."""
    app = FastAPI(title="kits-cascade", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def about() -> dict[str, Any]:
        return {"service": "kits-cascade", "version": __version__, "note": "for research; not for diagnosis"}

    @app.post("/jobs", status_code=202)
    async def send(request: Request) -> dict[str, Any]:
        return (await _accept(jobs, request)).to_json()

    @app.get("/jobs/{name}")
    def tell(name: str) -> dict[str, Any]:
        return _known(jobs, name).to_json()

    @app.delete("/jobs/{name}", status_code=204)
    def forget(name: str) -> Response:
        _known(jobs, name)
        if not jobs.forget(name):
            raise HTTPException(409, "the job is not finished")
        return Response(status_code=204)

    @app.get("/jobs/{name}/{what}")
    def fetch(name: str, what: str) -> FileResponse:
        path = _known(jobs, name).files.get(what)
        if path is None:
            raise HTTPException(404, "no such result; the job's own page lists them under files")
        return FileResponse(path, media_type=_TYPES.get(path.suffix), filename=None if what == "view" else path.name)

    @app.exception_handler(KitsCascadeError)
    async def explain(_request: Request, error: KitsCascadeError) -> JSONResponse:
        status = 503 if isinstance(error, BusyError) else 422 if isinstance(error, FileFormatError) else 500
        return JSONResponse({"detail": str(error)}, status)

    return Guard(app, jobs.limits, token, hosts)


async def _accept(jobs: Jobs, request: Request) -> Job:
    jobs.reserve()
    try:
        stream = await _uploaded(request)
    except BaseException:
        jobs.release()
        raise
    return await asyncio.to_thread(jobs.accept, stream)


async def _uploaded(request: Request) -> Any:
    form = await request.form(max_files=1, max_fields=4)
    upload = form.get("file")
    if upload is None or isinstance(upload, str):
        raise HTTPException(400, "send the file as the field 'file' of a form")
    return upload.file


def _known(jobs: Jobs, name: str) -> Job:
    job = jobs.get(name)
    if job is None:
        raise HTTPException(404, "no such job")
    return job


class Guard:
    """Refuses strangers before a byte of theirs is read, and ends requests that are too large or too slow."""

    def __init__(self, app: _App, limits: Limits, token: str | None, hosts: tuple[str, ...]) -> None:
        self._app, self._limits, self._token, self._hosts = app, limits, token, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] == "http":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            refusal = self._refusal(headers)
            if sum(len(name) + len(value) for name, value in headers.items()) > _HEADER_BYTES:
                refusal = 431, f"at most {_HEADER_BYTES} bytes of headers are taken"
            if refusal is not None:
                await JSONResponse({"detail": refusal[1]}, refusal[0])(scope, receive, send)
                return
            receive = _Measured(receive, self._limits)
        elif scope["type"] != "lifespan":
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        given = headers.get("authorization", "")
        if self._token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return 401, "a token is needed: Authorization: Bearer TOKEN"
        # Pages of other sites, opened in a browser of this machine, must not get at a server without a token.
        if self._token is None and not all(map(self._is_own, (headers.get("host", ""), headers.get("origin", "")))):
            return 403, "this server answers to its own address only"
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > self._limits.upload_bytes:
            return 413, f"at most {self._limits.upload_bytes} bytes are taken"
        return None

    def _is_own(self, address: str) -> bool:
        try:
            host = urlsplit(address if "//" in address else f"//{address}").hostname
        except ValueError:
            return False
        return host is None or host in self._hosts


class _Measured:
    """The body of a request: counted, and waited for only so long."""

    def __init__(self, receive: Any, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._left = limits.upload_bytes
        self._deadline = time.monotonic() + limits.request_seconds
        self._whole = False

    async def __call__(self) -> Any:
        if self._whole:  # what is waited for now is the client's leaving
            return await self._receive()
        patience = min(self._limits.idle_seconds, self._deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(patience, 0.0))
        except asyncio.TimeoutError as error:
            raise HTTPException(408, "too slow", {"Connection": "close"}) from error
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, f"at most {self._limits.upload_bytes} bytes are taken", {"Connection": "close"})
        self._whole = not message.get("more_body", False)
        return message


def make_server(app: _App, host: str, port: int) -> uvicorn.Server:
    """A server that is not running yet; port 0 for any that is free."""
    return uvicorn.Server(
        uvicorn.Config(
            app, host=host, port=port, log_level="warning", access_log=False, server_header=False,
            limit_concurrency=_CONNECTIONS, h11_max_incomplete_event_size=_HEADER_BYTES, http="h11", ws="none",
            timeout_keep_alive=10, timeout_graceful_shutdown=5,
        )
    )  # fmt: skip


def read_token(host: str, file: Path | None, variable: str | None) -> str | None:
    """The token that clients must send; none is needed on this machine's own address alone."""
    try:
        token = file.read_text(encoding="utf-8").strip() if file is not None else (variable or "").strip()
    except OSError as error:
        raise UsageError(f"{file}: the token cannot be read ({error.strerror})") from error
    if not token and host not in LOOPBACK:
        raise UsageError(f"--host {host} lets others in: give a token (--token-file FILE, or KITS_CASCADE_TOKEN)")
    return token or None


def serve(
    cascade: Cascade,
    host: str,
    port: int,
    token: str | None,
    *,
    work: Path | None,
    waiting: int,
    upload_bytes: int,
    say: Callable[[str], None],
) -> None:
    """Serve until the process is told to end; then nothing of the jobs is left."""
    folder = Path(tempfile.mkdtemp(prefix="kits-cascade-serve-", dir=work))
    jobs = Jobs(cascade, folder, waiting, Limits(upload_bytes=upload_bytes))
    say(f"listening on http://{host}:{port}, {'with a token' if token else 'for this machine alone'}")
    try:
        make_server(build_app(jobs, token), host, port).run()
    finally:
        jobs.close()
