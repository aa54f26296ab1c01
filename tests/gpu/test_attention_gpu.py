"""The Triton attention kernels on the card: outputs, LSE and gradients against float64, at every tile that ships."""

from __future__ import annotations

import pytest
import torch
from attention_cases import LARGE, OPTIONS, draw, held, outcome, problem_of

from workbench_kernels import attention

pytest.importorskip("triton")
from workbench_kernels.softmax_attention.portable import flash1, flash2
from workbench_kernels.softmax_attention.portable.configurations import TABLE, Tiles

LOW = {2: (torch.bfloat16, torch.float16), 4: (torch.float32,)}
#: A head dim for each column of the table, and one that is padded to it.
DIMS = {64: (64, 40), 128: (128, 80), 256: (256, 192)}
LENGTHS = ((63, 63), (100, 217), (1000, 1000))

SHIPPED = [
    pytest.param(size, bucket, dict(tiles), id=f"{family}-{8 * size}bit-{bucket}")
    for (family, size, bucket), tiles in {
        key[:3]: {which: TABLE[(*key[:3], which)] for which in ("forward", "keys", "queries")} for key in TABLE
    }.items()
]


@pytest.mark.parametrize(("causal", "low", "exact"), [(True, 0, True), (False, -1, False)], ids=["causal", "full"])
@pytest.mark.parametrize(("size", "bucket", "tiles"), SHIPPED)
def test_every_tile_that_ships(
    size: int, bucket: int, tiles: dict[str, Tiles], causal: bool, low: int, exact: bool
) -> None:
    """Causal in bfloat16 at the table's head dim, full in float16 at one that is padded to it."""
    dim = DIMS[bucket][0 if exact else 1]
    for seed, lengths in enumerate(LENGTHS):
        held(flash2, draw(lengths, (4, 2), (dim, dim), LOW[size][low], seed=seed), {"causal": causal}, tiles=tiles)


@pytest.mark.parametrize(("causal", "low"), [(True, 0), (False, -1)], ids=["causal", "full"])
@pytest.mark.parametrize("bucket", DIMS)
@pytest.mark.parametrize("size", LOW)
def test_the_first_loop_order(size: int, bucket: int, causal: bool, low: int) -> None:
    for lengths in LENGTHS:
        held(flash1, draw(lengths, (4, 2), (bucket, bucket), LOW[size][low]), {"causal": causal}, lse=False)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str) -> None:
    option = LARGE.spelled(OPTIONS[name])
    held(flash2, LARGE.draw(option, torch.bfloat16), option)


@pytest.mark.parametrize("name", ["sinks", "ragged block mask", "dropout", "everything"])
def test_options_of_the_first_loop_order(name: str) -> None:
    option = LARGE.spelled(OPTIONS[name])
    held(flash1, LARGE.draw(option, torch.bfloat16), option, lse=False)


@pytest.mark.parametrize("dims", [(16, 16), (1, 3), (24, 100), (100, 256)], ids=str)
def test_any_head_dim(dims: tuple[int, int]) -> None:
    held(flash2, draw((130, 150), (4, 2), dims, torch.bfloat16), {"causal": True})


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("queries", [15, 40])
def test_the_small_tiles_of_short_calls(queries: int, dim: int) -> None:
    held(flash2, draw((queries, 300), (4, 2), (dim, dim), torch.bfloat16), {"causal": True})


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=str)
def test_one_program_a_head_gives_the_same_bits(heads: tuple[int, int]) -> None:
    tensors = draw((300, 300), heads, (64, 64), torch.bfloat16)
    problem, _ = problem_of(*tensors[:2], {"causal": True})
    rows, whole = (outcome(flash2, problem, tensors, None, torch.bfloat16, grid=grid) for grid in ("rows", "heads"))
    for a, b in zip(rows, whole, strict=True):
        assert torch.equal(a, b)


def test_gradients_are_the_same_bits_every_time() -> None:
    tensors = draw((1000, 1000), (8, 2), (128, 128), torch.bfloat16)
    problem, _ = problem_of(*tensors[:2], {"causal": True})
    first = outcome(flash2, problem, tensors, None, torch.bfloat16)
    for _ in range(4):
        for a, b in zip(first, outcome(flash2, problem, tensors, None, torch.bfloat16), strict=True):
            assert torch.equal(a, b)


def test_both_loop_orders_agree_in_float32() -> None:
    q, k, v = draw((300, 300), (4, 4), (64, 64), torch.float32)
    first, second = (attention(q, k, v, impl=impl) for impl in ("triton-v1", "triton"))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)


def test_offsets_beyond_32_bits() -> None:
    """The last head of a tensor of more than 2^31 elements."""
    big = torch.zeros(1, 33000, 520, 128, dtype=torch.bfloat16, device="cuda")
    part = big[:, :200, -1:].normal_()
    far = big[:, -200:, -1:].normal_()
    assert far.data_ptr() - big.data_ptr() > 2 * 2**31
    for q, k in ((part, far), (far, part)):
        out = attention(q, k, k, impl="triton", causal=False)
        torch.testing.assert_close(
            out, attention(q.contiguous(), k.contiguous(), k.contiguous(), impl="triton", causal=False)
        )


def test_nan_is_located_on_request() -> None:
    q, k, v = draw((20, 20), (2, 2), (16, 16), torch.bfloat16)
    k[1, 3, 0, 7] = float("nan")
    attention(q, k, v)
    with pytest.raises(ValueError, match=r"^k holds NaN, first at .* = \(1, 3, 0, 7\)"):
        attention(q, k, v, check_nan=True)
