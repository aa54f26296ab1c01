"""Real data: looked for locally before the network, checked by sha256, and a message that says what goes where."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from workbench_datasets import registry
from workbench_datasets.registry import DataMissing, RemoteFile

TEXT = b"It was the best of times.\n"


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Only this folder is searched, downloads go to another, and there is no network."""
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "in_checkout", lambda: False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path / "data"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server with one text."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "book.txt").write_bytes(TEXT)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def book(source: str, monkeypatch: pytest.MonkeyPatch) -> RemoteFile:
    file = RemoteFile("shelf", "book.txt", len(TEXT), hashlib.sha256(TEXT).hexdigest(), f"{source}/book.txt")
    shelf = registry.Collection("shelf", "one book", "here", "public domain", {"book.txt": file})
    monkeypatch.setitem(registry.collections(), "shelf", shelf)
    return file


def test_every_entry_is_complete() -> None:
    assert list(registry.collections()) == [
        *("books", "conflictqa", "hipporag", "locomo", "memorybank", "relations", "vattention")
    ]
    files = [file for name in registry.collections() for file in registry.collection(name).files.values()]
    assert len(files) == 52
    assert len(registry.collection("books").files) == 13
    for file in files:
        assert file.url.startswith("https://")
        assert len(file.sha256) == 64
        assert file.bytes > 0
    assert all(
        registry.collection(name).licence and registry.collection(name).source for name in registry.collections()
    )


def test_the_files_here_are_the_registered_ones(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(real_data))
    for name in registry.collections():
        held = real_data / name
        if held.is_dir():
            assert registry.where(name) == {file: held / file for file in registry.collection(name).files}


def test_downloads_once_and_then_stays_local(alone: Path, book: RemoteFile) -> None:
    assert registry.where("shelf") == {"book.txt": None}
    path = registry.path("shelf", "book.txt")
    assert path == alone.parent / "cache" / "data" / "shelf" / "book.txt"
    assert path.read_bytes() == TEXT
    (alone.parent / "www" / "book.txt").unlink()
    assert registry.fetch("shelf", progress=False) == [path]


def test_the_preseeded_folder_comes_first(alone: Path, book: RemoteFile) -> None:
    (alone / "shelf").mkdir(parents=True)
    (alone / "shelf" / "book.txt").write_bytes(TEXT)
    assert registry.path("shelf", "book.txt") == alone / "shelf" / "book.txt"


def test_a_changed_source_is_refused(alone: Path, book: RemoteFile) -> None:
    (alone.parent / "www" / "book.txt").write_bytes(b"It was another book.\n")
    with pytest.raises(DataMissing, match="another version"):
        registry.path("shelf", "book.txt")
    assert registry.where("shelf") == {"book.txt": None}


def test_a_local_file_with_other_contents_is_not_used(alone: Path, book: RemoteFile) -> None:
    (alone / "shelf").mkdir(parents=True)
    (alone / "shelf" / "book.txt").write_bytes(b"something else")
    with pytest.raises(DataMissing, match=r"book.txt is there but has another sha256"):
        registry.path("shelf", "book.txt", download=False)


def test_without_a_network_the_message_says_which_file_goes_where(alone: Path) -> None:
    with pytest.raises(DataMissing) as caught:
        registry.path("books", "dracula.txt")
    message = str(caught.value)
    assert f"Put it at {alone / 'books' / 'dracula.txt'}" in message
    assert "gutenberg.org" in message
    assert "public domain" in message
    assert "could not be downloaded" in message
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: registry.where("boks"), "did you mean 'books'"),
        (lambda: registry.path("books", "dracul.txt"), "did you mean 'dracula.txt'"),
        (lambda: registry.fetch("zzz"), "known: books"),
    ],
)
def test_unknown_names_suggest_the_nearest(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
