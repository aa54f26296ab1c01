"""MixerLM: its config, its cache, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.errors import BadInput, MemoryError_, ModelError, UnknownName
from workbench.memory.layers.linear_attention import LinearAttention
from workbench.models import load
from workbench.models.mixer import MixerCache, MixerConfig, MixerLM

MIXERS = ["gated-delta-net", {"mixer": "sliding-window-attention", "window": 4, "heads": 2}]


@pytest.fixture
def model() -> MixerLM:
    torch.manual_seed(0)
    return MixerLM(MixerConfig(vocab_size=23, dim=16, mixers=MIXERS, max_length=32)).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 23, (2, 9), generator=torch.Generator().manual_seed(1))


def test_a_stream_in_pieces_equals_one_pass(model: MixerLM, ids: torch.Tensor) -> None:
    cache = model.new_cache()
    parts = [cache.write(part) for part in ids.split([1, 5, 3], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, rtol=1e-4, atol=1e-5)
    assert cache.get_seq_length() == 9
    assert cache.nbytes() == sum(block.mixer.state_bytes(2) for block in model.blocks)


def test_beams_move_their_states_with_them(model: MixerLM, ids: torch.Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    how = {"attention_mask": mask, "max_new_tokens": 4, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    made = model.generate(ids, **how)
    assert made.shape == (2, 13)
    assert torch.equal(made, model.generate(ids, use_cache=False, **how))
    cache = model.new_cache()
    model(ids, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 0]))
    swapped = model(ids[:, :1].flip(0), past_key_values=cache).logits
    again = model(torch.cat([ids.flip(0), ids[:, :1].flip(0)], 1)).logits[:, -1:]
    torch.testing.assert_close(swapped, again, rtol=1e-4, atol=1e-5)


def test_generation_goes_on_from_a_cache(model: MixerLM, ids: torch.Tensor) -> None:
    """As with any other transformers model: all tokens, of which those in the cache are not read again."""
    how: dict[str, Any] = {"do_sample": False, "pad_token_id": 0}
    cache, both = model.new_cache(), model.generate(ids, max_new_tokens=6, **how)
    first = model.generate(ids, max_new_tokens=3, past_key_values=cache, **how)
    assert cache.fed == 11  # the last token was chosen and not yet read
    kept = copy.deepcopy(cache)
    assert torch.equal(model.generate(first, max_new_tokens=3, past_key_values=cache, **how), both)
    assert cache.fed == 14
    assert (kept.fed, kept.model) == (11, model)
    mask = torch.ones(2, 12)
    alone = model.generate(first[:, 11:], attention_mask=mask, max_new_tokens=3, past_key_values=kept, **how)
    assert torch.equal(alone[:, 1:], both[:, 12:])
    with pytest.raises(BadInput, match="the cache holds 14 tokens and 3 are given"):
        model.generate(ids[:, :3], max_new_tokens=3, past_key_values=cache, **how)
    assert cache.fed == 14
    embedded = model.generate(inputs_embeds=model.embed(ids), max_new_tokens=6, **how)
    assert torch.equal(embedded, both[:, 9:])


def test_a_copy_of_a_cache_is_a_moment_of_its_own(model: MixerLM, ids: torch.Tensor) -> None:
    cache = model.new_cache(log=True)
    model(ids[:1, :5], past_key_values=cache)
    kept = copy.deepcopy(cache)  # states of a pass with gradients, which tensors themselves refuse to copy
    cache.write(ids[:1, 5:])
    assert (cache.fed, kept.fed) == (9, 5)
    assert kept.events().held() == set(range(5))
    wanted = model(ids[:1]).logits[:, 5:]
    torch.testing.assert_close(kept.write(ids[:1, 5:]), wanted, rtol=1e-4, atol=1e-5)


TITANS = [{"mixer": slug, "heads": 2, "chunk": 4} for slug in ("titans", "titans-mac", "titans-mag", "titans-mal")]


@pytest.fixture
def titans() -> MixerLM:
    torch.manual_seed(0)
    return MixerLM(MixerConfig(vocab_size=23, dim=16, mixers=TITANS)).eval()


def test_texts_of_several_lengths_are_generated_from_at_once(titans: MixerLM, ids: torch.Tensor) -> None:
    """Chunks, segments and windows of each row go on where its own text left them; nine new tokens cross two chunks."""
    lengths, mask = (9, 4, 7), torch.zeros(3, 9, dtype=torch.long)
    rows = torch.cat([ids, ids[:1].flip(1)])
    for row, length in enumerate(lengths):
        mask[row, 9 - length :] = 1
    made = titans.generate(rows, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0)
    for row, length in enumerate(lengths):
        alone = titans.generate(rows[row : row + 1, 9 - length :], max_new_tokens=9, do_sample=False, pad_token_id=0)
        assert made[row, 9:].tolist() == alone[0, length:].tolist()


def test_a_padded_batch_is_logged_and_moves_with_its_beams(titans: MixerLM, ids: torch.Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    cache = titans.new_cache(log=True)
    with torch.no_grad():
        titans(ids, attention_mask=mask, past_key_values=cache)
        assert not cache.scalars().empty
        assert cache.contents(row=1)["norm"].notna().all()
        cache.reorder_cache(torch.tensor([1, 0]))
        after = titans(ids[:, :1], attention_mask=torch.ones(2, 10), past_key_values=cache).logits[0, -1]
        alone = titans(torch.cat([ids[1:, 5:], ids[:1, :1]], 1)).logits[0, -1]
    torch.testing.assert_close(after, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_is_no_token_of_the_log(model: MixerLM, titans: MixerLM, ids: torch.Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for made in (model, titans):
        padded, alone = made.new_cache(log=True), made.new_cache(log=True)
        made(ids[:, :3], attention_mask=mask[:, :3], past_key_values=padded)  # nothing but padding in the row looked at
        made(ids[:, 3:], attention_mask=mask, past_key_values=padded)
        alone.write(ids[:1, 4:])
        assert [event.items for event in padded.events()] == [(4, 5, 6, 7, 8)]
        numbers, wanted = padded.scalars(), alone.scalars().assign(position=lambda frame: frame["position"] + 4)
        assert numbers.drop(columns="value").equals(wanted.drop(columns="value"))
        torch.testing.assert_close(torch.tensor(numbers["value"]), torch.tensor(wanted["value"]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_proof_panel_reads_a_padded_batch(titans: MixerLM, ids: torch.Tensor, tmp_path) -> None:
    titans.save_pretrained(tmp_path)
    frame = load(tmp_path).proof(ids[0].tolist(), new_tokens=3).set_index("kernel")
    assert frame.loc["eager", "same_tokens"]
    assert (frame.loc["eager"].filter(like="max_abs_dlogits") == 0).all()
    both = torch.stack([ids[0], torch.cat([torch.zeros(5, dtype=torch.long), ids[0, :4]])])
    mask = torch.stack([torch.ones(9, dtype=torch.long), torch.tensor([0] * 5 + [1] * 4)])
    padded = titans(both, attention_mask=mask).logits
    torch.testing.assert_close(padded[1, 5:], titans(ids[:1, :4]).logits[0], rtol=1e-4, atol=1e-5)


def test_the_loss_is_of_the_next_token_and_the_layers_own(model: MixerLM, ids: torch.Tensor) -> None:
    labels = ids.clone()
    labels[:, :4] = -100
    out = model(ids, labels=labels)
    wanted = torch.nn.functional.cross_entropy(out.logits[:, 3:-1].flatten(0, 1), ids[:, 4:].flatten())
    torch.testing.assert_close(out.loss, wanted)
    assert out.aux_loss is None
    routed = MixerLM(MixerConfig(23, 16, [{"mixer": "mom", "heads": 2}] * 2))
    out = routed(ids, labels=ids)
    alone = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, alone + out.aux_loss)
    assert out.aux_loss > 0


def test_a_pass_that_fails_midway_leaves_every_state(model: MixerLM, ids: torch.Tensor) -> None:
    cache = model.new_cache()
    cache.write(ids)
    before = [dict(state) for state in cache.states]
    cache.states[1] = {**cache.states[1], "held": cache.states[1]["held"][:1]}
    with pytest.raises(BadInput, match="held"):
        cache.write(ids)
    assert cache.get_seq_length() == 9
    assert cache.states[0]["memory"] is before[0]["memory"]


def test_the_cache_shows_what_every_layer_holds_and_read(model: MixerLM, ids: torch.Tensor) -> None:
    cache = model.new_cache(log=True)
    assert set(cache.contents()["layer"]) == {0, 1}
    cache.write(ids[:1])
    cache.write(ids[:1, :2])
    table = cache.contents()
    assert list(table.columns[:3]) == ["layer", "mixer", "part"]
    assert set(table["mixer"]) == {"gated-delta-net", "sliding-window-attention"}
    events = list(cache.events())
    assert [event.items for event in events] == [tuple(range(9)), (9, 10)]
    numbers = cache.scalars()
    assert list(numbers.loc[numbers["name"] == "decay", "position"]) == list(range(11))
    assert set(numbers["name"]) == {"decay", "write_strength", "value_norm", "attention_entropy"}
    assert events[0].detail["decay"] == pytest.approx(numbers.query("name == 'decay' and position < 9")["value"].mean())
    cache.reset()
    assert cache.nbytes() == 0
    assert cache.events().held() == set()


def test_the_conv_of_the_config_is_a_default() -> None:
    entries = ["linear-attention", {"mixer": "linear-attention", "conv": 2}, "sliding-window-attention"]
    model = MixerLM(MixerConfig(8, 8, entries, conv=3, mlp_ratio=0))
    assert [getattr(block.mixer, "conv", None) for block in model.blocks] == [3, 2, None]
    assert isinstance(model.blocks[0].mixer, LinearAttention)
    assert model.blocks[0].mlp is None


@pytest.mark.parametrize("tie", [True, False])
def test_loads_through_the_workbench(model: MixerLM, ids: torch.Tensor, tie: bool, tmp_path) -> None:
    made = MixerLM(MixerConfig(23, 16, MIXERS, tie=tie, max_length=32)).eval()
    made.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert (loaded.n_layers, loaded.max_positions, loaded.vocab_size) == (2, 32, 23)
    assert (loaded.model.lm_head.weight is loaded.model.embed.weight) == tie
    assert loaded.memory.slug == "layers"
    alone = made.generate(ids[:1], max_new_tokens=3, do_sample=False, pad_token_id=0)[0, 9:].tolist()
    for _ in range(2):  # nothing goes on by itself
        assert loaded.generate(ids[:1], max_new_tokens=3).new_ids == alone
    assert torch.equal(loaded.trace(ids[:1]).logits, made(ids[:1]).logits)
    assert len(loaded.feed(ids[0, :5].tolist()).surprise) == 5
    continued = loaded.trace(ids[:1, 5:])
    torch.testing.assert_close(continued.logits, made(ids[:1]).logits[:, 5:], rtol=1e-4, atol=1e-5)
    assert loaded.generate(ids[:1, 5:], max_new_tokens=3).new_ids == alone
    assert loaded.memory.events().held() == set(range(12))
    loaded.reset()
    assert loaded.memory.get_seq_length() == 0
    trace = loaded.trace(ids[:1])
    assert loaded.memory.get_seq_length() == 0
    assert (len(trace.hidden), trace.layers) == (3, [])
    assert "no attention" in trace.notes[-1]
    with pytest.raises(ModelError, match="36 tokens are more than max_length=32"):
        loaded.trace(ids[:1].repeat(1, 4), beyond_positions=True)
    loaded.feed(ids[0].tolist() * 3)
    with pytest.raises(ModelError, match=r"9 more are beyond the 32 positions .*; call reset\(\)"):
        loaded.feed(ids[0].tolist())
    with pytest.raises(MemoryError_, match="rotat"):
        loaded.use(memory="streaming")


def test_what_a_file_lacks_is_not_made_up(model: MixerLM, tmp_path) -> None:
    """transformers builds without storage: a weight that is missing would be whatever was in memory."""
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no weights for lm_head\.weight"):
        MixerLM.from_pretrained(tmp_path, tie_word_embeddings=False)
    held = load_file(tmp_path / "model.safetensors")
    del held["blocks.0.mixer.to_out.weight"]
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    for way in (MixerLM.from_pretrained, load):
        with pytest.raises(ModelError, match=r"blocks\.0\.mixer\.to_out\.weight"):
            way(tmp_path)
    model.resize_token_embeddings(30)
    assert model(torch.tensor([[29]])).logits.shape[-1] == 30


def test_what_transformers_would_do_wrong_is_refused_or_said(model: MixerLM, ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="does not support"):
        model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="stateful"):
        model.generate(ids[:1], max_new_tokens=3, prompt_lookup_num_tokens=2, pad_token_id=0)
    assert model.accepts_loss_kwargs is False  # the Trainer divides by accumulated batches only then
    out = model(ids, labels=ids)
    assert set(out) - {"loss", *model.config.keys_to_ignore_at_inference} == {"logits"}  # what it gathers


def test_bad_input_is_named(model: MixerLM, ids: torch.Tensor) -> None:
    with pytest.raises(BadInput, match="input_ids"):
        model()
    with pytest.raises(BadInput, match="input_ids"):
        model(ids[0])
    with pytest.raises(BadInput, match="from 1 to 23; this model knows 0 to 22"):
        model(torch.tensor([[1, 23]]))
    with pytest.raises(BadInput, match=r"int64 or int32, got torch\.float32"):
        model(ids.float())
    for embeds in (torch.zeros(2, 3, 5), torch.zeros(3, 16), torch.zeros(2, 0, 16), [1.0]):
        with pytest.raises(BadInput, match=r"inputs_embeds must be a tensor \(batch, tokens, 16\)"):
            model(inputs_embeds=embeds)
    for labels in (ids[:, :3], ids[:1]):
        with pytest.raises(BadInput, match=r"labels must be \(2, 9\)"):
            model(ids, labels=labels)
    for keep in (-1, 1.0, torch.tensor([1])):
        with pytest.raises(BadInput, match="logits_to_keep"):
            model(ids, logits_to_keep=keep)
    with pytest.raises(BadInput, match="max_length=32"):
        model(ids.repeat(1, 4))
    for mask in (torch.ones(2, 3), torch.ones(2, 1, 9, 9), [[1] * 9] * 2):
        with pytest.raises(BadInput, match="attention_mask"):
            model(ids, attention_mask=mask)
    with pytest.raises(BadInput, match="MixerCache"):
        model(ids, past_key_values={})
    with pytest.raises(BadInput, match="layers"):
        model(ids, past_key_values=MixerCache(MixerLM(MixerConfig(23, 16, ["gla"]))))
    with pytest.raises(BadInput, match="layer=2"):
        model.new_cache().read(2)
    with pytest.raises(BadInput, match="row=1 is outside this batch of 1"):
        model.new_cache().contents(row=1)
    with pytest.raises(MemoryError_, match="cropped"):
        model.new_cache().crop(1)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"mixers": []}, BadInput, "mixers"),
        ({"mixers": [3]}, BadInput, "slug"),
        ({"mixers": "linear-attention"}, BadInput, "mixers must be a list"),
        ({"mixers": {"mixer": "gla"}}, BadInput, "mixers must be a list"),
        ({"mixers": None}, BadInput, "mixers must be a list"),
        ({"mixers": ["linear-atention"]}, UnknownName, "linear-attention"),
        ({"mixers": [{"mixer": "linear-attention", "heads": 3}]}, BadInput, "heads"),
        ({"vocab_size": 0}, BadInput, "vocab_size"),
        ({"mlp_ratio": -1}, BadInput, "mlp_ratio"),
        ({"mlp_ratio": "2"}, BadInput, "mlp_ratio"),
        ({"mlp_ratio": float("inf")}, BadInput, "mlp_ratio"),
        ({"max_length": 0}, BadInput, "max_length"),
    ],
)
def test_configs_that_do_not_fit(settings: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        MixerLM(MixerConfig(**{"vocab_size": 8, "dim": 8, **settings}))
