"""Any attention kernel against the reference on the reader's own shapes and card: is it right, and how fast is it?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench import checks, provenance
from workbench.bench.base import relative_error
from workbench.errors import BadInput, UnknownName
from workbench.systems import timing
from workbench_kernels import attention
from workbench_kernels.softmax_attention import IMPLEMENTATIONS

COLUMNS = ("quantity", "error", "plain_error", "budget", "ok", "median_ms", "tflops", "note")
#: A kernel may err twice as much as plain low precision does on the same data, and by half a rounding more.
BUDGET_FACTOR, BUDGET_ROUNDINGS = 2.0, 0.5

#: (q, k, v) -> out, all (B, S, H, D).
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


class SelfTest(pd.DataFrame):
    """The tidy frame of :func:`self_test` with the call, the card and its clocks as a line above it."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    @property
    def ok(self) -> bool:
        """Everything that was checked is within its budget."""
        return bool(self["ok"].dropna().astype(bool).all())

    def _headline(self) -> str:
        told = self.attrs
        clocks = ", ".join(f"{name} {value:g}" for name, value in told["clocks"].items())
        verdict = f"{'' if self.ok else 'NOT '}within the error of plain low precision"
        return f"{told['kernel']}: {verdict}\n{told['call']}\n{told['device']}{f' ({clocks})' if clocks else ''}"

    def _shown(self) -> pd.DataFrame:
        shown = pd.DataFrame(self)
        for name, form in {"error": "{:.1e}", "plain_error": "{:.1e}", "budget": "{:.1e}"}.items():
            shown[name] = [form.format(x) if x == x else "" for x in self[name]]
        for name, form in {"median_ms": "{:.4g}", "tflops": "{:.3g}"}.items():
            shown[name] = [form.format(x) if x == x else "" for x in self[name]]
        shown["ok"] = ["" if x is None else "yes" if x else "NO" for x in self["ok"]]
        shown = shown if self["note"].any() else shown.drop(columns="note")
        return shown.rename(columns={"plain_error": "plain error", "median_ms": "median, ms", "tflops": "TFLOP/s"})

    def __repr__(self) -> str:
        return f"{self._headline()}\n{self._shown().to_string(index=False)}"

    def _repr_html_(self) -> str:
        from html import escape

        lines = "<br>".join(escape(line) for line in self._headline().split("\n"))
        return f"<p>{lines}</p>{self._shown().to_html(index=False, border=0)}"


