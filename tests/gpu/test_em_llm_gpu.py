"""EM-LLM on the card: decoding in a room gives what passes without one give, and never waits within a layer."""

from __future__ import annotations

import pytest
import torch

from tests.batched_products import Products
from workbench.memory.cache import _event_choice_device
from workbench.memory.cache._em_step import DecodesInRoom
from workbench.memory.cache.em_llm import EMLLM

SIZES = {"n_local": 128, "n_mem": 96, "n_init": 4, "chunk": 64, "max_block": 32}


@pytest.fixture
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=512, num_hidden_layers=3, **sizes)).eval()


def decoded(model, ids: torch.Tensor, **settings) -> tuple[torch.Tensor, EMLLM]:
    memory = EMLLM(**{**SIZES, "contiguity": 0.3, "refine": "none", **settings}).bind(model)
    memory.feed(ids[:, :900])
    logits = torch.cat([memory.write(ids[:, i : i + 1]) for i in range(900, 1000)], dim=1)
    memory.unbind()
    return logits, memory


def test_a_room_changes_nothing_on_the_card(model, monkeypatch):
    ids = torch.randint(3, 512, (1, 1000), generator=torch.Generator().manual_seed(1)).cuda()
    model = model.cuda()
    roomy, memory = decoded(model, ids)
    assert memory._roomy is not None
    monkeypatch.setattr(DecodesInRoom, "_laid_out", lambda self: False)
    plain, other = decoded(model, ids)
    assert (roomy - plain).abs().max() < 1e-4 * plain.abs().max()
    assert memory.last_retrieved == other.last_retrieved


FORMS = [{}, {"contiguity": 0.0}, {"n_mem": 0}, {"n_mem": 1200}, {"max_block": 64, "n_mem": 40}]


@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("form", ["triton", "torch"])
def test_the_card_chooses_what_the_host_does(model, settings, form, monkeypatch):
    """Not one event differs, nor what the log says; logits do by what a softmax over hidden rows rounds otherwise."""
    ids = torch.randint(3, 512, (1, 1000), generator=torch.Generator().manual_seed(3)).cuda()
    monkeypatch.setattr(_event_choice_device, "launcher_exists", lambda: form == "triton")
    mine, memory = decoded(model.cuda(), ids, **settings)
    assert memory._roomy.choice is not None
    monkeypatch.setattr(DecodesInRoom, "chooses_on", frozenset())
    expected, other = decoded(model, ids, **settings)
    assert other._roomy.choice is None
    assert (mine - expected).abs().max() < 1e-4 * expected.abs().max()
    assert memory.last_retrieved == other.last_retrieved
    reads = [[(event.items, event.detail) for event in m.events() if event.kind == "read"] for m in (memory, other)]
    assert reads[0] == reads[1]
    assert (memory.retriever.retrieved == other.retriever.retrieved).all()
    assert (memory.retriever.last_used == other.retriever.last_used).all()
    shown = [
        m.contents().drop(columns=["last_score", "representative_scores", "peak_surprise"]) for m in (memory, other)
    ]
    assert shown[0].equals(shown[1])


@pytest.mark.parametrize("settings", [{}, {"retrieval": "none"}, {"n_local": 1200}])
def test_products_of_a_token_begin_where_the_card_reads_fast(model, settings):
    """Otherwise cuBLAS falls back to kernels that take six times as long; at any width, of which ten are tried."""
    ids = torch.randint(3, 512, (1, 1000), generator=torch.Generator().manual_seed(4)).cuda()
    memory = EMLLM(**{**SIZES, "contiguity": 0.3, "refine": "none", **settings}).bind(model.to("cuda", torch.bfloat16))
    memory.feed(ids[:, :900])
    for i in range(900, 910):
        with Products() as seen:
            memory.write(ids[:, i : i + 1])
        assert memory._roomy is not None
        assert len(seen.starts) >= 2 * 3 * 3  # scores and values of three layers
        assert all(step % 8 == 0 for step in seen.steps)
        assert all(start % 16 == 0 for start in seen.starts)
    memory.unbind()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_waits_for_the_card_as_seldom_as_it_can(model, dtype):
    from torch.profiler import ProfilerActivity, profile

    ids = torch.randint(3, 512, (1, 1000), generator=torch.Generator().manual_seed(2)).cuda()
    memory = EMLLM(**SIZES, contiguity=0.3, refine="none").bind(model.to("cuda", dtype))
    memory.feed(ids[:, :900])
    waits = []
    for i in range(900, 906):
        room = memory._roomy
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            memory.write(ids[:, i : i + 1])
        names = [event.name for event in seen.events()]
        if room is not None and room is memory._roomy:  # no event left the window
            waits.append((names.count("cudaStreamSynchronize"), names.count("cudaEventSynchronize")))
    assert waits
    for streams, events in waits:
        assert streams <= 2  # the token's number, its surprise
        assert events <= 1  # what the layers chose, all at once
    memory.unbind()
