"""The linear memories on the card: reads, final state and all gradients against float64, at every rule and width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import nan_in_fresh_memory
from linear_memory_cases import CASES, RULES, Case, held
from torch import Tensor

from workbench_kernels import linear_recurrence, neural_memory, prefix_state
from workbench_kernels.linear_memory import NeuralState

pytest.importorskip("triton")
from workbench_kernels.linear_memory.portable import configurations, recurrence

LOW = (torch.bfloat16, torch.float16)
DOCUMENTS = (0, 0, 1, 64, 64, 300, 511, 1000)
MAPPED = "elu+1, gated delta"


@pytest.mark.parametrize("name", [name for name in CASES if name != MAPPED])
def test_every_option(name: str) -> None:
    """Delta rules too, at widths that are no multiples of 16: (1, 1), (16, 40), (20, 24)."""
    held(CASES[name], torch.bfloat16)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case("gated-delta", dims=(100, 100)), torch.bfloat16),
        (Case("delta", dims=(65, 130), documents=DOCUMENTS, length=1000), torch.bfloat16),
        (Case("delta"), torch.float16),
        (Case("delta"), torch.float32),
    ],
    ids=["width 100", "widths 65 and 130", "float16", "float32"],
)
def test_delta_rules_at_uneven_widths(case: Case, dtype: torch.dtype) -> None:
    held(case, dtype)


def test_a_delta_rule_that_no_card_has_run_is_refused_and_goes_through_torch() -> None:
    with pytest.raises(ValueError, match=r"^beta is given with .* legal"):
        held(CASES[MAPPED], torch.bfloat16)
    held(CASES[MAPPED], torch.bfloat16, run=linear_recurrence)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["rows", "packed"])
@pytest.mark.parametrize("dims", [(16, 16), (32, 32), (48, 16), (16, 128), (128, 64), (192, 256)])
@pytest.mark.parametrize("rule", ["delta", "gated-delta"])
def test_delta_rules_within_the_confirmed_widths(rule: str, dims: tuple[int, int], documents: Any) -> None:
    case = Case(rule, length=1000 if documents else 263, dims=dims, heads=(4, 2), documents=documents)
    held(case, torch.bfloat16)
    if max(dims) <= 128:
        held(replace(case, length=200, documents=None), torch.float16)
        held(replace(case, length=200, documents=None), torch.float32)


@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (256, 256)])
def test_walks_of_more_components_where_they_fill_the_card(dims: tuple[int, int], monkeypatch: Any) -> None:
    walks, walk = set(), configurations.walk

    def noted(plan: Any) -> configurations.Tiles:
        walks.add(walk(plan).values)
        return walk(plan)

    monkeypatch.setattr(configurations, "walk", noted)
    heads = 160 * 32 // dims[1]  # 160 programs of 32 components, more than a card has multiprocessors
    held(Case("gated-delta", length=70, dims=dims, heads=(heads, heads)), torch.bfloat16)
    held(Case("delta", length=70, dims=dims, heads=(heads, heads // 2), documents=(0, 0, 30, 31, 70)), torch.bfloat16)
    held(Case("gated-delta", length=70, dims=dims), torch.bfloat16)
    assert walks == {16, 32}


@pytest.mark.parametrize("rule", ["linear", "gated-delta"])
def test_states_kept_for_the_backward_pass(rule: str) -> None:
    drawn = Case(rule, length=1000, dims=(128, 128)).draw(torch.bfloat16)
    assert same(*(both_passes(drawn, keep=keep) for keep in (False, True)))


def both_passes(drawn: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """Reads, final state and the gradient of every input."""
    leaves = {name: x.detach().requires_grad_() for name, x in drawn.items()}
    inputs = recurrence.Inputs(*(leaves.get(name) for name in recurrence.Inputs._fields))
    words: dict[str, Any] = {"feature_map": "identity", "ones": False, "scale": 0.7, "offsets": None}
    y, final = recurrence.recurrence(inputs, options=options, **words)
    grads = torch.autograd.grad(y.float().square().sum() + final.sum(), list(leaves.values()))
    return [y.detach(), final.detach(), *grads]


def same(found: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, other, strict=True))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        Case("gated-delta", length=1000, dims=(64, 64)),
        Case("gated-delta", length=4100, dims=(128, 128), heads=(16, 16), start=False),
        Case("delta", length=1024, dims=(256, 256), heads=(4, 2)),
        Case("gated-delta", length=700, dims=(100, 40), batch=2),
    ],
    ids=["64", "128", "256, shared keys", "two rows of uneven heads"],
)
def test_pieces_that_follow_each_other_change_no_bit(case: Case, keep: bool) -> None:
    drawn = case.draw(torch.bfloat16)
    whole = both_passes(drawn, pieces=1, keep=keep)
    with nan_in_fresh_memory():
        for pieces in (2, 4, 99):
            assert same(both_passes(drawn, pieces=pieces, keep=keep), whole), pieces


def test_memory_that_is_given_away_while_pieces_run_beside_each_other() -> None:
    """Fresh tensors of the same sizes, written at once, in place of what each call has let go of."""
    drawn = Case("gated-delta", length=4096, dims=(128, 128), heads=(8, 8)).draw(torch.bfloat16)
    whole = both_passes(drawn, pieces=1)
    for n in range(30):
        copies = {name: x.clone() for name, x in drawn.items()}
        found = both_passes(copies, pieces=2 + n % 3, keep=n % 2 == 0)
        del copies
        litter = [torch.full_like(x, float("nan")) for x in (*drawn.values(), *whole) for _ in range(2)]
        assert same(found, whole), n
        del found, litter


def test_pieces_that_follow_each_other_on_any_stream_and_in_a_graph() -> None:
    drawn = Case("gated-delta", length=1000, dims=(64, 64)).draw(torch.bfloat16)
    whole = both_passes(drawn, pieces=1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = {name: x + 0 for name, x in drawn.items()}  # made on that stream, as what reads them must be
        torch.cuda._sleep(20_000_000)
        found = both_passes({name: x * 1 for name, x in late.items()}, pieces=3)
        kept = [x.clone() for x in found]
        del found
    torch.cuda.current_stream().wait_stream(side)
    assert same(kept, whole)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both_passes(drawn, pieces=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = both_passes(drawn, pieces=3)
    for _ in range(3):
        for x in made:
            x.fill_(float("nan"))
        graph.replay()
        assert same(made, whole)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("rule", RULES)
def test_long_rows_in_half_precision(rule: str, dim: int) -> None:
    case = Case(rule, length=1000, dims=(dim, dim), batch=2)
    held(case, LOW[0])
    held(replace(case, length=263), LOW[1])


@pytest.mark.parametrize("rule", RULES)
def test_float32(rule: str) -> None:
    held(Case(rule, length=263, dims=(64, 64)), torch.float32)
    held(Case(rule, length=63, dims=(128, 128)), torch.float32)


@pytest.mark.parametrize("rule", RULES)
def test_packed_documents(rule: str) -> None:
    held(Case(rule, length=1000, dims=(64, 128), documents=DOCUMENTS), torch.bfloat16)
    held(Case(rule, length=1000, dims=(32, 32), documents=DOCUMENTS), torch.float32)


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
@pytest.mark.parametrize("rule", ["linear", "scalar", "vector"])
def test_pieces_of_a_row_beside_each_other(rule: str, documents: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "PIECE", 1)
    held(Case(rule, length=1000, dims=(128, 64), documents=documents), torch.bfloat16)


@pytest.mark.parametrize("rule", RULES)
def test_the_widest_heads(rule: str) -> None:
    held(Case(rule, length=130, dims=(256, 256)), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_taylor_features_that_are_never_written(dtype: torch.dtype) -> None:
    taylor = Case("linear", length=300, feature_map="taylor", normalize=True, dims=(16, 64))
    held(taylor, dtype)
    held(replace(taylor, rule="scalar", documents=(0, 0, 1, 64, 64, 300)), dtype)


def test_sums_of_a_prefix() -> None:
    gen = torch.Generator("cuda").manual_seed(0)
    k, v = (torch.randn(2, 3000, 4, d, generator=gen, device="cuda").bfloat16() for d in (16, 64))
    found, exact = prefix_state(k, v), prefix_state(k.double(), v.double())
    assert (found - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.parametrize("rule", [*RULES, "taylor"])
def test_decoding_token_by_token_continues_a_prefill(rule: str) -> None:
    taylor = {"feature_map": "taylor", "normalize": True, "dims": (16, 64)}
    dims = (32, 16) if rule == "delta" else (128, 128)
    case = Case("linear", length=105, **taylor) if rule == "taylor" else Case(rule, length=105, dims=dims)
    drawn, words = case.draw(torch.float32), {**case.words, "impl": "triton"}
    with torch.no_grad():
        whole, last = linear_recurrence(**{n: x.double() for n, x in drawn.items()}, **(words | {"impl": "reference"}))
        state, parts = drawn.pop("state"), []
        for a, b in ((0, 97), (97, 98), (98, 105)):
            part, state = linear_recurrence(**{n: x[:, a:b] for n, x in drawn.items()}, state=state, **words)
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole.float(), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(state, last.float(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("rule", ["linear", "vector", "gated-delta"])
def test_the_same_bits_every_time(rule: str) -> None:
    drawn = Case(rule, length=500, dims=(64, 64)).draw(torch.bfloat16)
    found = []
    for _ in range(3):
        leaves = {n: x.clone().requires_grad_() for n, x in drawn.items()}
        y, final = linear_recurrence(**leaves, impl="triton")
        found.append([y, final, *torch.autograd.grad(y.float().square().sum() + final.sum(), list(leaves.values()))])
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_waits_for_the_queue_and_a_graph_captures_it(packed: bool) -> None:
    case = Case("gated-delta", length=200, dims=(64, 64), documents=(0, 0, 7, 200) if packed else None)
    drawn, words = case.draw(torch.bfloat16), case.words
    leaves = {n: x.clone().requires_grad_() for n, x in drawn.items()}

    def step() -> list[torch.Tensor]:
        y, final = linear_recurrence(**leaves, **words, check_values=False, impl="triton")
        return [y.detach(), *torch.autograd.grad(y.float().square().sum() + final.sum(), list(leaves.values()))]

    expected = [x.clone() for x in step()]  # no graph stays: it would hold on to the stream that it was made on
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_the_neural_memory_is_captured_too() -> None:
    gen = torch.Generator("cuda").manual_seed(0)
    q, k, v = (torch.randn(2, 40, 2, 16, generator=gen, device="cuda") for _ in range(3))
    gates = torch.rand(3, 2, 40, 2, generator=gen, device="cuda") * 0.1
    shapes = ((2, 2, 16, 64), (2, 2, 64, 16))
    weights = tuple(0.1 * torch.randn(s, generator=gen, device="cuda") for s in shapes)
    state = NeuralState(weights, tuple(torch.zeros_like(w) for w in weights))

    def run() -> torch.Tensor:
        words = {"theta": gates[0], "eta": gates[1], "alpha": gates[2], "state": state}
        return neural_memory(q, k, v, **words, chunk=16, check_values=False)[0]

    expected = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run()
    graph.replay()
    torch.testing.assert_close(made, expected)


def test_strides_beyond_32_bits() -> None:
    """The last head of tensors of more than 2^31 elements."""
    big = torch.zeros(1, 33000, 520, 128, dtype=torch.bfloat16, device="cuda")
    part = big[:, :, -1:].normal_()
    far, near = part[:, -300:], part[:, -300:].contiguous()
    assert far.data_ptr() - big.data_ptr() > 2 * 2**31
    words: dict[str, Any] = {"impl": "triton"}
    for a, b in zip(
        linear_recurrence(far, far, far, **words), linear_recurrence(near, near, near, **words), strict=True
    ):
        assert torch.equal(a, b)


def test_auto_falls_back_where_the_kernels_refuse() -> None:
    case = Case("linear", length=40, dims=(300, 16))
    held(case, torch.float32, run=linear_recurrence)
    x = torch.zeros(1, 4, 2, 300, device="cuda")
    with pytest.raises(ValueError, match=r"^q has head dim 300"):
        linear_recurrence(x, x, x, impl="triton")
    with pytest.raises(ValueError, match=r"^chunk is 16, on a card"):
        linear_recurrence(x[..., :64], x[..., :64], x[..., :64], impl="triton", chunk=16)