@dataclass(frozen=True)
class _Call:
    """The shapes of one test."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    causal: bool
    device: str

    def __str__(self) -> str:
        heads = f"{self.heads} heads" + (f" ({self.kv_heads} key heads)" if self.kv_heads != self.heads else "")
        shape = f"batch {self.batch}, {self.queries} queries, {self.keys} keys, {heads}, D = {self.head_dim}"
        return f"{shape}, {str(self.dtype).removeprefix('torch.')}, {'causal' if self.causal else 'full'}"

    @property
    def flops(self) -> float:
        """Four operations a visible score cell and head dimension; causal rows are aligned bottom-right."""
        cells = self.queries * self.keys
        if self.causal:
            seen = min(self.queries, self.keys)
            cells = seen * (self.keys - seen) + seen * (seen + 1) // 2
        return 4.0 * self.batch * self.heads * cells * self.head_dim


def self_test(
    kernel: str | Callable[..., Tensor] = "auto",
    *,
    batch: int = 1,
    queries: int = 512,
    keys: int | None = None,
    heads: int = 8,
    kv_heads: int | None = None,
    head_dim: int = 64,
    dtype: torch.dtype | str | None = None,
    causal: bool = True,
    backward: bool = True,
    device: str | None = None,
    seed: int = 0,
    launches: int = 20,
) -> SelfTest:
    """Check one kernel's output and gradients against float64 on random data, and time it.

    Args:
        kernel: "auto" or an implementation of ``workbench_kernels.attention`` ("tiled", "triton", "hopper"); a kernel
            that models use, by its name in ``workbench.models.attention.KERNELS`` ("sdpa", "eager"); or a function
            with the signature of ``workbench_kernels.attention``.
        batch, queries, keys, heads, kv_heads, head_dim: the shapes; keys default to queries, kv_heads to heads.
        dtype: a torch dtype or its name; bfloat16 on a GPU, float32 on a CPU.
        causal: query i sees keys j <= i + keys - queries.
        backward: the gradients of q, k and v as well.
        device: where to run; the GPU if there is one.

    Returns:
        A frame with one row a quantity (out, dq, dk, dv): error and plain_error (root mean square of the difference
        from float64 over that of the exact values; the plain one is two products and a softmax in ``dtype``), budget
        (twice the plain error and half a rounding), ok, and on the rows forward and backward median_ms and TFLOP/s
        (backward: 2.5 forwards, the backward pass alone). ``note`` says why something is missing. It prints with the
        device and its clocks, and ``.ok`` says whether everything is within budget.

    Raises:
        UnknownName: no such kernel. BadInput: shapes or a dtype that make no sense. ValueError: the kernel refuses.
    """
    call = _call(batch, queries, keys, heads, kv_heads, head_dim, dtype, causal, device)
    name, run = _kernel(kernel, call)
    tensors = _draw(call, seed)
    found, plain = _results(run, tensors, backward), _results(_plain(call), tensors, backward)
    errors = zip(("out", "dq", "dk", "dv"), *_errors(call, tensors, (found, plain), backward))
    rows = [_error_row(call, *row) for row in errors] + _time_rows(call, run, tensors, backward, launches)
    frame = SelfTest(rows, columns=list(COLUMNS))
    frame.attrs = {
        **{"kernel": name, "call": str(call), "device": provenance.device_name(call.device)},
        **{"clocks": timing.clocks(timing.products(call.device), call.device) if call.device != "cpu" else {}},
        **{"libraries": provenance.libraries()},
    }
    return frame


def _call(
    batch: int,
    queries: int,
    keys: int | None,
    heads: int,
    kv_heads: int | None,
    head_dim: int,
    dtype: torch.dtype | str | None,
    causal: bool,
    device: str | None,
) -> _Call:
    keys, kv_heads = queries if keys is None else keys, heads if kv_heads is None else kv_heads
    sizes = {"batch": batch, "queries": queries, "keys": keys, "heads": heads, "kv_heads": kv_heads}
    for name, size in {**sizes, "head_dim": head_dim}.items():
        checks.whole(name, size)
    if heads % kv_heads:
        raise BadInput(f"kv_heads must divide heads, got {heads} heads and {kv_heads} key heads")
    place = checks.device(device or "auto", auto=True)
    return _Call(batch, queries, keys, heads, kv_heads, head_dim, _dtype(dtype, place), causal, place)


def _dtype(dtype: torch.dtype | str | None, device: str) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device == "cpu" else torch.bfloat16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise BadInput(f"dtype must be float64, float32, bfloat16 or float16, got {dtype!r}")
    return found


def _kernel(kernel: str | Callable[..., Tensor], call: _Call) -> tuple[str, Kernel]:
    """The kernel's name and a call of it on (q, k, v)."""
    if callable(kernel):
        return getattr(kernel, "__name__", "function"), lambda q, k, v: kernel(q, k, v, causal=call.causal)
    if kernel in ("auto", *IMPLEMENTATIONS):
        return kernel, lambda q, k, v: attention(q, k, v, causal=call.causal, impl=kernel)
    from workbench.models.attention import KERNELS

    if kernel not in KERNELS:
        raise UnknownName("attention kernel", kernel, sorted({"auto", *IMPLEMENTATIONS, *KERNELS.names()}))
    return kernel, _of_models(KERNELS.get(kernel), call)


def _of_models(kernel: Any, call: _Call) -> Kernel:
    """A kernel of the model floor as a transformers layer would call it: its own mask, (B, H, S, D) in."""
    from transformers import masking_utils
    from transformers.models.llama import modeling_llama

    pattern = masking_utils.causal_mask_function if call.causal else masking_utils.bidirectional_mask_function
    mask = kernel.mask(
        **{"batch_size": call.batch, "q_length": call.queries, "kv_length": call.keys},
        **{"q_offset": call.keys - call.queries, "kv_offset": 0, "mask_function": pattern, "attention_mask": None},
        **{"dtype": call.dtype, "device": call.device, "allow_is_bidirectional_skip": not call.causal},
        allow_is_causal_skip=call.queries == call.keys,
    )
    layer = type("Layer", (), {"__module__": modeling_llama.__name__, "training": False})()
    layer.is_causal, layer.num_key_value_groups, layer.layer_idx = call.causal, call.heads // call.kv_heads, 0
    scale = call.head_dim**-0.5

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return kernel.forward(layer, q, k, v, mask, scaling=scale, dropout=0.0)[0]

    return run


