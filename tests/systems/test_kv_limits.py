"""vAttention's allocator at its limits: exhaustion, bad sizes, memory given back."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kv_kit import BACKENDS, KIB, MIB, grow, mapped_only, memory, resident

from workbench.errors import BadInput, MemoryError_
from workbench.systems.kv_geometry import KVGeometry, OutOfKVMemory
from workbench.systems.kv_virtual import VirtualKV
from workbench.systems.page_backends import open_backend

# -- refusals ---------------------------------------------------------------------------------------------------------


def test_exhaustion_names_required_and_free_blocks_and_changes_nothing() -> None:
    with VirtualKV.init(2, 2, 16, 4, 256, group_bytes=4 * KIB) as kv:
        kv.reserve_physical_pages(5 * kv.geometry.block_bytes)
        kv.alloc_new_batch_idx(1)
        kv.alloc_new_batch_idx(1)
        grow(kv, s0=96)
        before, log = kv.address_map(), list(kv.log.events)
        for step in (kv.step, kv.step_async):
            with pytest.raises(OutOfKVMemory, match="3 more KV blocks are required and 2 are free") as found:
                step([96, 70, 0, 0])
            assert (found.value.required, found.value.free) == (3, 2)
            after = kv.address_map()
            assert after.drop(columns="step").equals(before.drop(columns="step"))
            assert kv.lengths().tolist() == [96, 0, 0, 0]
            assert kv.log.events == log
        grow(kv, s1=60)  # two still fit


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"group_bytes": 5000}, "multiple of 4096"),
        ({"group_bytes": -4096}, "multiple of 4096"),
        ({"group_bytes": 4096, "dim": 24}, "multiple of the 192 bytes"),
        ({"batch": 0}, "batch must be a whole number of at least 1, got 0"),
        ({"length": -3}, "length must be a whole number of at least 1, got -3"),
        ({"layers": 2.5}, "layers must be a whole number of at least 1, got 2.5"),
        ({"backend": "mmaped"}, "is not one of"),
        ({"backend": "cuda"}, "not of cpu"),
    ],
)
def test_bad_sizes_are_value_errors(words: dict, says: str) -> None:
    sizes = {"layers": 2, "heads": 2, "dim": 16, "batch": 4, "length": 256, "group_bytes": 4096}
    with pytest.raises(ValueError, match=re.escape(says)):
        VirtualKV.init(**{**sizes, **words})


@pytest.mark.parametrize("device", ["mars", "meta"])
def test_a_device_without_pages_is_refused(device: str) -> None:
    """It was given pages of the CPU."""
    with pytest.raises(BadInput, match=f"device must be 'cpu', 'cuda' or 'cuda:N', got '{device}'"):
        VirtualKV.init(1, 2, 16, 1, 64, device=device)


def test_bad_calls_are_refused_and_change_nothing() -> None:
    with memory() as kv:
        slot = kv.alloc_new_batch_idx(1)
        grow(kv, s0=10)
        before = kv.address_map()
        for call in (
            lambda: kv.step([1, 2, 3]),
            lambda: kv.step([1.5, 0, 0, 0]),
            lambda: kv.step([257, 0, 0, 0]),
            lambda: kv.step([10, 1, 0, 0]),
            lambda: kv.step([-1, 0, 0, 0]),
            lambda: kv.alloc_new_batch_idx(257),
            lambda: kv.reserve_physical_pages(100),
            lambda: kv.layer(2),
            lambda: kv.free_batch_idx(9),
            lambda: kv.free_batch_idx(0.0),
            lambda: kv.step([[10], [1, 2], 0, 0]),
            lambda: kv.alloc_new_batch_idx(1.5),
            lambda: kv.alloc_new_batch_idx("1"),
            lambda: kv.alloc_new_batch_idx(1, request=-5),  # the slot would look free
            lambda: kv.reserve_physical_pages(float("nan")),
            lambda: kv.reserve_physical_pages("1 MB"),
            lambda: kv.view(0, "0"),
            lambda: kv.contents(4),
            lambda: kv.address_map(-1),
        ):
            with pytest.raises(BadInput):
                call()
        with pytest.raises(MemoryError_, match="freed before"):
            kv.free_batch_idx(3)
        for _ in range(3):
            kv.alloc_new_batch_idx(1)
        with pytest.raises(MemoryError_, match="all 4 slots"):
            kv.alloc_new_batch_idx(1)
        assert kv.slots[slot].length == 10
        assert kv.address_map()["page"].equals(before["page"])


# -- memory given back ------------------------------------------------------------------------------------------------


@mapped_only
def test_touched_pages_are_what_the_system_counts() -> None:
    with memory(mib=4, length=2048) as kv:
        slot = kv.alloc_new_batch_idx(1)
        assert kv.backend.physical_bytes() == 0  # created early, but nothing is touched yet
        assert resident(kv) == 0
        grow(kv, s0=1000)
        for tensor in kv.tensors:
            tensor[slot, :1000] = 1.0
        bytes_used = kv.mapped_groups * kv.geometry.group_bytes
        page_a_buffer = kv.geometry.buffers * os.sysconf("SC_PAGE_SIZE")
        assert abs(kv.backend.physical_bytes() - bytes_used) <= page_a_buffer
        assert abs(resident(kv) - bytes_used) <= page_a_buffer
        kv.free_batch_idx(slot)
        kv.step([0] * 4, eager_reclaim=True)
        kv.release_physical_pages()
        assert kv.created == 0
        assert kv.backend.physical_bytes() == resident(kv) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_close_gives_addresses_and_memory_back(backend: str) -> None:
    script = Path(__file__).with_name("kv_footprint.py")
    done = subprocess.run([sys.executable, str(script), backend], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    seen = json.loads(done.stdout)
    virtual, held = seen["before"]
    assert len(seen["filled"]) == 3
    for reserved, size, rss in seen["filled"]:
        assert size - virtual >= reserved
        assert rss - held >= 30 * MIB
    size, rss = seen["after"]
    assert size - virtual < 16 * MIB
    assert rss - held < 8 * MIB


@mapped_only
def test_a_view_that_outlives_the_memory_reads_zeros() -> None:
    kv = memory()
    kv.alloc_new_batch_idx(1)
    grow(kv, s0=10)
    keys, _ = kv.view(0, 0)
    keys.fill_(4.0)
    kv.close()
    assert (keys == 0).all()
    for call in (kv.lengths, kv.wait, lambda: kv.step([0] * 4)):
        with pytest.raises(MemoryError_, match="closed"):
            call()


def test_an_error_while_it_is_made_leaves_nothing_behind() -> None:
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(BadInput):
            VirtualKV(KVGeometry(2, 2, 16, 4, 256, 8 * KIB, 4), open_backend("auto", 4 * KIB))
        with pytest.raises(BadInput):
            VirtualKV.init(0, 2, 16, 4, 256, group_bytes=4096)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files + 1
