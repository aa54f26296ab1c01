"""Generation and rounds: the same tokens as transformers, streams that go on, surprise that carries over."""

from __future__ import annotations

import math

import pytest
import torch
from model_families import DECODERS, TEXTS

from workbench.errors import BadInput, ModelError
from workbench.memory.base import MEMORIES

GREEDY = {"do_sample": False, "pad_token_id": 0}


def greedy(model, ids, count):
    """transformers' greedy continuation; all ids are real, also one that happens to be the padding id."""
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **GREEDY)[
        0, ids.shape[1] :
    ].tolist()


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_tokens_are_those_of_transformers(family, loaded, eager):
    model = loaded(family)
    ids = model.encode(TEXTS[0])["input_ids"]
    made = model.generate(TEXTS[0], max_new_tokens=9)
    expected = eager(family).generate(ids, max_new_tokens=9, **GREEDY)[0].tolist()
    assert made.ids == expected
    assert made.text == TEXTS[0]
    assert made.new_ids == expected[ids.shape[1] :]
    assert made.tokens_per_second == pytest.approx(len(made.new_ids) / made.seconds)


@pytest.mark.parametrize("family", DECODERS)
def test_a_padded_batch_generates_as_each_alone(family, loaded):
    model = loaded(family)
    together = model.generate(TEXTS, max_new_tokens=6)
    assert [made.ids for made in together] == [model.generate(text, max_new_tokens=6).ids for text in TEXTS]


def test_sampling_follows_its_seed(llama):
    words = {"max_new_tokens": 12, "temperature": 1.0}
    one, same, other = (llama.generate(TEXTS[0], seed=seed, **words).ids for seed in (1, 1, 2))
    assert one == same != other
    cold = llama.generate(TEXTS[0], seed=1, max_new_tokens=12, temperature=1e-4).ids
    assert cold == llama.generate(TEXTS[0], max_new_tokens=12).ids


def test_tokens_stream_as_they_come(llama):
    pieces, ids = [], []
    made = llama.generate(
        TEXTS[1], max_new_tokens=8, on_token=lambda piece, value: (pieces.append(piece), ids.append(value))
    )
    assert ids == made.new_ids
    assert made.new_text.startswith("".join(pieces))
    with pytest.raises(BadInput, match="single prompt"):
        llama.generate(TEXTS, on_token=print)


def test_a_stop_text_ends_it(llama):
    whole = llama.generate(TEXTS[0], max_new_tokens=12)
    stop = llama.decode(whole.new_ids[4:5])
    cut = llama.generate(TEXTS[0], max_new_tokens=12, stop=stop)
    assert cut.stopped == "stop"
    assert len(cut.new_ids) <= 5
    assert stop not in cut.new_text
    assert whole.new_text.startswith(cut.new_text)
    assert whole.stopped == "length"


def test_the_end_token_ends_a_row_alone(llama, monkeypatch):
    first = llama.generate(TEXTS[0], max_new_tokens=6).new_ids
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [first[1]])
    made = llama.generate(TEXTS, max_new_tokens=6)
    assert made[0].stopped == "eos"
    assert made[0].new_ids == first[: first.index(first[1]) + 1]


def test_rounds_continue_one_stream(llama, eager):
    ids = llama.encode(TEXTS[0])["input_ids"]
    with torch.no_grad():
        logp = eager("llama")(ids).logits.log_softmax(-1)[0]
    expected = -logp[:-1].gather(-1, ids[0, 1:, None])[:, 0]
    seen = []
    try:
        one = llama.feed(ids[:, :7], on_round=seen.append)
        two = llama.feed(ids[0, 7:].tolist(), on_round=seen.append)
        assert seen == [one, two]
        surprise = torch.cat([one.surprise, two.surprise])
        assert math.isnan(surprise[0])
        torch.testing.assert_close(surprise[1:], expected, atol=2e-5, rtol=2e-5)
        assert two.tokens == llama.tokens(two.ids)
        more = llama.generate([5, 6], max_new_tokens=4)
        whole = torch.cat([ids, torch.tensor([[5, 6]])], 1)
        assert more.new_ids == greedy(eager("llama"), whole, 4)
        again = llama.generate([9], max_new_tokens=3)  # the generated tokens are part of the stream
        whole = torch.tensor([whole[0].tolist() + more.new_ids + [9]])
        assert again.new_ids == greedy(eager("llama"), whole, 3)
    finally:
        llama.reset()
    assert llama.generate([5, 6], max_new_tokens=3).ids == llama.generate([5, 6], max_new_tokens=3).ids


def test_several_rounds_at_once(llama):
    seen = []
    with llama.use(memory="full"):
        fed = llama.feed(["the key", " of Ada", " is under"], on_round=seen.append)
        frame = llama.memory.contents()
    assert [len(item.ids) for item in seen] == frame.groupby("round").size().tolist()
    assert fed.ids == [value for item in seen for value in item.ids] == frame["token_id"].tolist()
    assert fed.surprise[1:].isfinite().all()


@pytest.mark.parametrize("memory", ["full", "streaming", "sirllm"])
@pytest.mark.parametrize("kernel", ["sdpa", "flash-attention", "eager"])
def test_a_memory_with_room_generates_as_the_full_cache(memory, kernel, llama):
    expected = llama.generate(TEXTS[0], max_new_tokens=8).ids
    with llama.use(attention=kernel, memory=memory):
        assert llama.generate(TEXTS[0], max_new_tokens=8).ids == expected
        assert len(llama.memory.contents()) == len(expected)
        llama.reset()
        assert llama.generate(TEXTS[0], max_new_tokens=8).ids == expected


@pytest.mark.parametrize("memory", ["full", "streaming", "sirllm"])
def test_a_padded_batch_through_a_memory(memory, llama):
    expected = [made.ids for made in llama.generate(TEXTS, max_new_tokens=6)]
    with llama.use(memory=memory):
        assert [made.ids for made in llama.generate(TEXTS, max_new_tokens=6)] == expected
        held = llama.memory.contents().groupby("row").size().tolist()
    assert held == [len(ids) for ids in expected]


def test_a_bounded_memory_reads_beyond_the_positions(llama):
    memory = MEMORIES.get("streaming")(n_sink=2, budget=16)
    with llama.use(memory=memory):
        fed = llama.feed(list(range(3, 103)))
        assert len(fed.surprise) == 100
        assert len(llama.generate([7, 8], max_new_tokens=5).new_ids) == 5
        assert len(memory.contents()) <= 16


def test_a_full_cache_does_not_outgrow_the_positions(llama, loaded):
    with pytest.raises(ModelError, match=r"beyond the 64 positions .*memory='streaming'"):
        llama.generate([5] * 60, max_new_tokens=10)
    with pytest.raises(ModelError, match="beyond the 64 positions"):
        loaded("gpt2").feed([5] * 65)
    assert llama.session is None


def test_what_cannot_be_generated(llama, loaded):
    with pytest.raises(ModelError, match="encoder"):
        loaded("bert").generate("text")
    with pytest.raises(ModelError, match="encoder"):
        loaded("bert").feed("text")
    with pytest.raises(BadInput, match="max_new_tokens"):
        llama.generate("a", max_new_tokens=0)
    with pytest.raises(BadInput, match="temperature"):
        llama.generate("a", temperature=-1)
    with pytest.raises(BadInput, match="temperature"):
        llama.generate("a", temperature=float("nan"))
    with pytest.raises(BadInput, match="the text is empty"):
        llama.generate("")
    with pytest.raises(BadInput, match="one sequence"):
        llama.feed([[1, 2], [3, 4]])
