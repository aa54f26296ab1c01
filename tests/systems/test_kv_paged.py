"""The baselines: a pool of blocks with a table, reference counts and copy-on-write; and a static reservation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.errors import BadInput, MemoryError_
from workbench.systems.kv_geometry import KVGeometry, OutOfKVMemory
from workbench.systems.kv_paged import PagedKV, StaticKV


def pool(blocks: int = 20, block: int = 4, batch: int = 4, length: int = 40) -> PagedKV:
    return PagedKV(2, 2, 8, batch, length, blocks, block)


def fill(kv: PagedKV, row: int, start: int, stop: int, value: float) -> None:
    for tensor in kv.tensors:
        tensor.flatten(0, 1)[kv.places(row, start, stop)] = value


def check(kv: PagedKV) -> None:
    held = kv.table[kv.table >= 0]
    assert np.array_equal(np.bincount(held, minlength=kv.blocks), kv.users)
    assert sorted(kv.free) == sorted(np.flatnonzero(kv.users == 0))
    for row in range(len(kv.table)):
        count = int((kv.table[row] >= 0).sum())
        assert count == -(-int(kv.length[row]) // kv.block)


def test_invariants_over_ten_thousand_random_calls() -> None:
    kv, rng, full, copied = pool(), np.random.default_rng(0), 0, 0
    for _ in range(10_000):
        active = np.flatnonzero(kv.request >= 0)
        what = rng.integers(5)
        if what == 0 and len(active) < 4:
            row = kv.alloc_new_batch_idx(1)
            givers = [int(r) for r in active if kv.length[r]]
            if givers and rng.random() < 0.5:
                source = int(rng.choice(givers))
                kv.share_prefix(source, row, int(rng.integers(1, kv.length[source] + 1)))
        elif what == 1 and len(active):
            kv.free_batch_idx(int(rng.choice(active)))
        elif len(active):
            wanted = kv.length.copy()
            wanted[active] = np.minimum(wanted[active] + rng.integers(0, 4, len(active)), 40)
            before = kv.log.counts["copy"]
            try:
                kv.step(wanted)
            except OutOfKVMemory:
                full += 1
                kv.free_batch_idx(int(active[-1]))
            copied += kv.log.counts["copy"] - before
        check(kv)
    assert full > 100
    assert copied > 100


def test_the_free_list_is_last_in_first_out() -> None:
    kv = pool()
    row = kv.alloc_new_batch_idx(1)
    kv.step([9, 0, 0, 0])
    assert kv.table[row, :3].tolist() == [0, 1, 2]
    kv.free_batch_idx(row)
    kv.alloc_new_batch_idx(1)
    kv.step([5, 0, 0, 0])
    assert kv.table[0, :2].tolist() == [0, 1]


def test_a_shared_block_is_copied_before_it_is_written() -> None:
    kv = pool()
    first, second = kv.alloc_new_batch_idx(1), kv.alloc_new_batch_idx(1)
    kv.step([6, 0, 0, 0])
    fill(kv, first, 0, 6, 1.0)
    kv.share_prefix(first, second, 6)
    assert np.array_equal(kv.table[first, :2], kv.table[second, :2])
    assert (kv.contents()["shared with"] == ["1", "0"]).all()
    kv.step([6, 7, 0, 0])
    fill(kv, second, 6, 7, 2.0)
    assert kv.table[first, 0] == kv.table[second, 0]  # the full block is still one
    assert kv.table[first, 1] != kv.table[second, 1]
    assert torch.equal(kv.view(1, second)[0][0, :6], kv.view(1, first)[0][0])
    assert (kv.view(1, second)[1][0, 6] == 2.0).all()
    kv.free_batch_idx(first)
    assert (kv.view(0, second)[0][0, :6] == 1.0).all()


def test_a_truncated_row_gives_its_blocks_back() -> None:
    kv = pool()
    row = kv.alloc_new_batch_idx(1)
    kv.step([13, 0, 0, 0])
    kv.truncate(row, 5)
    check(kv)
    assert (int(kv.length[row]), kv.num_free_kvblocks()) == (5, 18)
    kv.step([9, 0, 0, 0])
    check(kv)
    with pytest.raises(BadInput, match=r"0\.\.9"):
        kv.truncate(row, 10)


def test_exhaustion_changes_nothing() -> None:
    kv = pool(blocks=3)
    kv.alloc_new_batch_idx(1)
    kv.alloc_new_batch_idx(1)
    kv.step([8, 0, 0, 0])
    before = kv.table.copy(), list(kv.free), kv.length.copy()
    with pytest.raises(OutOfKVMemory, match="2 more blocks of 4 tokens are required and 1 are free"):
        kv.step([8, 5, 0, 0])
    assert np.array_equal(kv.table, before[0])
    assert kv.free == before[1]
    assert np.array_equal(kv.length, before[2])
    kv.add_blocks(2)
    kv.step([8, 5, 0, 0])
    check(kv)


def test_the_table_serves_the_kernel() -> None:
    """The specification of decode over blocks reads the same keys as this pool's own view."""
    from workbench_kernels import decode_attention

    kv, generator = pool(block=4), torch.Generator().manual_seed(0)
    kv.alloc_new_batch_idx(1)
    kv.alloc_new_batch_idx(1)
    for lengths in ([5, 2, 0, 0], [13, 7, 0, 0]):
        kv.step(lengths)
    for tensor in kv.tensors:
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    q = torch.randn(2, 1, 4, 8, generator=generator)
    table, lengths = kv.block_table([0, 1]), torch.tensor([13, 7])
    found = decode_attention(q, *kv.layer(1), lengths=lengths, block_table=table)
    for row in range(2):
        alone = decode_attention(q[row : row + 1], *kv.view(1, row), lengths=lengths[row : row + 1])
        assert torch.allclose(found[row : row + 1], alone, atol=1e-6)


