"""The Gluon kernels on a Hopper card: outputs, LSE and all gradients against float64, in every configuration."""

from __future__ import annotations

import pytest
import torch
from attention_cases import draw, held, outcome, problem_of

from workbench_kernels import attention
from workbench_kernels.softmax_attention import hopper
from workbench_kernels.softmax_attention.hopper import launch

if torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("needs a Hopper card", allow_module_level=True)

SHAPES = {
    "aligned": ((256, 256), (4, 2)),
    "short": ((63, 63), (2, 1)),
    "fewer queries": ((100, 1000), (2, 2)),
    "fewer keys": ((1000, 300), (2, 2)),
    "ragged": ((1000, 1000), (3, 1)),
    "one query": ((1, 513), (4, 2)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(shape: str, dim: int, causal: bool, dtype: torch.dtype) -> None:
    lengths, heads = SHAPES[shape]
    held(hopper, draw(lengths, heads, (dim, dim), dtype), {"causal": causal})


@pytest.mark.parametrize("dim", [16, 32, 80, 96])
def test_head_dims_in_between_are_padded_by_the_copies(dim: int) -> None:
    held(hopper, draw((300, 333), (4, 2), (dim, dim), torch.bfloat16), {"causal": True})


@pytest.mark.parametrize("dim", [64, 128])
def test_many_tiles_a_program_and_heads_in_sections(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SECTION_BYTES", 1 << 20)
    held(hopper, draw((2048, 2048), (16, 4), (dim, dim), torch.bfloat16, batch=4), {"causal": True})


def test_large_scores_and_a_scale() -> None:
    q, k, v = draw((300, 300), (2, 2), (128, 128), torch.bfloat16)
    held(hopper, [q * 30, k, v], {"causal": True, "scale": 0.5})


def test_the_tile_counter_is_left_at_zero_and_each_stream_has_its_own() -> None:
    tensors = draw((700, 700), (8, 2), (128, 128), torch.bfloat16)
    problem, _ = problem_of(*tensors[:2], {"causal": True})
    first, _ = launch.forward(problem, *tensors)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    made = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                made.append(launch.forward(problem, *tensors)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(first, out) for out in made)
    used = {launch._counter(torch.device("cuda", 0), s.stream_id) for s in (torch.cuda.current_stream(), *streams)}
    assert len(used) == 3
    assert all(int(counter) == 0 for counter in used)


def test_auto_picks_it_and_a_deterministic_call_does_not_train_through_it() -> None:
    q, k, v = (x.requires_grad_() for x in draw((256, 256), (4, 2), (128, 128), torch.bfloat16))
    out = attention(q, k, v)
    assert type(out.grad_fn).__name__.startswith("_HopperAttention")
    out = attention(q, k, v, deterministic=True)
    assert not type(out.grad_fn).__name__.startswith("_HopperAttention")
    with pytest.raises(ValueError, match="deterministic"):
        attention(q, k, v, deterministic=True, impl="hopper")


def test_the_forward_pass_gives_the_same_bits_every_time() -> None:
    tensors = draw((1000, 1000), (8, 2), (64, 64), torch.bfloat16)
    problem, _ = problem_of(*tensors[:2], {"causal": True})
    first = outcome(hopper, problem, tensors, None, torch.bfloat16)
    again = outcome(hopper, problem, tensors, None, torch.bfloat16)
    for name, a, b in zip(
        ("out", "lse", "dk", "dv"), (first[0], first[1], *first[3:]), (again[0], again[1], *again[3:])
    ):
        assert torch.equal(a, b), name
