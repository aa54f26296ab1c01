"""Kernel x family: logits, padded batches, full masks, decoding with a cache and gradients equal eager float32."""

from __future__ import annotations

import pytest
import torch
from model_families import DECODERS, FAMILIES, TEXTS, make_model
from transformers import DynamicCache

from workbench.errors import KernelUnsupported, ModelError
from workbench.models.attention import KERNELS, tensor_kernel

NAMES = ["eager", "sdpa", "flash-attention", "flash-attention-2"]
CANNOT = {("sdpa", "gemma2"), ("sdpa", "gpt-oss")}
PAIRS = [(kernel, family) for family in FAMILIES for kernel in NAMES if (kernel, family) not in CANNOT]
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}

pairs = pytest.mark.parametrize(("kernel", "family"), PAIRS)


def reference(model, batch, **more):
    """Eager logits without the workbench; positions count real tokens, as generate() does it."""
    mask = batch["attention_mask"]
    if not mask[:, 0].all():
        more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(**batch, **more).logits


@pairs
def test_logits_equal_eager(kernel, family, loaded, eager):
    model = loaded(family)
    batch = model.encode(TEXTS[0])
    with model.use(attention=kernel), torch.no_grad():
        got = model.model(batch["input_ids"]).logits
    torch.testing.assert_close(got, reference(eager(family), batch), **TOLERANCE)


