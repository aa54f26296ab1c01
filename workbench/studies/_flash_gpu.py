"""FlashAttention on a GPU: a race of every contender in one process, and peak memory with the lengths that do not fit.

Contenders here: eager (materialises N x N), our tiled kernel in torch, SDPA's flash and cuDNN back ends, and our tiled
kernel with random block masks. A hand-written GPU kernel joins by adding its line to ``_contenders``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from workbench.studies.base import Progress
from workbench.systems import block_patterns
from workbench_kernels import attention

Row = dict[str, Any]
Kernel = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
FLUSH_BYTES = 256 << 20  # several times the L2 cache


def _eager(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return torch.einsum("bhij,bjhd->bihd", torch.softmax(scores, -1), v)


def _sdpa(backend: SDPBackend) -> Kernel:
    def run(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        with sdpa_kernel(backend):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)

    return run


def _tiled(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return attention(q, k, v, causal=causal, impl="tiled")


def _contenders() -> dict[str, Kernel]:
    return {
        "standard": _eager,
        "flash (tiled torch)": _tiled,
        "SDPA flash": _sdpa(SDPBackend.FLASH_ATTENTION),
        "SDPA cuDNN": _sdpa(SDPBackend.CUDNN_ATTENTION),
    }


def race(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """Median and quartiles of every (dtype, d, N, causal) cell; 16k tokens in a batch, heads x d = 2048."""
    cells = [
        (dtype, d, n, causal)
        for dtype in settings["dtypes"]
        for d in settings["dims"]
        for n in settings["lengths"]
        for causal in (False, True)
    ]
    for dtype, d, n, causal in progress(cells, "GPU race"):
        shape = (max(1, settings["batch_tokens"] // n), n, 2048 // d, d)
        q, k, v, grad = (torch.randn(shape, generator=generator).to("cuda", getattr(torch, dtype)) for _ in range(4))
        for name, kernel in _contenders().items():
            place = {"experiment": "GPU", "item": name, "n": n, "d": d, "dtype": dtype, "input": _mask_name(causal)}
            yield from _cell(place, kernel, (q, k, v), grad, causal, settings["launches"])


def _mask_name(causal: bool) -> str:
    return "causal" if causal else "full"


def _cell(
    place: Row, kernel: Kernel, qkv: tuple[Tensor, ...], grad: Tensor, causal: bool, launches: int
) -> Iterator[Row]:
    """Time and memory of one contender; what does not fit is a row with metric "out of memory"."""
    q, k, v = qkv
    leaves = [x.detach().requires_grad_() for x in qkv]

    def forward() -> Tensor:
        with torch.no_grad():
            return kernel(q, k, v, causal)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(kernel(leaves[0], leaves[1], leaves[2], causal), leaves, grad)

    for stage, run in (("forward", forward), ("forward+backward", both)):
        try:
            low, middle, high = _time(run, launches)
            peak = _peak(run)
        except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
            metric = "out of memory" if isinstance(error, torch.cuda.OutOfMemoryError) else "not supported"
            yield {**place, "stage": stage, "metric": metric, "value": 1.0, "unit": "yes or no"}
            torch.cuda.empty_cache()
            continue
        yield {**place, "stage": stage, "metric": "time", "unit": "ms", "value": middle, "low": low, "high": high}
        yield {**place, "stage": stage, "metric": "peak", "unit": "bytes", "value": float(peak)}


def _time(run: Callable[[], object], launches: int) -> tuple[float, float, float]:
    """Quartiles in ms after 20 warm-up launches; the L2 cache is flushed before each launch."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(min(20, launches)):
        run()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(launches)]
    for start, end in marks:
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    times = torch.tensor([start.elapsed_time(end) for start, end in marks])
    low, middle, high = times.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return low, middle, high


def _peak(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def sparse(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """Block-sparse forward time over s, same kernel dense as reference."""
    block = settings["sparse_block"]
    cells = [(n, s) for n in settings["sparse_lengths"] for s in (1.0, 0.5, 0.25, 0.125, 0.0625)]
    for n, s in progress(cells, "GPU block-sparse"):
        q, k, v = (torch.randn(1, n, 16, 64, generator=generator).to("cuda", torch.bfloat16) for _ in range(3))
        live = block_patterns.random_density(n // block, s, generator)
        share = float(live.float().mean())

        def run(q: Tensor = q, k: Tensor = k, v: Tensor = v, live: Tensor = live) -> Tensor:
            return attention(q, k, v, causal=False, block_mask=live, block_size=block, impl="tiled")

        low, middle, high = _time(run, settings["sparse_launches"])
        place = {"experiment": "E4", "item": f"random {s:g}", "stage": "forward", "n": n, "d": 64}
        times = {"value": middle, "low": low, "high": high}
        yield {**place, "block": block, "s": share, "repeat": 0, "metric": "time", "unit": "ms", **times}
