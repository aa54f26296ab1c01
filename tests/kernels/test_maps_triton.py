"""The map kernels' own code without a GPU: run by Triton's interpreter, and compiled for Hopper."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import compile_kit
import interpreted_maps
import pytest
import torch

pytest.importorskip("triton")
from workbench_kernels import attention_mass, attention_statistics, pooled_attention, row_lse
from workbench_kernels.maps.fast import launch, pooled, pooled_kernels, row_kernels
from workbench_kernels.maps.problem import Bins, Look
from workbench_kernels.masking import Masking


@pytest.fixture(scope="module")
def interpreted(root: Path) -> dict[str, dict[str, list[float]]]:
    paths = ":".join(str(root / name) for name in ("kernels", "tests/kernels"))
    script = root / "tests" / "kernels" / "interpreted_maps.py"
    environment = {"PYTHONPATH": paths, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.xdist_group("interpreted-maps")  # one run of the interpreter serves them all
@pytest.mark.parametrize("name", interpreted_maps.CASES)
def test_the_interpreted_kernels_equal_float64(interpreted: dict[str, dict[str, list[float]]], name: str) -> None:
    """Inputs are exact in both, so half precision gets no larger budget than float32."""
    found = interpreted[name]
    assert len(found) == 2 * len(interpreted_maps.SHAPES) + 14
    off = {what: error for what, (error, largest) in found.items() if not error <= 4e-6 * max(largest, 1e-3) + 4e-7}
    assert not off


def draw(keys: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k = torch.randn(1, 30, 4, 16), torch.randn(1, keys, 2, 16)
    return q, k, row_lse(q, k)


def test_what_triton_cannot_take_is_refused_and_auto_goes_on() -> None:
    q, k, lse = draw()
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"impl='triton' cannot take this call: the tensors are on cpu"):
            pooled_attention(q, k, lse, impl="triton")
    with pytest.raises(ValueError, match="a full mask matrix is not supported"):
        attention_mass(q, k, lse, keys=[0], mask=torch.ones(30, 40, dtype=torch.bool), impl="triton")
    with pytest.raises(ValueError, match=r"torch.float64 is not supported"):
        pooled_attention(q.double(), k.double(), lse.double(), impl="triton")
    with pytest.raises(ValueError, match="topk is limited to 64, got 65"):
        attention_statistics(q, k, lse, topk=65, impl="triton")
    with pytest.raises(ValueError, match="head dim 300 is above 256"):
        row_lse(torch.randn(1, 3, 2, 300), torch.randn(1, 3, 2, 300), impl="triton")
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'torch', 'triton'"):
        pooled_attention(q, k, lse, impl="fast")
    assert torch.equal(pooled_attention(q, k, lse), pooled_attention(q, k, lse, impl="torch"))


# -- compiled for the card --------------------------------------------------------------------------------------------

TYPES = {
    **dict.fromkeys(("lse", "entropy", "mass", "distance", "profile", "scores"), "*fp32"),
    **dict.fromkeys(("row_edges", "col_edges", "index", "ends", "where", "rows", "cols"), "*i32"),
    **{"heads": "*i64", "padding": "*u8", "factor": "fp32", "cap": "fp32"},
}
ODD = ("count", "queries", "keys", "window", "plane0", "row_bins", "col_bins", "row_groups", "bins_each", "chunks")
ODD += ("cols_each", "row_start", "row_stop", "col_start", "col_stop", "row_subs", "col_subs", "row_tiles", "col_tiles")
ODD += ("desc_batch", "desc_head", "desc_column", "chosen", "chosen_batch", "rows_chosen", "cols_chosen", "l_row")
ODD += ("l_batch", "l_head", "ends")
TRITON = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def seen(dim: int, dtype: torch.dtype) -> Look:
    q = torch.zeros(1, 8, 4, dim, dtype=dtype)
    masks = Masking(8, 8)
    return Look(q, q[:, :, :1], q[..., 0], torch.arange(4), 1.0, None, masks)


def compiled(kernel: Any, look: Look, tile: launch.Tiles, **more: Any) -> compile_kit.Needs:
    dtype = TRITON[look.q.dtype]
    types = dict.fromkeys(kernel.arg_names, "i32") | TYPES | {"q": f"*{dtype}", "k": f"*{dtype}"}
    constants = {**launch.constants(look), "BM": tile.rows, "BN": tile.keys, **more}
    types["out"] = "*i32" if more.get("MAX") else "*fp32"
    types["desc"] = f"tensordesc<{dtype}[{tile.keys}, {constants['BD']}]>" if more.get("TMA") else "*fp32"
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    if tile.registers:
        options["maxnreg"] = tile.registers
    return compile_kit.compile_for_hopper(kernel, types, constants, ODD, **options)


def fits(needs: compile_kit.Needs, dtype: torch.dtype = torch.bfloat16) -> None:
    assert needs.stack <= (SPLIT_FLOAT32 if dtype == torch.float32 else LOOP_INVARIANT)
    assert needs.shared <= compile_kit.SHARED_MOST


#: Bytes a thread may keep on the stack: what is read once a row of tiles, outside the loop over keys.
LOOP_INVARIANT = 16
#: The three-product float32 dot keeps Q twice in registers; at head dim 128 a part of it moves to the stack.
SPLIT_FLOAT32 = 200
INPUTS = [(64, torch.bfloat16), (128, torch.bfloat16), (256, torch.float16), (80, torch.bfloat16), (128, torch.float32)]


@pytest.mark.parametrize(
    ("dim", "dtype", "width"), [*((*given, 128) for given in INPUTS), (128, torch.bfloat16, 64)], ids=str
)
@pytest.mark.parametrize("even", [True, False])
def test_wide_bins_fit_the_card(dim: int, dtype: torch.dtype, even: bool, width: int) -> None:
    look = seen(dim, dtype)
    whole = dim == launch.padded_dim(look)
    bins = Bins(0, width * 10 + (0 if even else 3), 10)
    for tma in (True, False) if whole else (False,):
        tile = pooled.tile_for(look, bins, bins, tma)
        fits(compiled(pooled_kernels.coarse, look, tile, MAX=False, EVEN=even, TMA=tma), dtype)


@pytest.mark.parametrize(("dim", "dtype"), INPUTS[1:], ids=str)
@pytest.mark.parametrize("slots", [(1, 1), (64, 4)])
def test_narrow_bins_fit_the_card(dim: int, dtype: torch.dtype, slots: tuple[int, int]) -> None:
    look = seen(dim, dtype)
    tile = pooled.fine_tile(look)
    sizes = {"ROW_SLOTS": min(slots[0], tile.rows), "COL_SLOTS": min(slots[1], tile.keys)}
    fits(compiled(pooled_kernels.fine, look, tile, MAX=True, **sizes), dtype)


@pytest.mark.parametrize(("dim", "dtype"), INPUTS, ids=str)
@pytest.mark.parametrize("name", ["lse_rows", "mass_rows", "statistics_rows", "top_rows", "region_cells"])
def test_row_kernels_fit_the_card(dim: int, dtype: torch.dtype, name: str) -> None:
    from workbench_kernels.maps.fast import rows

    look = seen(dim, dtype)
    tile = rows.TILES[name](look)
    more = {"statistics_rows": {"NEAR": rows.near_bins(tile)}, "top_rows": {"TOP": 8}}.get(name, {})
    needs = compiled(getattr(row_kernels, name), look, tile, **more)
    fits(needs, dtype)
    assert "wgmma" in needs.ptx or "mma.sync" in needs.ptx
