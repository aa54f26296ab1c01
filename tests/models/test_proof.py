"""The proof panel: every kernel against eager float32, with what each costs."""

from __future__ import annotations

import gc

import pytest
import torch
from model_families import TEXTS

from workbench.errors import BadInput, ModelError, UnknownName
from workbench.models import load
from workbench.models.attention import KERNELS, tensor_kernel
from workbench.models.meter import AllocationMeter, peak_bytes
from workbench.models.proof import COLUMNS


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt-oss", "gpt2", "bert"])
def test_kernels_that_serve_agree(family, loaded):
    model = loaded(family)
    before = model.attention
    frame = model.proof(TEXTS[0], new_tokens=4).set_index("kernel")
    assert [*frame.columns] == list(COLUMNS[1:])
    serving = frame.loc[model.kernels()]
    assert serving["same_tokens"].all()
    differences = serving.filter(like="max_abs_dlogits").dropna(axis=1)
    assert differences.shape[1] == (2 if family == "bert" else 3)
    assert (differences < 5e-5).all().all()
    assert (differences.loc["eager"] == 0).all()
    assert (serving["tokens_per_second"] > 0).all()
    assert (serving["peak_mb"] > 0).all()
    for name in set(KERNELS.names()) - set(model.kernels()):
        assert "kernels that can" in frame.loc[name, "note"]
    assert model.attention == before


def test_a_wrong_kernel_is_seen(llama):
    """A kernel that forgets padding is caught in the padded batch only; one that is off, everywhere."""
    from workbench_kernels import attention

    def careless(q, k, v, **words):
        return attention(q, k, v, **{**words, "key_padding": None})

    def off(q, k, v, **words):
        return attention(q, k, v, **{**words, "scale": 1.1 * words["scale"]})

    KERNELS.register("careless")(tensor_kernel("careless", careless))
    KERNELS.register("off")(tensor_kernel("off", off))
    try:
        frame = llama.proof(TEXTS[0], kernels=["careless", "off"]).set_index("kernel")
    finally:
        KERNELS._known.pop("careless")
        KERNELS._known.pop("off")
    assert frame.loc["careless", "max_abs_dlogits"] < 5e-5
    assert frame.loc["careless", "max_abs_dlogits_padded"] > 1e-2
    assert (frame.loc["off"].filter(like="max_abs") > 1e-2).all()


def test_a_half_precision_model_is_held_against_float32(family_folder):
    model = load(family_folder("llama"), dtype="bfloat16")
    frame = model.proof(TEXTS[0], new_tokens=2)
    assert (frame["max_abs_dlogits"] > 1e-4).all()
    assert model.dtype == torch.bfloat16


def test_the_memory_in_use_is_set_aside(llama):
    with llama.use(memory="streaming"):
        llama.feed("the key")
        before = llama.memory.contents()
        llama.proof(TEXTS[0], new_tokens=2)
        assert llama.memory.contents().equals(before)


def test_bad_input(llama):
    with pytest.raises(UnknownName, match="did you mean 'sdpa'"):
        llama.proof(TEXTS[0], kernels=["spda"])
    with pytest.raises(BadInput, match="empty"):
        llama.proof("")
    with pytest.raises(ModelError, match="64 positions"):
        llama.proof([5] * 60, new_tokens=8)


def test_the_meter_counts_what_is_alive():
    def run():
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1
        del first
        third = second.view(10, 100)  # no new memory
        return third * 2, second.add_(1)

    assert peak_bytes(run, torch.device("cpu")) == 8000
    kept = torch.zeros(10_000)
    with AllocationMeter() as meter:
        kept.mul_(2)
    assert meter.peak == 0
    gc.collect()


def test_eager_needs_more_memory_than_the_tiled_kernel(family_folder):
    """The reason for tiled attention, seen by the meter: eager holds N x N, the tiled kernel does not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from workbench.models import LoadedModel

    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024,
    )  # fmt: skip
    model = LoadedModel("wide", LlamaForCausalLM(config).eval())
    model.start_with("eager")
    frame = model.proof(list(range(16)) * 60, kernels=["eager", "flash-attention"], new_tokens=1).set_index("kernel")
    assert frame.loc["eager", "peak_mb"] > 2 * 960 * 960 * 4 / 1e6
    assert frame.loc["flash-attention", "peak_mb"] < 0.5 * frame.loc["eager", "peak_mb"]
