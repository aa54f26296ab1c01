"""One cache for every rotary family: same logits as the plain cache, right positions after any eviction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, REFUSED, build, tokens

from workbench.errors import MemoryError_
from workbench.memory.cache._rows import Choice
from workbench.memory.cache.base import TokenCache
from workbench.memory.cache.full import FullCache
from workbench.memory.cache.sirllm import SirLLM
from workbench.memory.cache.streaming import StreamingCache

BOTH = [(name, kernel) for name in FAMILIES for kernel in ("sdpa", "eager") if (name, kernel) != ("gpt-oss", "sdpa")]


class Scripted(TokenCache):
    """Keeps given positions of each row: the policy of a test."""

    def __init__(self, budget: int, keep: list[list[int]]):
        super().__init__(budget)
        self.script = keep

    def select(self, row, n_new):
        indices = np.flatnonzero(np.isin(row.items["position"], self.script[row.stream]))
        return Choice(indices, np.full(len(indices), "kept"), "not in the script")


@pytest.mark.parametrize(("name", "kernel"), BOTH)
def test_full_cache_gives_the_logits_of_one_plain_pass(family, name, kernel):
    model = family(name)
    model.set_attn_implementation(kernel)
    ids = tokens(2, 30)
    with torch.no_grad():
        plain = model(ids).logits
    memory = FullCache().bind(model)
    parts = [ids[:, :9], ids[:, 9:22], *ids[:, 22:].split(1, dim=1)]
    ours = torch.cat([memory.write(part) for part in parts], dim=1)
    assert (ours - plain).abs().max() < 1e-4
    assert plain.std() > 0.05  # the comparison is about something


@pytest.mark.parametrize(("name", "kernel"), BOTH)
def test_kept_tokens_stand_in_slots_without_gaps(family, name, kernel):
    """One layer's keys do not depend on context: reading on after an eviction equals reading the kept tokens anew."""
    model = family(name, layers=1)
    model.set_attn_implementation(kernel)
    ids = tokens(2, 24, seed=1)
    keep = [[0, 1, 5, 6, 7, 11, 13], [2, 3, 8, 15]]
    memory = Scripted(17, keep).bind(model)
    memory.write(ids[:, :17])
    ours = torch.cat([memory.write(ids[:, 17:23]), memory.write(ids[:, 23:])], dim=1)
    for row, held in enumerate(keep):
        again = torch.cat([ids[row, held], ids[row, 17:]])[None]
        with torch.no_grad():
            plain = model(again).logits[0, len(held) :]
        assert (ours[row] - plain).abs().max() < 1e-4, f"row {row}"
    assert memory.get_seq_length() == 24


@pytest.mark.parametrize("name", list(FAMILIES))
def test_stored_keys_are_the_keys_before_rotation(family, name, monkeypatch):
    """Against the keys that the model really hands to its apply function, over passes at different slots."""
    import sys

    model = family(name)
    memory = StreamingCache(budget=12, n_sink=2).bind(model)
    module = sys.modules[type(model).__module__]
    true: list[list[torch.Tensor]] = [[] for _ in range(3)]
    plain, calls = module.apply_rotary_pos_emb, [0]
    rotating = [index for index, layer in enumerate(memory.bound_rotary.layers) if layer.rotates]

    def spy(q, k, *args, **kwargs):
        true[rotating[calls[0] % len(rotating)]].append(k.detach().clone())
        calls[0] += 1
        return plain(q, k, *args, **kwargs)

    monkeypatch.setattr(module, "apply_rotary_pos_emb", spy)
    memory.feed(tokens(2, 40, seed=2), chunk=7)
    positions = memory.contents(0)["position"].tolist()
    for layer in rotating:
        expected = torch.cat(true[layer], dim=2)[:, :, positions]
        stored, _, mask = memory.read(layer, rotated=False)
        assert mask.all()
        assert (stored - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_generate_and_rounds_run_on_every_family(family, name):
    model, ids = family(name), tokens(1, 8)
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
    for memory in (StreamingCache(budget=10, n_sink=2).bind(model), SirLLM(budget=10, n_sink=2, eta=0.9).bind(model)):
        out = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=memory, **options)
        assert out.shape == (1, 20)
        assert memory.get_seq_length() == 19  # the last token was never read
        assert len(memory.contents()) == 10


@pytest.mark.parametrize("name", list(REFUSED))
def test_models_without_keys_before_rotation_are_refused_clearly(name, tmp_path):
    config, settings, mention = REFUSED[name]
    model, memory = build(config, settings, tmp_path), StreamingCache(budget=10)
    before = len(model._forward_pre_hooks), len(model._forward_hooks)
    with pytest.raises(MemoryError_, match=mention) as error:
        memory.bind(model)
    assert type(model).__name__ in str(error.value)
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == before
    with pytest.raises(MemoryError_, match="bound to no model"):
        memory.write(tokens(1, 4))


def test_half_precision_keys_survive_the_round_trip(tmp_path):
    config, settings = FAMILIES["llama"]
    model = build(config, {**settings, "num_hidden_layers": 2}, tmp_path).to(torch.bfloat16)
    ids = tokens(1, 40)
    exact, ours = model.float()(ids).logits, None
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        plain = model(ids).logits.float()
    memory = FullCache().bind(model)
    ours = torch.cat([memory.write(part) for part in ids.split(5, dim=1)], dim=1).float()
    # the error budget comes from the data: what bfloat16 costs the plain pass, with room for one more rounding
    budget = (plain - exact).abs().mean()
    assert (ours - exact).abs().mean() < 2 * budget


def test_not_finite_weights_are_named(tmp_path):
    config, settings = FAMILIES["llama"]
    model = build(config, {**settings, "num_hidden_layers": 2}, tmp_path)
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = float("nan")
    with pytest.raises(MemoryError_, match="layer 1"):
        FullCache().bind(model)
