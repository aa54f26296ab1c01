"""The linear memories' own Triton code in Triton's interpreter: reads, final state and every gradient against float64.

A process of its own runs this file (``test_linear_memory_triton.py``), because the interpreter is chosen when Triton
is imported (``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import nan_in_fresh_memory
from linear_memory_cases import CASES, RULES, Case, held, outcome

from workbench_kernels import linear_recurrence, prefix_state
from workbench_kernels.linear_memory.portable import call, configurations, launch, passes, recurrence
from workbench_kernels.linear_memory.portable.delta import prepare_kernel
from workbench_kernels.linear_memory.portable.lanes import OneLane
from workbench_kernels.linear_memory.portable.states import state_gradients_kernel, states_kernel

assert launch.INTERPRETED


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    held(CASES[name], torch.float32)


@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("rule", RULES)
def test_every_chunk_is_the_same_recurrence(rule: str, chunk: int) -> None:
    def run(**words: Any) -> Any:
        return linear_recurrence(**words, chunk=chunk, impl="triton")

    held(Case(rule, length=70), torch.float32, run=run)


@pytest.mark.parametrize("documents", [None, (0, 0, 1, 30, 30, 70)])
@pytest.mark.parametrize("rule", ["linear", "scalar", "vector"])
def test_pieces_of_a_row_beside_each_other(rule: str, documents: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "PIECE", 1)
    case = Case(rule, documents=documents)
    held(case, torch.float32)


@pytest.mark.parametrize("documents", [None, (0, 0, 1, 30, 30, 70)])
@pytest.mark.parametrize("case", [Case("linear", heads=(4, 2)), Case("scalar", feature_map="elu+1", normalize=True)])
def test_the_forward_pass_in_one_kernel(case: Case, documents: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for bfloat16, which the interpreter does not have; in pieces and in one."""
    plain = configurations.fused
    monkeypatch.setattr(passes, "fused", lambda plan: plain(replace(plan, wide=torch.bfloat16)))
    case = replace(case, documents=documents)
    held(case, torch.float32)
    monkeypatch.setattr(configurations, "PIECE", 1)
    held(case, torch.float32)


def with_options(**options: Any) -> Any:
    def run(q: Any, k: Any, v: Any, log_decay: Any = None, beta: Any = None, state: Any = None, **words: Any) -> Any:
        words["ones"] = words.pop("normalize")
        return recurrence.recurrence(recurrence.Inputs(q, k, v, log_decay, beta, state), options=options, **words)

    return run


@pytest.mark.parametrize("documents", [None, (0, 0, 1, 30, 30, 70)])
@pytest.mark.parametrize("rule", ["scalar", "gated-delta"])
def test_states_kept_for_the_backward_pass(rule: str, documents: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "PIECE", 1)
    case, made = Case(rule, documents=documents), []
    launched = launch.start

    def start(kernel: Any, *args: Any, **words: Any) -> None:
        made.append(kernel)
        launched(kernel, *args, **words)

    monkeypatch.setattr(launch, "start", start)
    held(case, torch.float32, run=with_options(keep=True))
    kept = len(made)
    held(case, torch.float32, run=with_options(keep=False))
    again = [kernel for kernel in made[kept:] if kernel in (states_kernel, prepare_kernel)]
    assert len(made) - 2 * kept == len(again) // 2 > 0  # what makes states is launched once less


