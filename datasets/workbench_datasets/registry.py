"""Real data by name: where it comes from, its licence and sha256, and where it is on this machine.

A file is looked for in ``WORKBENCH_DATA``, then in the user's cache, then in ``../shared/data`` beside a checkout; the
network comes last (``pooch``). A file counts only if its sha256 is the registered one.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from workbench_datasets.files import files_root, in_checkout


class DataMissing(FileNotFoundError):
    """A registered file is nowhere; the message says which file goes where and where it comes from."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a collection: its name inside the collection's folder, size in bytes, sha256 and address."""

    collection: str
    name: str
    bytes: int
    sha256: str
    url: str


@dataclass(frozen=True)
class Collection:
    """Files that belong together, under one licence; ``name`` is their folder."""

    name: str
    what: str
    source: str
    licence: str
    files: dict[str, RemoteFile]


@functools.cache
def collections() -> dict[str, Collection]:
    """All registered data by name."""
    with Path(__file__).with_suffix(".toml").open("rb") as file:
        listed = tomllib.load(file)
    return {name: _collection(name, entry) for name, entry in listed.items()}


def _collection(name: str, entry: dict) -> Collection:
    files = {key: RemoteFile(name, key, **value) for key, value in entry.pop("files").items()}
    return Collection(name, files=files, **entry)


def collection(name: str) -> Collection:
    """One collection; a name that nobody registered is a ``ValueError`` with the nearest ones."""
    return collections()[_known("data", name, collections())]


def download_folder() -> Path:
    """Where downloads go: ``WORKBENCH_CACHE``/data or the user's cache folder of this package."""
    from platformdirs import user_cache_path

    root = os.environ.get("WORKBENCH_CACHE")
    return (Path(root) if root else user_cache_path("memory-workbench")) / "data"


def folders() -> list[Path]:
    """The folders that are searched, in order."""
    own = os.environ.get("WORKBENCH_DATA")
    beside = [files_root().parent.parent / "shared" / "data"] if in_checkout() else []
    return [*([Path(own)] if own else []), download_folder(), *beside]


def where(name: str) -> dict[str, Path | None]:
    """Every file of a collection with its place on this machine, ``None`` for those that are absent (no network)."""
    return {key: _find(file) for key, file in collection(name).files.items()}


def path(name: str, file: str, *, download: bool = True) -> Path:
    """The place of one file, downloaded if it is absent and ``download`` is set; else ``DataMissing``."""
    files = collection(name).files
    wanted = files[_known(f"file of {name}", file, files)]
    found = _find(wanted)
    if found is None and download:
        return _download(wanted)
    if found is None:
        raise DataMissing(_advice(wanted, "it is not on this machine"))
    return found


def fetch(name: str, *, progress: bool = True) -> list[Path]:
    """Every file of a collection on this machine; those that are absent are downloaded, with a progress bar."""
    from tqdm.auto import tqdm

    files = collection(name).files.values()
    bar = tqdm(files, desc=f"data {name}", unit="file", disable=not progress, leave=False)
    return [_find(file) or _download(file) for file in bar]


def _find(file: RemoteFile) -> Path | None:
    for folder in folders():
        candidate = folder / file.collection / file.name
        if candidate.is_file() and _same(candidate, file.sha256):
            return candidate
    return None


def _same(candidate: Path, sha256: str) -> bool:
    status = candidate.stat()
    return _sha256(candidate, status.st_size, status.st_mtime_ns) == sha256


@functools.lru_cache(maxsize=512)
def _sha256(candidate: Path, size: int, changed: int) -> str:
    """Cached by size and time of change, so that asking twice costs nothing."""
    with candidate.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(file: RemoteFile) -> Path:
    import pooch

    folder = download_folder() / file.collection
    pooch.get_logger().setLevel("WARNING")
    try:
        got = pooch.retrieve(
            file.url,
            known_hash=f"sha256:{file.sha256}",
            fname=file.name,
            path=folder,
            downloader=pooch.HTTPDownloader(timeout=20, progressbar=file.bytes > 2**20),
        )
    except ValueError as error:  # pooch's word for another sha256
        raise DataMissing(_advice(file, "its source now offers another version (the sha256 differs)")) from error
    except OSError as error:  # no network, no such page, no room; requests' errors are OSErrors
        raise DataMissing(_advice(file, f"it could not be downloaded ({type(error).__name__})")) from error
    return Path(got)


def _advice(file: RemoteFile, why: str) -> str:
    places = [str(folder / file.collection / file.name) for folder in folders()]
    unlike = [place for place in places if Path(place).is_file()]
    found = f" {unlike[0]} is there but has another sha256." if unlike else ""
    return (
        f"the data file {file.collection}/{file.name} ({file.bytes:,} bytes, sha256 {file.sha256[:16]}...) is missing: "
        f"{why}.{found} Put it at {places[0]}, or set WORKBENCH_DATA to the folder that holds "
        f"{file.collection}/{file.name}. It comes from {file.url} ({collection(file.collection).licence})."
    )


def _known(kind: str, name: str, known: dict) -> str:
    if name in known:
        return name
    near = get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(known))}"
    raise ValueError(f"there is no {kind} called {name!r}; {hint}")