@pairs
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_equal_eager(kernel, family, side, loaded, eager):
    model = loaded(family)
    batch = model.encode(TEXTS, side=side)
    more = {}
    if side == "left":
        more["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with model.use(attention=kernel), torch.no_grad():
        got = model.model(**batch, **more).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(got[real], reference(eager(family), batch)[real], **TOLERANCE)
    alone = model.encode(TEXTS[1])  # and padding changes nothing for the row that is padded
    torch.testing.assert_close(got[1][real[1]], reference(eager(family), alone)[0], **TOLERANCE)


@pytest.mark.parametrize(("kernel", "family"), [pair for pair in PAIRS if pair[1] in DECODERS])
def test_greedy_generation_with_a_cache_is_identical(kernel, family, loaded, eager):
    model, plain = loaded(family), eager(family)
    batch = model.encode(TEXTS, side="left")
    words = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    with model.use(attention=kernel):
        got = model.model.generate(**batch, **words)
    assert torch.equal(got, plain.generate(**batch, **words))


@pytest.mark.parametrize(("kernel", "family"), [pair for pair in PAIRS if pair[1] in DECODERS])
def test_reading_in_pieces_equals_one_pass(kernel, family, loaded, eager):
    """q_len < kv_len with q_len > 1: the mask must be aligned at the bottom right."""
    model = loaded(family)
    ids = model.encode(TEXTS[0])["input_ids"]
    whole = reference(eager(family), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    cache = DynamicCache(config=model.config)
    with model.use(attention=kernel), torch.no_grad():
        pieces = [model.model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(5, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **TOLERANCE)


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_a_full_mask_passes_through(kernel, family, loaded, eager):
    """A 4-D mask that no pattern can say: every token sees itself and every third one before it."""
    model = loaded(family)
    ids = model.encode(TEXTS[1])["input_ids"]
    n = ids.shape[1]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    see = ((i - j) % 3 == 0) & (j <= i)
    additive = torch.zeros(1, 1, n, n).masked_fill(~see, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = eager(family)(ids, attention_mask=additive).logits
        with model.use(attention=kernel):
            got = model.model(ids, attention_mask=additive).logits
    torch.testing.assert_close(got, expected, **TOLERANCE)
    with torch.no_grad():
        assert (eager(family)(ids).logits - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", NAMES)
def test_packed_sequences_do_not_see_each_other(kernel, llama):
    """Positions that start again mean two sequences in one row; transformers says that with a mask of its own."""
    one, two = llama.encode(TEXTS[0])["input_ids"], llama.encode(TEXTS[1])["input_ids"]
    positions = torch.cat([torch.arange(one.shape[1]), torch.arange(two.shape[1])])[None]
    with llama.use(attention=kernel), torch.no_grad():
        packed = llama.model(torch.cat([one, two], 1), position_ids=positions, use_cache=False).logits
        alone = llama.model(two, use_cache=False).logits
    torch.testing.assert_close(packed[:, one.shape[1] :], alone, **TOLERANCE)


@pytest.mark.parametrize("kernel", NAMES)
def test_a_static_cache_runs_past_the_queries(kernel, loaded, eager):
    from transformers import StaticCache

    model = loaded("llama")
    ids = model.encode(TEXTS[0])["input_ids"]
    whole = reference(eager("llama"), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    cache = StaticCache(config=model.config, max_cache_len=40)
    with model.use(attention=kernel), torch.no_grad():
        pieces = [model.model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(5, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **TOLERANCE)


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("family", ["llama", "mistral", "bert"])
def test_gradients_equal_eager(kernel, family, loaded, eager):
    model, plain = loaded(family), eager(family)
    batch = model.encode(TEXTS[:2])
    name = next(key for key, _ in plain.named_parameters() if "layers.0" in key or "layer.0" in key)

    def gradient(net):
        net.zero_grad(set_to_none=True)
        real = batch["attention_mask"].bool()
        net(**batch).logits[real].square().mean().backward()
        found = dict(net.named_parameters())[name].grad.clone()
        net.zero_grad(set_to_none=True)
        return found

    expected = gradient(plain)
    with model.use(attention=kernel):
        torch.testing.assert_close(gradient(model.model), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("kernel", "family"), sorted(CANNOT))
def test_a_kernel_that_cannot_names_those_that_can(kernel, family, loaded):
    model = loaded(family)
    before = model.attention
    lacks = "soft-capping" if family == "gemma2" else "attention sinks"
    with pytest.raises(KernelUnsupported, match=f"{lacks}.*'eager', 'flash-attention'"):
        model.use(attention=kernel)
    assert model.attention == before
    assert kernel not in model.kernels()


def test_every_family_starts_on_a_kernel_that_serves_it(loaded):
    for family in FAMILIES:
        assert loaded(family).attention in loaded(family).kernels()
        assert {"eager", "flash-attention"} <= set(loaded(family).kernels())


def test_a_class_defined_in_a_notebook_is_refused_with_the_reason(llama):
    """transformers only warns when it cannot switch such a class; the workbench raises and says why."""
    from transformers import PreTrainedModel

    from workbench.models import LoadedModel

    cell = "class FromACell(Base):\n    def forward(self, input_ids):\n        return self.there(input_ids)"
    namespace = {"Base": PreTrainedModel, "__name__": "__a_cell__"}
    exec(cell, namespace)
    odd = namespace["FromACell"](llama.config.__class__(**llama.config.to_dict()))
    odd.there = torch.nn.Embedding(8, 8)
    model = LoadedModel("cell", odd)
    before = model.attention
    with pytest.raises(KernelUnsupported, match=r"own code .* notebook cell"):
        model.use(attention="flash-attention")
    assert (model.attention, model.kernels()) == (before, [before])
    model.use(attention=before).restore()
    with pytest.raises(ModelError, match="cannot be recorded"):
        model.trace([1, 2, 3])


def test_a_kernel_of_ones_own_joins_by_name(llama):
    from workbench_kernels import attention

    calls = []

    def mine(q, k, v, **words):
        calls.append(tuple(q.shape))
        return attention(q, k, v, impl="reference", **words)

    KERNELS.register("mine-for-tests")(tensor_kernel("mine-for-tests", mine))
    try:
        ids = llama.encode(TEXTS[1])["input_ids"]
        with torch.no_grad():
            expected = llama.model(ids).logits
            with llama.use(attention="mine-for-tests"):
                torch.testing.assert_close(llama.model(ids).logits, expected, **TOLERANCE)
        assert calls == [(1, ids.shape[1], 4, 8)] * 2
        assert "mine-for-tests" in llama.kernels()
    finally:
        KERNELS._known.pop("mine-for-tests")


def test_a_position_bias_is_added(llama):
    """Models with relative position bias hand it to the kernel as a keyword."""
    from workbench.models.attention import KERNELS as kernels

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 5, 8) for _ in range(3))
    bias = torch.randn(1, 4, 5, 5)
    module = torch.nn.Module()
    module.is_causal = False
    got, _ = kernels.get("flash-attention").forward(module, q, k, v, None, position_bias=bias)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_random_models_are_far_from_uniform():
    """The matrix above would prove little on flat attention."""
    model = make_model("llama")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        probs = model(torch.arange(3, 23)[None], output_attentions=True).attentions[0][0, :, -1]
    assert probs.max() > 3 / 20
