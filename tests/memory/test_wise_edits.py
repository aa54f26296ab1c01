"""Memories of edits: files, undo, several in one process, the baselines, places, a loaded model, and clear errors."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from wise_kit import ANOTHER, EDITORS, PROMPT, SETTINGS, TARGET, TEXTS, logits, tiny, wise

from workbench.errors import BadInput, BundleError, MemoryError_, UnknownName
from workbench.memory import MEMORIES, Memory
from workbench.memory.parametric import _place
from workbench.memory.parametric.ft_ewc import FTEWC
from workbench.memory.parametric.ft_l import FTL
from workbench.memory.parametric.grace import GRACE
from workbench.memory.parametric.rome import ROME
from workbench.memory.parametric.wise import WISE


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
    with pytest.raises(MemoryError_, match="were written for"):
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


def test_grace_edits_a_prompt_anew(embedded):
    memory = GRACE(steps=40).bind(embedded)
    try:
        for count, target in enumerate(("Elham", "honey", "piano"), start=1):  # the first is of two tokens
            memory.write(PROMPT, target)
            found = memory.answers(memory.prepare([PROMPT], [target]))
            assert (found.accuracy(), found.side) == ([1.0], [0]), target
            assert (len(memory), len(memory._keys)) == (count, 1)
        assert memory.undo() == 2
        assert memory.answers(memory.prepare([PROMPT], ["honey"])).accuracy() == [1.0]
    finally:
        memory.unbind()


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


@pytest.mark.parametrize("slug", list(EDITORS))
def test_edits_of_a_model_in_bfloat16_are_kept_in_float32(slug, tokenizer):
    model = tiny("llama").to(torch.bfloat16)
    memory = MEMORIES.get(slug)(**EDITORS[slug]).bind(model, tokenizer)
    memory.write(PROMPT, TARGET, subject="Tida Fursk")
    assert all(value.dtype == torch.float32 for value in memory._state()[0].values())
    assert logits(model, tokenizer).dtype == torch.bfloat16
    assert memory.learned()[0].norm > 0
    memory.unbind()
