"""Memories of items swap into a model as token caches do: feed writes, generate reads, and all of it can be told."""

from __future__ import annotations

import pytest
import torch

from workbench.errors import BadInput, MemoryError_, ModelError
from workbench.memory.base import MEMORIES
from workbench.memory.stores.base import StoreMemory
from workbench.memory.stores.flat import Flat
from workbench.models import load
from workbench.models.bundle import load_bundle, model_state, put_state, save_bundle
from workbench.models.pasting import paste, question_of

NOTES = "The key of Ada lies under the mat.\n\n  \nThe lamp of Ben stands on the desk.\n"
STORES = ["flat", "a-mem", "memorybank", "hipporag"]


def flat(**settings) -> Flat:
    return Flat(encoder="tfidf", **settings)


@pytest.fixture(scope="module")
def embedded():
    return load("embedded")


# -- writing and reading ----------------------------------------------------------------------------------------------


def test_feed_writes_each_line_that_says_something(llama):
    with llama.use(memory=flat()):
        seen = []
        fed = llama.feed(NOTES, on_round=seen.append)
        assert fed.texts == ("The key of Ada lies under the mat.", "The lamp of Ben stands on the desk.")
        assert fed.items == (1, 2)
        assert [one.items for one in seen] == [(1,), (2,)]
        assert (fed.ids, fed.tokens, fed.surprise.numel()) == ([], [], 0)
        assert [item.text for item in llama.memory.store] == list(fed.texts)
        rounds = llama.feed(["a round of\ntwo lines", " "])
        assert rounds.texts == ("a round of\ntwo lines",)


def test_generate_puts_what_was_found_before_the_prompt_and_tells_it(embedded):
    with embedded.use(memory=flat(k=1)):
        embedded.feed(NOTES)
        made = embedded.generate("Where is the lamp of Ben?", max_new_tokens=3)
        pasted = made.pasted
        assert pasted.text == "The lamp of Ben stands on the desk. \n"
        assert pasted.prompt == f"{pasted.text}QUESTION: Where is the lamp of Ben? ANSWER:"
        assert pasted.reading.ids == [2]
        assert pasted.reading.query == "Where is the lamp of Ben?"
        assert made.ids[: -len(made.new_ids)] == embedded.encode(pasted.prompt)["input_ids"][0].tolist()
    alone = embedded.generate(pasted.prompt, max_new_tokens=3)
    assert alone.new_ids == made.new_ids, "the model must read exactly what the result says it read"
    assert alone.pasted is None


def test_nothing_of_a_generation_stays(llama):
    with llama.use(memory=flat()):
        llama.feed(NOTES)
        held = llama.memory.contents()
        first = llama.generate("Where is Ada?", max_new_tokens=4)
        again = llama.generate("Where is Ada?", max_new_tokens=4)
        assert first.new_ids == again.new_ids
        assert llama.session is None
        assert llama.memory.contents().equals(held)


def test_prompts_of_a_batch_are_asked_each_for_itself(embedded):
    prompts = ["Where is the key of Ada?", "the lamp of Ben"]
    with embedded.use(memory=flat(k=1)):
        embedded.feed(NOTES)
        both = embedded.generate(prompts, max_new_tokens=3)
        alone = [embedded.generate(prompt, max_new_tokens=3) for prompt in prompts]
    assert [one.pasted.reading.ids for one in both] == [[1], [2]]
    assert [one.new_ids for one in both] == [one.new_ids for one in alone]
    assert both[1].pasted.prompt.endswith("\nthe lamp of Ben"), "what is no question stands as it is"


def test_an_empty_memory_pastes_nothing(llama):
    with llama.use(memory=flat()):
        made = llama.generate("Where is Ada?", max_new_tokens=2)
    assert (made.pasted.text, made.pasted.prompt) == ("", "QUESTION: Where is Ada? ANSWER:")


