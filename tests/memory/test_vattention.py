"""Caches over page groups and over blocks: the same bits as an ordinary cache, whatever comes and goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REFUSED, build, tokens
from transformers import DynamicCache

from workbench.errors import BadInput, MemoryError_
from workbench.memory import MEMORIES, Memory
from workbench.memory.cache.paged import PagedCache
from workbench.memory.cache.vattention import VAttentionCache
from workbench.systems.kv_geometry import OutOfKVMemory
from workbench.systems.kv_paged import PagedKV
from workbench.systems.kv_virtual import VirtualKV
from workbench.systems.page_backends import missing

pytestmark = pytest.mark.skipif(bool(missing("demand")), reason=str(missing("demand")))
MAKERS: dict[str, Callable[[], Any]] = {
    "4 KB groups": lambda: VAttentionCache(page_kib=4),
    "64 KB groups, mega-cache": lambda: VAttentionCache(page_kib=96, megacache=True),
    "in step": lambda: VAttentionCache(page_kib=4, ahead=False),
    "demand paging": lambda: VAttentionCache(page_kib=4, backend="demand"),
    "paged-16": PagedCache,
    "paged-5": lambda: PagedCache(block=5),
}
FAMILIES = ["llama", "llama-yarn", "mistral", "qwen3", "gpt-neox", "phi3", "gemma3", "olmo2", "smollm3-nope"]


@pytest.fixture(params=list(MAKERS))
def make(request):
    return MAKERS[request.param]


def ordinary(model: Any, ids: torch.Tensor, cache: Any, **words: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, past_key_values=cache, **words).logits


def decode_both(model: Any, memory: Any, ids: torch.Tensor, count: int) -> None:
    cache = DynamicCache(config=model.config)
    for _ in range(count):
        expected, found = ordinary(model, ids, cache), memory.write(ids)
        assert torch.equal(expected, found)
        ids = expected[:, -1:].argmax(-1)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_bits(family, name: str) -> None:
    """Sliding windows included: an ordinary cache drops what a window cannot see, this one lets the mask do it."""
    model = family(name)
    for maker in (MAKERS["4 KB groups"], MAKERS["paged-16"]):
        memory = maker().bind(model)
        cache, ids = DynamicCache(), tokens(2, 21)
        for _ in range(12):
            expected, found = ordinary(model, ids, cache), memory.write(ids)
            assert torch.equal(expected, found)
            ids = expected[:, -1:].argmax(-1)
        memory.close()


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_models_without_rotation_are_served(tmp_path, name: str) -> None:
    """They are refused by the caches that evict, which must take the rotation off."""
    model = build(*REFUSED[name][:2], tmp_path)
    decode_both(model, VAttentionCache(page_kib=4).bind(model), tokens(2, 9), 10)


@pytest.mark.parametrize(("name", "says"), [("bloom", "position_ids"), ("deepseek-v3", "latent")])
def test_models_that_cannot_be_served_are_refused(tmp_path, name: str, says: str) -> None:
    model = build(*REFUSED[name][:2], tmp_path)
    with pytest.raises(MemoryError_, match=says):
        VAttentionCache(page_kib=4).bind(model).write(tokens(1, 5))


def test_rounds_chunks_and_batches_give_the_same_bits(llama, make) -> None:
    memory = make().bind(llama)
    decode_both(llama, memory, tokens(3, 30), 40)
    memory.reset()
    whole, cache = tokens(2, 60, seed=4), DynamicCache(config=llama.config)
    for start, stop in ((0, 7), (7, 40), (40, 41), (41, 60)):
        expected = ordinary(llama, whole[:, start:stop], cache)
        assert torch.equal(expected, memory.write(whole[:, start:stop]))
    assert memory.get_seq_length() == 60
    memory.close()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_equal_each_row_alone(llama, make, side: str) -> None:
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, slice(0, 4) if side == "left" else slice(8, 12)] = 0
    memory, alone = make().bind(llama), make().bind(llama)
    both, after = memory.write(ids, mask), memory.write(tokens(2, 1, seed=9))
    row = mask[1].bool()
    expected = alone.write(ids[1:, row])
    assert torch.allclose(both[1:, row], expected, atol=1e-5)
    assert torch.allclose(after[1:], alone.write(tokens(2, 1, seed=9)[1:]), atol=1e-5)


@pytest.mark.parametrize("kind", ["virtual", "paged"])
def test_random_arrivals_growth_completion_and_reuse_of_slots(llama, kind: str) -> None:
    """Requests share one memory, each a cache of its own; every logit equals that of an ordinary cache, bit by bit."""
    heads, dim, layers = 2, 8, 3
    kv: Any
    if kind == "virtual":
        kv = VirtualKV.init(layers, heads, dim, 5, 200, group_bytes=4096, dtype=torch.float32)
        kv.reserve_physical_pages(1 << 20)
        fresh = lambda: VAttentionCache(kv=kv)  # noqa: E731
    else:
        kv = PagedKV(layers, heads, dim, 5, 200, 100, 8)
        fresh = lambda: PagedCache(kv=kv)  # noqa: E731
    rng, running, finished = np.random.default_rng(2), list[list[Any]](), 0
    slots: set[int] = set()
    for step in range(150):
        if len(running) < 5 and rng.random() < 0.4:
            ids = tokens(1, int(rng.integers(3, 60)), seed=step)
            running.append([fresh(), DynamicCache(config=llama.config), ids, int(rng.integers(5, 60))])
        for request in running:
            memory, cache, ids, _ = request
            expected = ordinary(llama, ids, cache)
            assert torch.equal(expected, memory.bind(llama).write(ids))
            slots |= set(memory.places)
            request[2], request[3] = expected[:, -1:].argmax(-1), request[3] - 1
        for request in [request for request in running if request[3] == 0]:
            request[0].close()
            running.remove(request)
            finished += 1
    assert finished > 10
    assert slots == set(range(5))
    if kind == "virtual":
        assert kv.log.counts["inherit"] > 0


def test_generate_by_name_as_with_any_memory(embedded) -> None:
    prompt = "Once upon a time there was a"
    expected = embedded.generate(prompt, max_new_tokens=20).ids
    for name in ("vattention", "paged"):
        with embedded.use(memory=name):
            assert embedded.generate(prompt, max_new_tokens=20).ids == expected
            assert isinstance(embedded.memory, Memory)


@pytest.fixture(scope="module")
def embedded() -> Any:
    from workbench.models import load

    torch.set_num_threads(1)
    return load("embedded")


def test_a_trace_of_what_comes_next_leaves_the_memory_as_it_was(embedded, make) -> None:
    memory = make()
    with embedded.use(memory=memory):
        embedded.feed("The lamp is green.\nThe chair is old.\n")
        before, keys = memory.fed, memory.layers[0].keys.clone()
        trace = embedded.trace("What colour is the lamp?")
        assert trace.layer(0).k.shape[1] == before + trace.layer(0).q.shape[1]
        assert memory.fed == before
        assert torch.equal(memory.layers[0].keys, keys)
    memory.close()


def test_moments_rows_and_beams(llama, make) -> None:
    memory = make().bind(llama)
    memory.write(tokens(3, 20))
    moment = memory.snapshot()
    first = memory.write(tokens(3, 4, seed=1))
    memory.restore(moment)
    memory.write(tokens(3, 9, seed=2))
    memory.restore(moment)
    assert torch.equal(memory.write(tokens(3, 4, seed=1)), first)
    memory.restore(moment)
    memory.reorder_cache(torch.tensor([2, 0, 0, 1]))
    found = memory.write(tokens(3, 4, seed=1)[[2, 0, 0, 1]])
    assert torch.equal(found, first[[2, 0, 0, 1]])
    assert [len(row) for row in memory.rows] == [24] * 4


def test_the_inspectors_table_and_the_log(llama) -> None:
    memory = VAttentionCache(page_kib=4, ahead=False).bind(llama)
    assert memory.contents().empty
    memory.write(tokens(2, 70))
    table = memory.contents()
    assert list(table.columns) == [
        "slot", "request id", "state", "len", "mapped blocks", "needed blocks", "waste bytes", "virtual range",
        "physical page ids", "shared with", "mapped at step", "source",
    ]  # fmt: skip
    assert table["len"].tolist() == [70, 70]  # 64 bytes a token: 64 tokens a group, two blocks
    assert table["mapped blocks"].tolist() == [2, 2]
    block = 2 * 3 * 4096
    assert table["waste bytes"].tolist() == [2 * block - 70 * 2 * 3 * 64] * 2
    assert len(memory.contents(1)) == 1
    log = memory.events()
    assert log.held() == set(range(70))
    assert any(event.kind == "update" and "map sync" in event.why for event in log)
    memory.reset()
    assert memory.contents()["state"].tolist() == ["cached for reuse"] * 2
    memory.write(tokens(2, 10))
    assert set(memory.contents()["source"]) == {"inherited"}
    assert memory.page_events().counts["inherit"] == 2 * 2 * 6
    assert memory.nbytes() == memory.kv.created * 4096


def test_a_full_memory_is_a_typed_error_and_nothing_changes(llama) -> None:
    for memory in (
        VAttentionCache(page_kib=32, memory_mib=1, max_tokens=4096),
        PagedCache(memory_mib=1, max_tokens=4096),
    ):
        memory.bind(llama)
        memory.write(tokens(4, 200))
        before = memory.contents(), memory.fed, memory.layers[0].keys.clone()
        with pytest.raises(OutOfKVMemory, match="are required and"):
            memory.write(tokens(4, 3000))
        assert memory.contents().equals(before[0])
        assert memory.fed == before[1]
        assert torch.equal(memory.layers[0].keys, before[2])
        memory.write(tokens(4, 2))
        assert memory.fed == before[1] + 2
        memory.close()


def test_limits_are_named(llama) -> None:
    memory = VAttentionCache(page_kib=4, max_tokens=30, max_batch=2).bind(llama)
    memory.write(tokens(2, 25))
    with pytest.raises(MemoryError_, match="25 tokens are held and 6 come, but a row has max_tokens=30"):
        memory.write(tokens(2, 6))
    memory.write(tokens(2, 5))
    memory.reset()
    with pytest.raises(MemoryError_, match="max_batch=2"):
        memory.write(tokens(3, 5))


@pytest.mark.parametrize(
    "words",
    [
        {"page_kib": -1},
        {"page_kib": 1.5},
        {"max_tokens": -1},
        {"max_batch": 0},
        {"memory_mib": -1},
        {"max_batch": True},
    ],
)
def test_settings_out_of_range_are_refused(words: dict) -> None:
    with pytest.raises(BadInput):
        VAttentionCache(**words)


def test_pages_that_do_not_fit_are_refused_when_the_first_token_comes(llama) -> None:
    for kib, says in ((3, "multiple of 4096"), (4, None)):
        memory = VAttentionCache(page_kib=kib).bind(llama)
        if says:
            with pytest.raises(BadInput, match=says):
                memory.write(tokens(1, 5))
    for block in (0, -3, 2.5, True):
        with pytest.raises(BadInput, match="block must be"):
            PagedCache(block=block)


def test_both_are_registered_with_plain_settings() -> None:
    for name, cls in (("vattention", VAttentionCache), ("paged", PagedCache)):
        assert MEMORIES.get(name) is cls
        assert cls.slug == name
        assert "kv" not in cls().settings()
    assert VAttentionCache().settings()["page_kib"] == 0


def test_closing_gives_the_memory_back(llama) -> None:
    memory = VAttentionCache(page_kib=4).bind(llama)
    memory.write(tokens(1, 40))
    backend = memory.kv.backend
    memory.close()
    memory.close()
    assert backend.closed
    assert memory.nbytes() == 0
    memory.write(tokens(1, 4))  # it begins anew
    assert memory.fed == 4
