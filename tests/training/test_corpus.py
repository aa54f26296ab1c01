"""The embedded corpus as windows: what is in them, what is held out of them, and the loss on them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workbench.errors import BadInput
from workbench.training import corpus
from workbench.training.tokenizer import load_tokenizer
from workbench_datasets import books, registry
from workbench_datasets.small_world import world

TOKENS, COUNT = 192, 300


@pytest.fixture(scope="module")
def spec():
    return corpus.spec(TOKENS, seed=3, books=False)


@pytest.fixture(scope="module")
def made(spec):
    return corpus.training(spec, COUNT)


@pytest.fixture(scope="module")
def tokenizer(spec):
    return load_tokenizer(spec.tokenizer)


def texts(windows, tokenizer):
    return [tokenizer.decode(row) for row in windows.ids.tolist()]


def test_windows_are_whole_documents_of_the_mixture(made, tokenizer):
    assert made.ids.shape == made.weights.shape == (COUNT, TOKENS)
    assert made.ids.dtype == np.int16
    assert (made.weights[:, 0] == 0).all()
    assert set(np.unique(made.weights)) <= {np.float16(x) for x in (0, 0.05, 1, 2, 3, 4)}
    joined = "".join(texts(made, tokenizer))
    for sign in ("QUESTION:", "ANSWER:", "MEMORY:", "pass key"):
        assert sign in joined
    answers = made.ids[made.weights == 4]
    assert len(answers) > 100
    assert len(set(answers.tolist())) > 50


def test_equal_specs_give_equal_windows_whoever_writes_them(spec, made):
    again = corpus.training(spec, 40, workers=1)
    assert (again.ids == made.ids[:40]).all()
    assert (again.weights == made.weights[:40]).all()
    assert not (corpus.training(corpus.spec(TOKENS, seed=4, books=False), 40).ids == again.ids).all()


def test_what_training_holds_word_for_word_is_not_scored(spec, made):
    held = corpus.world_windows(spec, 60, made.documents)
    assert set(np.unique(held.weights)) == {0, 1}
    assert (held.weights > 0).mean() > 0.8
    assert not {row.tobytes() for row in held.ids} & {row.tobytes() for row in made.ids}
    blind = corpus.world_windows(spec, 60, held.documents)
    assert (blind.ids == held.ids).all()
    assert not blind.weights.any(), "every document was seen, so none may count"
    some = frozenset(sorted(held.documents)[::2])
    left = corpus.world_windows(spec, 60, some).weights.sum()
    assert 0.2 < left / held.weights.sum() < 0.8


def test_the_answer_is_drawn_anew_about_people_of_no_training_text(spec, made, tokenizer):
    asked = corpus.asked(spec, 60, 40, seed=1)
    assert asked.ids.shape == asked.answers.shape
    assert asked.answers.any(1).all()
    assert 0.01 < asked.chance < 0.2
    small, seen = world(spec.world_seed), "".join(texts(made, tokenizer))
    right, told = [], 0
    for ids, answers in zip(asked.ids, asked.answers):
        end = np.flatnonzero(answers)[-1] + 1
        text, answer = tokenizer.decode(ids[:end].tolist()), tokenizer.decode(ids[answers].tolist()).strip()
        question = text.rsplit("QUESTION:", 1)[1].split(" ANSWER:")[0]
        (name,) = re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", question)
        assert small.name_split(name) == "unseen", name
        assert name not in seen
        told += answer in text.rsplit("QUESTION:", 1)[0]
        right.append(answer)
        assert (ids[end:] == 1).all(), "what fills the row up stands after the answer"
    assert told == len(asked.ids), "every answer stands in the text before its question"
    assert len(set(right)) > 20
    assert not np.array_equal(corpus.asked(spec, 60, 40, seed=2).ids, asked.ids)


def test_gaps_lie_between_facts_and_question(spec):
    near, far = (corpus.asked(spec, 30, gap) for gap in (0, 60))
    lengths = [(asked.ids != 1).sum(1).mean() for asked in (near, far)]
    assert 40 < lengths[1] - lengths[0] < 100


def test_bad_input(spec):
    with pytest.raises(BadInput, match="at least 64 tokens"):
        corpus.spec(32, books=False)
    with pytest.raises(BadInput, match="at least 1"):
        corpus.training(spec, 0)
    with pytest.raises(BadInput, match="gap=400"):
        corpus.asked(spec, 4, 400)


def test_the_loss_weighs_tokens_as_the_corpus_does(made):
    torch.manual_seed(0)
    logits = torch.randn(2, TOKENS, 4096)
    batch = {"input_ids": torch.tensor(made.ids[:2]).long(), "weights": torch.tensor(made.weights[:2])}
    total, right = corpus.language_loss(lambda **inputs: SimpleNamespace(logits=logits), batch)
    nats = -logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    weights = batch["weights"][:, 1:].float()
    assert total == pytest.approx(float((nats * weights).sum() / weights.sum()), rel=1e-5)
    assert right == 0
    sure = torch.nn.functional.one_hot(batch["input_ids"].roll(-1, 1), 4096).float() * 20
    out = SimpleNamespace(logits=sure, aux_loss=torch.tensor(2.0))
    total, right = corpus.language_loss(lambda **inputs: out, batch)
    assert right == 1
    assert total == pytest.approx(2.0, abs=1e-3), "the model's own loss is added"


def test_a_pool_asks_nothing_but_the_next_token(made):
    pool = corpus.pool(made)
    assert (pool.targets == -100).all()
    assert torch.equal(pool.extras["weights"], torch.tensor(made.weights))
    assert len(pool) == COUNT


@pytest.mark.skipif(None in registry.where("books").values(), reason="the collection 'books' is not on this machine")
def test_held_out_books_are_whole_and_no_training_text(spec, tokenizer):
    held = corpus.book_windows(spec, 40)
    assert (held.ids[:, 0] == 0).all()
    assert (held.weights[:, 1:] == 1).all()
    found = [tokenizer.decode(row) for row in held.ids[:, 3:].tolist()]
    loaded = books.load("heldout")
    assert all(any(text[3:300] in whole for whole in loaded.values()) for text in found)
    others = [books.read(name) for name in books.names("train")[:4]]
    assert not any(text[3:120] in whole for text in found for whole in others)
    assert not set(books.names("train")) & set(books.names("heldout"))
    assert len({name for text in found for name, whole in loaded.items() if text[3:300] in whole}) == 2
    with pytest.raises(BadInput, match="hold"):
        corpus.book_windows(spec, 100_000)
