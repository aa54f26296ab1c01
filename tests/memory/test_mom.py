"""Mixture-of-Memories held to its equations token by token, to its two forms, to causality, balance and bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, silu, softplus

from workbench.errors import BadInput
from workbench.memory.layers._mom_router import balance_loss, route, spread
from workbench.memory.layers._mom_rules import RULES
from workbench.memory.layers._norm import EPS
from workbench.memory.layers.base import build_layer, carried
from workbench.memory.layers.mom import MoM

SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"conv_scope": "sequence", "shared": False},
    {"conv": 0, "memories": 3, "top_k": 1, "renormalize": False},
    {"single_kv_proj": True, "memories": 2, "top_k": 2},
    {"single_kv_proj": True, "conv_scope": "sequence", "chunk": 5},
)


def layer(seed: int = 0, **options: Any) -> MoM:
    """In float64, its weights far enough from the start that gates and router say something."""
    torch.manual_seed(seed)
    made = MoM(8, heads=2, **options).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return made


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, 8, generator=torch.Generator().manual_seed(seed)).double()


# ---- the equations, one token after the other ---------------------------------------------------------------------


def gates(made: MoM, x: Tensor, own: int) -> tuple[Tensor, Tensor | None]:
    """(decay (H, d_k or 1), beta (H) or None) of one token for one memory, straight from the paper."""
    g, rule = made.gates, RULES[made.rule]
    beta = torch.sigmoid(x @ g.beta[own]) if rule.delta else None
    if rule.decay == "scalar":
        return torch.exp(-g.A_log.exp() * softplus(x @ g.a[own] + g.dt_bias))[:, None], beta
    if rule.decay == "channel":
        return torch.exp(logsigmoid(x @ g.low[own] @ g.high[own] + g.bias[own]) / 16).unflatten(
            0, (made.heads, -1)
        ), beta
    if rule.decay == "fixed":
        return (1 - 2.0 ** (-5 - torch.arange(made.heads, dtype=x.dtype)))[:, None], beta
    return torch.ones(made.heads, 1, dtype=x.dtype), beta


def naive(made: MoM, x: Tensor, asked: int | None = None) -> tuple[Tensor, Tensor]:
    """One row x (T, dim): outputs and the memories, with the short convolution over each memory's own past.

    Tokens from ``asked`` on are asked alone: they write nothing and do not see each other.
    """
    asked = len(x) if asked is None else asked
    owner = [0 if made.single_kv_proj else m for m in range(made.memories)] + [made.to_k.shape[0] - 1] * made.shared
    past: list[list[Tensor]] = [[] for _ in owner]
    memory = x.new_zeros(len(owner), made.heads, made.key_dim, made.value_dim)
    outputs = []
    for t, token in enumerate(x):
        p = torch.softmax(token @ made.router, -1)
        taken = sorted(range(made.memories), key=lambda m: (-float(p[m]), m))[: made.top_k]
        weights = {m: float(p[m]) / (sum(float(p[j]) for j in taken) if made.renormalize else 1) for m in taken}
        if made.shared:
            weights[made.memories] = 1.0
        read = x.new_zeros(made.heads, made.value_dim)
        for m, w in weights.items():
            own, source = owner[m], past[m]
            if made.conv_scope == "sequence":
                before = x[: min(t, asked)]
                source[:] = [torch.cat([y @ made.to_q, y @ made.to_k[own], y @ made.to_v[own]]) for y in before]
            row = torch.cat([token @ made.to_q, token @ made.to_k[own], token @ made.to_v[own]])
            source, alone = [*source, row], t >= asked
            if not alone:
                past[m].append(row)
            if made.short is not None:
                near = source[-made.conv :]
                row = silu(sum(w_i * r for w_i, r in zip(made.short.weight[-len(near) :], near)))
            keys = made.heads * made.key_dim
            q, k, v = (part.unflatten(0, (made.heads, -1)) for part in row.split([keys, keys, len(row) - 2 * keys]))
            decay, beta = gates(made, token, own)
            if beta is not None:
                q, k = normalize(q, dim=-1), normalize(k, dim=-1)
            for h in range(made.heads):
                held = decay[h][:, None] * memory[m, h]
                new = v[h] if beta is None else beta[h] * (v[h] - k[h] @ held)
                memory[m, h] = memory[m, h] if alone else held + torch.outer(k[h], new)
                read[h] += w * (q[h] @ memory[m, h]) / math.sqrt(made.key_dim)
        normed = read / (read.square().mean(-1, keepdim=True) + EPS).sqrt() * made.norm.weight
        outputs.append((normed.flatten() * silu(made.to_gate(token))) @ made.to_out)
    return torch.stack(outputs), memory


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", SHAPES, ids=str)
@torch.no_grad()
def test_both_forms_are_the_equations(rule, options):
    made, x = layer(rule=rule, **options), tokens(2, 19)
    for made.form in ("masked", "packed"):
        y, state = made(x)
        for row in range(2):
            wanted, memory = naive(made, x[row])
            assert (y[row] - wanted).abs().max() < 1e-9
            assert (state["memory"][row] - memory).abs().max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(list(RULES)),
    st.integers(1, 3),
    st.integers(1, 23),
    st.sampled_from(["subsequence", "sequence"]),
    st.booleans(),
)
@torch.no_grad()
def test_packed_is_masked_with_padding_empty_memories_and_single_tokens(seed, rule, batch, length, scope, shared):
    made = layer(seed, rule=rule, memories=5, top_k=2, conv_scope=scope, shared=shared)
    made.router[:, 0] -= 5 * made.router[:, 1]  # some memories get little or nothing
    x, keep = tokens(batch, length, seed=seed), torch.rand(batch, length) > 0.25
    found = {}
    for made.form in ("masked", "packed"):
        found[made.form] = made(x, keep=keep)
    (y, state), (y_packed, packed) = found["masked"], found["packed"]
    assert ((y - y_packed)[keep].abs() < 1e-9).all()
    for name in state:
        assert torch.allclose(state[name], packed[name], atol=1e-9), name


def test_gradients_of_both_forms_agree():
    found = []
    for form in ("masked", "packed"):
        made = layer(form=form)
        y, state = made(tokens(2, 17))
        (y.square().sum() + state["aux/loss"]).backward()
        found.append([weight.grad for weight in made.parameters()])
    for a, b in zip(*found):
        assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@torch.no_grad()
def test_the_chunk_changes_nothing(chunk):
    for rule in RULES:
        x = tokens(2, 21)
        (y, state), (y_chunk, chunked) = layer(rule=rule)(x), layer(rule=rule, chunk=chunk)(x)
        assert (y - y_chunk).abs().max() < 1e-9
        assert (state["memory"] - chunked["memory"]).abs().max() < 1e-9


@torch.no_grad()
def test_equal_memories_are_one_memory():
    """k = N and one projection: every memory holds the same, so the mix is any one of them."""
    many, one = layer(single_kv_proj=True, memories=3, top_k=3, shared=False), layer(memories=1, top_k=1, shared=False)
    one.load_state_dict({**many.state_dict(), "router": one.router})
    y, state = many(tokens(2, 15))
    assert (state["memory"] - state["memory"][:, :1]).abs().max() < 1e-12
    assert (y - one(tokens(2, 15))[0]).abs().max() < 1e-12


#: The same weights in a plain layer: name there -> name in a mixture of one memory.
PLAIN: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "linear-attention": ({"feature_map": "identity"}, {}),
    "delta-net": ({}, {"to_beta.weight": "beta"}),
    "gated-delta-net": (
        {}, {"to_beta.weight": "beta", "to_step.weight": "a", "to_step.bias": "dt_bias", "log_rate": "A_log"},
    ),
    "gla": (
        {"key_dim": 4}, {"to_decay.0.weight": "low", "to_decay.1.weight": "high", "to_decay.1.bias": "bias"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", PLAIN)
@torch.no_grad()
def test_a_mixture_of_one_is_the_plain_layer(rule):
    options, names = PLAIN[rule]
    one = layer(rule=rule, memories=1, top_k=1, shared=False)
    plain = build_layer(rule, 8, heads=2, conv=4, gate=True, **options).double()
    weights = {
        "to_qkv.weight": torch.cat([one.to_q, one.to_k[0], one.to_v[0]], -1).T,
        "short.weight": one.short.weight,
        "to_gate.weight": one.to_gate.weight,
        "to_gate.bias": one.to_gate.bias,
        "norm.weight": one.norm.weight,
        "to_out.weight": one.to_out.T,
    }
    for name, mine in names.items():
        held = getattr(one.gates, mine)
        held = held if mine in ("dt_bias", "A_log") else held[0]
        weights[name] = held.T if held.dim() == 2 else held
    if rule == "delta-net":
        weights["to_beta.bias"] = torch.zeros(2)  # a mixture's rates have none
    plain.load_state_dict(weights)
    x, keep = tokens(2, 23), torch.rand(2, 23) > 0.2
    for kept in (None, keep):
        (y, state), (wanted, memory) = one(x, keep=kept), plain(x, keep=kept)
        seen = torch.ones_like(keep) if kept is None else kept
        assert (y - wanted)[seen].abs().max() < 1e-12
        assert (state["memory"][:, 0] - memory["memory"]).abs().max() < 1e-12
        first = [{name: value[:1] for name, value in carried(held).items()} for held in (state, memory)]
        assert (one.recall(x[:1], first[0]) - plain.recall(x[:1], first[1])).abs().max() < 1e-12


# ---- what is not chosen is not touched ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_memories_that_were_not_chosen_stay_bit_for_bit(rule, form):
    made = layer(rule=rule, form=form).float()
    _, state = made(tokens(1, 30).float())
    x = tokens(1, 1, seed=5).float()
    chosen = made.route(x).chosen[0, 0]
    _, after = made(x, state)
    for m in range(made.memories):
        assert torch.equal(state["memory"][0, m], after["memory"][0, m]) != bool(chosen[m])
        assert torch.equal(state["conv"][0, m], after["conv"][0, m]) != bool(chosen[m])
    assert not torch.equal(state["memory"][0, -1], after["memory"][0, -1])  # the shared one


@pytest.mark.parametrize("form", ["masked", "packed"])
@torch.no_grad()
def test_token_by_token_is_the_parallel_pass_in_constant_memory(form):
    made, x, state, reads = layer(form=form), tokens(2, 25), None, []
    y, final = made(x)
    for t in range(25):
        read, state = made(x[:, t : t + 1], state)
        reads.append(read)
        assert sum(v.numel() * v.element_size() for n, v in state.items() if "/" not in n) == made.state_bytes(2)
    assert (torch.cat(reads, 1) - y).abs().max() < 1e-9
    assert (state["memory"] - final["memory"]).abs().max() < 1e-9


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_no_token_sees_later_ones_or_other_rows(form, batch, training):
    """The released code's convolution ran over segment borders in training: later tokens and other rows leaked in."""
    made = layer(form=form).train(training)
    x = tokens(batch, 20).requires_grad_()
    made(x)[0][0, 11].square().sum().backward()
    assert x.grad[0, :12].abs().sum(-1).ne(0).sum() > 6
    assert not x.grad[0, 12:].any()
    assert not x.grad[1:].any()


