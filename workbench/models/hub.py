"""Where a model's files are: embedded, a local folder, or a hub repository (the network if any, else the cache)."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from workbench.errors import ModelError, UnknownName
from workbench.models import embedded, weights
from workbench.models.weights import PICKLES

#: What is fetched of a repository: configuration, tokenizer and safetensors, nothing that can run.
WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tokenizer*"]
#: Other formats of the same weights: subfolders (onnx, original) and Mistral's own layout.
UNWANTED = ["*/*", "consolidated*"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")


class UnknownModel(UnknownName, ModelError):
    """No embedded model, folder, cached or published repository has this name; the message suggests the nearest."""

    def __init__(self, name: str, why: str):
        super().__init__("model", name, [*embedded.NAMES, *cached()])
        self.args = (f"{self.args[0]}. {why}",)


def locate(name: str, revision: str | None = None) -> Path:
    """The folder that holds the model called ``name``.

    Raises:
        ModelError: (or UnknownModel) neither here, nor in the cache, nor on the hub; the message says what was tried.
    """
    if name in (*embedded.NAMES, *embedded.LISTS):
        return embedded.path(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{name} is a file; give the folder that holds config.json and *.safetensors")
    if not _HUB_ID.fullmatch(name) or name.startswith(("./", "../", "~")):
        raise ModelError(
            f"there is no folder {name}, and it is no hub id ('org/name'); the embedded models are {embedded.NAMES}"
        )
    if "/" not in name and _nearly_embedded(name) and name not in cached():
        raise UnknownModel(name, "Embedded models, folders and hub ids ('org/name') can be loaded.")
    return _repository(name, revision)


def _nearly_embedded(name: str) -> bool:
    import difflib

    return bool(difflib.get_close_matches(name.lower(), embedded.NAMES, n=1, cutoff=0.6))


def cached() -> list[str]:
    """The hub ids in the local cache."""
    from huggingface_hub import constants

    with contextlib.suppress(OSError):
        folders = Path(constants.HF_HUB_CACHE).glob("models--*")
        return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)
    return []


def _repository(name: str, revision: str | None) -> Path:
    """The snapshot folder of a hub repository: the hub first, the cache when the hub cannot be asked."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if constants.HF_HUB_OFFLINE:
        return _from_cache(name, revision, "the hub was not asked (HF_HUB_OFFLINE is set)")
    try:
        return _download(name, revision)
    except GatedRepoError as error:
        raise ModelError(f"{name} is gated on the hub: accept its licence there and run 'hf auth login'") from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"the hub's {name} has no revision {revision!r}; leave revision out or give a commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise UnknownModel(
            name, "The hub has no such repository (or it is private and you are not logged in)."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, OSError) as error:
        return _from_cache(name, revision, f"the hub could not be reached ({type(error).__name__})")
    except Exception as error:  # the HTTP client has connection errors of its own
        if "httpx" not in type(error).__module__:
            raise
        return _from_cache(name, revision, f"the hub could not be reached ({type(error).__name__})")


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    cache = constants.HF_HUB_CACHE
    if not _writable(Path(cache)):
        with contextlib.suppress(OSError, ModelError):
            return _from_cache(name, revision, "")
        cache = tempfile.mkdtemp(prefix="workbench-hub-")  # for this process only: the user's cache is read-only
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    folder = snapshot_download(
        name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED, cache_dir=cache
    )
    if not any(Path(folder).glob("*.safetensors")):
        _explain(name, revision)
    return Path(folder)


def _explain(name: str, revision: str | None) -> None:
    """Raise ModelError for a repository without safetensors: say what it has instead."""
    from huggingface_hub import HfApi

    files = HfApi().list_repo_files(name, revision=revision)
    pickled = [file for file in files if any(Path(file).match(pattern) for pattern in PICKLES)]
    if pickled:
        raise ModelError(weights.pickled_only(name, pickled))
    raise ModelError(f"{name} on the hub has no safetensors weights (files: {', '.join(files[:6])}); it is no model")


def _writable(folder: Path) -> bool:
    """Whether a file can be made in ``folder`` or in its nearest existing parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _from_cache(name: str, revision: str | None, why: str) -> Path:
    """The cached snapshot of ``revision`` (a commit, a branch or a tag; default main), read straight from the folder.

    Nothing is written, so a read-only cache serves as well as any.
    """
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    wanted = revision or "main"
    snapshot = repository / "snapshots" / _commit(repository, wanted)
    if (snapshot / "config.json").is_file():
        return snapshot
    if not (repository / "snapshots").is_dir():
        raise UnknownModel(name, f"It is not in the cache {constants.HF_HUB_CACHE}, and {why}.")
    held = sorted(path.name for path in (repository / "snapshots").iterdir())
    raise ModelError(f"{name} is cached, but not revision {wanted!r} (cached: {', '.join(held)}), and {why}")


def _commit(repository: Path, revision: str) -> str:
    reference = repository / "refs" / revision
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
