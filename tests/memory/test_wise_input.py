"""Memories of edits: what is wrong is said at the door, whichever door, and nothing changes."""

from __future__ import annotations

import math

import pytest
import torch
from wise_kit import EDITORS, PROMPT, TARGET, TEXTS, tiny, wise

from workbench.errors import BadInput, BundleError, MemoryError_
from workbench.memory import MEMORIES
from workbench.memory.parametric import _file
from workbench.memory.parametric.ft_ewc import FTEWC
from workbench.memory.parametric.ft_l import FTL
from workbench.memory.parametric.grace import GRACE
from workbench.memory.parametric.rome import ROME
from workbench.memory.parametric.wise import WISE


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.mark.parametrize(
    ("made", "changed", "told"),
    [
        (WISE, {"rho": None}, "rho must be a number"), (WISE, {"lr": "0.3"}, "lr must be a number"),
        (WISE, {"lr": math.inf}, "lr must be finite"), (WISE, {"alpha": math.inf}, "alpha must be finite"),
        (WISE, {"mix": "half"}, "mix must be a number"), (WISE, {"seed": 1.5}, "seed must be a whole number"),
        (WISE, {"negatives": None}, "negatives is a list"), (WISE, {"layer": "last"}, "layer must be a whole number"),
        (FTL, {"layer": 1.5}, "layer must be a whole number"), (FTL, {"lr": math.inf}, "lr must be finite"),
        (FTL, {"module": 3}, "module is the path"), (ROME, {"layer": "last"}, "layer must be a whole number"),
        (ROME, {"decay": math.inf}, "decay must be finite"), (ROME, {"seed": "a"}, "seed must be a whole number"),
        (ROME, {"texts": 5}, "texts is a list"), (FTEWC, {"texts": None}, "texts is a list"),
        (GRACE, {"lr": "fast"}, "lr must be a number"),
    ],
)  # fmt: skip
def test_a_hyper_parameter_of_another_kind_is_named(made, changed, told, model, tokenizer):
    with pytest.raises(BadInput, match=told):
        made(**changed).bind(model, tokenizer)
    assert not model._forward_hooks


def test_no_bound_is_a_bound_that_may_be_left_out(model, tokenizer):
    memory = FTL(clamp=math.inf, steps=1).bind(model, tokenizer)
    memory.write(PROMPT, TARGET)
    assert bool(memory.change.isfinite().all())
    memory.unbind()


@pytest.mark.parametrize("slug", list(EDITORS))
def test_parts_of_an_edit_that_are_no_texts_are_refused(slug, model, tokenizer):
    """A paraphrase of None was written, and the table of the edits could not be shown any more."""
    memory = MEMORIES.get(slug)(**EDITORS[slug]).bind(model, tokenizer)
    for part, value in (("paraphrase", None), ("negative", None), ("subject", 3), ("subject", " ")):
        with pytest.raises(BadInput, match=f"the {part}"):
            memory.write(PROMPT, TARGET, **{"subject": "Tida Fursk", part: value})
    assert (len(memory), memory.contents().empty) == (0, True)
    memory.unbind()


def test_an_edit_that_ends_in_no_numbers_is_taken_back(model, tokenizer):
    memory = wise(model, tokenizer, lr=1e38, clamp=math.inf)
    try:
        with pytest.raises(BadInput, match="take a smaller lr"):
            memory.write(PROMPT, TARGET)
        assert (len(memory), float(memory.current.change.abs().max())) == (0, 0.0)
    finally:
        memory.unbind()


def test_an_edit_that_cannot_be_taken_back_stays(model, tokenizer):
    """The later edits are written again, and one of them may fail."""
    memory = wise(model, tokenizer, steps=1, contexts=0)
    for i in range(3):
        memory.write(f"{PROMPT} {i}", TARGET)
    before, events = memory._state()[0], len(memory.events())
    memory.negatives = []
    with pytest.raises(BadInput, match="unrelated prompt"):
        memory.undo(0)
    assert (len(memory), len(memory.events())) == (3, events)
    assert all(torch.equal(value, before[name]) for name, value in memory._state()[0].items())
    memory.negatives = TEXTS
    assert memory.undo(0) == 2
    memory.unbind()


