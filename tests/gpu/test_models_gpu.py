"""The embedded model on the card: kernels agree, traces are exact, memories keep the same tokens as on the CPU."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from workbench.memory.base import MEMORIES
from workbench.training import train_embedded

TEXT = "The old clock in the hall struck nine, and nobody in the house was asleep. " * 12


@pytest.fixture(scope="module")
def model() -> wb.LoadedModel:
    return wb.load("embedded", device="cuda", dtype="float32")


def test_every_kernel_gives_the_same_logits(model: wb.LoadedModel) -> None:
    table = model.proof(TEXT, new_tokens=8).set_index("kernel")
    assert set(table.index) == set(model.kernels())
    assert (table["max_abs_dlogits"] < 5e-3).all()
    assert table["same_tokens"].all()


@pytest.mark.parametrize("kernel", ["eager", "sdpa", "flash-attention", "flash-attention-2"])
def test_a_region_of_the_trace_equals_eager_attention(model: wb.LoadedModel, kernel: str) -> None:
    with model.use(attention="eager"):
        ids = model.encode(TEXT)
        eager = model.model(**ids, output_attentions=True).attentions[2][0]
    with model.use(attention=kernel):
        trace = model.trace(TEXT)
        n = trace.input_ids.shape[1]
        for head in range(model.n_heads):
            region = trace.region(2, head, slice(0, n), slice(0, n))
            torch.testing.assert_close(region.reshape(n, n), eager[head].to(region), atol=1e-4, rtol=1e-3)


def test_low_precision_is_the_default_on_the_card_and_close(model: wb.LoadedModel) -> None:
    low = wb.load("embedded", device="cuda")
    assert low.dtype in (torch.bfloat16, torch.float16)
    a, b = model.trace(TEXT).surprise, low.trace(TEXT).surprise
    assert (a - b.to(a))[:, 1:].abs().mean() < 0.1


def test_sirllm_keeps_the_same_tokens_on_both_devices() -> None:
    kept = []
    for device in ("cpu", "cuda"):
        loaded = wb.load("embedded", device=device, dtype="float32")
        memory = MEMORIES.get("sirllm")(budget=48, eta=0.9)
        with loaded.use(memory=memory):
            for start in range(0, 600, 60):
                loaded.feed(TEXT[start : start + 60])
            kept.append(memory.contents()["position"].tolist())
    assert kept[0] == kept[1]


def test_training_runs_on_the_card(tmp_path) -> None:
    train_embedded("embedded", out=tmp_path, steps=4, size="tiny", device="cuda")
    assert list(tmp_path.rglob("*.safetensors"))