def _draw(call: _Call, seed: int) -> list[Tensor]:
    """q, k, v and the gradient of the output, representable in the call's dtype."""
    generator = torch.Generator().manual_seed(seed)
    of_queries = (call.batch, call.queries, call.heads, call.head_dim)
    of_keys = (call.batch, call.keys, call.kv_heads, call.head_dim)
    shapes = (of_queries, of_keys, of_keys, of_queries)
    return [torch.randn(shape, generator=generator).to(call.device, call.dtype) for shape in shapes]


def _plain(call: _Call) -> Kernel:
    """Attention as it is written down, every intermediate in the call's dtype."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * call.head_dim**-0.5
        if call.causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1 + k.shape[1] - q.shape[1])
            scores = scores.masked_fill(future, -torch.inf)
        weights = torch.softmax(scores, -1).nan_to_num(0.0)  # queries before the first key see nothing
        return torch.einsum("bhij,bjhd->bihd", weights, v)

    return run


def _results(run: Kernel, tensors: list[Tensor], backward: bool) -> list[Tensor]:
    """Output and gradients."""
    leaves = [x.detach().requires_grad_(backward) for x in tensors[:3]]
    out = run(*leaves)
    grads = torch.autograd.grad(out, leaves, tensors[3]) if backward else ()
    return [out.detach(), *grads]


def _errors(
    call: _Call, tensors: list[Tensor], results: tuple[Any, Any], backward: bool
) -> tuple[list[float], list[float]]:
    """Errors of the kernel and of plain low precision, float64 taken one batch entry and key head at a time."""
    exact: list[list[Tensor]] = []
    for part in _parts(call, tensors):
        q, k, v, grad = (x.double() for x in part)
        leaves = [x.requires_grad_(backward) for x in (q, k, v)]
        out = attention(*leaves, causal=call.causal, impl="reference")
        grads = torch.autograd.grad(out, leaves, grad) if backward else ()
        exact.append([out.detach(), *grads])
    whole = [_together(call, [part[i] for part in exact]) for i in range(len(exact[0]))]
    kernel, plain = ([relative_error(x, y) for x, y in zip(result, whole)] for result in results)
    return kernel, plain


def _parts(call: _Call, tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    group = call.heads // call.kv_heads
    for b in range(call.batch):
        for h in range(call.kv_heads):
            of_queries, of_keys = slice(h * group, (h + 1) * group), slice(h, h + 1)
            cuts = (of_queries, of_keys, of_keys, of_queries)
            yield [x[b : b + 1, :, cut] for x, cut in zip(tensors, cuts)]


def _together(call: _Call, parts: list[Tensor]) -> Tensor:
    """Inverse of :func:`_parts` for one quantity."""
    rows = [torch.cat(parts[b * call.kv_heads : (b + 1) * call.kv_heads], 2) for b in range(call.batch)]
    return torch.cat(rows)


def _error_row(call: _Call, quantity: str, error: float, plain: float) -> dict[str, Any]:
    budget = BUDGET_FACTOR * plain + BUDGET_ROUNDINGS * torch.finfo(call.dtype).eps
    nothing = {"median_ms": math.nan, "tflops": math.nan, "note": ""}
    return {
        **{"quantity": quantity, "error": error, "plain_error": plain, "budget": budget, "ok": error <= budget},
        **nothing,
    }


def _time_rows(call: _Call, run: Kernel, tensors: list[Tensor], backward: bool, launches: int) -> list[dict[str, Any]]:
    leaves = [x.detach().requires_grad_() for x in tensors[:3]]
    passes: dict[str, tuple[Callable[[], Any], float]] = {"forward": (lambda: _quietly(run, tensors), call.flops)}
    if backward:
        out = run(*leaves)
        both = lambda: torch.autograd.grad(out, leaves, tensors[3], retain_graph=True)  # noqa: E731
        passes["backward"] = (both, 2.5 * call.flops)
    times = timing.race(
        {name: each for name, (each, _) in passes.items()}, device=call.device, launches=launches, budget_s=5.0
    )
    nothing = {"error": math.nan, "plain_error": math.nan, "budget": math.nan, "ok": None}
    return [
        {
            **{"quantity": row["item"], **nothing, "median_ms": row["median_ms"]},
            **{"tflops": passes[row["item"]][1] / row["median_ms"] / 1e9, "note": row["error"]},
        }
        for row in ({**row} for row in times.to_dict("records"))
    ]


def _quietly(run: Kernel, tensors: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return run(*tensors[:3])