class Late(OneLane):
    """Walks as late as the card may run them: not before somebody meets them."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None] | None] = []

    def __exit__(self, *failure: object) -> None:
        self.meet(len(self.steps))

    def walk(self, step: Callable[[], None]) -> Any:
        self.steps.append(step)
        return len(self.steps)

    def meet(self, mark: Any) -> None:
        for n, step in enumerate(self.steps[:mark]):
            self.steps[n] = None
            if step is not None:
                step()


def one_row_in_pieces(case: Case, **options: Any) -> dict[str, torch.Tensor]:
    """In chunks of 16, so that a short row has several."""
    run = with_options(**options)
    with nan_in_fresh_memory():
        return outcome(case, case.draw(torch.float32), lambda **words: run(**words, chunk=16), False)


@pytest.mark.parametrize(
    ("case", "keep"),
    [
        (Case("gated-delta", length=70), True),
        (Case("gated-delta", length=40, start=False), False),
        (Case("delta", length=48, heads=(4, 2), dims=(16, 40)), False),
        (Case("gated-delta", length=49, dims=(72, 16), batch=2), True),
    ],
    ids=["ragged", "made again", "shared keys", "two rows"],
)
def test_pieces_that_follow_each_other_change_no_bit(case: Case, keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    walks, launched = [], launch.start

    def start(kernel: Any, *args: Any, **words: Any) -> None:
        walks.append(kernel) if kernel in (states_kernel, state_gradients_kernel) else None
        launched(kernel, *args, **words)

    monkeypatch.setattr(launch, "start", start)
    whole = one_row_in_pieces(case, pieces=1, keep=keep)
    for lanes, pieces in ((OneLane, 3), (Late, 2), (Late, 99)):
        monkeypatch.setattr(passes, "lanes_of", lambda parts, lanes=lanes: lanes())
        walks.clear()
        found = one_row_in_pieces(case, pieces=pieces, keep=keep)
        assert len(walks) == (2 if keep else 3) * min(pieces, -(-case.length // 16))
        different = [name for name, x in whole.items() if not torch.equal(x, found[name])]
        assert not different, (lanes, pieces)


def test_a_backward_pass_cuts_rows_as_the_forward_pass_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may be captured in a graph while the other is not."""
    case = Case("gated-delta", length=70)
    whole, counts = one_row_in_pieces(case, pieces=1, keep=True), iter((2, 1))
    monkeypatch.setattr(call, "pieces_of", lambda plan: next(counts))
    found = one_row_in_pieces(case, keep=True)
    assert not [name for name, x in whole.items() if not torch.equal(x, found[name])]


def test_packed_rows_and_other_rules_are_not_cut_into_pieces_that_follow_each_other() -> None:
    for case in (Case("gated-delta", documents=(0, 0, 1, 30, 30, 70)), Case("scalar"), Case("vector")):
        whole, found = (one_row_in_pieces(case, pieces=pieces) for pieces in (1, 3))
        assert all(torch.equal(x, found[name]) for name, x in whole.items())


@pytest.mark.parametrize("dims", [(20, 24), (1, 1), (16, 40)])
def test_tiles_as_narrow_as_the_heads(dims: tuple[int, int]) -> None:
    held(Case("gated-delta", dims=dims, length=40), torch.float32, run=with_options(padded=False))


def test_kept_states_change_no_number() -> None:
    drawn, found = Case("gated-delta", length=40).draw(torch.float32), []
    for keep in (None, True, False):
        leaves = {n: x.clone().requires_grad_() for n, x in drawn.items()}
        y, final = linear_recurrence(**leaves, keep=keep, impl="triton")
        found.append([y, final, *torch.autograd.grad(y.square().sum() + final.sum(), list(leaves.values()))])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("documents", [None, (0, 0, 1, 30, 30, 70)])
def test_decays_added_up_in_the_walk(documents: Any, keep: bool) -> None:
    held(Case("gated-delta", documents=documents), torch.float32, run=with_options(factors=False, keep=keep))


def test_other_tiles_of_the_states_and_of_their_gradients() -> None:
    tiles = {"states": configurations.Tiles(256, 32, 8, 1), "state_gradients": configurations.Tiles(256, 16, 4, 1)}
    held(Case("gated-delta", dims=(20, 40), length=70), torch.float32, run=with_options(**tiles))


@pytest.mark.parametrize("documents", [None, (0, 0, 1, 30, 30, 70)])
@pytest.mark.parametrize(("rule", "walk"), [("delta", 0), ("gated-delta", 1)])
def test_tiles_that_a_card_ran_faster(rule: str, walk: int, documents: Any) -> None:
    """They are for bfloat16, which the interpreter does not have."""
    tiles = configurations.WIDE_HEADS | {"states": configurations.WALKS[128][walk]}
    held(Case(rule, dims=(128, 72), documents=documents), torch.float32, run=with_options(**tiles))


@pytest.mark.parametrize("keys", [16, 32, 64])
def test_gradients_of_the_systems_with_all_keys_at_once_and_tile_by_tile(keys: int) -> None:
    tiles = {"prepare_gradients": configurations.Tiles(keys, 16, 4, 1)}
    held(Case("gated-delta", dims=(40, 24), heads=(4, 2)), torch.float32, run=with_options(**tiles))


