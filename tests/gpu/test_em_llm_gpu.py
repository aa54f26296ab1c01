"""EM-LLM on the card: decoding in a room gives what passes without one give, and waits for the card once a layer."""

from __future__ import annotations

import pytest
import torch

from workbench.memory.cache._em_step import DecodesInRoom
from workbench.memory.cache.em_llm import EMLLM

SIZES = {"n_local": 128, "n_mem": 96, "n_init": 4, "chunk": 64, "max_block": 32}


@pytest.fixture
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=512, num_hidden_layers=3, **sizes)).eval()


def decoded(model, ids: torch.Tensor) -> tuple[torch.Tensor, EMLLM]:
    memory = EMLLM(**SIZES, contiguity=0.3, refine="none").bind(model)
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
        assert events <= model.config.num_hidden_layers
    memory.unbind()
