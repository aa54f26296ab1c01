"""The decode kernels' own code without a GPU: run by Triton's interpreter, and compiled for Hopper."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import compile_kit
import decode_cases
import interpreted_decode
import pytest
import torch

pytest.importorskip("triton")
from workbench_kernels.decode import launch, prefill, split

NAMES = [
    *(f"{name}, {splits} parts" for name in interpreted_decode.CASES for splits in (1, 3)),
    *("parts by the device", "more parts than keys", *interpreted_decode.PREFILL, *interpreted_decode.SPLIT),
]


@pytest.fixture(scope="module")
def interpreted(root: Path) -> dict[str, list]:
    paths = ":".join(str(root / name) for name in ("kernels", "tests/kernels"))
    script = root / "tests" / "kernels" / "interpreted_decode.py"
    environment = {"PYTHONPATH": paths, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_the_interpreted_kernel_equals_float64(interpreted: dict[str, list], name: str) -> None:
    out, lse, blind = interpreted[name]
    budget = 4e-3 if "half" in name else 1e-5
    assert out < budget
    assert lse < budget
    assert blind


def test_every_interpreted_case_is_looked_at(interpreted: dict[str, list]) -> None:
    assert set(interpreted) == set(NAMES)


def test_without_a_gpu_triton_is_refused_and_auto_goes_on() -> None:
    from workbench_kernels import decode_attention

    q, k, v, where = decode_cases.draw("paged-16", [40, 7])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"impl='triton' needs CUDA.*use impl='tiled'"):
            decode_attention(q, k, v, impl="triton", **where)
    with pytest.raises(ValueError, match="float64"):
        decode_attention(q.double(), k.double(), v.double(), impl="triton", **where)
    assert torch.isfinite(decode_attention(q, k, v, **where)).all()


POINTERS = dict.fromkeys(("q", "k", "v", "out"), "*bf16") | {
    **dict.fromkeys(("lse", "part", "stats", "sinks"), "*fp32"),
    **{"lengths": "*i32", "where": "*i32", "factor": "fp32", "cap": "fp32"},
}
PLACES = {"contiguous": (0, 1), "blocks of 16": (2, 16), "blocks of 64": (2, 64)}
MODES = {"CAPPED": False, "WINDOWED": False, "SINKS": False}


def compiled(kernel: Any, dtype: str, constants: dict[str, Any], config: launch.Config) -> compile_kit.Needs:
    types = dict.fromkeys(kernel.arg_names, "i32") | POINTERS
    types |= dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}")
    odd = ("queries", "window", "capacity", "batch", "shares")
    return compile_kit.compile_for_hopper(
        kernel, types, constants, odd, num_warps=config.warps, num_stages=config.stages
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("dtype", "size", "dim"), [("bf16", 2, 64), ("bf16", 2, 128), ("bf16", 2, 256), ("fp32", 4, 128)]
)
def test_shipped_decode_configurations_fit_a_hopper_card(place: str, dtype: str, size: int, dim: int) -> None:
    address, page = PLACES[place]
    config = launch.decode_config(dim, size, early=True)
    plan = launch._plan((8, 1, 32, dim), 8, 256, page, config, (address, False, False, False), None, 264, 64)
    assert (plan.shares, plan.outputs) == (264, 8 * 32)
    needs = compiled(split.split_kernel, dtype, plan.split, config)
    assert needs.stack == 0
    assert needs.shared * config.per_sm <= compile_kit.SHARED_MOST
    assert needs.registers * 32 * config.warps * config.per_sm <= 65536
    assert "cp.async" in needs.ptx  # keys are on their way while earlier ones are used


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_shipped_prefill_configurations_fit_a_hopper_card(place: str, dim: int) -> None:
    address, page = PLACES[place]
    config = launch.prefill_config(dim, 2)
    shape = {"GROUP": 4, "HEADS": 32, "DIM": dim, "BLOCK_M": config.block_m, "BLOCK_D": dim}
    constants = {**shape, **MODES, "BLOCK_N": config.block_n, "ADDRESS": address, "PAGE": page}
    needs = compiled(prefill.prefill_kernel, "bf16", constants, config)
    assert needs.stack == 0
    assert needs.shared <= compile_kit.SHARED_MOST
    assert "wgmma" in needs.ptx
