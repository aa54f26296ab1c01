"""FlashAttention-2 on a GPU: the paper's grid, the two grids of programs (A3), and a stack of GPT blocks end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workbench.bench._peers import Attention
from workbench.studies import _attention_race as racing
from workbench.studies._attention_race import HEADS_GRID, Point, Row
from workbench.studies.base import Progress

NAMES = ("standard", "triton-v1", "triton", "hopper", "SDPA flash", "SDPA cuDNN")


def on_the_card(
    settings: Mapping[str, Any], generator: torch.Generator, clock: racing.Clock, progress: Progress
) -> list[Row]:
    """All parts, the lengths that most claims speak of first."""
    first, rest = settings["gpu_lengths"][:3], settings["gpu_lengths"][3:]
    return racing.parts(
        clock,
        [
            ("ceiling", 0, lambda: racing.ceilings("cuda")),
            ("GPU error", 0, lambda: exactness(settings, generator)),
            ("GPU grids", 0, lambda: grids(settings, generator, progress)),
            ("GPU", 0, lambda: race(settings, first, generator, clock, progress)),
            ("end to end", 8, lambda: end_to_end(settings, generator, progress)),
            ("GPU", 0, lambda: race(settings, rest, generator, clock, progress)),
            ("GPU flex", 12, lambda: flex(settings, generator)),
        ],
    )


def race(
    settings: Mapping[str, Any],
    lengths: Iterable[int],
    generator: torch.Generator,
    clock: racing.Clock,
    progress: Progress,
) -> Iterator[Row]:
    """The paper's grid: N 512 to 16k at 16k tokens, heads x d = 2048, d 64 and 128, with and without causal mask.

    The grid of programs over heads is raced forward only: what it shows, it shows there.
    """
    points = [
        Point.of_tokens(settings["batch_tokens"], 2048, n, d, causal)
        for n in lengths
        for d in reversed(settings["gpu_dims"])
        for causal in (False, True)
    ]

    everybody = [*NAMES, HEADS_GRID]
    for point in progress(points, "GPU race"):
        left_out = {"standard"} if point.n > settings["standard_up_to"] else set()
        for stage, field in (("forward", everybody), ("backward", NAMES)):
            names = [name for name in field if name not in left_out]
            yield from racing.race_in_time(point, names, [stage], generator, settings, clock)


def flex(settings: Mapping[str, Any], generator: torch.Generator) -> Iterator[Row]:
    """Where its compilation is affordable: one shape, in a race of its own with the same peers."""
    for d, n in settings["flex_at"]:
        point = Point.of_tokens(settings["batch_tokens"], 2048, n, d, causal=True)
        for row in racing.race(point, ["flex", "hopper", "SDPA cuDNN"], ["forward"], generator, settings):
            if row["item"] == "flex":  # the others have their rows from the race over lengths
                yield row


def exactness(settings: Mapping[str, Any], generator: torch.Generator) -> Iterator[Row]:
    """A1 on the card: every contender against float64, a length that no tile divides, every head dimension."""
    points = [
        Point(2, settings["error_length"], 4, d, causal) for d in settings["gpu_dims"] for causal in (False, True)
    ]
    yield from racing.errors([*NAMES, HEADS_GRID], points, generator)


def grids(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """A3: programs over (batch, head, row block) against programs over (batch, head), raced several times."""
    for batch, n in progress(settings["grid_shapes"], "GPU grids"):
        draws = (point := Point(batch, n, 16, 128, causal=False)).draw(generator)
        field = racing.kernels([HEADS_GRID, "triton"])
        runs = {name: racing.passes(kernel, draws, point.causal)["forward"] for name, kernel in field.items()}
        for repeat in range(settings["grid_repeats"]):
            place = {**point.place, "experiment": "GPU grids", "stage": "forward", "repeat": repeat}
            yield from racing.timed(runs, place, settings)


# -- end to end -------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A GPT block: attention and a four times wider MLP, each after a layer norm, each added to its input."""

    def __init__(self, width: int, head_dim: int, kernel: Attention):
        super().__init__()
        self.head_dim, self.kernel = head_dim, kernel
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.to_qkv, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norms[0](x)).unflatten(-1, (3, -1, self.head_dim)).unbind(2)  # b n h d
        x = x + self.back(self.kernel(q, k, v, True).flatten(2))
        return x + self.mlp(self.norms[1](x))


def megatron_flops(tokens: int, n: int, parameters: int, layers: int, width: int) -> float:
    """The paper's count of a training step: 6 N parameters + 12 layers width N^2 for every sequence of N tokens.

    As in the paper, attention counts in full although it is causal.
    """
    return tokens / n * (6.0 * n * parameters + 12.0 * layers * width * n**2)


def end_to_end(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """Training steps (forward, backward, SGD) of a stack of GPT blocks, one stack whose kernel is exchanged."""
    width, layers, tokens = settings["width"], settings["layers"], settings["stack_tokens"]
    device = generator.device
    with torch.device(device):
        stack = nn.Sequential(*(Block(width, 128, _none) for _ in range(layers))).to(torch.bfloat16)
    optimiser = torch.optim.SGD(stack.parameters(), lr=1e-4)
    parameters = sum(p.numel() for p in stack.parameters())
    for n in progress(settings["stack_lengths"], "GPU end to end"):
        x = torch.randn(tokens // n, n, width, generator=generator, device=device).to(torch.bfloat16)
        field = racing.kernels(settings["stack_kernels"])
        runs = {name: _step(stack, optimiser, kernel, x) for name, kernel in field.items()}
        place = {"experiment": "end to end", "stage": "training step", "n": n, "d": 128, "input": "causal"}
        effort = {"device": device.type, "launches": settings["stack_steps"], "warmup": 1, "flush_l2": False}
        yield from racing.timed(runs, place, effort, megatron_flops(tokens, n, parameters, layers, width))


def _none(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    raise AssertionError("a kernel is put in before every step")


def _step(stack: nn.Sequential, optimiser: torch.optim.Optimizer, kernel: Attention, x: Tensor) -> Callable[[], None]:
    def step() -> None:
        for block in stack:
            block.kernel = kernel
        stack(x).float().square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step
