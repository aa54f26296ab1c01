"""Titans with gates per chunk: whose mean they are made from, who hears of whom, and what the state keeps for it.

The shared kit runs them too (one of each layer's examples): pieces, padding, gradients, stacked seeds, models, files.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.errors import BadInput, UnknownName
from workbench.memory.layers._chunk_means import chunk_means
from workbench.memory.layers._titans_memory import Gates
from workbench.memory.layers.base import build_layer, nbytes
from workbench.models.mixer import MixerConfig, MixerLM

NAMES = ("titans", "titans-mac", "titans-mag", "titans-mal")
HEBBIAN: dict[str, Any] = {"depth": 1, "objective": "inner product", "momentum": False}
every_titan = pytest.mark.parametrize("name", NAMES)


def made(name: str = "titans", **settings: Any) -> Any:
    torch.manual_seed(1)
    layer = build_layer(name, 8, **{"heads": 2, "chunk": 4, "persistent": 0, "gates_per": "chunk", **settings}).double()
    torch.nn.init.normal_(layer.core.to_gates.weight)  # so that a gate says which tokens it was made from
    return layer


def tokens(length: int, batch: int = 2, seed: int = 2) -> Tensor:
    return torch.randn(batch, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def used(layer: Any, x: Tensor, state: Any = None) -> Gates:
    """The gates that a call takes, one of each a token."""
    with layer.core.watching() as seen:
        layer.core.run(x, layer.core.start(len(x), "cpu", torch.float64) if state is None else state)
    return seen[0].written.gates


def by_hand(layer: Any, x: Tensor) -> list[Gates]:
    """Chunk by chunk, from the definition; nothing has been read before x."""
    chunks = x.split(layer.core.chunk, 1)
    before = [torch.zeros_like(x[:, :1]), *(chunk.mean(1, keepdim=True) for chunk in chunks[:-1])]
    return [layer.core.gates(mean) for mean, chunk in zip(before, chunks) for _ in range(chunk.shape[1])]


# -- what the gates are made from -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("chunk", "length"), [(1, 5), (3, 10), (4, 12), (7, 3)])
def test_each_chunk_takes_the_mean_of_the_one_before(chunk, length):
    layer, x = made(chunk=chunk), tokens(length)
    for found, wanted in zip(used(layer, x), zip(*by_hand(layer, x))):
        torch.testing.assert_close(found, torch.cat(wanted, 1), rtol=1e-12, atol=1e-13)


@torch.no_grad()
def test_the_first_chunk_has_the_learned_biases_alone():
    layer = made(chunk=4)
    theta, eta, alpha = (gate[:, :4] for gate in used(layer, tokens(6)))
    biases = torch.sigmoid(layer.core.gate_bias)
    for found, wanted in zip((theta / layer.core.theta_max, eta, alpha), biases):
        torch.testing.assert_close(found, wanted.expand_as(found), rtol=1e-6, atol=0)


@torch.no_grad()
def test_persistent_tokens_begin_the_first_chunk():
    layer, x = made(persistent=3), tokens(5)
    whole = torch.cat([layer.persistent.expand(2, -1, -1), x], 1)
    found = used(layer, x, layer.start(2))
    for gate, wanted in zip(found, zip(*by_hand(layer, whole))):
        torch.testing.assert_close(gate, torch.cat(wanted, 1)[:, 3:], rtol=1e-12, atol=1e-13)


@torch.no_grad()
@every_titan
def test_tokens_that_are_all_alike_have_the_gates_of_each_token(name):
    """The mean of equal tokens is the token: after the first chunk both kinds of gates write the same memory."""
    by_chunk, by_token = (made(name, gates_per=kind, conv=0) for kind in ("chunk", "token"))
    same = tokens(1).expand(-1, 9, -1)
    state = by_token.core.run(same[:, :4], by_token.core.start(2, "cpu", torch.float64))[1]
    pooled = {"gate_mean": same[:, 0], "gate_sum": torch.zeros(2, 8, dtype=torch.float64)}
    y, after = by_chunk.core.run(same, {**state, **pooled})
    wanted, by_tokens = by_token.core.run(same, state)
    torch.testing.assert_close(y, wanted, rtol=1e-10, atol=1e-12)
    for i in range(2):
        torch.testing.assert_close(after[f"weights{i}"], by_tokens[f"weights{i}"], rtol=1e-10, atol=1e-12)
    other, _ = by_chunk.core.run(torch.cat([same[:, :4], tokens(5)], 1), {**state, **pooled})
    assert not torch.allclose(other[:, 4:], wanted[:, 4:])


@torch.no_grad()
def test_a_hebbian_memory_counts_its_chunks_as_well():
    """Its gradients need no chunk, its gates do; with gates per token it still counts nothing."""
    layer, x = made(**HEBBIAN), tokens(11)
    whole, last = layer(x)
    assert last["filled"] == 3
    for found, wanted in zip(used(layer, x), zip(*by_hand(layer, x))):
        torch.testing.assert_close(found, torch.cat(wanted, 1), rtol=1e-12, atol=1e-13)
    reads, state = [], layer.start(2)
    for part in x.split([3, 1, 5, 2], 1):
        y, state = layer(part, state)
        reads.append(y)
    torch.testing.assert_close(torch.cat(reads, 1), whole, rtol=1e-10, atol=1e-12)
    assert made(**HEBBIAN, gates_per="token")(x)[1]["filled"] == 0


# -- causality, streaming, padding ------------------------------------------------------------------------------------


@torch.no_grad()
@every_titan
@pytest.mark.parametrize("persistent", [0, 3])
def test_a_late_token_moves_not_one_bit_before_it(name, persistent):
    layer = made(name, persistent=persistent).float()
    x = tokens(19).float()
    y, _ = layer(x)
    for at in range(1, 19):
        other = x.clone()
        other[:, at:] = 3 * tokens(19 - at, seed=at).float()
        changed = layer(other)[0]
        assert torch.equal(changed[:, :at], y[:, :at]), at
        assert (changed[:, at] != y[:, at]).any(), at


@torch.no_grad()
def test_no_gate_hears_of_a_token_of_its_own_chunk():
    layer, x = made(), tokens(12)
    before = used(layer, x)
    for at in range(12):
        other = x.clone()
        other[:, at] += 1
        moved = (used(layer, other).theta != before.theta).any(-1).any(0).nonzero().flatten().tolist()
        next_chunk = 4 * (at // 4 + 1)
        assert moved == [t for t in range(next_chunk, next_chunk + 4) if t < 12]


@torch.no_grad()
@every_titan
@pytest.mark.parametrize("sizes", [[18], [1] * 18, [3, 2, 13], [4, 4, 10], [5, 9, 4], [17, 1]])
def test_any_pieces_equal_one_pass(name, sizes):
    layer, x = made(name, persistent=1), tokens(18)
    whole, last = layer(x)
    reads, state = [], layer.start(2)
    for part in x.split(sizes, 1):
        y, state = layer(part, state)
        reads.append(y)
    torch.testing.assert_close(torch.cat(reads, 1), whole, rtol=1e-10, atol=1e-12)
    for key, value in last.items():
        torch.testing.assert_close(torch.as_tensor(state[key]), torch.as_tensor(value), rtol=1e-10, atol=1e-12)
    assert last["filled"] == 3


@torch.no_grad()
@every_titan
def test_padding_enters_no_mean(name):
    """Rows of 11, 7, 6 and no tokens, in two calls: every number of the state is that of the row alone."""
    layer, x = made(name), tokens(11, 4)
    keep = torch.ones(4, 11, dtype=torch.bool)
    keep[1, [0, 1, 5, 9]], keep[2, 6:], keep[3] = False, False, False
    x[~keep] = 1e3
    first, state = layer(x[:, :6], keep=keep[:, :6])
    second, state = layer(x[:, 6:], state, keep=keep[:, 6:])
    y = torch.cat([first, second], 1)
    for row in range(4):
        kept = x[row : row + 1, keep[row]]
        alone, own = layer(kept) if kept.shape[1] else (kept, layer.start(1))
        torch.testing.assert_close(y[row : row + 1, keep[row]], alone, rtol=1e-10, atol=1e-12)
        for key, value in own.items():
            held = torch.as_tensor(state[key])
            held = held[row : row + 1] if held.dim() else held
            torch.testing.assert_close(held, torch.as_tensor(value).expand_as(held), rtol=1e-10, atol=1e-12)


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7])
def test_gradients_of_the_means(length):
    mean, total = tokens(2)[:, 0], tokens(2)[:, 1]
    inputs = [value.requires_grad_() for value in (tokens(length), mean.clone(), total.clone())]
    assert torch.autograd.gradcheck(partial(chunk_means, filled=1, chunk=3), inputs)


def test_gradients_through_the_gates_of_a_stream():
    """From the read of the third chunk back to the second's tokens, over a state that is handed on, and to the gates'
    own weights; every number against differences."""
    layer = build_layer("titans", 2, heads=1, chunk=2, conv=0, expansion=1, persistent=1, gates_per="chunk").double()
    names = ("core.to_gates.weight", "core.gate_bias")
    weights = [dict(layer.named_parameters())[name].detach().clone().requires_grad_() for name in names]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values))
        first, state = torch.func.functional_call(layer, given, (x[:, :2],))
        return torch.cat([first, torch.func.functional_call(layer, given, (x[:, 2:], state))[0]], 1)

    x = torch.randn(1, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *weights), atol=1e-7, rtol=1e-4)
    grads = torch.autograd.grad(run(x, *weights).square().sum(), weights)
    assert all((grad != 0).any() for grad in grads)


# -- the state, and looking -------------------------------------------------------------------------------------------


@torch.no_grad()
@every_titan
def test_the_state_is_two_vectors_larger_and_does_not_grow(name):
    by_chunk, by_token = (made(name, gates_per=kind).float() for kind in ("chunk", "token"))
    sizes = [nbytes(by_chunk(tokens(n).float())[1]) for n in (1, 4, 61)]
    assert len({*sizes, by_chunk.state_bytes(2)}) == 1
    assert sizes[0] - nbytes(by_token(tokens(4).float())[1]) == 2 * 2 * 8 * 4  # two vectors, two rows, dim 8, float32


@torch.no_grad()
@every_titan
def test_states_of_another_row_kind_or_setting_are_refused(name):
    layer = made(name)
    _, state = layer(tokens(6))
    kept = {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}
    for change, said in (
        ({"gate_mean": state["gate_mean"][:1]}, r"state\['gate_mean'\] must be"),
        ({"gate_sum": state["gate_sum"].float()}, r"state\['gate_sum'\] must be torch.float64"),
        ({"gate_sum": state["gate_sum"].to("meta")}, r"state\['gate_sum'\] must be .* on cpu, got .* on meta"),
    ):
        with pytest.raises(BadInput, match=said):
            layer(tokens(2), {**state, **change})
    with pytest.raises(BadInput, match=r"holds .*gate_mean, gate_sum"):
        layer(tokens(2), made(name, gates_per="token")(tokens(6))[1])
    assert all(torch.equal(state[key], value) for key, value in kept.items())


@torch.no_grad()
@pytest.mark.parametrize("kind", [{}, HEBBIAN])
def test_a_stream_keeps_its_chunk(kind):
    _, state = made(chunk=8, **kind)(tokens(6))
    with pytest.raises(BadInput, match=r"filled.* from 0 to 3, got 6"):
        made(chunk=4, **kind)(tokens(2), state)


@every_titan
def test_contents_and_events_show_the_gates_of_the_chunks(name):
    layer, x = made(name), tokens(10, 1)[0]
    written = torch.cat([layer.write(x[:3]), layer.write(x[3:])])
    torch.testing.assert_close(written, layer(x[None])[0][0].detach(), rtol=1e-10, atol=1e-12)
    writes = [event.detail for event in layer.events() if event.kind == "write"]
    theta = [value for detail in writes for value in detail["theta"]]
    assert [len(set(theta[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1]
    assert len(set(theta)) == 3
    assert layer.contents().groupby("part")["theta"].mean().tolist() == pytest.approx([sum(theta) / 10] * 2, abs=1e-5)
    held = layer.held
    layer.read(x)
    assert all(torch.equal(held[key], layer.held[key]) for key in ("gate_mean", "gate_sum"))
    layer.reset()
    assert not layer.held["gate_mean"].any()


# -- settings ---------------------------------------------------------------------------------------------------------


@every_titan
def test_the_setting_goes_into_a_model_s_config_and_back(name, tmp_path):
    assert build_layer(name, 8, heads=2).settings()["gates_per"] == "token"  # the paper's models
    entry = {"mixer": name, "heads": 2, "chunk": 3, "gates_per": "chunk"}
    model = MixerLM(MixerConfig(9, 8, [entry])).eval()
    model.save_pretrained(tmp_path)
    loaded, ids = MixerLM.from_pretrained(tmp_path), torch.arange(1, 9)[None]
    assert loaded.blocks[0].mixer.core.gates_per == "chunk"
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@every_titan
@pytest.mark.parametrize(
    ("value", "said"),
    [("chunks", "did you mean 'chunk'"), ("per-token", "did you mean 'token'"), (None, "known: chunk, token")],
)
def test_other_gates_are_refused_and_the_right_ones_suggested(name, value, said):
    with pytest.raises(UnknownName, match=f"gates_per called .*; {said}"):
        build_layer(name, 8, heads=2, gates_per=value)


@every_titan
def test_a_misspelt_setting_suggests_the_right_one(name):
    with pytest.raises(BadInput, match="no argument 'gate_per'; did you mean 'gates_per'"):
        build_layer(name, 8, heads=2, gate_per="chunk")
    with pytest.raises(BadInput, match=r"no argument 'xyz'; it has .*gates_per"):
        build_layer(name, 8, heads=2, xyz=1)
