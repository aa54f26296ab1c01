"""Prefix linear attention held to its equations: three forms, one state, what sees what, padding, bad input."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput
from workbench.memory.layers._prefix_linear import quadratic, taylor_scores
from workbench.memory.layers.base import nbytes
from workbench.memory.layers.base_conv import BaseConv
from workbench.memory.layers.based import Based
from workbench.memory.layers.just_read_twice import JustReadTwice, fill_prefix, prefix_lengths, reading
from workbench_kernels.linear_memory import FEATURE_MAPS, linear_recurrence, prefix_state

BUDGET = {torch.float64: 1e-10, torch.float32: 1e-5}


def layer(mode="prefix", form="auto", dtype=torch.float64, seed=0, **settings) -> JustReadTwice:
    torch.manual_seed(seed)
    made = JustReadTwice(12, 2, key_dim=3, mode=mode, form=form, **settings)
    return made.to(dtype)


def tokens(length, batch=2, seed=1, dtype=torch.float64):
    return torch.randn(batch, length, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_hand(made: JustReadTwice, x: torch.Tensor, prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 3 word for word, one position after the other; and the state of equation 4."""
    phi, heads, f = FEATURE_MAPS["taylor"], made.heads, made.key_dim
    q, k, v = made.to_qkv(x).split([heads * f, heads * f, heads * made.value_dim], -1)
    assert made.to_encoder is not None
    ke, ve = made.to_encoder(x).split([heads * f, heads * made.value_dim], -1)
    q, k, ke = (phi(part.unflatten(-1, (heads, f))) for part in (q, k, ke))
    v, ve = (part.unflatten(-1, (heads, made.value_dim)) for part in (v, ve))
    s = torch.einsum("bmhk,bmhd->bhkd", ke[:, :prefix], ve[:, :prefix])
    z = ke[:, :prefix].sum(1)
    out = []
    for i in range(x.shape[1]):
        s = s + torch.einsum("bhk,bhd->bhkd", k[:, i], v[:, i])
        z = z + k[:, i]
        top = torch.einsum("bhk,bhkd->bhd", q[:, i], s)
        out.append(top / (torch.einsum("bhk,bhk->bh", q[:, i], z)[..., None] + 1e-6))
    return made._out(x, torch.stack(out, 1)), torch.cat([s, z[..., None]], -1)


# ---- one layer, three forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("length", "prefix", "padded"), [(1, 1, False), (9, 4, True), (70, 70, True), (70, 0, False)])
def test_attention_is_the_sum_over_pairs_of_tokens(length, prefix, padded, dtype):
    """Equation 3 with the weights 1 + s + s^2 / 2 of pairs and no feature anywhere, before the norm hides a scale."""
    draw = torch.Generator().manual_seed(6)
    q, k, ke, v, ve = (torch.randn(length, n, generator=draw, dtype=torch.float64) for n in (3, 3, 3, 5, 5))
    keep = torch.rand(length, generator=draw) > 0.3 * padded
    wanted = torch.zeros(length, 5, dtype=torch.float64)
    for i in range(length):
        pairs = [(k[j], v[j]) for j in range(i + 1) if keep[j]] + [(ke[j], ve[j]) for j in range(prefix) if keep[j]]
        scores = [q[i] @ key / math.sqrt(3) for key, _ in pairs]
        weights = [1 + s + s * s / 2 for s in scores]
        top = sum((w * value for w, (_, value) in zip(weights, pairs)), torch.zeros(5, dtype=torch.float64))
        wanted[i] = top / (sum(weights) + 1e-6)
    q, k, v, ke, ve = (part[None, :, None].to(dtype) for part in (q, k, v, ke[:prefix], ve[:prefix]))
    kept, seen = keep[None], keep[None, :prefix]
    table = quadratic(q, k, v, (ke, ve), keep=kept, keep_encoder=seen)
    assert (table[0, :, 0] - wanted).abs().max() < BUDGET[dtype]
    phi, start = FEATURE_MAPS["taylor"], prefix_state(ke, ve, keep=seen)
    for chunk in (1, 16, 64):
        written = phi(k) * kept[..., None, None]
        read, _ = linear_recurrence(phi(q), written, v, normalize=True, state=start, chunk=chunk)
        assert (read[0, :, 0] - wanted).abs().max() < BUDGET[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("length", "prefix"), [(1, 1), (7, 3), (13, 13), (17, 0)])