def test_what_is_pasted_fits_the_model(llama):
    """The family's models have few positions: long notes are left out, and the result says so."""
    room = llama.max_positions
    with llama.use(memory=flat()):
        llama.feed([" ".join(["key"] * n) for n in (5, room, room // 2, room // 2)])
        made = llama.generate("Where is the key?", max_new_tokens=8)
        assert len(made.ids) <= room
        assert made.pasted.budget_tokens < room
        assert made.pasted.reading.ids, "what fits must be there"
        assert len(made.pasted.reading.items) < 4
        assert "not fit" in made.pasted.reading.note
        with pytest.raises(ModelError, match="positions"):
            llama.generate("key " * room + "?", max_new_tokens=8)


def test_the_form_of_a_prompt():
    text, whole = paste(["one\ntwo", "three"], "What?")
    assert text == "one two. three. \n"
    assert whole == f"{text}QUESTION: What? ANSWER:"
    assert paste(["[2023-05-08] one", "[2023-05-09] two."], "What?")[0] == "MEMORY:\n[8 May] one. \n[9 May] two. \n"
    asked = "QUESTION: What? ANSWER:"
    assert paste([], asked) == ("", asked)
    assert question_of(asked) == question_of("What? ") == "What?"


def test_the_embedded_model_answers_from_the_memory(embedded):
    """Facts of people that no training text names: only what is pasted can tell them."""
    from workbench_datasets.small_world import world

    questions = world().questions("open-book", 16, 901, split="unseen", distance=0, form="question")
    with embedded.use(memory=flat(k=5)):
        for question in questions:
            notes = question.prompt.split("\nQUESTION:")[0].strip().split(". ")
            embedded.feed([f"{note.rstrip('.')}." for note in notes])
        asked = [question.prompt.split("QUESTION: ")[1].removesuffix(" ANSWER:") for question in questions]
        right = {True: 0, False: 0}
        for question, words in zip(questions, asked):
            for with_memory in (True, False):
                with embedded.use(memory=embedded.memory if with_memory else None):
                    prompt = words if with_memory else f"QUESTION: {words} ANSWER:"
                    new = embedded.generate(prompt, max_new_tokens=8).new_text
                right[with_memory] += new.strip().lower().startswith(question.answer.strip().lower())
    assert right[True] >= 12
    assert right[True] > right[False] + 6


# -- swapping ---------------------------------------------------------------------------------------------------------


def test_a_restored_swap_leaves_the_store_as_it_is(llama):
    memory = flat()
    with llama.use(memory="full"):
        llama.feed("the key of Ada")
        before, session = llama.memory, llama.session
        with llama.use(memory=memory):
            llama.feed(NOTES)
            assert llama.cache is None
        assert (llama.memory, llama.session, llama.cache) == (before, session, before)
    assert len(memory) == 2
    with llama.use(memory=memory):
        assert llama.memory is memory
        assert len(memory) == 2


def test_a_reset_empties_and_is_undone(llama):
    with llama.use(memory=flat()):
        llama.feed(NOTES)
        held = llama.memory.contents()
        llama.reset()
        assert len(llama.memory) == 0
        llama.memory.store.undo()
        assert llama.memory.contents().equals(held)


def test_a_swap_that_fails_changes_nothing(llama):
    memory, kernel = flat(), llama.attention
    with llama.use(memory=memory):
        with pytest.raises(BadInput), llama.use(attention="flash-attention", memory="no-such"):
            pass
        assert (llama.memory, llama.attention) == (memory, kernel)


def test_a_trace_reads_the_text_alone(llama):
    plain = llama.trace("the key of Ada")
    with llama.use(memory=flat()):
        llama.feed(NOTES)
        held = llama.trace("the key of Ada")
    assert torch.equal(plain.logits, held.logits)
    assert held.memory == "none"


def test_kernels_serve_beside_a_store(llama):
    with llama.use(attention="eager", memory=flat()):
        llama.feed(NOTES)
        first = llama.generate("Where is Ada?", max_new_tokens=4).new_ids
        with llama.use(attention="flash-attention"):
            assert isinstance(llama.memory, Flat)
            assert llama.generate("Where is Ada?", max_new_tokens=4).new_ids == first


def test_a_state_names_the_memory_and_its_file(llama, tmp_path):
    with llama.use(memory=Flat(tmp_path / "m.db", encoder="tfidf", k=3)):
        llama.feed(NOTES)
        path = save_bundle(tmp_path / "state", model_state(llama))
    swap = llama.use(memory=None)
    put_state(llama, load_bundle(path)[0])
    assert (llama.memory.k, len(llama.memory)) == (3, 2)
    swap.restore()


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m.feed(""), "the text is empty"),
        (lambda m: m.feed(" \n "), "the text is empty"),
        (lambda m: m.feed([1, 2, 3]), "fed text"),
        (lambda m: m.feed(["fine", 3]), "fed text"),
        (lambda m: m.generate([1, 2, 3]), "asked in words"),
        (lambda m: m.generate(" "), "the query is empty"),
        (lambda m: m.generate("Ada?", max_new_tokens=0), "max_new_tokens"),
    ],
)
def test_what_cannot_be_written_or_asked_is_told(llama, act, message):
    with llama.use(memory=flat()):
        llama.feed(NOTES)
        before = len(llama.memory.events())
        with pytest.raises(BadInput, match=message):
            act(llama)
        assert len(llama.memory.events()) == before


def test_a_memory_that_is_neither_kind_is_refused(llama):
    class Layer:
        slug = "layer"

    with pytest.raises(MemoryError_, match="nor a memory of items"):
        llama.use(memory=Layer())
    assert llama.memory is None


def test_an_encoder_and_a_model_without_tokenizer_are_refused(loaded, llama):
    with pytest.raises(MemoryError_, match="encoder"):
        loaded("bert").use(memory=flat())
    tokenizer, llama.tokenizer = llama.tokenizer, None
    try:
        with pytest.raises(MemoryError_, match="no tokenizer"):
            llama.use(memory=flat())
    finally:
        llama.tokenizer = tokenizer
    assert llama.memory is None


# -- every mechanism --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", STORES)
def test_every_mechanism_serves_and_follows_its_store(embedded, slug):
    """What is edited, deleted or brought back in the store (as the inspector does) is so to the next question."""
    from workbench.memory.durable import Store

    made = MEMORIES.get(slug)(store=Store(encoder="tfidf"))
    assert isinstance(made, StoreMemory)
    with embedded.use(memory=made):
        embedded.feed("Ada Berg has a parrot.\nBen Corn lives in Oreby.\nCleo Dunn plays the cello.")
        items = {item.text: item.id for item in made.store}
        at = next(items[text] for text in items if "parrot" in text)
        assert "parrot" in embedded.generate("What does Ada Berg have?", max_new_tokens=1).pasted.text
        made.store.update(at, text="Ada Berg has a tortoise.", why="edited")
        assert "tortoise" in embedded.generate("What does Ada Berg have?", max_new_tokens=1).pasted.text
        made.store.delete(at, why="deleted")
        assert "tortoise" not in embedded.generate("What does Ada Berg have?", max_new_tokens=1).pasted.text
        made.store.restore(at, why="brought back")
        assert "tortoise" in embedded.generate("What does Ada Berg have?", max_new_tokens=1).pasted.text
        embedded.reset()
        assert embedded.generate("What does Ada Berg have?", max_new_tokens=1).pasted.text == ""
        made.store.undo()
        assert "tortoise" in embedded.generate("What does Ada Berg have?", max_new_tokens=1).pasted.text
