"""Path patching, attribution, gate gradients and knockout on tiny random models of many families, by brute force."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from workbench.errors import BadInput, ModelError
from workbench.probes import heads
from workbench.probes.attribution import final_norm, gate_gradients, logit_attribution
from workbench.probes.knockout import knockout
from workbench.probes.patching import Effects, activation_patching, column, last_outputs, path_patching

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 61}
GQA = {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", {**SMALL, **GQA}, "LlamaForCausalLM"),
    "gemma3": ("Gemma3TextConfig", {**SMALL, **GQA, "head_dim": 8}, "Gemma3ForCausalLM"),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 61, "n_positions": 64,
                            "bos_token_id": 1, "eos_token_id": 2}, "GPT2LMHeadModel"),
    "gpt-neox": ("GPTNeoXConfig", {**SMALL, "bos_token_id": 1, "eos_token_id": 2}, "GPTNeoXForCausalLM"),
    "phi3": ("Phi3Config", {**SMALL, **GQA}, "Phi3ForCausalLM"),
    "opt": ("OPTConfig", {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
                          "vocab_size": 61, "word_embed_proj_dim": 32, "max_position_embeddings": 64,
                          "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}, "OPTForCausalLM"),
}  # fmt: skip
_MADE: dict[str, Any] = {}


def tiny(family: str) -> Any:
    """Weights far larger than at the start of training, so that a wrong head is seen."""
    if family not in _MADE:
        config, settings, kind = FAMILIES[family]
        torch.manual_seed(3)
        model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.25)
        _MADE[family] = model.double()
    return _MADE[family]


def material(n: int = 3, corruptions: int = 2, seed: int = 0) -> tuple[list, list, list]:
    rng = random.Random(seed)
    prompts = [[rng.randrange(3, 61) for _ in range(rng.randint(4, 9))] for _ in range(n)]
    twins = [[[rng.randrange(3, 61) for _ in prompt] for _ in range(corruptions)] for prompt in prompts]
    answers = [tuple(rng.sample(range(3, 61), 2)) for _ in prompts]
    return prompts, twins, answers


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def captured(model: Any, ids: list[int]) -> dict[int, torch.Tensor]:
    with torch.no_grad(), heads.capture(model) as held:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return dict(held)


@pytest.mark.parametrize("family", FAMILIES)
def test_path_patching_is_the_whole_pass_with_every_other_head_frozen(family):
    model, (prompts, twins, answers) = tiny(family), material()
    found = path_patching(model, prompts, twins, answers, rows=7)
    for i, prompt in enumerate(prompts):
        clean, before = captured(model, prompt), logits(model, prompt)
        for layer, head in ((0, 1), (1, 3), (2, 0)):
            change, relative = np.zeros(2), np.zeros(2)
            for twin in twins[i]:
                value = captured(model, twin)[layer][:, :, head]
                with heads.freeze(model, clean), heads.replace(model, {(layer, head): value}, positions=[-1]):
                    after = logits(model, prompt)
                pair = list(answers[i])
                change += (after - before)[pair].numpy() / 2
                relative += (after.softmax(-1)[pair] / before.softmax(-1)[pair] - 1).numpy() / 2
            assert found.first[layer, head, i] == pytest.approx(change[0], abs=1e-5)
            assert found.second[layer, head, i] == pytest.approx(change[1], abs=1e-5)
            assert found.second_rel[layer, head, i] == pytest.approx(relative[1], abs=1e-5, rel=1e-5)
    assert np.abs(found.first).max() > 1e-3, "an effect of nothing would pass as well"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_activation_patching_is_the_replaced_head_with_everything_after_it_computed_anew(family):
    model, (prompts, twins, answers) = tiny(family), material(seed=1)
    found = activation_patching(model, prompts, twins, answers, rows=5)
    for i, prompt in enumerate(prompts):
        before = logits(model, prompt)
        for layer, head in ((0, 0), (2, 3)):
            change = 0.0
            for twin in twins[i]:
                value = captured(model, twin)[layer][:, :, head]
                with heads.replace(model, {(layer, head): value}, positions=[-1]):
                    change += float((logits(model, prompt) - before)[answers[i][0]]) / 2
            assert found.first[layer, head, i] == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_clean_values_change_nothing_and_all_corrupted_heads_give_the_corrupted_run(family):
    model, (prompts, twins, answers) = tiny(family), material(seed=2)
    same = path_patching(model, prompts, [[prompt] for prompt in prompts], answers)
    assert np.abs(same.first).max() < 1e-5
    clean = last_outputs(model, prompts)
    again = column(model, clean.z, clean.last_ids, clean.last_positions)
    assert torch.allclose(again, clean.logits, atol=1e-4)
    twins_ending_alike = [[*twin[0][:-1], prompt[-1]] for twin, prompt in zip(twins, prompts)]
    dirty = last_outputs(model, twins_ending_alike)
    moved = column(model, dirty.z, clean.last_ids, clean.last_positions)
    assert torch.allclose(moved, dirty.logits, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_the_residual_add_up_to_the_logits(family):
    """Heads by direct attribution; embedding and MLPs are what is left when all heads are silent, by linearity."""
    model, (prompts, _, _) = tiny(family), material(seed=3)
    norm, head_out = final_norm(model), model.get_output_embeddings().weight
    parts = logit_attribution(model, prompts)
    seen: list[torch.Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    written = {site.layer: site for site in heads.sites(model)}
    for i, prompt in enumerate(prompts):
        seen.clear()
        clean = captured(model, prompt)
        resid = seen[-1][0, -1]
        direct = sum(
            clean[layer][0, -1, h] @ site.weight(h) for layer, site in written.items() for h in range(site.n_heads)
        )
        with torch.no_grad():
            bias = getattr(norm, "bias", None)
            whole = norm(resid) - (0 if bias is None else bias)
            share = (whole @ head_out.T).double()
        linear = parts[:, :, i].sum((0, 1)).double()
        other = _linear(norm, resid - direct, resid) @ head_out.T
        if family != "gemma3":  # gemma norms a head's output again before it is added
            assert torch.allclose(linear + other, share, atol=1e-4)
    hook.remove()


def _linear(norm: Any, part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The norm of ``part`` under the scale of ``whole``."""
    if isinstance(norm, torch.nn.LayerNorm):
        scale = (whole.var(unbiased=False) + norm.eps).rsqrt()
        return (part - part.mean()) * scale * norm.weight
    scale = (whole.pow(2).mean() + getattr(norm, "variance_epsilon", 1e-6)).rsqrt()
    return part * scale * norm.weight


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gate_gradients_are_finite_differences(family):
    model, (prompts, _, answers) = tiny(family), material(seed=4)
    found = gate_gradients(model, prompts, answers)

    def value(gates: torch.Tensor) -> float:
        with heads.gate(model, gates):
            rows = [logits(model, prompt)[list(pair)] for prompt, pair in zip(prompts, answers)]
        return float(np.mean([float(row[0] - row[1]) for row in rows]))

    for layer, head in ((0, 0), (1, 2), (2, 3)):
        up, down = torch.ones(3, 4).double(), torch.ones(3, 4).double()
        up[layer, head] += 1e-4
        down[layer, head] -= 1e-4
        assert found[layer, head] == pytest.approx((value(up) - value(down)) / 2e-4, abs=1e-3, rel=1e-3)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_knockout_hides_tokens_from_one_position_and_is_undone(family):
    model, (prompts, _, _) = tiny(family), material(n=1, seed=5)
    model.set_attn_implementation("eager")
    ids = torch.tensor([prompts[0]])
    last = ids.shape[1] - 1
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with knockout(model, [0, 1, 2], [[last]], [[0]]):
            blocked = model(input_ids=ids).logits
            other = ids.clone()
            other[0, 0] = (other[0, 0] + 7) % 58 + 3
        after = model(input_ids=ids).logits
    assert torch.equal(before, after)
    assert torch.allclose(blocked[:, :-1], before[:, :-1], atol=1e-9)
    assert (blocked[:, -1] - before[:, -1]).abs().max() > 1e-4