def test_every_form_is_the_equation(length, prefix, dtype):
    x = tokens(length, dtype=dtype)
    for chunk in (1, 4, 64):
        for form in ("quadratic", "chunked"):
            made = layer(form=form, chunk=chunk, prefix=prefix, dtype=dtype)
            y, state = made(x)
            wanted, memory = by_hand(made, x, prefix)
            assert (y - wanted).abs().max() < BUDGET[dtype]
            assert (state["memory"] - memory).abs().max() < BUDGET[dtype]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["prefix", "causal"]),
    st.sampled_from(["quadratic", "chunked"]),
    st.lists(st.integers(1, 5), min_size=0, max_size=4),
    st.integers(1, 6),
)
def test_prefill_then_decoding_in_any_pieces_is_one_pass(mode, form, pieces, prefix):
    made = layer(mode, form, prefix=prefix if mode == "prefix" else None, chunk=3)
    x = tokens(prefix + sum(pieces))
    whole, last = made(x)
    parts, state = [], made.start(2)
    for piece in torch.split(x, [prefix, *pieces], 1):
        y, state = made(piece, state)
        parts.append(y)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-10
    assert (state["memory"] - last["memory"]).abs().max() < 1e-10
    assert state["seen"] == x.shape[1]


def test_gradients_of_both_forms_agree():
    x = tokens(9)
    grads = []
    for form in ("quadratic", "chunked"):
        made = layer(form=form, prefix=5, chunk=4)
        made(x)[0].square().sum().backward()
        grads.append({name: p.grad for name, p in made.named_parameters()})
    for name, grad in grads[0].items():
        assert grad.abs().max() > 0, name
        assert torch.allclose(grad, grads[1][name], rtol=1e-9, atol=1e-9), name


