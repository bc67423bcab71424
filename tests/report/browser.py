"""A headless Chromium through chromedriver's plain HTTP interface: no package needed for it."""

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")


def missing():
    """What is needed and not there, in words; None when all is."""
    if not any(map(shutil.which, CHROMIUM)):
        return "no Chromium here: apt-get install chromium chromium-driver"
    return None if shutil.which("chromedriver") else "no chromedriver here: apt-get install chromium-driver"


class Browser:
    """One window."""

    def __init__(self, root, session):
        self._base = f"{root}/session/{session}"

    def _call(self, method, path, body=None):
        return call(method, self._base + path, body)

    def open(self, url):
        """Load a page, and wait for its load event; seconds by the wall clock."""
        start = time.perf_counter()
        self._call("POST", "/url", {"url": url})
        return time.perf_counter() - start

    def run(self, script):
        """The value that a script returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def console(self):
        """Messages of level SEVERE or WARNING."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))


def call(method, url, body=None):
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    with opener.open(request, timeout=120) as answer:
        return json.load(answer)["value"]


@contextmanager
def browser(width=1280, height=900, phone=False, webgl=False):
    """A fresh browser with a profile of its own, closed at the end; ``webgl``: drawn by the processor."""
    flags = [flag for flag in FLAGS if flag != "--disable-gpu"] + list(WEBGL) if webgl else FLAGS
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    profile = tempfile.mkdtemp(prefix="kits-cascade-browser-")
    options = {
        "binary": next(filter(None, map(shutil.which, CHROMIUM))),
        "args": [*flags, f"--window-size={width},{height}", f"--user-data-dir={profile}"],
    }
    if phone:
        options["mobileEmulation"] = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 2.0}}
    capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    driver = subprocess.Popen(
        [shutil.which("chromedriver"), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    root = f"http://127.0.0.1:{port}"
    try:
        wait_for(root)
        session = call("POST", f"{root}/session", {"capabilities": {"alwaysMatch": capabilities}})["sessionId"]
        try:
            yield Browser(root, session)
        finally:
            call("DELETE", f"{root}/session/{session}")
    finally:
        driver.terminate()
        driver.wait(20)
        shutil.rmtree(profile, ignore_errors=True)


def wait_for(root, seconds=30):
    for _ in range(seconds * 10):
        try:
            if call("GET", f"{root}/status")["ready"]:
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(root)