@pytest.mark.parametrize(
    "call",
    [
        lambda memory: memory.nbytes(), lambda memory: memory.reset(), lambda memory: memory.save("edits"),
        lambda memory: memory.read(PROMPT), lambda memory: memory.prepare([PROMPT], [TARGET]),
        lambda memory: memory.eps(), lambda memory: memory.mask(), lambda memory: memory.merge_now(),
    ],
)  # fmt: skip
def test_a_memory_that_is_not_bound_says_so(call):
    with pytest.raises(MemoryError_, match="wise is not bound"):
        call(WISE(negatives=TEXTS))
    for memory in (FTL(), ROME(texts=TEXTS)):
        with pytest.raises(MemoryError_, match="is not bound"):
            _ = memory.change if isinstance(memory, FTL) else memory.inverse()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda memory: memory.read(""), "prompt is empty"), (lambda memory: memory.read(None), "prompt is empty"),
        (lambda memory: memory.read(PROMPT, 0), "new_tokens"), (lambda memory: memory.read(PROMPT, 1.5), "new_tokens"),
        (lambda memory: memory.undo("first"), "number of an edit"), (lambda memory: memory.undo(0.5), "number of an"),
        (lambda memory: memory.prepare([None], ["x"]), "no text"), (lambda memory: memory.prepare("ab", "cd"), "lists"),
        (lambda memory: memory.forced(1).__enter__(), "from 0 to 0"),
        (lambda memory: memory.forced(-2).__enter__(), "from 0 to 0"),
        (lambda memory: memory.forced("side").__enter__(), "from 0 to 0"),
    ],
)  # fmt: skip
def test_wrong_questions_are_refused(call, told, model, tokenizer):
    memory = wise(model, tokenizer, steps=1, contexts=0)
    memory.write(PROMPT, TARGET)
    with pytest.raises(BadInput, match=told):
        call(memory)
    assert (len(memory), memory._forced) == (1, None)
    memory.unbind()


def test_a_prompt_longer_than_the_model_reads_is_refused(tokenizer):
    memory = FTL(steps=1).bind(tiny("gpt2"), tokenizer)
    with pytest.raises(BadInput, match="the model reads 128"):
        memory.write("word " * 128, TARGET)
    memory.unbind()


def test_a_text_of_one_token_foretells_nothing(model):
    class Words:
        """A tokenizer that puts no token before a text."""

        eos_token_id = 1

        def __call__(self, text, **_):
            return {"input_ids": [5 + len(word) for word in text.split()]}

        def decode(self, ids):
            return " ".join(map(str, ids))

    memory = FTEWC(texts=["word"], steps=1).bind(model, Words())
    with pytest.raises(BadInput, match="'word' is a single token"):
        memory.write("some prompt", "x")
    assert len(memory) == 0
    memory.unbind()


@pytest.mark.parametrize("slug", ["wise", "grace"])
def test_a_file_with_tensors_of_another_size_is_damaged(slug, model, tokenizer, tmp_path):
    made = MEMORIES.get(slug)
    memory = made(**EDITORS[slug]).bind(model, tokenizer)
    memory.write(PROMPT, TARGET)
    tensors, head = memory._whole()
    memory.unbind()
    name = list(tensors)[-1]
    value, edit = tensors[name], head["edits"][0]
    wrong = {
        "needs": ({**tensors, name: value[..., None]}, head),
        "float16": ({**tensors, name: value.half()}, head),
        "no numbers": ({**tensors, name: torch.full_like(value, math.nan)}, head),
        "is missing": ({key: kept for key, kept in tensors.items() if key != name}, head),
        "made of texts": (tensors, {**head, "edits": [{**edit, "prompt": 5}]}),
    }
    for told, broken in wrong.items():
        with pytest.raises(BundleError, match=told):
            made.load(_file.write(tmp_path / "edits.safetensors", *broken), model, tokenizer)
        assert not model._forward_hooks
