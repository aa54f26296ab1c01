"""The head-hook library on tiny random models of six families, against the same surgery done on the weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from workbench.errors import BadInput, ModelError
from workbench.probes import heads

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}
GQA = {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", {**SMALL, **GQA}, "LlamaForCausalLM"),
    "mistral": ("MistralConfig", {**SMALL, **GQA, "sliding_window": 5}, "MistralForCausalLM"),
    "qwen3": ("Qwen3Config", {**SMALL, **GQA, "head_dim": 12}, "Qwen3ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", {**SMALL, **GQA, "head_dim": 8}, "Gemma3ForCausalLM"),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61, "n_positions": 64,
                            "bos_token_id": 1, "eos_token_id": 2}, "GPT2LMHeadModel"),
    "gpt-neox": ("GPTNeoXConfig", {**SMALL, "bos_token_id": 1, "eos_token_id": 2}, "GPTNeoXForCausalLM"),
    "bert": ("BertConfig", SMALL, "BertForMaskedLM"),
}  # fmt: skip
_MADE: dict[str, Any] = {}


def tiny(family: str) -> Any:
    if family not in _MADE:
        config, settings, kind = FAMILIES[family]
        torch.manual_seed(3)
        _MADE[family] = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    return _MADE[family]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def pruned_weights(family: str, chosen: list[tuple[int, int]]) -> Any:
    model = copy.deepcopy(tiny(family))
    with torch.no_grad():
        for layer, head in chosen:
            heads.sites(model)[layer].weight(head).zero_()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroing_heads_is_zeroing_their_part_of_the_output_projection(family, ids):
    model, chosen = tiny(family), [(0, 1), (1, 0), (1, 3)]
    before = logits(model, ids)
    with heads.zero(model, chosen):
        inside = logits(model, ids)
    assert torch.equal(inside, logits(pruned_weights(family, chosen), ids))
    assert not torch.equal(inside, before)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sum_of_head_outputs_is_what_the_attention_layer_adds(family, ids):
    model = tiny(family)
    site = heads.sites(model)[1]
    seen = []
    handle = site.projection.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with heads.capture(model) as z:
        logits(model, ids)
    handle.remove()
    assert set(z) == {0, 1}
    assert z[1].shape == (2, 9, site.n_heads, site.head_dim)
    added = sum(z[1][:, :, head] @ site.weight(head) for head in range(site.n_heads))
    bias = getattr(site.projection, "bias", None)
    torch.testing.assert_close(added + (0 if bias is None else bias), seen[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_clean_values_change_nothing_and_all_corrupted_values_give_the_corrupted_run(family, ids):
    model = tiny(family)
    other = ids.flip(1)
    clean = logits(model, ids)
    with heads.capture(model) as mine:
        logits(model, ids)
    with heads.capture(model) as theirs:
        corrupted = logits(model, other)
    with heads.freeze(model, mine):
        torch.testing.assert_close(logits(model, ids), clean, atol=1e-6, rtol=0)
    with heads.freeze(model, theirs):
        torch.testing.assert_close(logits(model, other), corrupted, atol=1e-6, rtol=0)
        assert not torch.allclose(logits(model, ids), clean, atol=1e-4)


def test_one_head_at_one_position_is_patched_while_the_rest_is_frozen(ids):
    """Path patching: only the last position moves; a frozen run with the head set free is the clean run."""
    model = tiny("llama")
    with heads.capture(model) as clean:
        before = logits(model, ids)
    with heads.capture(model) as other:
        logits(model, ids.flip(1))
    patch = {(0, 2): other[0][:, :, 2]}
    with heads.freeze(model, clean), heads.replace(model, patch, positions=[-1]):
        after = logits(model, ids)
    torch.testing.assert_close(after[:, :-1], before[:, :-1], atol=1e-6, rtol=0)
    assert not torch.allclose(after[:, -1], before[:, -1], atol=1e-4)
    with heads.freeze(model, clean, but=[(0, 2)]):
        torch.testing.assert_close(logits(model, ids), before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_pruning_holds_in_every_step_of_a_cached_generation(family, ids):
    model, chosen = tiny(family), [(0, 0), (1, 2)]
    how = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    with heads.zero(model, chosen):
        inside = model.generate(ids, **how)
    assert torch.equal(inside, pruned_weights(family, chosen).generate(ids, **how))


def test_gates_of_one_change_nothing_and_their_gradient_is_the_finite_difference(ids):
    model = copy.deepcopy(tiny("gpt2")).double()  # its norms compute in float64; Llama's fall back to float32

    def loss(gates: torch.Tensor) -> torch.Tensor:
        with heads.gate(model, gates):
            return model(input_ids=ids).logits[:, -1, 7].sum()

    gates = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(loss(gates), model(input_ids=ids).logits[:, -1, 7].sum())
    (gradient,) = torch.autograd.grad(loss(gates), gates)
    step = torch.zeros(2, 4, dtype=torch.float64)
    step[1, 2] = 1e-5
    with torch.no_grad():
        slope = (loss(torch.ones(2, 4).double() + step) - loss(torch.ones(2, 4).double() - step)) / 2e-5
    torch.testing.assert_close(gradient[1, 2], slope, rtol=1e-5, atol=1e-9)


def test_mean_ablation_uses_the_average_over_all_tokens(ids):
    model = tiny("llama")
    means = heads.mean_outputs(model, [ids, ids.flip(0)])
    with heads.capture(model) as z:
        logits(model, ids)
    torch.testing.assert_close(means[1], z[1].mean(dim=(0, 1)))
    with heads.mean(model, [(1, 3)], means), heads.capture(model, [1]) as inside:
        logits(model, ids)
    torch.testing.assert_close(inside[1][0, 4, 3], means[1][3])
    torch.testing.assert_close(inside[1][:, :, 0], z[1][:, :, 0])


def test_hooks_are_gone_after_an_error_inside(ids):
    model = tiny("llama")
    before = logits(model, ids)

    def broken(z: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside the edit")

    with pytest.raises(RuntimeError, match="inside the edit"), heads.edit(model, {0: broken}):
        logits(model, ids)
    with pytest.raises(ZeroDivisionError), heads.zero(model, [(0, 0)]):
        raise ZeroDivisionError
    assert all(not site.projection._forward_pre_hooks for site in heads.sites(model))
    assert torch.equal(logits(model, ids), before)


def test_grouped_heads_know_their_key_value_head():
    site = heads.sites(tiny("llama"))[0]
    assert (site.n_heads, site.n_kv_heads, site.head_dim) == (4, 2, 8)
    assert [site.group(head) for head in range(4)] == [0, 0, 1, 1]
    assert heads.sites(tiny("qwen3"))[0].head_dim == 12


def test_bad_heads_layers_shapes_and_models_are_named(ids):
    model = tiny("llama")
    cases = [
        (lambda: heads.zero(model, [(5, 0)]), "layer 5 is outside this model, which has layers 0 to 1"),
        (lambda: heads.zero(model, [(0, 4)]), "head 4 is outside layer 0, which has heads 0 to 3"),
        (lambda: heads.zero(model, [3]), r"heads must be \(layer, head\) pairs"),
        (lambda: heads.gate(model, torch.ones(3, 4)), r"gates must be \(layers, heads\) = \(2, 4\)"),
        (lambda: heads.mean(model, [(1, 0)], {0: torch.zeros(4, 8)}), "means has no layer 1"),
        (lambda: heads.capture(model, [9]), "layer 9 is outside this model"),
    ]
    for make, message in cases:
        with pytest.raises(BadInput, match=message), make():
            pass
    with (
        pytest.raises(BadInput, match=r"a value of shape \(2, 4, 8\) does not fit \(2, 9, 8\)"),
        heads.replace(model, {(0, 0): torch.zeros(2, 4, 8)}),
    ):
        logits(model, ids)
    with pytest.raises(BadInput, match="position 9 is outside this pass of 9 tokens"):  # noqa: SIM117
        with heads.replace(model, {(0, 0): torch.zeros(8)}, positions=[9]):
            logits(model, ids)
    with pytest.raises(ModelError, match="no attention layer"):
        heads.sites(torch.nn.Linear(2, 2))
    with pytest.raises(BadInput, match="must be a Hugging Face model or a LoadedModel, got str"):
        heads.sites("llama")
