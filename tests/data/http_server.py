"""A small stand-in for Hugging Face, its storage and GitHub, that fails on purpose."""

import hashlib
import socket
import struct
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyServer:
    """Serves ``files`` (path -> bytes); ``faults`` (path -> list) says what happens to the next requests of a path.

    Under ``/datasets/.../resolve/...``, HEAD answers as Hugging Face does (checksum of the linked file, redirect to the
    storage), and the file itself comes from ``/storage/<name>``.
    """

    def __init__(self):
        self.files, self.faults, self.requests = {}, defaultdict(list), []
        self.always = {}
        self._release = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients that go away are part of the game
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self._release.set()
        self.server.shutdown()
        self.server.server_close()

    def add_image(self, repository, name, content):
        self.files[f"/datasets/{repository}/resolve/main/{name}"] = content
        self.files[f"/storage/{name}"] = content

    def stall(self):
        self._release.wait(20)

    def next_fault(self, path, command):
        key = f"{command} {path}"
        queue = self.faults.get(key)
        return queue.pop(0) if queue else self.always.get(key)

    def count(self, command, ending):
        return sum(1 for c, path, _ in self.requests if c == command and path.endswith(ending))


class _Handler(BaseHTTPRequestHandler):
    owner = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._serve(body=False)

    def do_GET(self):
        self._serve(body=True)

    def _serve(self, body):
        owner, path = self.owner, self.path
        owner.requests.append((self.command, path, dict(self.headers)))
        fault = owner.next_fault(path, self.command)
        if fault == "silence":
            owner.stall()
            self.close_connection = True
            return None
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return None
        if isinstance(fault, int):
            return self._answer(fault, {"Retry-After": "0"} if fault == 429 else {})
        content = owner.files.get(path)
        if content is None:
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        if path.startswith("/datasets/"):
            name = path.split("/resolve/main/")[1]
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
            location = {"Location": f"http://localhost:{owner.server.server_address[1]}/storage/{name}"}
            return self._answer(302, {**linked, **location, "X-Repo-Commit": "a" * 40, "ETag": '"pointer"'})
        return self._send(content, fault, body)

    def _answer(self, status, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content, fault, body):
        if fault == "corrupt":
            content = bytes(b ^ 0x55 for b in content)
        if fault == "page":
            content = b"<html>Please log in to this hotel's network</html>"
        begin, asked = 0, self.headers.get("Range")
        if asked and fault not in {"no-range", "cut from the start"}:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        part = content[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(part)))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        if fault in {"cut", "stall", "cut from the start"}:
            self.wfile.write(part[: max(1, len(part) // 2)])
            self.wfile.flush()
            if fault == "stall":
                self.owner.stall()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(part)