def test_a_static_reservation_is_all_waste_at_first() -> None:
    g = KVGeometry(2, 2, 16, 64, 1000, 4096, 4)
    kv = StaticKV(g, 10 * 1000 * g.kv_token_bytes + 5)
    assert kv.slots == 10
    assert kv.waste_bytes() == 10 * 1000 * g.kv_token_bytes
    slot = kv.alloc_new_batch_idx(100)
    kv.step([100, *[0] * 9])
    assert kv.waste_bytes() == (10 * 1000 - 100) * g.kv_token_bytes
    assert kv.contents()["len"].tolist() == [100]
    for _ in range(9):
        kv.alloc_new_batch_idx(1)
    with pytest.raises(OutOfKVMemory):
        kv.alloc_new_batch_idx(1)
    kv.free_batch_idx(slot)
    assert kv.num_free_kvblocks() == 1
    with pytest.raises(OutOfKVMemory, match="1 more slots"):
        StaticKV(g, 1000)


def test_bad_input() -> None:
    for words in ({"block": 0}, {"blocks": 0}, {"batch": 0}, {"length": 0}):
        with pytest.raises(BadInput):
            pool(**words)
    kv = pool()
    row = kv.alloc_new_batch_idx(1)
    kv.step([5, 0, 0, 0])
    for lengths in ([1, 2], [4, 0, 0, 0], [41, 0, 0, 0], [5.5, 0, 0, 0], [-1, 0, 0, 0], [[5], [1, 2], 0, 0]):
        with pytest.raises(BadInput):
            kv.step(lengths)
    for call in (
        lambda: kv.alloc_new_batch_idx(1.5),
        lambda: kv.alloc_new_batch_idx(1, request=-5),
        lambda: kv.free_batch_idx("0"),
        lambda: kv.truncate(row, 2.5),
        lambda: kv.layer(2),
    ):
        with pytest.raises(BadInput):
            call()
    with pytest.raises(MemoryError_, match="no request"):
        kv.step([5, 1, 0, 0])
    with pytest.raises(MemoryError_, match="another row"):
        kv.share_prefix(row, row, 2)
    with pytest.raises(BadInput, match=r"outside 0\.\.3"):
        kv.free_batch_idx(7)
    assert kv.length.tolist() == [5, 0, 0, 0]
