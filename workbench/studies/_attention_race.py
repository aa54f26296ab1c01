"""Races of attention kernels on a GPU, as rows of a tidy frame: what the studies of both FlashAttention papers share.

The papers' FLOP convention: forward 4 B H N^2 d, half of it when causal, backward 2.5 times the forward, whatever a
kernel really does. Inputs are laid out (B, N, H, d) for everybody, so that nobody pays for a hidden transposition.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from workbench.bench import _peers
from workbench.bench._peers import Attention
from workbench.systems import timing
from workbench_kernels import attention

Row = dict[str, Any]

#: Our implementations that the public function knows by these names.
OURS = ("triton-v1", "triton", "hopper")
PEERS: dict[str, Callable[[], Attention]] = {
    "standard": lambda: _peers.eager,
    "SDPA flash": lambda: _peers.sdpa("flash"),
    "SDPA cuDNN": lambda: _peers.sdpa("cudnn"),
    "flex": _peers.flex,
}
HEADS_GRID = "triton (heads grid)"
TIME_IS_UP = "the time set for this study was up"
BACKWARD_FACTOR = 2.5


@dataclass(frozen=True)
class Point:
    """One shape; queries and keys are equally long, every head has keys of its own."""

    batch: int
    n: int
    heads: int
    d: int
    causal: bool
    dtype: str = "bfloat16"

    @classmethod
    def of_tokens(cls, tokens: int, width: int, n: int, d: int, causal: bool, dtype: str = "bfloat16") -> Point:
        """The papers' setting: so many tokens in a batch, heads x d = ``width``."""
        return cls(max(1, tokens // n), n, width // d, d, causal, dtype)

    @property
    def flops(self) -> float:
        """Of the forward pass, by the convention."""
        return 4.0 * self.batch * self.heads * self.n**2 * self.d / (2 if self.causal else 1)

    @property
    def place(self) -> Row:
        mask = "causal" if self.causal else "full"
        names = {"n": self.n, "d": self.d, "batch": self.batch, "heads": self.heads}
        return {"experiment": "GPU", **names, "dtype": self.dtype, "input": mask}

    def draw(self, generator: torch.Generator) -> list[Tensor]:
        """q, k, v and dO: random numbers, because zeros draw less power and look faster."""
        shape = (self.batch, self.n, self.heads, self.d)
        device = generator.device
        draws = [torch.randn(shape, generator=generator, device=device, dtype=torch.float32) for _ in range(4)]
        return [x.to(getattr(torch, self.dtype)) for x in draws]


class Clock:
    """How much of ``seconds`` (None: no limit) is left since it was made."""

    def __init__(self, seconds: float | None):
        self.seconds, self.started = seconds, time.monotonic()

    def left(self) -> float:
        return float("inf") if self.seconds is None else self.seconds - (time.monotonic() - self.started)


def parts(clock: Clock, named: Iterable[tuple[str, float, Callable[[], Iterable[Row]]]]) -> list[Row]:
    """Rows of (name, seconds it needs at least, part) one after the other.

    A part that raises keeps the rows it gave and adds one that says why; one that no longer fits is a row, too.
    """
    found: list[Row] = []
    gc.collect()
    gc.freeze()  # every race collects garbage first; what is here already need not be looked at each time
    try:
        for name, least, part in named:
            failed = {"experiment": name, "metric": "no number", "value": 1.0, "unit": "yes or no"}
            if clock.left() < least:
                found.append({**failed, "note": TIME_IS_UP})
                continue
            try:
                for row in part():
                    found.append(row)
            except Exception as error:
                found.append({**failed, "note": timing.one_line(error)})
                torch.cuda.empty_cache()
    finally:
        gc.unfreeze()
    return found


def race_in_time(
    point: Point,
    names: Iterable[str],
    stages: Iterable[str],
    generator: torch.Generator,
    settings: Mapping[str, Any],
    clock: Clock,
) -> Iterator[Row]:
    """:func:`race` while time is left; afterwards a row that says so."""
    if clock.left() > 0:
        yield from race(point, names, stages, generator, settings)
    else:
        yield {**point.place, "metric": "no number", "value": 1.0, "unit": "yes or no", "note": TIME_IS_UP}


def kernels(names: Iterable[str]) -> dict[str, Attention]:
    """name -> kernel (q, k, v, causal) -> out. A kernel that cannot run here raises when it is called."""
    return {name: _kernel(name) for name in names}


def _kernel(name: str) -> Attention:
    if name in OURS:
        return lambda q, k, v, causal: attention(q, k, v, causal=causal, impl=name, deterministic=False)
    return heads_grid if name == HEADS_GRID else PEERS[name]()


def heads_grid(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """FlashAttention-2's arithmetic with the first version's parallelism: one program a head walks its row blocks."""
    from workbench_kernels.softmax_attention.portable import flash2

    return flash2.attention(problem(q, k, causal), q, k, v, None, grid="heads")[0]


def problem(q: Tensor, k: Tensor, causal: bool) -> Any:
    """What the implementations' module functions take beside the tensors."""
    from workbench_kernels.masking import masking
    from workbench_kernels.softmax_attention.problem import Problem

    masks = masking(q, k, causal=causal, window=None, key_padding=None, mask=None)
    return Problem(masks, q.shape[-1] ** -0.5)


def passes(kernel: Attention, draws: list[Tensor], causal: bool) -> dict[str, Callable[[], Any]]:
    """ "forward", "backward" (the graph is made once and kept) and "forward+backward" as calls without arguments."""
    q, k, v, grad = draws
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    made: list[Tensor] = []

    def forward() -> Tensor:
        with torch.no_grad():
            return kernel(q, k, v, causal)

    def backward() -> tuple[Tensor, ...]:
        if not made:
            made.append(kernel(leaves[0], leaves[1], leaves[2], causal))
        return torch.autograd.grad(made[0], leaves, grad, retain_graph=True)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(kernel(leaves[0], leaves[1], leaves[2], causal), leaves, grad)

    return {"forward": forward, "backward": backward, "forward+backward": both}


def race(
    point: Point, names: Iterable[str], stages: Iterable[str], generator: torch.Generator, settings: Mapping[str, Any]
) -> Iterator[Row]:
    """Every contender at one point, stage by stage: rows "time" (ms, quartiles) and "speed" (TFLOP/s).

    ``settings``: launches, budget_s (of one stage, all contenders together). Who has no number has a row "no number"
    whose ``note`` says why.
    """
    draws = point.draw(generator)
    field = kernels(names)
    for stage in stages:
        contenders = {name: passes(kernel, draws, point.causal)[stage] for name, kernel in field.items()}
        for row in timed(contenders, {**point.place, "stage": stage}, settings, flops(point, stage)):
            yield row if "note" in row else {**row, "note": configuration(row["item"], point, stage)}


def configuration(name: str, point: Point, stage: str) -> str:
    """The frozen tile that a kernel of ours runs with here: query rows x keys, warps, stages; "" for others."""
    try:
        return _configuration(name, point, stage)
    except Exception as unknown:  # a word beside a number: never a reason to lose the number
        return f"tile unknown ({timing.one_line(unknown)})"


def _configuration(name: str, point: Point, stage: str) -> str:
    if name == "hopper":
        from workbench_kernels.softmax_attention.hopper import launch

        if stage == "backward":
            return f"{launch.BACKWARD_QUERIES[point.d]} x {launch.BACKWARD_KEYS}, {launch.BACKWARD_STAGES} stages"
        tile = launch.FORWARD[point.d, point.causal]
        return f"{64 * tile.groups} x {tile.keys}, {tile.groups} consumer warpgroups, {tile.stages} stages"
    if name not in ("triton-v1", "triton", HEADS_GRID):
        return ""
    from workbench_kernels.softmax_attention.portable import configurations as frozen

    passes = ["forward"] if stage == "forward" else ["backward"] if name == "triton-v1" else ["keys", "queries"]
    card = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    size = torch.finfo(getattr(torch, point.dtype)).bits // 8
    found = [
        frozen.first_tiles_for(card, size, point.d, which)
        if name == "triton-v1"
        else frozen.tiles_for(card, size, point.d, which)
        for which in passes
    ]
    return "; ".join(f"{t.rows} x {t.cols}, {t.warps} warps, {t.stages} stages" for t in found)


def flops(point: Point, stage: str) -> float:
    return point.flops * {"forward": 1.0, "backward": BACKWARD_FACTOR, "forward+backward": 1 + BACKWARD_FACTOR}[stage]


def timed(
    contenders: Mapping[str, Callable[[], Any]], place: Row, settings: Mapping[str, Any], work: float | None = None
) -> Iterator[Row]:
    """Rows of one race; ``work`` (FLOPs of a launch) adds a row "speed"."""
    options = {name: settings[name] for name in ("launches", "warmup", "flush_l2") if name in settings}
    options |= {"device": settings.get("device", "cuda")}
    for found in timing.race(contenders, budget_s=settings.get("budget_s"), **options).to_dict("records"):
        here = {**place, "item": found["item"]}
        if found["error"]:
            yield {**here, "metric": "no number", "value": 1.0, "unit": "yes or no", "note": found["error"]}
            continue
        low, middle, high = (float(found[name]) for name in ("q25_ms", "median_ms", "q75_ms"))
        count = {"launches": float(found["launches"])}
        yield {**here, **count, "metric": "time", "unit": "ms", "value": middle, "low": low, "high": high}
        if work:
            speed = {"value": work / middle / 1e9, "low": work / high / 1e9, "high": work / low / 1e9}
            yield {**here, **count, "metric": "speed", "unit": "TFLOP/s", **speed}


def ceilings(device: str) -> Iterator[Row]:
    """The matrix product and the copy that this device reaches in this run, and the clock while it works."""
    found = timing.ceilings(device)
    place = {"experiment": "ceiling", "item": "device"}
    yield {**place, "metric": "matmul", "unit": "TFLOP/s", "value": found["matmul_tflops"]}
    yield {**place, "metric": "copy", "unit": "TB/s", "value": found["copy_tb_s"]}
    clock = timing.clocks(timing.products(device), device) if device != "cpu" else timing.clocks()
    for name, value in clock.items():
        yield {**place, "metric": name, "unit": name.rsplit("_", 1)[-1], "value": value}


def errors(names: Iterable[str], points: Iterable[Point], generator: torch.Generator) -> Iterator[Row]:
    """Largest error of output and gradients of the first head against float64, relative to the largest entry."""
    field = kernels(names)
    for point in points:
        draws = point.draw(generator)
        truth = _exact(draws, point.causal)
        for name, kernel in field.items():
            here = {**point.place, "experiment": "GPU error", "item": name, "unit": "of the largest entry"}
            try:
                found = _values(kernel, draws, point.causal)
            except Exception as error:  # whatever a missing or refusing kernel raises is its row
                yield {**here, "metric": "no number", "value": 1.0, "note": timing.one_line(error)}
                continue
            for tensor, a, b in zip(("out", "dq", "dk", "dv"), found, truth, strict=True):
                gap = (a[:1, :, :1].double() - b).abs().max() / b.abs().max()
                yield {**here, "metric": "error", "tensor": tensor, "value": float(gap)}


def _exact(draws: list[Tensor], causal: bool) -> list[Tensor]:
    first = [x[:1, :, :1].double() for x in draws]
    return _values(lambda q, k, v, c: attention(q, k, v, causal=c, impl="reference"), first, causal)


def _values(kernel: Attention, draws: list[Tensor], causal: bool) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in draws[:3]]
    out = kernel(leaves[0], leaves[1], leaves[2], causal)
    return [out.detach(), *torch.autograd.grad(out, leaves, draws[3])]


# -- compiling ahead --------------------------------------------------------------------------------------------------


@contextmanager
def compiling(settings: Mapping[str, Any], dims: Iterable[int]) -> Iterator[Callable[[float], None]]:
    """Compile our kernels in processes of their own while the body runs; what it gives waits for them.

    They end up in Triton's cache on disk, where this process finds them; on anything but a CUDA device, nothing.
    """
    children: list[subprocess.Popen[bytes]] = []
    if settings.get("device") == "cuda":
        for d, mask in product(dims, ("full", "causal")):
            command = [sys.executable, "-W", "ignore", "-m", __name__, str(d), mask]
            children.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def wait(seconds: float) -> None:
        until = time.monotonic() + max(seconds, 0.0)
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=max(until - time.monotonic(), 0.0))

    try:
        yield wait
    finally:
        for child in children:
            child.kill()
            child.wait()


def _compile(d: int, causal: bool) -> None:
    """In the child: every kernel of ours once, forward and backward, at the papers' width."""
    generator = torch.Generator("cuda").manual_seed(0)
    draws = Point(2, 1024, 2048 // d, d, causal).draw(generator)
    for kernel in kernels([*OURS, HEADS_GRID]).values():
        with suppress(Exception):  # it will raise again in the race, which writes the reason down
            passes(kernel, draws, causal)["forward+backward"]()
    torch.cuda.synchronize()


if __name__ == "__main__":
    _compile(int(sys.argv[1]), sys.argv[2] == "causal")
