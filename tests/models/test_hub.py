"""Bundles from a hub: a small server that speaks its protocol, and the command in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.errors import FileFormatError, UsageError
from kits_cascade.models.bundle import about_bundle, export_models
from kits_cascade.models.card import About, write_card
from kits_cascade.models.choose import resolve_models
from kits_cascade.models.hub import HubAddress, parse_address
from kits_cascade.models.network import MANIFEST
from kits_cascade.stages import STAGES
from tests.models.test_models import train

ABOUT = About("CC BY-NC-SA 4.0", "KiTS23 (CC BY-NC-SA 4.0)")


@pytest.fixture
def bundle(tmp_path):
    for stage in STAGES:
        train(tmp_path / "results", stage)
    return export_models(resolve_models(tmp_path / "results"), tmp_path / "cascade.zip", about=ABOUT)


class Hub(BaseHTTPRequestHandler):
    """What a client asks of Hugging Face: the list of files, the head of a file, and the file."""

    protocol_version = "HTTP/1.1"
    # Given by the fixture: ``repositories``, (repository, revision) -> files, and ``asked``, a list to fill.

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        self.asked.append(path)
        for (repository, revision), files in self.repositories.items():
            if path == f"/api/models/{repository}/tree/{revision}":
                entries = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
                return self.answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
            for name, content in files.items():
                if path == f"/{repository}/resolve/{revision}/{name}":
                    mark = hashlib.sha256(content).hexdigest()
                    return self.answer(200, content, {"ETag": f'"{mark}"', "X-Repo-Commit": "a" * 40})
        return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(bundle):
    content = bundle.read_bytes()
    repositories = {
        ("someone/kidneys", "main"): {"README.md": b"card", "cascade.zip": content},
        ("someone/kidneys", "v1"): {"cascade.zip": content},
        ("someone/two", "main"): {"a.zip": content, "b.zip": content},
        ("someone/bad", "main"): {"cascade.zip": content[: len(content) // 2]},
    }
    handler = type("Own", (Hub,), {"repositories": repositories, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    server.asked = handler.asked
    yield server
    server.shutdown()
    server.server_close()


def import_from(hub, address, to):
    pytest.importorskip("huggingface_hub", reason="the extra download is not installed")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    env |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}", "HF_HOME": str(to.parent / "hf")}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "kits_cascade", "models", "import", address, "--to", str(to)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=env, check=False)


def test_import_from_a_hub(hub, tmp_path):
    out = import_from(hub, "hf://someone/kidneys@v1", tmp_path / "to")
    assert out.returncode == 0, out.stderr
    assert "licence: CC BY-NC-SA 4.0\ntrained on: KiTS23 (CC BY-NC-SA 4.0)\nsystem: cascade" in out.stdout
    assert [model.key for model in resolve_models(tmp_path / "to").all] == ["coarse", "kidney", "masses"]
    assert "/someone/kidneys/resolve/v1/cascade.zip" in hub.asked
    assert not [path for path in hub.asked if "main" in path]


def test_what_a_hub_may_do_wrong(hub, tmp_path):
    for address, said in {
        "hf://someone/nothing": "cannot be fetched",
        "hf://someone/two": "2 zip files in it",
        "hf://someone/bad": "not a sound zip file",
    }.items():
        out = import_from(hub, address, tmp_path / "to")
        assert out.returncode == 2, out.stdout
        assert said in out.stderr
        assert "Traceback" not in out.stderr
    assert not list((tmp_path / "to").glob("Dataset*"))


def test_addresses():
    assert parse_address("hf://a-b/c.d") == HubAddress("a-b/c.d")
    assert parse_address("hf://a/b@refs/pr/1") == HubAddress("a/b", "refs/pr/1")
    for wrong in ("hf://", "hf://a", "hf://a/b/c", "hf://a/../b", "hf://a/b@", "hf://a/b@../c", "hf://a b/c"):
        with pytest.raises(UsageError, match="hf://OWNER/NAME"):
            parse_address(wrong)


def test_bundles_say_what_they_are(bundle, tmp_path):
    assert about_bundle(bundle) == ABOUT
    with zipfile.ZipFile(bundle) as archive:
        assert json.loads(archive.read(MANIFEST))["licence"] == ABOUT.licence
    # A manifest may be a stranger's, and an old one says nothing.
    assert About.from_manifest({"licence": "a\x1b[31m\nb" + "x" * 999}).licence.startswith("a [31m b")
    assert len(About.from_manifest({"licence": ["x"] * 999}).licence) <= 300
    assert About.from_manifest({}) == About()


def test_the_model_card(bundle, tmp_path, monkeypatch):
    scores = tmp_path / "evaluation.json"
    scores.write_text(json.dumps({"cases": [1, 2], "average": {"Dice_kidney": 0.95, "SD_tumor": 0.5}}))
    result = CliRunner().invoke(
        app,
        ["models", "export", str(tmp_path / "o" / "c.zip"), "--card", "--scores", str(scores), "--licence", 'A "B"'],
        env={"nnUNet_results": str(tmp_path / "results")},
    )
    assert result.exit_code == 0, result.output
    card = (tmp_path / "o" / "README.md").read_text(encoding="utf-8")
    for said in (
        'license_name: "A \\"B\\""',
        "Trained on: not stated",
        "not for diagnosis",
        "Means over 2 cases",
        "| Dice kidney | 0.9500 |",
        hashlib.sha256((tmp_path / "o" / "c.zip").read_bytes()).hexdigest(),
        "- masses: Dataset223_MassesTumor/",
    ):
        assert said in card
    again = CliRunner().invoke(app, ["models", "export", str(tmp_path / "o" / "d.zip"), "--card"])
    assert "README.md is there already" in str(again.exception)
    scores.write_text("{}")
    with pytest.raises(FileFormatError, match=r"not an evaluation\.json"):
        write_card(bundle, ABOUT, [], scores)
