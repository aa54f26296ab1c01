"""What every sequence memory must do, over every registered layer and all its example settings.

A layer that differs by its nature says so in an attribute (``noncausal_prefix``, ``grows``, ``masks_padding``,
``static``), and then that difference is what is tested.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from tests.memory.layers.layer_kit import CASES, DIM, TOKENS, Case, copied, pieces, same, stream, tensors, tokens
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES, Memory
from workbench.memory.layers.base import build_layer, layer_names, nbytes

every_layer = pytest.mark.parametrize("case", CASES, ids=str)
SPLITS = ([13], [1] * 13, [5, 1, 7], [2, 11], [12, 1])


def test_all_layers_of_the_house_take_part() -> None:
    assert {"linear-attention", "delta-net", "gated-delta-net", "gla", "retnet", "sliding-window-attention"} <= set(
        layer_names()
    )
    assert {case.slug for case in CASES} == set(layer_names())


# -- causality --------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch", [1, 3])
def test_no_token_hears_of_a_later_one(case: Case, training: bool, batch: int) -> None:
    layer, x = case.layer().train(training), tokens(batch)
    y = layer(x)[0]
    for cut in (1, 4, 8, 12):
        cut = max(cut, layer.noncausal_prefix)
        other = torch.cat([x[:, :cut], 5 * tokens(batch, TOKENS - cut, seed=9)], 1)
        changed = layer(other)[0]
        torch.testing.assert_close(changed[:, :cut], y[:, :cut], rtol=0, atol=1e-12)
        assert not torch.allclose(changed[:, cut:], y[:, cut:]), "the later tokens themselves must read differently"


@every_layer
def test_a_declared_prefix_is_really_seen_ahead(case: Case) -> None:
    layer, x = case.layer(), tokens()
    if layer.noncausal_prefix < 2:
        assert layer.noncausal_prefix in (0, 1)
        return
    other = x.clone()
    other[:, layer.noncausal_prefix - 1] += 3
    assert not torch.allclose(layer(other)[0][:, 0], layer(x)[0][:, 0])


@every_layer
def test_rows_of_a_batch_are_strangers(case: Case) -> None:
    layer, x = case.layer().train(), tokens(3)
    other = torch.cat([5 * tokens(1, seed=9), x[1:]])
    torch.testing.assert_close(layer(other)[0][1:], layer(x)[0][1:], rtol=0, atol=1e-12)


# -- streaming --------------------------------------------------------------------------------------------------------


@every_layer
def test_fed_in_pieces_equals_one_pass(case: Case) -> None:
    layer, x = case.layer(), tokens()
    whole, last = layer(x)
    for sizes in SPLITS:
        y, state = stream(layer, x, list(sizes))
        torch.testing.assert_close(y, whole, rtol=1e-9, atol=1e-10, msg=lambda m, s=sizes: f"pieces {s}: {m}")
        assert same(state, last, 1e-9), sizes


@every_layer
def test_what_pieces_teach_equals_one_pass(case: Case) -> None:
    """Gradients go through the state that one call hands to the next."""
    layer, x = case.layer(), tokens().requires_grad_()
    learned = [x, *(value for value in layer.parameters() if value.numel())]
    taught = [
        torch.autograd.grad(y.square().sum(), learned, allow_unused=True)
        for y, _ in (layer(x), stream(layer, x, [5, 1, 3, 4]))
    ]
    for whole, parts in zip(*taught):
        torch.testing.assert_close(parts, whole, rtol=1e-7, atol=1e-10)


@every_layer
def test_the_state_handed_in_is_not_changed(case: Case) -> None:
    layer = case.layer()
    _, state = layer(tokens())
    before = copied(state)
    first = layer(tokens(seed=2), state)[0]
    assert same(state, before)
    torch.testing.assert_close(layer(tokens(seed=2), state)[0], first, rtol=0, atol=0)


@every_layer
def test_state_bytes_do_not_grow(case: Case) -> None:
    layer = case.layer(dtype=torch.float32)
    short, long = (layer(tokens(2, n, torch.float32))[1] for n in (5, 50))
    if layer.grows:
        assert nbytes(long) == layer.state_bytes(2, 50) > nbytes(short) == layer.state_bytes(2, 5)
    else:
        assert nbytes(short) == nbytes(long) == layer.state_bytes(2) == nbytes(layer.start(2))
    assert layer.state_bytes(4, 50) == 2 * layer.state_bytes(2, 50)


@every_layer
def test_memories_are_kept_in_single_precision_or_better(case: Case) -> None:
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        layer = case.layer(dtype=dtype)
        assert layer.state_dtype == wide
        slots = layer.layout(1)
        for name, value in tensors(layer.start(1)):
            assert value.dtype == (slots[name].dtype or wide), name


@every_layer
def test_a_long_stream_stays_finite(case: Case) -> None:
    layer, x = case.layer(dtype=torch.float32), tokens(1, 300, torch.float32).requires_grad_()
    y, state = layer(x)
    y.square().mean().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(value.isfinite().all() for _, value in tensors(state))


# -- padding ----------------------------------------------------------------------------------------------------------


def _padding(first: int = 0) -> Tensor:
    """Left, right and scattered padding, and none; none before column ``first``."""
    keep = torch.ones(4, TOKENS, dtype=torch.bool)
    keep[0, :4], keep[1, 9:], keep[2, [1, 5, 6, 11]] = False, False, False
    keep[:, :first] = True
    return keep


def _as_rows_alone(layer: Any, x: Tensor, keep: Tensor, y: Tensor, state: Any) -> None:
    """Reads of padded rows, and what the state says afterwards, are those of each row without its padding."""
    assert state is not None
    more = tokens(4, 3, seed=3)
    after = layer(more, state)[0]
    for row in range(4):
        alone, own = layer(x[row : row + 1, keep[row]])
        torch.testing.assert_close(y[row, keep[row]], alone[0], rtol=1e-9, atol=1e-10)
        then = layer(more[row : row + 1], own)[0]
        torch.testing.assert_close(after[row : row + 1], then, rtol=1e-9, atol=1e-10)


@every_layer
def test_padding_leaves_no_trace(case: Case) -> None:
    layer, x = case.layer(), tokens(4)
    keep = _padding(layer.noncausal_prefix)  # padding inside a prefix takes some of its columns
    if not layer.masks_padding:
        with pytest.raises(BadInput, match="padding"):
            layer(x, keep=keep)
        return
    _as_rows_alone(layer, x, keep, *layer(x, keep=keep))


@every_layer
def test_padding_in_a_stream_leaves_no_trace(case: Case) -> None:
    """Rows run apart, fall in step again, and one brings nothing at all for a while."""
    layer, x = case.layer(), tokens(4)
    if not layer.masks_padding:
        return  # test_padding_leaves_no_trace holds it to refusing
    keep = _padding(layer.noncausal_prefix)
    reads, state = [], None
    for part, mask in zip(*(whole.split(pieces(layer, [2, 4, 1, 6]), 1) for whole in (x, keep))):
        y, state = layer(part, state, keep=mask)
        reads.append(y)
    _as_rows_alone(layer, x, keep, torch.cat(reads, 1), state)


@every_layer
def test_padding_learns_nothing_and_keeps_nobody_from_learning(case: Case) -> None:
    layer, x = case.layer(), tokens(4).requires_grad_()
    if not layer.masks_padding:
        return
    keep = _padding(layer.noncausal_prefix)
    (given,) = torch.autograd.grad(layer(x, keep=keep)[0][keep].square().sum(), x)
    alone = [layer(x[row : row + 1, keep[row]])[0].square().sum() for row in range(4)]
    (wanted,) = torch.autograd.grad(sum(alone[1:], alone[0]), x)
    torch.testing.assert_close(given, wanted, rtol=1e-8, atol=1e-9)


def test_every_layer_of_the_house_takes_padding_and_another_may_refuse_it() -> None:
    assert [slug for slug in layer_names() if not MEMORIES.get(slug).masks_padding] == []

    class Unpadded(MEMORIES.get("linear-attention")):
        masks_padding = False

    layer, x = Unpadded(DIM, heads=2).double(), tokens(4)
    with pytest.raises(BadInput, match="cannot leave padding out"):
        layer(x, keep=_padding())
    layer(x)


@every_layer
def test_what_stands_at_padding_does_not_matter(case: Case) -> None:
    layer, x, keep = case.layer(), tokens(4), _padding()
    if not layer.masks_padding:
        return  # test_padding_leaves_no_trace holds it to refusing
    other = torch.where(keep[..., None], x, 100 * torch.ones_like(x))
    y, state = layer(x, keep=keep)
    z, changed = layer(other, keep=keep)
    torch.testing.assert_close(z[keep], y[keep], rtol=0, atol=1e-12)
    assert same(state, changed, 1e-12)


# -- training ---------------------------------------------------------------------------------------------------------


@every_layer
def test_gradients_are_those_of_the_numbers(case: Case) -> None:
    layer, x = case.layer(), tokens(1, 6)
    names = [name for name, _ in layer.named_parameters()]
    weights = [value.detach().requires_grad_() for value in layer.parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, weights)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *weights), fast_mode=True, atol=1e-5, rtol=1e-3)


@every_layer
def test_every_weight_is_learned(case: Case) -> None:
    layer = case.layer()
    y, state = layer(tokens(2, 24))
    (y.square().sum() + sum(v.sum() for k, v in state.items() if k == "aux/loss")).backward()
    assert [name for name, value in layer.named_parameters() if value.numel() and value.grad is None] == []


@every_layer
def test_seeds_stacked_by_vmap_equal_each_alone(case: Case) -> None:
    layers, x = [case.layer(seed) for seed in (0, 1)], tokens()
    weights, buffers = stack_module_state(layers)  # type: ignore[arg-type]

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(layers[0], (weights, buffers), (x,))[0].square().mean()

    stacked = vmap(torch.func.grad_and_value(loss), randomness="error")
    if not layers[0].static:
        with pytest.raises(RuntimeError):
            stacked(weights, buffers)
        return
    grads, values = stacked(weights, buffers)
    for seed, layer in enumerate(layers):
        alone = layer(x)[0].square().mean()
        alone.backward()
        torch.testing.assert_close(values[seed], alone.detach(), rtol=1e-9, atol=1e-12)
        for name, parameter in ((name, value) for name, value in layer.named_parameters() if value.numel()):
            torch.testing.assert_close(grads[name][seed], parameter.grad, rtol=1e-6, atol=1e-10)


# -- files and models -------------------------------------------------------------------------------------------------


@every_layer
def test_weights_go_through_safetensors(case: Case, tmp_path) -> None:
    layer, other = case.layer(0), case.layer(1)
    save_file({name: value.contiguous() for name, value in layer.state_dict().items()}, tmp_path / "layer.safetensors")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    torch.testing.assert_close(other(tokens())[0], layer(tokens())[0], rtol=0, atol=0)


@every_layer
def test_its_settings_build_the_same_layer(case: Case) -> None:
    layer = case.layer()
    settings = {name: value for name, value in layer.settings().items() if name != "dim"}
    again = build_layer(case.slug, DIM, **settings).double()
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(tokens())[0], layer(tokens())[0], rtol=0, atol=0)
    assert again.settings() == layer.settings()
    assert case.model().config.mixers == [{"mixer": case.slug, **settings}] * 2


@every_layer
def test_a_model_of_it_saves_loads_and_generates_as_if_it_read_all_anew(case: Case, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    model = case.model()
    ids = torch.randint(1, 19, (2, 6), generator=torch.Generator().manual_seed(0))
    made = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)  # ids without 0: it is padding
    anew = ids
    for _ in range(6):
        anew = torch.cat([anew, model(anew).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert made.tolist() == anew.tolist()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(anew).logits, model(anew).logits)


@every_layer
def test_left_padding_changes_no_answer_of_a_model(case: Case) -> None:
    model = case.model()
    mixer = model.blocks[0].mixer
    ids, mask = torch.arange(1, 13).reshape(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    if not mixer.masks_padding:
        with pytest.raises(BadInput, match="padding"):
            model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False, pad_token_id=0)
        return
    made = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
    if mixer.noncausal_prefix:  # the padding takes columns of the prefix: only what stands there must not matter
        other = model.generate(ids.where(mask.bool(), 7), attention_mask=mask, max_new_tokens=4, do_sample=False)
        assert other[:, 6:].tolist() == made[:, 6:].tolist()
        return
    alone = model.generate(ids[:1, 2:], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made[0, 2:].tolist() == alone[0].tolist()


# -- the memory protocol ----------------------------------------------------------------------------------------------


@every_layer
def test_the_held_memory_writes_reads_and_says_what_it_holds(case: Case) -> None:
    layer, x = case.layer(), tokens(1)
    assert isinstance(layer, Memory)
    first = max(layer.noncausal_prefix, 4)
    written = torch.cat([layer.write(x[0, :first]), layer.write(x[0, first:])])
    torch.testing.assert_close(written, layer(x)[0][0], rtol=1e-9, atol=1e-10)
    held = copied(layer.held)
    assert layer.read(x).shape == x.shape
    assert same(layer.held, held)
    assert len(layer.contents())
    assert layer.nbytes() == nbytes(layer.held) > 0
    log = list(layer.events())
    assert [event.kind for event in log] == ["write", "write", "read"]
    assert log[1].items == tuple(range(first, TOKENS))
    assert layer.events().held() == set(range(TOKENS))
    for name, numbers in log[1].detail.items():
        assert len(numbers) == TOKENS - first, name
    layer.reset()
    assert same(layer.held, layer.start(1))
    assert layer.events().held() == set()
