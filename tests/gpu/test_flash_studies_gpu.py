"""The parts of both FlashAttention studies that need a card, at small sizes: everybody has a number, none is wrong."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from workbench.studies import Progress
from workbench.studies import _attention_race as racing
from workbench.studies import _flash2_gpu as second
from workbench.studies import _flash_gpu as first
from workbench_kernels import attention

SETTINGS = {
    "device": "cuda", "launches": 3, "warmup": 1, "budget_s": 0.1, "batch_tokens": 1024, "gpu_dims": [64, 128],
    "error_length": 300, "grid_shapes": [[1, 1024]], "grid_repeats": 2, "width": 256, "layers": 2, "stack_tokens": 512,
    "stack_lengths": [256, 512], "stack_kernels": ["standard", "triton-v1", "triton", "SDPA flash"], "stack_steps": 2,
    "sparse_lengths": [1024], "sparse_gpu_block": 128, "shares": [1.0, 0.25], "gpu_blocks": [64, 128],
    "train_steps": 12, "train_batch": 1, "train_context": 256, "train_seconds": 20,
}  # fmt: skip
QUIET = Progress(quiet=True)


@pytest.fixture
def generator():
    return torch.Generator("cuda").manual_seed(0)


def measured(rows):
    frame = pd.DataFrame(rows)
    failed = frame[frame.metric == "no number"]
    assert failed.empty, failed[["item", "note"]].to_string()
    return frame


def ours():
    names = ["triton-v1", "triton", racing.HEADS_GRID]
    return [*names, "hopper"] if torch.cuda.get_device_capability() == (9, 0) else names


def test_error_of_every_kernel_is_at_most_that_of_standard_attention(generator):
    points = [racing.Point(1, 300, 4, d, causal) for d in (64, 128) for causal in (False, True)]
    frame = measured(racing.errors(["standard", *ours()], points, generator))
    largest = frame.groupby("item").value.max()
    assert (largest[ours()] <= 1.1 * largest["standard"]).all()


def test_grids_blocks_and_sparse_masks_have_times(generator):
    rows = [*second.grids(SETTINGS, generator, QUIET), *first.sparse(SETTINGS, generator, QUIET)]
    rows += first.blocks(SETTINGS, generator, QUIET)
    frame = measured(rows)
    assert set(frame.experiment) == {"GPU grids", "E4 GPU", "Fig2 GPU"}
    assert (frame[frame.metric == "bandwidth"].value > 0).all()


def test_the_stack_trains_with_every_kernel(generator):
    frame = measured(second.end_to_end(SETTINGS, generator, QUIET))
    assert len(frame[frame.metric == "speed"]) == 8


def test_losses_agree_between_kernels():
    frame = measured(first.training(SETTINGS, ["standard", "triton"], QUIET))
    losses = frame[frame.metric == "loss"].pivot(index="repeat", columns="item", values="value")
    assert (losses["standard"] - losses["triton"]).abs().max() < 0.02


def test_deterministic_gradients_are_the_same_bits_over_five_runs(generator):
    q, k, v, grad = racing.Point(2, 500, 4, 64, True).draw(generator)

    def once():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad(attention(*leaves, causal=True, deterministic=True), leaves, grad)

    start = once()
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(start, once(), strict=True))