# ---- the router ---------------------------------------------------------------------------------------------------


def test_equal_probabilities_go_to_the_lower_memory():
    chosen = route(torch.zeros(1, 3, 5), 2).chosen
    assert chosen.sum(-1).eq(2).all()
    assert chosen[..., :2].all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.data())
def test_the_chosen_are_the_largest_and_weights_sum_to_one(seed, n, data):
    k = data.draw(st.integers(1, n))
    logits = torch.randn(2, 6, n, generator=torch.Generator().manual_seed(seed)).double()
    routing = route(logits, k)
    assert routing.chosen.sum(-1).eq(k).all()
    assert torch.equal(
        routing.chosen.nonzero(), torch.zeros_like(routing.p).scatter(-1, logits.topk(k).indices, 1).nonzero()
    )
    assert torch.allclose(routing.w.sum(-1), torch.ones(2, 6).double())
    assert torch.equal(route(logits, k, renormalize=False).w, routing.p * routing.chosen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_does_not_decide_where_a_token_goes(dtype):
    """In half precision both probabilities are .5: the lower memory would take every such token."""
    logits = torch.tensor([[[1e-4, 2e-4]]], dtype=dtype)
    assert logits.softmax(-1).unique().numel() == 1
    routing = route(logits, 1)
    assert routing.chosen.tolist() == [[[False, True]]]
    assert routing.p.dtype == routing.w.dtype == torch.float32
    torch.manual_seed(0)
    y, state = MoM(8, heads=2).to(dtype)(tokens(2, 9).to(dtype))
    assert y.dtype == dtype
    assert state["aux/loss"].dtype == torch.float32


def test_rates_and_biases_are_marked_as_free_of_weight_decay():
    marked = {
        name for rule in RULES for name, w in layer(rule=rule).named_parameters() if hasattr(w, "_no_weight_decay")
    }
    assert marked == {"gates.A_log", "gates.dt_bias", "gates.bias"}


def test_with_one_memory_a_token_only_the_plain_weight_teaches_the_router():
    for renormalize in (True, False):
        made = layer(top_k=1, renormalize=renormalize, aux_scale=0.0)
        made(tokens(1, 9))[0].square().sum().backward()
        assert bool(made.router.grad.abs().max() > 1e-9) is not renormalize


@pytest.mark.parametrize(("n", "k"), [(4, 2), (8, 4), (6, 3), (4, 1)])
def test_the_balance_loss_is_k_when_even_and_n_when_collapsed(n, k):
    """Token t prefers memories t, t+1, ..: all equally often; or all tokens prefer the same k."""
    places = (torch.arange(n)[:, None] + torch.arange(k)) % n
    even = torch.full((n, n), -50.0).scatter(1, places, 0.0)[None]
    assert float(balance_loss(*spread(route(even, k)))) == pytest.approx(k)
    collapsed = torch.full((1, n, n), -50.0)
    collapsed[..., :k] = 0.0
    assert float(balance_loss(*spread(route(collapsed, k)))) == pytest.approx(n)


def test_padding_is_neither_routed_nor_counted():
    made, x = layer(), tokens(2, 12)
    keep = torch.ones(2, 12, dtype=torch.bool)
    keep[0, 8:] = keep[1, :3] = False
    routing = made.route(x, keep)
    assert not routing.chosen[~keep].any()
    assert not routing.w[~keep].any()
    other = x.clone()
    other[~keep] = 100.0
    (_, state), (_, again) = made(x, keep=keep), made(other, keep=keep)
    for name in ("memory", "ledger", "aux/loss", "aux/share", "aux/probability"):
        assert torch.equal(state[name], again[name]), name
    assert state["time"].tolist() == [8, 9]
    alone = [made(x[row : row + 1, keep[row]])[1] for row in range(2)]
    whole = torch.cat([one["memory"] for one in alone])
    assert (whole - state["memory"]).abs().max() < 1e-9


# ---- looking ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_contents_count_what_each_memory_was_given():
    made, x = layer(), tokens(1, 30)
    made.write(x[0, :13])
    made.write(x[0, 13:])
    routing = made.route(x)
    table = made.contents()
    assert table.columns.tolist() == [
        "head", "memory", "tokens", "mean_weight", "mean_decay", "norm", "effective_rank", "last_token",
    ]  # fmt: skip
    assert len(table) == 5 * 2
    first = table[table["head"] == 0].set_index("memory")
    assert first.loc["shared", ["tokens", "mean_weight", "last_token"]].tolist() == [30, 1.0, 29]
    for m in range(4):
        mine = routing.chosen[0, :, m]
        assert first.loc[str(m), "tokens"] == int(mine.sum())
        assert first.loc[str(m), "mean_weight"] == pytest.approx(float(routing.w[0, mine, m].mean()))
        assert first.loc[str(m), "last_token"] == int(mine.nonzero().max())
        assert 0 < first.loc[str(m), "mean_decay"] < 1
    norms = made.held["memory"][0].flatten(2).norm(dim=-1)
    assert table["norm"].to_list() == pytest.approx(norms.flatten().tolist())


@pytest.mark.parametrize("options", SHAPES, ids=str)
@pytest.mark.parametrize("rule", ["linear-attention", "gated-delta-net"])
@torch.no_grad()
def test_a_read_writes_nothing_and_is_the_mix_of_what_is_held(rule, options):
    made, x = layer(rule=rule, **options), tokens(1, 20)
    assert not made.read(x[0, :3]).any()  # nothing is held, nothing is answered
    made.write(x[0, :17])
    held, y = made.held, made.read(x[0, 17:])
    assert all(torch.equal(value, made.held[name]) for name, value in held.items())
    assert (y - naive(made, x[0], 17)[0][17:]).abs().max() < 1e-9


def test_events_say_which_memory_a_token_went_to():
    made, x = layer(), tokens(1, 6)
    made.write(x)
    (event,) = made.events()
    assert event.detail["memory"] == made.route(x).p.argmax(-1)[0].tolist()
    assert event.detail["weight"] == pytest.approx(made.route(x).w.amax(-1)[0].tolist(), abs=1e-6)


def test_an_empty_memory_is_shown_as_empty():
    table = layer().contents()
    assert table["tokens"].eq(0).all()
    assert table["last_token"].eq(-1).all()
    assert table["effective_rank"].eq(0).all()


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_k": 5}, "top_k=5 is more than memories=4"),
        ({"top_k": 0}, "top_k"),
        ({"memories": 0}, "memories"),
        ({"rule": "gated delta"}, "gated-delta-net"),
        ({"heads": 3}, "heads=3 does not divide dim=8"),
        ({"conv_scope": "text"}, "subsequence"),
        ({"form": "sorted"}, "masked, packed"),
        ({"aux_scale": -0.1}, "aux_scale"),
        ({"aux_scale": math.nan}, "aux_scale"),
        ({"chunk": 0}, "chunk"),
        ({"key_dim": 0}, "key_dim"),
        ({"aux_scale": "1e-2"}, "aux_scale"),
        ({"rule": ["gla"]}, "gated-delta-net"),
    ],
    ids=str,
)
def test_bad_settings_are_named(options, named):
    with pytest.raises(BadInput, match=named):
        MoM(8, **{"heads": 2, **options})


def test_a_state_of_another_batch_or_mixture_is_refused_and_unchanged():
    made = layer()
    _, state = made(tokens(2, 4))
    before = {name: value.clone() for name, value in state.items()}
    for other, x in ((made, tokens(3, 4)), (layer(memories=5), tokens(2, 4)), (layer(conv=0), tokens(2, 4))):
        with pytest.raises(BadInput, match="state"):
            other(x, state)
    assert all(torch.equal(before[name], state[name]) for name in state)