@pytest.mark.parametrize("dims", [(20, 16), (16, 24)])
def test_a_column_of_ones_beside_heads_of_the_delta_rule_that_are_no_multiples_of_16(dims: tuple[int, int]) -> None:
    """Refused on a card; here the zeros that fill up such heads must not come between values and ones."""
    drawn = Case("delta", length=20, dims=dims, normalize=True).draw(torch.float32)
    drawn = {name: x.abs() for name, x in drawn.items()}  # reads and what divides them are far from zero
    exact = linear_recurrence(**{n: x.double() for n, x in drawn.items()}, normalize=True, impl="reference")
    for found, wanted in zip(linear_recurrence(**drawn, normalize=True, impl="triton"), exact, strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", ["linear", "vector", "gated-delta"])
def test_half_precision(rule: str) -> None:
    held(Case(rule, length=70), torch.float16)


@pytest.mark.parametrize("rule", [*RULES, "taylor"])
def test_decoding_token_by_token_continues_a_prefill(rule: str) -> None:
    taylor = {"feature_map": "taylor", "normalize": True, "dims": (5, 16)}
    case = Case("linear", length=41, **taylor) if rule == "taylor" else Case(rule, length=41, heads=(4, 2))
    drawn, words = case.draw(torch.float32), {**case.words, "impl": "triton"}
    with torch.no_grad():
        whole, last = linear_recurrence(**{n: x.double() for n, x in drawn.items()}, **(words | {"impl": "reference"}))
        state, parts = drawn.pop("state"), []
        for a, b in ((0, 33), (33, 34), (34, 41)):
            part, state = linear_recurrence(**{n: x[:, a:b] for n, x in drawn.items()}, state=state, **words)
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, last.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("words", [{"feature_map": "taylor", "normalize": True}, {"feature_map": "relu"}])
def test_sums_of_a_prefix(words: dict[str, Any]) -> None:
    gen = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 70, 2, 5, generator=gen), torch.randn(2, 70, 2, 16, generator=gen)
    ones = words.get("normalize", False)
    found = recurrence.summed(k, v, feature_map=words["feature_map"], ones=ones)
    torch.testing.assert_close(found, prefix_state(k, v, **({"normalize": False} | words)), rtol=1e-4, atol=1e-4)


def test_no_token_leaves_the_state() -> None:
    for grad in (False, True):
        x = torch.zeros(2, 0, 1, 4)
        start = torch.randn(2, 1, 4, 4, requires_grad=grad)
        y, final = linear_recurrence(x, x, x, state=start, impl="triton")
        assert y.shape == (2, 0, 1, 4)
        assert torch.equal(final, start)
        if grad:
            assert torch.equal(torch.autograd.grad(final.sum(), start)[0], torch.ones_like(start))


def test_gradients_of_what_is_used_alone() -> None:
    drawn = Case("gated-delta", length=40).draw(torch.float32)
    for which in ("y", "final"):
        found = []
        for impl in ("triton", "reference"):
            leaves = {n: x.clone().requires_grad_() for n, x in drawn.items()}
            y, final = linear_recurrence(**leaves, impl=impl)
            loss = y.square().sum() if which == "y" else final.square().sum()
            found.append(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-4, atol=1e-4)


def test_what_the_kernels_refuse() -> None:
    x, wide = torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 2, 300)
    gate, rate = torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 2)
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("q has head dim 300", (wide, wide, x), {}),
        ("v has head dim 300", (x, x, wide), {}),
        ("q is torch.float64", (x.double(),) * 3, {}),
        ("chunk is 5", (x, x, x), {"chunk": 5}),
        ("log_decay is a gate per channel", (x, x, x), {"log_decay": gate, "beta": rate}),
        ("feature_map is taylor", (x, x, x), {"feature_map": "taylor", "beta": rate}),
    ]
    for told, args, words in cases:
        with pytest.raises(ValueError, match=f"^{told}"):
            linear_recurrence(*args, impl="triton", **words)
        linear_recurrence(*args, **words)
    with pytest.raises(ValueError, match=r"torch\.func"):
        torch.func.vmap(lambda y: linear_recurrence(y, y, y, impl="triton", check_values=False)[0])(x[None])
