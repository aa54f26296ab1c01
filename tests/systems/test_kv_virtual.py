"""vAttention's allocator: its invariants under random use, aliasing, exhaustion, look-ahead, and memory given back."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_kit import BACKENDS, KIB, MIB, grow, mapped_only, memory

from workbench.errors import BadInput, MemoryError_
from workbench.systems.kv_geometry import KVGeometry, OutOfKVMemory, fitting_group
from workbench.systems.kv_virtual import VirtualKV


def check(kv: VirtualKV) -> None:
    """What must be true after every call."""
    kv.wait()
    g = kv.geometry
    seen: dict[int, int] = {}
    for slot in kv.slots:
        assert len(slot.blocks) >= g.need(slot.length)
        assert slot.active or not slot.length
        for block in slot.blocks:
            assert len(block.groups) == g.buffers
            for group in block.groups:
                seen[group] = seen.get(group, 0) + 1
    assert {group: n for group, n in seen.items() if n > 1} == kv.shares
    assert not set(kv.pool) & set(seen)
    assert len(set(kv.pool)) == len(kv.pool)
    assert len(kv.pool) + len(seen) == kv.created
    for index, region in enumerate(kv.regions):
        expected = {
            slot * g.slot_bytes + place * g.group_bytes: block.groups[index]
            for slot, held in enumerate(kv.slots)
            for place, block in enumerate(held.blocks)
        }
        assert region.mapped == expected


def random_use(kv: VirtualKV, seed: int, count: int, *, share: bool) -> dict[str, int]:
    """Admit, finish, grow (in the foreground or ahead), share, at random; how often each happened."""
    rng, done = np.random.default_rng(seed), dict.fromkeys(("admit", "finish", "grow", "full", "share"), 0)
    for _ in range(count):
        active = [index for index, slot in enumerate(kv.slots) if slot.active]
        what = rng.choice(["admit", "finish", "grow", "grow", "grow", "share"])
        wanted = kv.lengths()
        if what == "admit" and len(active) < len(kv.slots):
            index = kv.alloc_new_batch_idx(min(int(rng.integers(1, 100)), kv.geometry.length))
            if share and active and rng.random() < 0.5:
                source = int(rng.choice(active))
                if wanted[source] >= kv.geometry.group_tokens:
                    kv.share_prefix(source, index, int(rng.integers(kv.geometry.group_tokens, wanted[source] + 1)))
                    done["share"] += 1
            done["admit"] += 1
        elif what == "finish" and active:
            kv.free_batch_idx(int(rng.choice(active)))
            done["finish"] += 1
        elif active:
            for index in active:
                wanted[index] = min(wanted[index] + rng.integers(0, 30), kv.geometry.length)
            try:
                (kv.step if rng.random() < 0.5 else kv.step_async)(wanted)
                done["grow"] += 1
            except OutOfKVMemory:
                kv.free_batch_idx(active[0])
                done["full"] += 1
        check(kv)
    return done


@pytest.mark.parametrize("backend", BACKENDS)
def test_invariants_over_ten_thousand_random_calls(backend: str) -> None:
    """Half of them with pages enough, half with a pool that runs dry."""
    for seed, kib in ((0, 1024), (1, 256)):
        with VirtualKV.init(2, 2, 16, 4, 256, group_bytes=4 * KIB, backend=backend) as kv:
            kv.log.keep = False
            kv.reserve_physical_pages(kib * KIB)
            done = random_use(kv, seed, 5000, share=backend == "mapped")
            assert min(done["admit"], done["finish"], done["grow"]) > 500
            assert (done["full"] > 50) == (kib == 256)
            assert (done["share"] > 50) == (backend == "mapped")


@mapped_only
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from([8, 16, 24]), st.integers(1, 5), st.integers(1, 300),
    st.booleans(), st.booleans(), st.integers(0, 1000),
)  # fmt: skip
def test_invariants_for_any_shape(layers, heads, dim, batch, length, megacache, deferred, seed) -> None:
    token = heads * dim * 4 * (layers if megacache else 1)
    group = fitting_group(token, 4 * KIB, 1)
    words = {"group_bytes": group, "megacache": megacache, "deferred": deferred}
    with VirtualKV.init(layers, heads, dim, batch, length, **words) as kv:
        kv.reserve_physical_pages(6 * kv.geometry.block_bytes)
        random_use(kv, seed, 40, share=True)


# -- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("megacache", [False, True])
def test_what_is_written_is_read_through_growth_and_reuse(backend: str, megacache: bool) -> None:
    with memory(backend=backend, megacache=megacache) as kv:
        held: dict[int, torch.Tensor] = {}
        for round_ in range(12):
            slot = kv.alloc_new_batch_idx(40)
            grow(kv, **{f"s{slot}": 40 + round_})
            value = torch.randn(2, 40 + round_, 2, 16)
            for layer in range(2):
                kv.view(layer, slot)[0][0] = value[layer]
                kv.view(layer, slot)[1][0] = -value[layer]
            held[slot] = value
            for other, kept in held.items():
                for layer in range(2):
                    keys, values = kv.view(layer, other)
                    assert torch.equal(keys[0], kept[layer])
                    assert torch.equal(values[0], -kept[layer])
            if len(held) == 4:
                done = int(np.random.default_rng(round_).choice(list(held)))
                kv.free_batch_idx(done)
                del held[done]


def test_slots_are_whole_groups_apart() -> None:
    g = KVGeometry(2, 2, 16, 3, 100, 4 * KIB, 4)
    assert (g.token_bytes, g.group_tokens, g.slot_bytes, g.slot_blocks) == (128, 32, 16 * KIB, 4)
    with VirtualKV(g) as kv:
        keys = kv.tensors[0]
        assert keys.shape == (3, 100, 2, 16)
        assert keys.stride() == (4 * KIB, 32, 16, 1)  # in elements: S / 4 and not L * t / 4


def test_numbers_of_the_paper() -> None:
    """Yi-34B on two workers: about 200 MB a request and buffer, 100 GB a buffer, 12 TB in all."""
    g = KVGeometry(60, 4, 128, 500, 200_000, 2 * MIB, 2)
    assert g.slot_bytes == pytest.approx(205e6, rel=0.01)
    assert g.virtual_bytes == pytest.approx(12.3e12, rel=0.01)
    assert (g.buffers, g.group_tokens, g.kv_token_bytes) == (120, 2048, 2 * 60 * 4 * 128 * 2)
    mega = KVGeometry(32, 4, 128, 500, 200_000, 2 * MIB, 2, megacache=True)
    assert (mega.buffers, mega.group_tokens, mega.block_bytes) == (2, 64, 4 * MIB)


# -- inheritance, reclamation -----------------------------------------------------------------------------------------


def test_a_new_request_takes_the_best_fitting_pages() -> None:
    with memory() as kv:
        slots = [kv.alloc_new_batch_idx(1) for _ in range(3)]
        grow(kv, s0=100, s1=33, s2=200)
        for slot in slots:
            kv.free_batch_idx(slot)
        calls = kv.backend.calls.count["map"]
        assert kv.alloc_new_batch_idx(60) == 1  # two blocks are enough, slot 1 has exactly two
        assert kv.alloc_new_batch_idx(250) == 0  # nobody has eight: the first that is free
        grow(kv, s1=60)
        assert kv.backend.calls.count["map"] == calls
        assert kv.log.counts["inherit"] == 6 * 4


def test_without_deferral_pages_go_back_at_once() -> None:
    with memory(deferred=False) as kv:
        slot = kv.alloc_new_batch_idx(100)
        grow(kv, s0=100)
        kv.free_batch_idx(slot)
        assert len(kv.pool) == kv.created
        assert kv.mapped_groups == 0


def test_reclamation_goes_from_the_highest_slot_down_and_spares_what_is_needed() -> None:
    with VirtualKV.init(2, 2, 16, 4, 256, group_bytes=4 * KIB) as kv:
        kv.reserve_physical_pages(10 * kv.geometry.block_bytes)
        for _ in range(3):
            kv.alloc_new_batch_idx(1)
        grow(kv, s0=64, s1=96, s2=160)  # 2 + 3 + 5 blocks: the pool is empty
        kv.free_batch_idx(1)
        kv.free_batch_idx(2)
        assert kv.num_free_kvblocks() == 8
        grow(kv, s0=192)  # 4 more, all of them from slot 2
        assert [len(slot.blocks) for slot in kv.slots] == [6, 3, 1, 0]


def test_eager_reclaim_unmaps_slots_without_tokens() -> None:
    with memory() as kv:
        slot = kv.alloc_new_batch_idx(100)
        grow(kv, s0=100)
        kv.free_batch_idx(slot)
        kv.step([0] * 4, eager_reclaim=True)
        assert kv.mapped_groups == 0


# -- look-ahead -------------------------------------------------------------------------------------------------------


def decode(kv: VirtualKV, step, tokens: int) -> int:
    """Decode two requests; groups that were mapped while a step waited, prompts left out."""
    slots = [kv.alloc_new_batch_idx(10) for _ in range(2)]
    grow(kv, **{f"s{slot}": 10 for slot in slots})
    before = kv.log.counts["map sync"]
    for length in range(11, tokens):
        step([length if index in slots else 0 for index in range(len(kv.slots))])
    kv.wait()
    return kv.log.counts["map sync"] - before


def test_look_ahead_leaves_no_page_to_be_waited_for() -> None:
    """One warm step lets the thread begin; from then on it is always ahead."""
    with memory() as kv:
        assert decode(kv, kv.step, 200) == 2 * 6 * 4
    with memory() as kv:
        assert decode(kv, kv.step_async, 200) == 0
        assert kv.log.counts["map async"] >= 2 * 6 * 4


def test_look_ahead_maps_at_most_two_blocks_more_and_never_fails() -> None:
    with VirtualKV.init(2, 2, 16, 4, 256, group_bytes=4 * KIB) as kv:
        kv.reserve_physical_pages(4 * kv.geometry.block_bytes)
        for _ in range(4):
            kv.alloc_new_batch_idx(1)
        kv.step_async([30, 30, 30, 30])  # all four would need a second block in two steps; there is none
        kv.wait()
        assert [len(slot.blocks) for slot in kv.slots] == [1, 1, 1, 1]
    with memory() as kv:
        for _ in range(4):
            kv.alloc_new_batch_idx(1)
        kv.step_async([30, 30, 30, 30])
        kv.wait()
        assert sum(len(slot.blocks) for slot in kv.slots) == 4 + 2


def test_deferred_reclamation_halves_the_calls_under_churn() -> None:
    calls = {}
    for deferred in (True, False):
        with memory(mib=2, deferred=deferred) as kv:
            rng = np.random.default_rng(5)
            for _ in range(300):
                slot = kv.alloc_new_batch_idx(int(rng.integers(20, 120)))
                grow(kv, **{f"s{slot}": int(rng.integers(20, 120))})
                kv.free_batch_idx(slot)
            calls[deferred] = kv.backend.calls.count["map"]
    assert calls[False] >= 2 * calls[True]


def test_an_idle_thread_tidies_only_when_asked() -> None:
    for tidy in (False, True):
        with memory(tidy=tidy) as kv:
            first, second = (kv.alloc_new_batch_idx(1) for _ in range(2))
            grow(kv, s0=5, s1=200)
            kv.free_batch_idx(second)
            blocks = len(kv.slots[second].blocks)
            kv.step_async([6, 0, 0, 0])
            kv.wait()
            assert len(kv.slots[second].blocks) == blocks - tidy
            assert kv.slots[first].length == 6


# -- sharing ----------------------------------------------------------------------------------------------------------


@mapped_only
def test_a_shared_prefix_is_one_memory_until_the_last_user_lets_go() -> None:
    with memory(backend="mapped") as kv:
        source = kv.alloc_new_batch_idx(100)
        grow(kv, s0=100)
        kv.view(0, source)[0].fill_(1.0)
        target = kv.alloc_new_batch_idx(0)
        pool = len(kv.pool)
        assert kv.share_prefix(source, target, 70) == 64  # two whole blocks of 32
        assert len(kv.pool) == pool
        kv.view(0, target)[0][0, 5] = 7.0
        assert (kv.view(0, source)[0][0, 5] == 7.0).all()
        assert kv.contents().set_index("slot")["shared with"].to_dict() == {source: "1", target: "0"}
        grow(kv, s1=90)  # the rest of the target is its own
        kv.view(0, target)[0][0, 64:] = 3.0
        assert (kv.view(0, source)[0][0, 64:] == 1.0).all()
        kv.free_batch_idx(source)
        check(kv)
        assert (kv.view(0, target)[0][0, 5] == 7.0).all()
        kv.free_batch_idx(target)
        check(kv)
        assert not kv.shares
        assert kv.num_free_kvblocks() == kv.created // kv.geometry.buffers  # nothing was lost


@mapped_only
def test_what_cannot_be_shared_is_refused() -> None:
    with memory(backend="mapped") as kv:
        source, target = (kv.alloc_new_batch_idx(1) for _ in range(2))
        grow(kv, s0=40)
        for tokens in (0, 41):
            with pytest.raises(BadInput, match=re.escape("1..40")):
                kv.share_prefix(source, target, tokens)
        for pair in ((source, source), (source, 3), (target, source)):
            with pytest.raises(MemoryError_):
                kv.share_prefix(*pair, 32)
    with memory(backend="demand") as kv:
        source, target = (kv.alloc_new_batch_idx(1) for _ in range(2))
        grow(kv, s0=40)
        with pytest.raises(MemoryError_, match="two addresses"):
            kv.share_prefix(source, target, 32)
