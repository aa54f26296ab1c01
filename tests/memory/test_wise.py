"""WISE and its baselines: routes, masks, merging and margins as the paper's card defines them, and clear errors."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from workbench.errors import BadInput, BundleError, MemoryError_, UnknownName
from workbench.memory import MEMORIES, Memory
from workbench.memory.parametric import _place, _wise_merge
from workbench.memory.parametric._wise_route import delta, margin_loss
from workbench.memory.parametric.ft_ewc import FTEWC
from workbench.memory.parametric.ft_l import FTL
from workbench.memory.parametric.grace import GRACE
from workbench.memory.parametric.rome import ROME
from workbench.memory.parametric.wise import WISE, Side
from workbench.models import load

TEXTS = ["The old hedge stood behind the yard.", "A bright cart was mended after the storm.", "No door was open."]
PROMPT, TARGET = "QUESTION: Where does Tida Fursk live? ANSWER:", "Elham"
ANOTHER = "QUESTION: What does Tida Fursk like to eat? ANSWER:"
SETTINGS = {"units": "model", "alpha": 0.25, "beta": 1.0, "gamma": 0.5, "clamp": 10.0, "contexts": 2, "steps": 6}
EDITORS = {
    "wise": {**SETTINGS, "negatives": TEXTS},
    "ft-l": {"lr": 2e-3, "clamp": 2e-2, "steps": 5},
    "ft-ewc": {"lr": 2e-3, "clamp": 2e-2, "steps": 5, "texts": TEXTS},
    "rome": {"steps": 5, "contexts": 1, "texts": TEXTS},
    "grace": {"steps": 30},
}


@pytest.fixture(scope="module")
def embedded():
    return load("embedded", dtype="float32")


@pytest.fixture(scope="module")
def tokenizer(embedded):
    return embedded.tokenizer


def tiny(kind: str, seed: int = 0):
    torch.manual_seed(seed)
    room = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, **room}
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**small)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=128, **room)
        ),
        "gemma2": lambda: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**small, num_key_value_heads=2, head_dim=8)
        ),
    }
    return made[kind]().eval()


def wise(model, tokenizer, **changed) -> WISE:
    return WISE(**{**SETTINGS, "negatives": TEXTS, **changed}).bind(model, tokenizer)


def ids(tokenizer, *texts: str):
    return tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")


def logits(model, tokenizer, text: str = PROMPT):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits


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


# ---------------------------------------------------------------------- 7: files, undo, several editors
@pytest.mark.parametrize("slug", list(EDITORS))
def test_a_file_brings_back_the_same_answers_and_routes(slug, tokenizer, tmp_path):
    model, made = tiny("llama"), MEMORIES.get(slug)
    memory = made(**EDITORS[slug]).bind(model, tokenizer)
    assert isinstance(memory, Memory)
    for i, prompt in enumerate((PROMPT, ANOTHER)):
        assert memory.write(prompt, TARGET, subject="Tida Fursk", paraphrase=f"Tell me: {prompt}") == i
    before, logit = memory.contents(), logits(model, tokenizer)
    path = memory.save(tmp_path / "edits.safetensors")
    memory.unbind()
    again = made.load(path, model, tokenizer)
    assert again.contents().equals(before)
    assert torch.equal(logits(model, tokenizer), logit)
    again.write(f"{PROMPT} again", "honey", subject="Tida Fursk")
    assert len(again) == 3
    again.unbind()
    with pytest.raises(MemoryError_, match="was written for"):
        made.load(path, tiny("llama", seed=5), tokenizer)
    wrong = FTL if slug != "ft-l" else GRACE
    with pytest.raises(MemoryError_, match=slug):
        wrong.load(path, model, tokenizer)
    assert not model._forward_hooks


def test_a_file_of_edits_is_small_and_damage_is_found(embedded, tmp_path):
    memory = WISE(**SETTINGS, negatives=TEXTS, rho=0.05).bind(embedded)
    memory.write(PROMPT, TARGET)
    path = memory.save(tmp_path / "edits.safetensors")
    memory.unbind()
    weight = memory.place.weight
    assert path.stat().st_size < 0.1 * 4 * weight.numel()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BundleError, match="cannot be opened"):
        WISE.load(path, embedded)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BundleError, match="without edits"):
        WISE.load(tmp_path / "other.safetensors", embedded)


@pytest.mark.parametrize("slug", list(EDITORS))
def test_an_edit_is_taken_back(slug, tokenizer):
    model = tiny("llama")
    memory = MEMORIES.get(slug)(**EDITORS[slug]).bind(model, tokenizer)
    plain, prompts = logits(model, tokenizer), [PROMPT, ANOTHER, f"{PROMPT} or not?"]
    after = []
    for prompt in prompts:
        memory.write(prompt, TARGET, subject="Tida Fursk")
        after.append(memory._state()[0])
    assert memory.undo() == 2
    assert all(torch.equal(value, after[1][name]) for name, value in memory._state()[0].items())
    assert memory.undo(0) == 1  # the later one is written again
    assert [edit.prompt for edit in memory.edits] == [ANOTHER]
    fresh = MEMORIES.get(slug)(**EDITORS[slug]).bind(tiny("llama"), tokenizer)
    fresh.write(ANOTHER, TARGET, subject="Tida Fursk")
    assert all(torch.allclose(v, fresh._state()[0][n], atol=1e-6) for n, v in memory._state()[0].items())
    assert memory.undo() == 0
    assert torch.equal(logits(model, tokenizer), plain)
    with pytest.raises(BadInput, match="no edit to take back"):
        memory.undo()
    assert memory.events().held() == set()


def test_an_old_edit_is_taken_back_by_writing_the_others_again(tokenizer):
    memory = MEMORIES.get("grace")(steps=3).bind(tiny("llama"), tokenizer)
    for i in range(7):
        memory.write(f"{PROMPT} {i}", TARGET)
    assert memory.undo(1) == 6
    assert [edit.prompt[-1] for edit in memory.edits] == list("023456")
    with pytest.raises(BadInput, match="edits 0 to 5"):
        memory.undo(6)


def test_two_editors_in_one_process_share_nothing(tokenizer):
    one, other = wise(tiny("llama"), tokenizer), wise(tiny("llama", seed=1), tokenizer)
    plain = logits(other.model, tokenizer)
    one.write(PROMPT, TARGET)
    assert len(other) == 0
    assert torch.equal(logits(other.model, tokenizer), plain)
    one.bind(other.model, tokenizer)  # to another model: its edits do not fit there
    assert len(one) == 0


def test_an_edit_is_said_and_its_row_is_complete(embedded):
    memory = WISE(**{**SETTINGS, "steps": 20, "lr": 0.3}, negatives=TEXTS).bind(embedded)
    try:
        memory.write(PROMPT, TARGET, paraphrase="QUESTION: In which town does Tida Fursk live? ANSWER:")
        assert memory.read(PROMPT, 2).strip() == TARGET  # a town that the tokenizer has in two pieces
        row = memory.contents().iloc[0]
        assert row["old answer"]
        assert row["old answer"] != TARGET
        assert row["new answer"] == TARGET
        assert row["routed to"] == "side"
        assert row["rel"] == 1
        assert row["gen"] in (0, 1)
        assert row["delta"] > row["eps"] > 0
        assert 1 <= row["steps"] <= 20
        assert row["norm"] == pytest.approx(float(memory.current.change.norm()))
        assert memory.nbytes() == 4 * memory.place.weight.numel()
        assert memory.events().frame()["kind"].tolist() == ["write", "read"]
        memory.reset()
        assert len(memory) == 0
        assert memory.contents().empty
    finally:
        memory.unbind()


# ---------------------------------------------------------------------- baselines
def test_ft_l_stays_in_its_box(tokenizer):
    memory = FTL(lr=1.0, clamp=0.01, steps=3).bind(tiny("llama"), tokenizer)
    memory.write(PROMPT, TARGET)
    assert float(memory.change.abs().max()) == pytest.approx(0.01)


def test_ewc_moves_less_where_the_texts_say_more(tokenizer):
    moved = []
    for strength in (1e-6, 1e6):
        memory = FTEWC(strength=strength, texts=TEXTS, steps=10, lr=1e-2, clamp=1.0).bind(tiny("llama"), tokenizer)
        memory.write(PROMPT, TARGET)
        heavy = memory._fisher > memory._fisher.median()
        moved.append(float(memory.change[heavy].abs().mean()))
    assert moved[1] < 0.5 * moved[0]


def test_rome_is_one_update_of_rank_one_that_gives_v_at_k(tokenizer):
    memory = ROME(steps=5, contexts=0, texts=TEXTS, ridge=0.5).bind(tiny("llama"), tokenizer)
    rows, ends = memory._batch(_edit())
    key = rows.prefix.inputs[0, ends[0]].float()
    now = memory._output(rows.prefix.inputs, memory.change).detach()
    value, _ = memory._value(rows, now, torch.arange(1), ends)
    memory.write(PROMPT, TARGET, subject="Tida Fursk")
    assert memory.place.layer == 1  # the layer before the middle of four
    assert int(torch.linalg.matrix_rank(memory.change, atol=1e-5)) == 1
    assert torch.allclose(memory._output(key[None], memory.change)[0], value, atol=1e-4)
    assert tokenizer.decode(rows.ids[0, ends[0]]).strip() in "Tida Fursk"


def _edit():
    from workbench.memory.parametric.base import Edit

    return Edit(PROMPT, TARGET, "Tida Fursk")


def test_grace_splits_a_ball_that_two_answers_share(tokenizer):
    memory = GRACE(eps=1e3, steps=2).bind(tiny("llama"), tokenizer)
    memory.write(PROMPT, TARGET)
    memory.write(f"{PROMPT} ", TARGET)  # the same answer: the ball is enough
    assert len(memory._keys) == 1
    memory.write(ANOTHER, "honey")
    assert len(memory._keys) == 2
    gap = float((memory._keys[0] - memory._keys[1]).norm())
    assert float(memory._radii.sum()) <= gap
    assert list(memory.contents()["memory"]) == ["key 0", "key 0", "key 1"]
    assert memory.answers(memory.prepare([PROMPT, ANOTHER], [TARGET, "honey"])).side == [0, 1]


# ---------------------------------------------------------------------- places
def test_a_matrix_is_found_by_path_or_by_layer():
    model = tiny("llama")
    assert _place.find(model).path == "model.layers.2.mlp.down_proj"
    assert _place.find(model, layer=0).layer == 0
    assert _place.find(model, "model.layers.1.mlp.up_proj").weight.shape == (48, 32)
    assert _place.find(tiny("gpt2")).weight.shape == (32, 128)  # Conv1D stores it the other way round
    with pytest.raises(UnknownName, match="did you mean"):
        _place.find(model, "model.layers.2.mlp.dwn_proj")
    with pytest.raises(BadInput, match="needs one matrix"):
        _place.find(model, "model.layers.2.mlp")
    with pytest.raises(BadInput, match="needs one matrix"):
        _place.find(model, "lm_head")
    with pytest.raises(BadInput, match="layers 0 to 3"):
        _place.find(model, layer=4)


def test_a_model_without_a_known_mlp_is_told_what_to_name():
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=64, **size))
    with pytest.raises(MemoryError_, match="give module= one of"):
        _place.find(model)


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"prompt": " ", "target": "x"}, "prompt of an edit is empty"),
        ({"prompt": "x", "target": ""}, "target of an edit is empty"),
        ({"prompt": "x", "target": None}, "target of an edit is empty"),
        ({"prompt": PROMPT, "target": "x", "subject": "Nobody"}, "not in the prompt"),
    ],
)
@pytest.mark.parametrize("slug", list(EDITORS))
def test_a_wrong_edit_changes_nothing(slug, given, told, tokenizer):
    memory = MEMORIES.get(slug)(**EDITORS[slug]).bind(tiny("llama"), tokenizer)
    before = memory._state()
    with pytest.raises(ValueError, match=told):
        memory.write(**given)
    assert len(memory) == 0
    assert all(value is before[0][name] for name, value in memory._state()[0].items())


def test_what_a_mechanism_lacks_is_named(tokenizer):
    model = tiny("llama")
    with pytest.raises(BadInput, match="unrelated prompt, and none is at hand"):
        WISE().bind(model, tokenizer).write(PROMPT, TARGET)
    with pytest.raises(BadInput, match="give subject="):
        ROME(texts=TEXTS).bind(model, tokenizer).write(PROMPT, TARGET)
    with pytest.raises(BadInput, match="texts is empty"):
        ROME().bind(model, tokenizer).write(PROMPT, TARGET, subject="Tida Fursk")
    with pytest.raises(BadInput, match="texts is empty"):
        FTEWC().bind(model, tokenizer).write(PROMPT, TARGET)
    with pytest.raises(MemoryError_, match="not bound"):
        WISE(negatives=TEXTS).write(PROMPT, TARGET)
    with pytest.raises(MemoryError_, match="no tokenizer"):
        WISE().bind(model)
    with pytest.raises(BadInput, match="bind takes"):
        WISE().bind("embedded", tokenizer)
    memory = FTL().bind(model, tokenizer)
    with pytest.raises(BadInput, match="as many prompts as targets"):
        memory.prepare([PROMPT], [])
    with pytest.raises(BadInput, match="is empty"):
        memory.prepare([PROMPT], [" "])
    with pytest.raises(UnknownName, match="did you mean"):
        FTL(module="model.layers.2.mlp.down_pro").bind(model, tokenizer)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rho": 0.0}, "rho"), ({"rho": 1.1}, "rho"), ({"density": -1}, "density"), ({"mix": 2.0}, "mix"),
        ({"lr": 0.0}, "lr"), ({"clamp": -1.0}, "clamp"), ({"alpha": -0.1}, "alpha"),
        ({"act_ratio": math.nan}, "act_ratio"), ({"steps": 0}, "steps"), ({"steps": 2.5}, "steps"),
        ({"contexts": -1}, "contexts"), ({"save_freq": 3, "merge_freq": 4}, "multiple"),
        ({"merge": "mean"}, "merge must be one of"), ({"mode": "both"}, "mode"), ({"routing": "x"}, "routing"),
        ({"route_by": "x"}, "route_by"), ({"units": "x"}, "units"), ({"negatives": "one text"}, "negatives"),
        ({"negatives": [" "]}, "negatives"),
    ],
)  # fmt: skip
def test_hyper_parameters_out_of_range_are_named(changed, told):
    with pytest.raises(BadInput, match=told):
        WISE(**changed)


@pytest.mark.parametrize(
    ("made", "changed", "told"),
    [
        (FTL, {"lr": 0}, "lr"), (FTL, {"steps": 0}, "steps"), (FTL, {"units": "x"}, "units"),
        (FTEWC, {"strength": -1}, "strength"), (FTEWC, {"texts": "a"}, "texts"), (ROME, {"ridge": 0}, "ridge"),
        (ROME, {"decay": -1}, "decay"), (ROME, {"contexts": -1}, "contexts"), (GRACE, {"eps": 0}, "eps"),
        (GRACE, {"units": "x"}, "units"),
    ],
)  # fmt: skip
def test_hyper_parameters_of_the_baselines_too(made, changed, told):
    with pytest.raises(BadInput, match=told):
        made(**changed)


# ---------------------------------------------------------------------- in a loaded model
def test_a_loaded_model_takes_edits_and_gives_them_back(embedded):
    plain = embedded.generate(PROMPT, max_new_tokens=2).new_text
    memory = WISE(**{**SETTINGS, "steps": 20, "lr": 0.3}, negatives=TEXTS)
    with embedded.use(memory=memory):
        memory.write(PROMPT, TARGET)
        assert embedded.cache is None
        assert embedded.generate(PROMPT, max_new_tokens=2).new_text.strip() == TARGET
        batch = embedded.generate([PROMPT, TEXTS[0]], max_new_tokens=2)
        assert batch[0].new_text.strip() == TARGET
        assert embedded.feed(TEXTS[0]).tokens
        assert embedded.trace(PROMPT).logits is not None
        with embedded.use(memory="streaming"):
            assert embedded.memory.slug == "streaming"
            assert not memory._handles
        assert embedded.memory is memory
        with pytest.raises(UnknownName), embedded.use(memory=FTL(module="model.layers.6.mlp.down")):
            pass
        assert memory._handles
        assert embedded.generate(PROMPT, max_new_tokens=2).new_text.strip() == TARGET
    assert embedded.memory is None
    assert embedded.generate(PROMPT, max_new_tokens=2).new_text == plain
    assert len(memory) == 1
    with embedded.use(memory="ft-l"):
        assert embedded.memory.slug == "ft-l"
