"""MixerLM: its config, its cache, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from workbench.errors import BadInput, MemoryError_, UnknownName
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
    made = model.generate(ids, max_new_tokens=4, num_beams=3, do_sample=False, pad_token_id=0)
    assert made.shape == (2, 13)
    cache = model.new_cache()
    model(ids, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 0]))
    swapped = model(ids[:, :1].flip(0), past_key_values=cache).logits
    again = model(torch.cat([ids.flip(0), ids[:, :1].flip(0)], 1)).logits[:, -1:]
    torch.testing.assert_close(swapped, again, rtol=1e-4, atol=1e-5)


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
    with pytest.raises(MemoryError_, match="rotat"):
        loaded.use(memory="streaming")


def test_bad_input_is_named(model: MixerLM, ids: torch.Tensor) -> None:
    with pytest.raises(BadInput, match="input_ids"):
        model()
    with pytest.raises(BadInput, match="input_ids"):
        model(ids[0])
    with pytest.raises(BadInput, match="max_length=32"):
        model(ids.repeat(1, 4))
    with pytest.raises(BadInput, match="attention_mask"):
        model(ids, attention_mask=torch.ones(2, 3))
    with pytest.raises(BadInput, match="MixerCache"):
        model(ids, past_key_values={})
    with pytest.raises(BadInput, match="layers"):
        model(ids, past_key_values=MixerCache(MixerLM(MixerConfig(23, 16, ["gla"]))))
    with pytest.raises(BadInput, match="layer=2"):
        model.new_cache().read(2)
    with pytest.raises(MemoryError_, match="cropped"):
        model.new_cache().crop(1)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"mixers": []}, BadInput, "mixers"),
        ({"mixers": [3]}, BadInput, "slug"),
        ({"mixers": ["linear-atention"]}, UnknownName, "linear-attention"),
        ({"mixers": [{"mixer": "linear-attention", "heads": 3}]}, BadInput, "heads"),
        ({"vocab_size": 0}, BadInput, "vocab_size"),
        ({"mlp_ratio": -1}, BadInput, "mlp_ratio"),
        ({"max_length": 0}, BadInput, "max_length"),
    ],
)
def test_configs_that_do_not_fit(settings: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        MixerLM(MixerConfig(**{"vocab_size": 8, "dim": 8, **settings}))
