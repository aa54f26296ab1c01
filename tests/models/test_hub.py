"""Hub models: from the cache without the network, and from a hub (a small server of this test's own) with it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workbench.errors import ModelError, UnknownName
from workbench.models import load

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def cache(family_folder, tmp_path, monkeypatch) -> Path:
    """A hub cache that holds maker/tiny at one commit."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--maker--tiny"
    shutil.copytree(family_folder("llama"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_from_the_cache_without_network(cache, revision):
    model = load("maker/tiny", revision=revision)
    assert model.name == "maker/tiny"
    assert model.folder == cache / "snapshots" / COMMIT


def test_a_revision_that_is_not_cached(cache):
    with pytest.raises(ModelError, match=f"not revision '{OTHER}' .cached: {COMMIT}"):
        load("maker/tiny", revision=OTHER)


def test_a_misspelt_id_suggests_what_is_cached(cache):
    with pytest.raises(UnknownName, match="did you mean 'maker/tiny'"):
        load("maker/tinny")


def test_a_cached_pickle_is_refused(cache):
    snapshot = cache / "snapshots" / COMMIT
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"maker/tiny has pickled weights only \(pytorch_model\.bin\)"):
        load("maker/tiny")


def test_an_interrupted_download_is_named(cache):
    file = cache / "snapshots" / COMMIT / "model.safetensors"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ModelError, match=r"model\.safetensors .* truncated"):
        load("maker/tiny")


class Hub(http.server.BaseHTTPRequestHandler):
    """The few addresses of the hub's API that a download asks for."""

    folders: dict[str, Path] = {}

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.info("/".join(parts[2:4]), parts)
        else:
            self.file("/".join(parts[:2]), "/".join(parts[4:]))

    def info(self, name, parts):
        if name not in self.folders:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return
        files = sorted(path for path in self.folders[name].iterdir())
        if "tree" in parts:
            body = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": tag(f)} for f in files]
        else:
            body = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
        self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def file(self, name, path):
        file = self.folders[name] / path
        self.answer(200, file.read_bytes(), {"ETag": f'"{tag(file)}"', "X-Repo-Commit": COMMIT})

    def answer(self, status, body, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def tag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(family_folder, tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(family_folder("llama") / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"never opened")
    Hub.folders = {"maker/tiny": family_folder("llama"), "maker/pickled": pickled}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PROGRAM = """
import json, sys
from workbench.errors import WorkbenchError
from workbench.models import hub
said = {}
for name in json.loads(sys.argv[1]):
    try:
        said[name] = str(hub.locate(name))
    except WorkbenchError as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


def located(names, endpoint, home, **more):
    """Where ``names`` are found, or what is said, in a fresh process (the hub's address is read at import)."""
    hidden = ("HF_", "HUGGINGFACE", "TRANSFORMERS_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **more}
    command = [sys.executable, "-c", PROGRAM, json.dumps(names)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_from_a_hub(hub, tmp_path):
    said = located(["maker/tiny", "maker/none", "maker/pickled"], hub, tmp_path / "home")
    snapshot = tmp_path / "home" / "hub" / "models--maker--tiny" / "snapshots" / COMMIT
    assert said["maker/tiny"] == str(snapshot)
    assert load(snapshot).generate([5, 6, 7], max_new_tokens=2).ids[:3] == [5, 6, 7]
    assert said["maker/none"].startswith(
        "UnknownModel: there is no model called 'maker/none'; did you mean 'maker/tiny'"
    )
    assert "pickled weights only (pytorch_model.bin)" in said["maker/pickled"]
    # the hub goes away: what is cached is still found, and what is not says that nobody could be asked
    said = located(["maker/tiny", "maker/else"], "http://127.0.0.1:9", tmp_path / "home")
    assert said["maker/tiny"] == str(snapshot)
    assert "could not be reached" in said["maker/else"]


def test_a_cache_that_cannot_be_written(hub, tmp_path):
    """Read-only homes are common on clusters; here the cache lies below a file, where nobody can write."""
    (tmp_path / "file").write_text("")
    said = located(["maker/tiny"], hub, tmp_path / "home", HF_HUB_CACHE=str(tmp_path / "file" / "hub"))
    assert said["maker/tiny"].endswith(COMMIT)
    assert not said["maker/tiny"].startswith(str(tmp_path))