def test_the_map_is_the_second_order_taylor_series_and_its_sums_stay_positive():
    generator = torch.Generator().manual_seed(4)
    q, k = (torch.randn(2, 5, 3, 16, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    s = torch.einsum("bthf,bshf->bhts", q, k) / math.sqrt(16)
    phi = FEATURE_MAPS["taylor"]
    assert phi(q).shape[-1] == 1 + 16 + 256
    products = torch.einsum("bthf,bshf->bhts", phi(q), phi(k))
    assert (products - (1 + s + s * s / 2)).abs().max() < 1e-6
    assert (taylor_scores(q, k) - products).abs().max() < 1e-6
    assert products.min() >= 0.5
    ones = torch.ones(2, 5, 3, 1, dtype=torch.float64)
    assert quadratic(q, k, ones).min() > 0.999, "the weights of every position sum to one"


# ---- what sees what -----------------------------------------------------------------------------------------------


def changes(made, x, at, prefix=None):
    """Which outputs change when token ``at`` changes: bool (T,)."""
    other = x.clone()
    other[:, at] += 1
    give = {} if prefix is None else {"prefix": prefix}
    return ((made(x, **give)[0] - made(other, **give)[0]).abs().amax((0, 2)) > 1e-12).tolist()


@pytest.mark.parametrize("form", ["quadratic", "chunked"])
def test_a_token_of_the_prefix_is_seen_by_all_and_a_later_one_only_from_then_on(form):
    made, x = layer(form=form, prefix=4), tokens(8)
    assert changes(made, x, 3) == [True] * 8
    assert changes(made, x, 4) == [False] * 4 + [True] * 4
    assert changes(made, x, 6) == [False] * 6 + [True] * 2
    causal = layer("causal", form)
    assert changes(causal, x, 3) == [False] * 3 + [True] * 5
    assert changes(layer("non-causal", form), x, 7) == [True] * 8


def test_no_prefix_is_causal_and_no_number_is_the_whole_first_call():
    x, made, causal = tokens(9), layer(prefix=0), layer("causal")
    causal.load_state_dict({k: v for k, v in made.state_dict().items() if "encoder" not in k})
    assert torch.equal(made(x)[0], causal(x)[0])
    open_ = layer(prefix=None)
    assert torch.equal(open_(x)[0], open_(x, prefix=9)[0])
    y, state = open_(x[:, :6])
    again, _ = open_(x[:, 6:], state)
    assert (torch.cat([y, again], 1) - open_(x, prefix=6)[0]).abs().max() < 1e-10


def test_the_encoder_does_not_know_the_order_of_the_prefix():
    made, x = layer(prefix=5), tokens(9)
    mixed = torch.cat([x[:, [3, 1, 4, 0, 2]], x[:, 5:]], 1)
    sums = [made.total(*made._encode(order[:, :5]), None) for order in (x, mixed)]
    assert (sums[0] - sums[1]).abs().max() < 1e-12
    # beyond the prefix the decoder's sum has seen the same tokens as well
    assert (made(x)[0] - made(mixed)[0])[:, 5:].abs().max() < 1e-10


def test_padding_changes_nothing_wherever_it_stands():
    for mode in ("prefix", "causal", "non-causal"):
        for form in ("quadratic", "chunked"):
            made, x = layer(mode, form), tokens(6)
            y, state = made(x)
            for places in ([0, 1, 2], [2, 5, 8], [6, 7, 8]):
                kept = [i for i in range(9) if i not in places]
                padded, keep = tokens(9, seed=7), torch.zeros(2, 9, dtype=torch.bool)
                padded[:, kept], keep[:, kept] = x, True
                z, after = made(padded, keep=keep)
                assert (z[:, kept] - y).abs().max() < 1e-10
                assert (after["memory"] - state["memory"]).abs().max() < 1e-10


def test_zeroing_keys_before_the_map_would_not_leave_padding_out():
    """The pitfall of the released code: phi(0) = [1, 0, ...] still adds 1 to z and v to s."""
    assert FEATURE_MAPS["taylor"](torch.zeros(1, 4))[0, 0] == 1


def test_a_prefix_of_each_row_is_that_row_alone():
    made, x = layer(), tokens(7, batch=3)
    lengths = torch.tensor([2, 5, 7])
    y, _ = made(x, prefix=lengths)
    for row, length in enumerate(lengths.tolist()):
        assert (y[row] - made(x[row : row + 1], prefix=length)[0][0]).abs().max() < 1e-10
    keep = torch.ones(3, 7, dtype=torch.bool)
    keep[:, :2] = keep[1, 4] = False
    y, state = made(x, prefix=lengths, keep=keep)
    for row, length in enumerate(lengths.tolist()):
        kept = keep[row]
        alone, after = made(x[row : row + 1, kept], prefix=int(kept[:length].sum()))
        assert (y[row, kept] - alone[0]).abs().max() < 1e-10
        assert (state["memory"][row] - after["memory"][0]).abs().max() < 1e-10
    ids = torch.tensor([[5, 3, 8, 8], [5, 6, 3, 3]])
    assert prefix_lengths(ids, 3).tolist() == [2, 3]


# ---- state --------------------------------------------------------------------------------------------------------


def test_the_state_is_that_of_the_causal_layer_and_does_not_grow():
    made, causal = layer(dtype=torch.float32), Based(12, 2, key_dim=3)
    assert made.state_bytes() == causal.state_bytes()
    assert not made.grows
    sizes = {nbytes(made(tokens(length, 1, dtype=torch.float32))[1]) for length in (1, 10, 100)}
    assert sizes == {4 * 2 * (1 + 3 + 9) * (6 + 1)} == {nbytes(causal(tokens(5, 1, dtype=torch.float32))[1])}


def test_contents_tell_the_blocks_the_encoder_and_the_second_read():
    made, x = layer(prefix=4), tokens(6, batch=1)[0]
    made.write(x)
    frame = made.contents()
    matrices = frame[frame["part"] == "memory"]
    total = matrices[["order0", "order1", "order2"]].pow(2).sum(axis=1).pow(0.5)
    assert total.to_list() == pytest.approx(matrices["norm"].to_list())
    encoder = made.total(*made._encode(x[None, :4]), None)[0].flatten(1).norm(dim=1)
    rest = (made.held["memory"][0] - made.total(*made._encode(x[None, :4]), None)[0]).flatten(1).norm(dim=1)
    assert matrices["encoder_share"].to_list() == pytest.approx((encoder / (encoder + rest)).tolist())
    assert matrices["cosine_before"].isna().all()
    before = made.held["memory"][0].flatten(1)
    made.write(x)
    again = made.contents()
    now = torch.cosine_similarity(before, made.held["memory"][0].flatten(1), dim=1)
    assert again["cosine_before"].to_list() == pytest.approx(now.tolist())
    assert (again["encoder_share"] < matrices["encoder_share"]).all(), "the second read goes through the decoder"
    made.reset()
    assert made.contents()["encoder_share"].isna().all()


def test_a_state_from_elsewhere_tells_nothing_of_what_was_written_here():
    made, other, x = layer(prefix=4), layer(prefix=4, seed=3), tokens(6, batch=1)[0]
    made.write(x)
    made.write(x)
    other.write(x)
    made.hold(other.held, 6)
    assert made.contents()[["encoder_share", "cosine_before"]].isna().all(axis=None)
    made.write(x)
    again = made.contents()
    assert again["encoder_share"].isna().all()
    assert again.loc[again["part"] == "memory", "cosine_before"].notna().all()


def test_a_lone_token_is_read_back_and_a_crowd_less_so():
    made, x = layer("causal"), tokens(40, batch=1)[0]
    made.write(x[:1])
    assert made.stored(x[:1]).min() > 0.999
    alone = made.read(x[:1])
    assert torch.allclose(alone, made(x[None, :1])[0][0])
    made.write(x[1:])
    assert made.stored(x).mean() < 0.9
    log = made.events().frame()
    assert log["kind"].to_list() == ["write", "read", "write"]
    assert len(log["known_before"].iloc[2]) == 39


def test_what_is_read_back_is_the_mean_of_values_weighed_at_a_tokens_own_key():
    made, x = layer("causal"), tokens(3, batch=1)[0]
    made.write(x)
    with torch.no_grad():
        _, k, v = (part.unflatten(-1, (2, -1)) for part in made.to_qkv(x).split([6, 6, 12], -1))
    weights = taylor_scores(k[None], k[None])[0]
    answers = torch.einsum("hts,shd->thd", weights / weights.sum(-1, keepdim=True), v)
    wanted = torch.cosine_similarity(answers, v, dim=-1)
    assert wanted.max() < 0.99, "not so few that every key reads the same"
    assert (made.stored(x) - wanted).abs().max() < 1e-5


# ---- BaseConv -----------------------------------------------------------------------------------------------------


def test_base_conv_is_its_formula():
    torch.manual_seed(3)
    made, x = BaseConv(12, kernel=3, expand=2).double(), tokens(7)
    u, weight = made.to_conv(x), made.conv.weight
    past = torch.cat([torch.zeros(2, 2, 24, dtype=torch.float64), u], 1)
    mixed = weight[0] * past[:, :-2] + weight[1] * past[:, 1:-1] + weight[2] * past[:, 2:]
    assert (made(x)[0] - made.to_out(mixed * made.to_gate(x))).abs().max() < 1e-12
    assert changes(made, x, 3) == [False] * 3 + [True] * 3 + [False]
    torch.manual_seed(3)
    centred = BaseConv(12, causal=False).double()
    assert changes(centred, x, 3) == [False, False, True, True, True, False, False]
    with pytest.raises(BadInput, match="whole stream at once"):
        centred(x, centred(x)[1])
    with pytest.raises(BadInput, match="kernel=4 has no middle"):
        BaseConv(12, kernel=4, causal=False)
    with pytest.raises(BadInput, match="kernel"):
        BaseConv(12, kernel=0)


# ---- prompts shorter than the prefix ------------------------------------------------------------------------------


def test_short_prompts_are_padded_or_read_twice():
    ids = torch.tensor([5, 6, 7])
    filled, keep = fill_prefix(ids, 5, pad=9)
    assert filled.tolist() == [9, 9, 5, 6, 7]
    assert keep.tolist() == [False, False, True, True, True]
    filled, keep = fill_prefix(ids, 8, how="read-twice")
    assert filled.tolist() == [6, 7, 5, 6, 7, 5, 6, 7]
    assert keep.all()
    for how in ("left", "read-twice"):
        assert fill_prefix(ids, 3, how=how)[0].tolist() == [5, 6, 7]
    with pytest.raises(BadInput, match="1 to 2 tokens"):
        fill_prefix(ids, 2)
    for wrong in ([5, 6], ids[None], ids[:0]):
        with pytest.raises(BadInput, match="ids must be a tensor, a prompt of 1 to 4 tokens"):
            fill_prefix(wrong, 4)
    with pytest.raises(BadInput, match="how='iterate'"):
        fill_prefix(ids, 4, how="iterate")


# ---- bad input ----------------------------------------------------------------------------------------------------


def test_arguments_that_cannot_be_are_refused():
    for key_dim in (0, -1, 2.5):
        with pytest.raises(BadInput, match="key_dim"):
            JustReadTwice(12, 2, key_dim=key_dim)
    with pytest.raises(BadInput, match="mode='both' is not one of prefix, causal, non-causal"):
        JustReadTwice(12, 2, mode="both")
    with pytest.raises(BadInput, match="form='fast'"):
        Based(12, 2, form="fast")
    with pytest.raises(BadInput, match="prefix must be a whole number"):
        JustReadTwice(12, 2, prefix=-1)
    with pytest.raises(BadInput, match="heads=5 does not divide"):
        JustReadTwice(12, 5)
    for mode in ("causal", "non-causal"):
        with pytest.raises(BadInput, match=f"prefix=4 is for mode='prefix'; mode='{mode}' has no encoder"):
            JustReadTwice(12, 2, mode=mode, prefix=4)
    with pytest.raises(BadInput, match="conv looks back"):
        JustReadTwice(12, 2, mode="non-causal", conv=2)


def test_a_prefix_longer_than_the_first_call_is_refused_and_nothing_changes():
    made, x = layer(prefix=9), tokens(5, batch=1)
    with pytest.raises(BadInput, match="prefix=9 but the first call brings 5"):
        made(x)
    with pytest.raises(BadInput, match="prefix=9"):
        made.write(x)
    assert made.held["seen"] == 0
    assert len(made.events()) == 0
    with pytest.raises(BadInput, match="prefix must be one number"):
        made(x, prefix=torch.tensor([1, 2]))
    for wrong in (-2, True, 2.5, "3", [3]):
        with pytest.raises(BadInput, match="prefix must be a whole number of at least 0, a tensor"):
            made(x, prefix=wrong)
        with pytest.raises(BadInput, match="whole number"), reading(made, wrong):
            pass
    for numbers in ([6], [-1]):
        with pytest.raises(BadInput, match="but the first call brings 5 tokens; every row's M"):
            made(x, prefix=torch.tensor(numbers))
    for dtype in (torch.bool, torch.float32):
        with pytest.raises(BadInput, match="int64 or int32"):
            made(x, prefix=torch.ones(1, dtype=dtype))
    assert made._prefix_now == ()
    assert made(x, prefix=torch.tensor([5]))[1]["seen"] == 5
    for ids in ([1, 2], torch.tensor([1, 2]), torch.ones(2, 2, 2)):
        with pytest.raises(BadInput, match=r"ids must be a tensor \(rows, tokens\)"):
            prefix_lengths(ids, 1)
    with pytest.raises(BadInput, match=r"rows \[1\]"):
        prefix_lengths(torch.tensor([[1, 2], [2, 2]]), 1)
    everywhere = layer("non-causal")
    with pytest.raises(BadInput, match="whole sequence at once"):
        everywhere(x, everywhere(x)[1])


def test_reading_sets_the_prefix_of_a_whole_model_and_puts_it_back():
    model, x = torch.nn.ModuleList([layer(prefix=2), layer(prefix=3)]), tokens(6)
    wanted = [made(x, prefix=5)[0] for made in model]
    with reading(model, 5):
        found = [made(x)[0] for made in model]
        with reading(model, 1):
            assert not torch.equal(model[0](x)[0], wanted[0])
        assert torch.equal(model[0](x)[0], wanted[0])
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))
    assert torch.equal(model[0](x)[0], model[0](x, prefix=2)[0])


def test_seeds_can_be_stacked():
    from torch.func import functional_call, stack_module_state

    models, x = [layer(seed=s, dtype=torch.float32) for s in range(3)], tokens(6, dtype=torch.float32)
    stacked, buffers = stack_module_state(models)
    for rows in (None, torch.tensor([2, 6])):
        run = partial(functional_call, models[0], args=(x,), kwargs={"prefix": rows})
        y = torch.func.vmap(lambda p, b, run=run: run((p, b))[0])(stacked, buffers)
        for one, made in zip(y, models):
            assert (one - made(x, prefix=rows)[0]).abs().max() < 1e-5
    rows = torch.tensor([[2, 6], [1, 1]])
    y = torch.func.vmap(lambda m: models[0](x, prefix=m)[0])(rows)
    assert all((one - models[0](x, prefix=m)[0]).abs().max() < 1e-5 for one, m in zip(y, rows))
