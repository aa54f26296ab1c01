"""WISE: routes, masks, merging and margins as the paper's card defines them."""

from __future__ import annotations

import math

import pytest
import torch
from wise_kit import ANOTHER, EDITORS, PROMPT, TARGET, TEXTS, ids, logits, tiny, wise

from workbench.errors import BadInput, UnknownName
from workbench.memory import MEMORIES
from workbench.memory.parametric import _wise_merge
from workbench.memory.parametric._wise_route import delta, margin_loss
from workbench.memory.parametric.wise import WISE, Side


# ---------------------------------------------------------------------- 1 and 2: the model, and which side answers
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_model_is_untouched_until_a_prompt_is_routed(kind, tokenizer):
    model = tiny(kind)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    plain = logits(model, tokenizer)
    memory = wise(model, tokenizer)
    assert torch.equal(logits(model, tokenizer), plain)  # no edits
    memory.write(PROMPT, TARGET)
    assert not torch.equal(logits(model, tokenizer), plain)
    memory.current = Side(memory.current.change, math.inf, memory.current.edits)  # eps = infinity
    assert torch.equal(logits(model, tokenizer), plain)
    memory.unbind()
    memory.current = Side(memory.current.change, 0.0, memory.current.edits)
    assert torch.equal(logits(model, tokenizer), plain)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_side_is_the_edited_model_and_main_is_the_base(kind, tokenizer):
    model = tiny(kind)
    plain = logits(model, tokenizer)
    memory = wise(model, tokenizer)
    memory.write(PROMPT, TARGET)
    with memory.forced(-1):
        assert torch.equal(logits(model, tokenizer), plain)
    with memory.forced(0):
        side = logits(model, tokenizer)
    change = memory.current.change
    module = memory.place.module
    memory.unbind()
    with torch.no_grad():
        module.weight += change if isinstance(module, torch.nn.Linear) else change.T
    assert torch.allclose(logits(model, tokenizer), side, atol=1e-5)
    assert (side - plain).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("slug", list(EDITORS))
def test_prepared_rows_answer_as_the_whole_model_does(kind, slug, tokenizer):
    """The frozen prefix and the hook on the live model are two ways to the same logits."""
    model = tiny(kind)
    memory = MEMORIES.get(slug)(**EDITORS[slug]).bind(model, tokenizer)
    memory.write(PROMPT, TARGET, subject="Tida Fursk")
    rows = memory.prepare([PROMPT, ANOTHER], [TARGET, "honey"])
    with torch.no_grad():
        near = rows.prefix.logits(memory.serve(rows).output)
    for i, prompt in enumerate((PROMPT, ANOTHER)):  # the route of a live pass is decided on the prompt alone
        true = logits(model, tokenizer, prompt)[0, -1]
        assert torch.allclose(near[rows.at[0] == i][0], true, atol=2e-4)
    assert memory._short == (kind != "gemma2")
    memory.unbind()


def test_rows_of_a_batch_are_routed_one_by_one(tokenizer):
    model = tiny("llama")
    memory = wise(model, tokenizer)
    memory.write(PROMPT, TARGET)
    far = memory.answers(memory.prepare([PROMPT], [TARGET])).delta[0]
    near = memory.answers(memory.prepare([TEXTS[0]], ["x"])).delta[0]
    assert near < far
    memory.current = Side(memory.current.change, (near + far) / 2 / memory.act_ratio, (0,))
    batch = ids(tokenizer, PROMPT, TEXTS[0])
    with torch.no_grad():
        both = model(**batch).logits
    memory.unbind()
    with torch.no_grad():
        plain = model(**batch).logits
    assert not torch.allclose(both[0], plain[0], atol=1e-5)
    assert torch.equal(both[1], plain[1])


