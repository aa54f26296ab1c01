"""Induction scores against brute force: eager attention matrices, and a head taken out of the last state by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from workbench.errors import BadInput, ModelError
from workbench.models.trace import LayerTrace, Trace
from workbench.probes import heads, induction
from workbench_kernels import attention

LENGTH = 12


@pytest.fixture(scope="module")
def ids(model):
    return induction.repeated_tokens(320, LENGTH, batch=3, seed=4, first=0, avoid=(0, 1))


def test_the_tokens_repeat_are_distinct_and_avoid_what_they_must(ids):
    assert ids.shape == (3, 1 + 2 * LENGTH)
    assert torch.equal(ids[:, 1 : 1 + LENGTH], ids[:, 1 + LENGTH :])
    assert all(len(set(row.tolist())) == LENGTH for row in ids[:, 1 : 1 + LENGTH])
    assert ids[:, 0].eq(0).all()
    assert not np.isin(ids[:, 1:], (0, 1)).any()
    again = induction.repeated_tokens(320, LENGTH, batch=3, seed=4, first=0, avoid=(0, 1))
    assert torch.equal(ids, again)


def test_the_scores_are_the_means_over_the_eager_attention_matrix(model, ids):
    frame = induction.attention_kinds(model.trace(ids), LENGTH, start=1)
    eager = copy.deepcopy(model.model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = eager(input_ids=ids, output_attentions=True).attentions
    queries = range(1 + LENGTH, 1 + 2 * LENGTH)
    for row in frame.itertuples():
        full = attentions[row.layer][:, row.head]
        by_hand = {
            "prefix_matching": np.mean([[one[q, q - LENGTH + 1] for q in queries] for one in full]),
            "previous_token": np.mean([[one[q, q - 1] for q in queries] for one in full]),
            "duplicate_token": np.mean([[one[q, q - LENGTH] for q in queries] for one in full]),
            "sink": np.mean([[one[q, 0] for q in queries] for one in full]),
        }
        assert {name: getattr(row, name) for name in by_hand} == pytest.approx(by_hand, abs=1e-5)
    assert len(frame) == 2 * 4


def test_copying_is_what_vanishes_when_the_head_is_taken_out_of_the_last_state(model, ids):
    frame = induction.copying(model, ids, LENGTH, start=1).set_index(["layer", "head"])
    network, places = model.model, slice(1 + LENGTH, 2 * LENGTH)
    with torch.no_grad(), heads.capture(model) as z:
        whole = network(input_ids=ids).logits[:, places]
    site = heads.sites(model)[1]
    added = z[1][:, :, 2] @ site.weight(2)
    handle = network.model.norm.register_forward_pre_hook(lambda _m, inputs: (inputs[0] - added,))
    with torch.no_grad():
        effect = whole - network(input_ids=ids).logits[:, places]
    handle.remove()
    gains, hits = [], []
    for b in range(3):
        words = ids[b, 1 : 1 + LENGTH].tolist()
        for p, target in enumerate(ids[b, 2 + LENGTH :].tolist()):
            others = [effect[b, p, word].item() for word in words if word != target]
            gains.append(effect[b, p, target].item() - np.mean(others))
            hits.append(effect[b, p, target].item() >= max(others))
    assert frame.loc[(1, 2), "copying"] == pytest.approx(np.mean(gains), abs=1e-4)
    assert frame.loc[(1, 2), "copy_hits"] == pytest.approx(np.mean(hits))


def test_all_heads_of_a_loaded_model_in_one_call(model):
    frame = induction.induction_scores(model, length=8, batch=2)
    assert list(frame.columns) == [
        "layer", "head", "prefix_matching", "previous_token", "duplicate_token", "sink", "copying", "copy_hits",
    ]  # fmt: skip
    assert len(frame) == 8
    assert (
        frame[["prefix_matching", "previous_token", "duplicate_token", "sink", "copy_hits"]].stack().between(0, 1).all()
    )


def test_heads_built_to_match_prefixes_and_to_look_back_one_are_told_apart(ids):
    """Queries and keys set by hand: head 0 looks LENGTH - 1 back, head 1 looks one back."""
    total = ids.shape[1]
    places = torch.arange(total)
    k = torch.nn.functional.one_hot(places, total).float()[None, :, None].expand(3, -1, 2, -1)
    wanted = torch.stack([(places - LENGTH + 1).clamp(min=0), (places - 1).clamp(min=0)], dim=1)
    q = 40 * torch.nn.functional.one_hot(wanted, total).float()[None].expand(3, -1, -1, -1)
    _, lse = attention(q, k, k, scale=1.0, return_lse=True)
    layer = LayerTrace(0, q, k, None, lse, 1.0, True, None, None, None, None, places[None].expand(3, -1))
    blank = torch.zeros(ids.shape)
    made = Trace(
        "by hand", "reference", ids, torch.ones_like(ids), [["x"] * total] * 3, None, blank, blank, (), [layer], 0.0
    )
    first, second = induction.attention_kinds(made, LENGTH, start=1).to_dict("records")
    assert first["prefix_matching"] > 0.99
    assert first["previous_token"] < 0.01
    assert second["previous_token"] > 0.99
    assert second["prefix_matching"] < 0.01


def test_bad_lengths_and_models_are_refused(model, trace, ids):
    with pytest.raises(BadInput, match="length and repeats must be at least 2"):
        induction.repeated_tokens(50, 1)
    with pytest.raises(BadInput, match="at most the 8 tokens"):
        induction.repeated_tokens(10, 9, avoid=(0, 1))
    with pytest.raises(BadInput, match="no second repeat of length 500"):
        induction.attention_kinds(trace, 500)
    with pytest.raises(BadInput, match="no second repeat"):
        induction.copying(model, ids, 40)
    config = Gemma3TextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                              num_key_value_heads=1, head_dim=8, vocab_size=320)  # fmt: skip
    with pytest.raises(ModelError, match="Gemma3ForCausalLM normalises the attention output"):
        induction.copying(Gemma3ForCausalLM(config), ids, LENGTH)
