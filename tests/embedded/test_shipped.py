"""The shipped models: size, hashes, loading, tokenizer, gates measured again on a small sample, reproducible tables."""

import hashlib
import json

import pytest
import torch

from workbench.errors import BadInput, UnknownName
from workbench.models.embedded import NAMES, path
from workbench.models.evaluate import evaluate_embedded

GATED = ("closed book", "open book", "conflict", "induction")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_files_sizes_and_hashes(name):
    folder = path(name)
    weights = folder / "model.safetensors"
    assert weights.stat().st_size <= 16_000_000
    recorded = json.loads((folder / "evaluation.json").read_text())
    assert recorded["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["variant"] == name
    assert recipe["tokenizer_sha256"] == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert len((folder / "training.csv").read_text().splitlines()) > 100


@pytest.mark.parametrize("name", NAMES)
def test_card_shows_every_measured_row(name):
    card = (path(name) / "README.md").read_text()
    assert card.startswith("---\nlicense:")
    for row in json.loads((path(name) / "evaluation.json").read_text())["rows"]:
        assert f"| {row['metric']} | {row['group']} | {row['value']:.3f} |" in card


def test_misspelt_name_suggests_the_nearest():
    with pytest.raises(UnknownName, match="embedded"):
        path("embeded")


def test_world_words_are_single_tokens_and_text_survives():
    from transformers import AutoTokenizer

    from workbench.training.tokenizer import check_words

    tokenizer = AutoTokenizer.from_pretrained(path("embedded"))
    assert check_words(tokenizer.backend_tokenizer) == []
    text = 'Zovi Hothorp said: "I, née Ævar, owe 4,096 — no?"\n\tYes…'
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


@pytest.mark.parametrize("name", NAMES)
def test_gates_hold_on_a_fresh_sample(name):
    frame = evaluate_embedded(name, quick=True, parts=GATED, progress=False)
    gated = frame.dropna(subset=["gate"])
    assert set(gated.metric) == {
        "closed-book", "open-book", "in-context copying", "conflict: memory", "conflict: context", "induction head",
    }  # fmt: skip
    intervals = gated.dropna(subset=["high"])
    assert (intervals.high >= intervals.gate).all(), intervals
    pooled = gated.assign(hits=gated.value * gated.n).groupby("metric")[["hits", "n", "gate"]].sum()
    means = pooled.hits / pooled.n
    assert (means >= gated.groupby("metric").gate.max()).all(), means


def test_same_call_same_rows():
    first, second = (evaluate_embedded("embedded", quick=True, parts=["conflict"], progress=False) for _ in range(2))
    assert first.equals(second)
    assert first.attrs["gates"].keys() == {"conflict: memory", "conflict: context"}


def test_unknown_part_is_refused():
    with pytest.raises(BadInput, match="expected some of"):
        evaluate_embedded("embedded", parts=["singing"])


def test_ngram_probabilities_sum_to_one_and_learn():
    import numpy as np

    from workbench.models.ngram import KneserNey

    rng = np.random.default_rng(0)
    tokens = np.tile(rng.integers(0, 8, 40), 30)
    model = KneserNey(tokens, vocabulary=8, order=3)
    for context in ([1, 2], [7, 7], list(tokens[5:7])):
        probabilities = [np.exp(model.logprob(np.array([*context, w])))[0] for w in range(8)]
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-9)
    assert -model.logprob(tokens[:300]).mean() < 1.0
    with pytest.raises(BadInput, match="order"):
        KneserNey(tokens, vocabulary=4096, order=6)