@pytest.mark.parametrize("by", ["prompt", "token"])
def test_a_route_holds_for_the_whole_answer_or_is_decided_by_every_token(by, tokenizer):
    model = tiny("llama")
    memory = wise(model, tokenizer, route_by=by)
    memory.write(PROMPT, TARGET)
    seen: list[int] = []
    serve = memory._serve

    def watched(*given):
        served = serve(*given)
        seen.append(int(served.side[0]))
        return served

    memory._serve = watched
    # A threshold that the prompt passes and single tokens of the answer do not.
    memory.current = Side(memory.current.change, 1e-9, (0,))
    start = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():
        past = model(input_ids=start, use_cache=True).past_key_values
        memory.current = Side(memory.current.change, math.inf, (0,))
        model(input_ids=torch.tensor([[7]]), past_key_values=past, use_cache=True)
    assert seen == ([0, 0] if by == "prompt" else [0, -1])
    memory.unbind()


def test_both_deltas_by_hand(tokenizer):
    side, main = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    side[0, 0] = torch.tensor([3.0, 4.0])
    side[1, :] = torch.tensor([0.0, -1.0])
    span = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.allclose(delta(side, main, span), torch.tensor([2.5, 1.0]), atol=1e-5)
    assert torch.allclose(delta(side, main, span, torch.relu), torch.tensor([2.5, 0.0]), atol=1e-5)
    long = torch.zeros(1, 101, 2)
    long[0, 5] = torch.tensor([3.0, 4.0])
    assert float(delta(long, torch.zeros_like(long), torch.ones(1, 101, dtype=torch.bool))) == pytest.approx(
        5, abs=1e-4
    )
    model = tiny("gpt2")
    memory = wise(model, tokenizer, routing="activated")
    memory.write(PROMPT, TARGET)
    rows = memory.prepare([PROMPT], [TARGET])
    inputs, module = rows.prefix.inputs, memory.place.module
    with torch.no_grad():
        edited = inputs @ (module.weight + memory.current.change.T) + module.bias
        apart = model.transformer.h[2].mlp.act(edited) - model.transformer.h[2].mlp.act(rows.prefix.main)
    by_hand = apart[0, : int(rows.span.sum())].norm(dim=-1).mean()
    assert memory.answers(rows).delta[0] == pytest.approx(float(by_hand), rel=1e-3)
    memory.unbind()


# ---------------------------------------------------------------------- 3: masks and clamp
def test_only_the_masked_entries_move_and_not_beyond_the_clamp(tokenizer):
    model = tiny("llama")
    memory = wise(model, tokenizer, units="absolute", alpha=0.1, beta=5.0, gamma=2.0, clamp=0.02, lr=3.0, rho=0.2)
    memory.write(PROMPT, TARGET)
    memory.write(ANOTHER, "honey")
    change, mask = memory.current.change, memory.mask()
    assert torch.equal(change[~mask], torch.zeros_like(change[~mask]))
    assert (change[mask] != 0).float().mean() > 0.5
    assert float(change.abs().max()) == pytest.approx(0.02)


@pytest.mark.parametrize("rho", [0.05, 0.2, 0.5])
def test_masks_have_their_density_and_overlap_as_independent_draws_do(rho, embedded):
    memory = WISE(rho=rho, negatives=TEXTS, seed=3).bind(embedded)
    first, second = memory.mask(0), memory.mask(1)
    n = first.numel()
    for share, expected in ((first, rho), (second, rho), (first & second, rho**2)):
        error = math.sqrt(expected * (1 - expected) / n)
        assert abs(float(share.float().mean()) - expected) < 3 * error
    assert torch.equal(memory.mask(0), first)
    memory.unbind()


def test_shards_and_mergings_come_when_they_are_due(tokenizer):
    memory = wise(tiny("llama"), tokenizer, save_freq=2, merge_freq=4, steps=2)
    held = []
    for i in range(5):
        memory.write(f"{PROMPT} {i}", TARGET)
        held.append((len(memory.sides), len(memory.shards), len(memory.current.edits)))
    assert held == [(0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1)]
    assert list(memory.contents()["memory"]) == ["side 0"] * 4 + ["current"]
    kinds = [event.kind for event in memory.events()]
    assert kinds.count("write") == 5
    assert kinds.count("merge") == 1
    assert memory.events().held() == {0, 1, 2, 3, 4}