def test_a_knocked_out_token_has_no_influence_in_a_model_of_one_layer():
    config, settings, kind = FAMILIES["llama"]
    torch.manual_seed(0)
    one = getattr(transformers, kind)(getattr(transformers, config)(**{**settings, "num_hidden_layers": 1})).eval()
    one.set_attn_implementation("eager")
    first, second = torch.tensor([[5, 9, 11, 20]]), torch.tensor([[5, 33, 11, 20]])
    with torch.no_grad(), knockout(one, [0], [[3]], [[1]]):
        assert torch.allclose(one(first).logits[0, -1], one(second).logits[0, -1], atol=1e-6)


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_prompts_corruptions_and_answers_that_do_not_fit():
    model, (prompts, twins, answers) = tiny("llama"), material()
    cases = [
        (([], [], []), "no prompts"),
        (([[]], [[[]]], [(3, 4)]), "empty"),
        ((prompts, [[t[0][:-1]] for t in twins], answers), "must have as many"),
        ((prompts, [[] for _ in twins], answers), "got none"),
        ((prompts, twins[:1], answers), "as many corruptions"),
        ((prompts, twins, [(5, 5)] * 3), "cannot be told apart"),
        ((prompts, twins, [(5, 61)] * 3), "answers.0. holds 61"),
        ((prompts, twins, [(5, -1)] * 3), "answers.0. holds -1"),
        ((prompts, twins, [(5, 6, 7)] * 3), "two answers"),
        (([[3, 61], *prompts[1:]], [[[3, 4]], *twins[1:]], answers), "prompt 0 holds 61"),
    ]
    for arguments, said in cases:
        with pytest.raises(BadInput, match=said):
            path_patching(model, *arguments)
    for bad in ((9, 0), (0, 9)):
        with pytest.raises(BadInput, match="outside this model of 3 layers of 4 heads"):
            path_patching(model, prompts, twins, answers, heads=[bad])
    for patching in (path_patching, activation_patching):
        for rows in (0, -7, 2.5):
            with pytest.raises(BadInput, match=r"rows must be .*how many patched rows"):
                patching(model, prompts, twins, answers, rows=rows)
    with pytest.raises(BadInput, match="no head"):
        path_patching(model, prompts, twins, answers, heads=[])
    with pytest.raises(BadInput, match="as many tokens"):
        logit_attribution(model, prompts, [5])
    with pytest.raises(BadInput, match="tokens holds 61"):
        logit_attribution(model, prompts, [5, 6, 61])
    with pytest.raises(BadInput, match=r"answers\[2\] holds 61"):
        gate_gradients(model, prompts, [(5, 6), (5, 6), (5, 61)])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_only_chosen_heads_are_patched():
    model, (prompts, twins, answers) = tiny("llama"), material()
    found = path_patching(model, prompts, twins, answers, heads=[(1, 2)])
    assert np.isfinite(found.first[1, 2]).all()
    assert np.isnan(found.first[0]).all()
    with pytest.raises(BadInput, match="effect"):
        found.scores("odds")
    assert isinstance(found, Effects)


def test_models_without_a_next_token_are_refused():
    bert = transformers.BertModel(transformers.BertConfig(**SMALL)).eval()
    with pytest.raises(ModelError, match="causal"):
        last_outputs(bert, [[3, 4]])
    with pytest.raises(BadInput, match="LoadedModel"):
        last_outputs("embedded", [[3, 4]])


def test_knockout_refuses_what_has_no_meaning():
    model = tiny("llama")
    model.set_attn_implementation("eager")
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(BadInput, match="layer 9"), knockout(model, [9], [[2]], [[0]]):
        pass
    with pytest.raises(BadInput, match="nothing to attend"), knockout(model, [0], [[0]], [[0]]):
        model(ids)
    with pytest.raises(BadInput, match="1 rows"), knockout(model, [0], [[2], [2]], [[0], [0]]):
        model(ids)
    for queries, keys, said in (([[3]], [[0]], "queries name position 3"), ([[2]], [[-4]], "keys name position -4")):
        with pytest.raises(BadInput, match=said), knockout(model, [0], queries, keys):
            model(ids)
    assert not any(module._forward_pre_hooks for module in model.modules())
