"""Swaps take effect at once, verify themselves, and are undone exactly, whatever happens in between."""

from __future__ import annotations

import pytest
import torch
from model_families import FAMILIES, TEXTS

from workbench.errors import BadInput, KernelUnsupported, MemoryError_, UnknownName
from workbench.memory.base import MEMORIES

SERVES = ["eager", "flash-attention"]


def logits(model):
    with torch.no_grad():
        return model.model(**model.encode(TEXTS[:2])).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", SERVES)
def test_restore_is_exact(family, kernel, loaded):
    model = loaded(family)
    before, name, internal = logits(model), model.attention, model.config._attn_implementation_internal
    swap = model.use(attention=kernel)
    logits(model)
    assert model.attention == kernel
    swap.restore()
    assert (model.attention, model.config._attn_implementation_internal) == (name, internal)
    assert torch.equal(logits(model), before)
    swap.restore()
    assert model.attention == name


def test_restore_after_an_exception(llama):
    before, name = logits(llama), llama.attention
    with pytest.raises(BadInput), llama.use(attention="flash-attention", memory="streaming"):
        llama.feed("")
    assert (llama.attention, llama.memory) == (name, None)
    assert torch.equal(logits(llama), before)


def test_nested_swaps_undo_in_order(llama):
    name = llama.attention
    with llama.use(attention="eager"):
        with llama.use(attention="flash-attention", memory="full"):
            with llama.use(memory=None):
                assert (llama.attention, llama.memory) == ("flash-attention", None)
            assert llama.memory.slug == "full"
        assert (llama.attention, llama.memory) == ("eager", None)
    assert llama.attention == name


def test_a_call_stays_in_force_until_it_is_restored(llama):
    name = llama.attention
    swap = llama.use(attention="flash-attention")
    assert "in force" in repr(swap)
    assert llama.attention == "flash-attention"
    swap.restore()
    assert llama.attention == name
    assert "restored" in repr(swap)


def test_a_swap_that_fails_changes_nothing(llama):
    before = llama.attention
    with pytest.raises(UnknownName):
        llama.use(attention="flash-attention", memory="no-such-memory")
    assert (llama.attention, llama.memory) == (before, None)


def test_a_kernel_alone_keeps_the_memory(llama):
    with llama.use(memory="streaming"):
        held = llama.memory
        llama.feed("the key of Ada")
        with llama.use(attention="flash-attention"):
            assert llama.memory is held
            llama.feed(" is under the mat")
        assert llama.memory is held
        assert len(held.contents()) > 4


def test_an_inner_memory_leaves_the_outer_one_as_it_was(llama):
    with llama.use(memory="full"):
        llama.feed("the key of Ada")
        before = llama.memory.contents()
        with llama.use(memory="streaming"):
            llama.feed("something else entirely")
        assert llama.memory.contents().equals(before)
        assert not torch.isnan(llama.feed(" is under the mat").surprise[0])


def test_an_instance_keeps_what_it_holds_between_uses(llama):
    memory = MEMORIES.get("streaming")()
    with llama.use(memory=memory):
        llama.feed("the key of Ada")
    held = len(memory.contents())
    with llama.use(memory=memory):
        assert len(memory.contents()) == held > 0


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"attention": "flash-atention"}, UnknownName, "did you mean 'flash-attention'"),
        ({"attention": "spda"}, UnknownName, "did you mean 'sdpa'"),
        ({"attention": 3}, BadInput, "name of a kernel"),
        ({"memory": "sirlm"}, UnknownName, "did you mean 'sirllm'"),
        ({"memory": "streeming"}, UnknownName, "did you mean 'streaming'"),
        ({"memory": dict}, BadInput, r"write dict\(\)"),
        ({"memory": object()}, MemoryError_, "not a token cache"),
    ],
)
def test_bad_names_are_told(llama, words, error, message):
    with pytest.raises(error, match=message):
        llama.use(**words)


def test_a_memory_that_cannot_be_bound_leaves_the_model_alone(loaded):
    model = loaded("gpt2")
    with pytest.raises(MemoryError_, match="rotary"):
        model.use(memory="streaming")
    assert model.memory is None
    assert not model.model._forward_hooks


def test_hooks_go_with_the_memory(llama):
    def count():
        return len(llama.model._forward_hooks) + len(llama.model._forward_pre_hooks)

    before = count()
    with llama.use(memory="streaming"):
        assert count() > before
    import gc

    gc.collect()
    assert count() == before


def test_plain_generate_carries_the_memory(llama):
    ids = llama.encode(TEXTS[0])["input_ids"]
    words = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = llama.model.generate(ids, **words)
    with llama.use(memory="full"):
        got = llama.model.generate(ids, past_key_values=llama.memory, **words)
        assert len(llama.memory.contents()) == ids.shape[1] + 4
    assert torch.equal(got, expected)


def test_switching_is_verified_not_believed(llama, monkeypatch):
    """A model that keeps its kernel (transformers would only warn) is found out."""
    monkeypatch.setattr(type(llama.model), "set_attn_implementation", lambda self, name: None)
    before = llama.attention
    with pytest.raises(KernelUnsupported, match="refused the kernel 'eager'"):
        llama.use(attention="eager")
    assert llama.attention == before