def test_retrieve_keeps_every_merging_with_a_threshold_of_its_own(tokenizer):
    memory = wise(tiny("llama"), tokenizer, mode="retrieve", save_freq=1, merge_freq=1, steps=4)
    for i in range(3):
        memory.write(f"{PROMPT} {i}", TARGET)
    assert len(memory.sides) == 3
    assert len({side.eps for side in memory.sides}) == 3
    deltas = torch.tensor([[9.0, 1.0, 5.0], [0.0, 0.0, 0.0], [1.0, 2.0, 9.0]])
    memory.sides = [
        Side(side.change, eps / memory.act_ratio, side.edits) for side, eps in zip(memory.sides, (10, 0.5, 4))
    ]
    assert memory.route(deltas).tolist() == [2, -1, 2]  # the largest of those above their own threshold
    one = wise(tiny("llama"), tokenizer, save_freq=1, merge_freq=1, steps=4)
    for i in range(3):
        one.write(f"{PROMPT} {i}", TARGET)
    assert len(one.sides) == 1
    assert one.sides[0].edits == (0, 1, 2)


# ---------------------------------------------------------------------- 4: merging
def test_ties_by_hand():
    first = torch.tensor([[4.0, -3.0, 0.0], [1.0, 2.0, -5.0]])
    second = torch.tensor([[2.0, 3.0, 0.0], [-2.0, 0.5, 1.0]])
    # density 1: sums are 6, 0 (counts as +), 0, -1, 2.5, -4; those that agree are averaged.
    expected = torch.tensor([[3.0, 3.0, 0.0], [-2.0, 1.25, -5.0]])
    assert torch.equal(_wise_merge.ties([first, second], [0.5, 0.5], 1.0), expected)
    # density .5 keeps 3 of 6: (4, -3, -5) of the first, (2, 3, -2) of the second.
    expected = torch.tensor([[3.0, 3.0, 0.0], [-2.0, 0.0, -5.0]])
    assert torch.equal(_wise_merge.ties([first, second], [0.5, 0.5], 0.5), expected)
    met = _wise_merge.conflicts([first, second], 0.5)
    assert (met.one, met.agree, met.differ) == (2, 1, 1)
    assert torch.equal(_wise_merge.ties([first], [1.0], 1.0), first)


def test_linear_and_slerp_by_hand():
    first, second = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert torch.equal(_wise_merge.linear([first, second], [0.5, 0.5]), torch.tensor([[1.5, 1.5]]))
    half = 3 * math.sin(math.pi / 4)
    assert torch.allclose(_wise_merge.slerp([first, second], [0.5, 0.5]), torch.tensor([[half, half]]))
    assert torch.allclose(_wise_merge.slerp([first, 2 * first], [0.5, 0.5]), 1.5 * first)
    assert torch.allclose(_wise_merge.slerp([first, 0 * first], [0.5, 0.5]), 0.5 * first)
    with pytest.raises(UnknownName, match="ties"):
        _wise_merge.merged("tie", [first], 1.0)
    with pytest.raises(BadInput, match="no shard"):
        _wise_merge.merged("ties", [], 1.0)


# ---------------------------------------------------------------------- 5: margins
@pytest.mark.parametrize(
    ("edit", "other", "expected"),
    [
        (25.0, 3.0, 0.0),  # inside all three margins
        (12.0, 9.0, (9 - 5) + (20 - 12) + (10 - 3)),  # outside all three
        (22.0, 7.0, 7 - 5),  # far enough and apart, but the unrelated prompt is not near
    ],
)
def test_the_margin_loss_by_hand(edit, other, expected):
    assert float(margin_loss(torch.tensor([edit]), torch.tensor([other]), 5.0, 20.0, 10.0)) == pytest.approx(expected)


def test_the_margin_loss_averages_over_prompts():
    loss = margin_loss(torch.tensor([25.0, 12.0]), torch.tensor([9.0]), 5.0, 20.0, 10.0)
    assert float(loss) == pytest.approx(4 + (0 + 8) / 2 + (0 + 7) / 2)
