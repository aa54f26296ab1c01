"""Just read twice on a GPU: time to read a prompt of N tokens, linear attention against quadratic (claims C5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.studies._attention_race import Clock
from workbench.studies._jrt_claims import LINEAR, LINEAR_TWICE, PREFIX_TIME, QUADRATIC
from workbench.studies.base import Progress
from workbench.systems import timing

Row = dict[str, Any]
OUT_OF_TIME = "not reached in time"


def prefill(settings: Mapping[str, Any], seed: int, clock: Clock, progress: Progress) -> Iterator[Row]:
    """Races at every N, the longest first: that is the one the claims speak of."""
    generator = torch.Generator("cuda").manual_seed(seed)
    impl, why = fused(settings, generator)
    yield {"experiment": "prefill", "item": LINEAR, "metric": f"computed by {impl}{why}"[:160], "value": 1.0}
    for length in progress(sorted(settings["prefill_lengths"], reverse=True), "prefill"):
        if clock.left() < settings["prefill_s"]:
            yield {"experiment": "prefill", "item": OUT_OF_TIME, "x": length, "metric": "no number", "value": 1.0}
            continue
        table = timing.race(
            contenders(settings, length, generator, impl),
            device="cuda",
            warmup=2,
            launches=settings["prefill_launches"],
            budget_s=settings["prefill_s"],
        )
        for row in table.to_dict("records"):
            named = {"experiment": "prefill", "item": row["item"], "x": length, "n": row["launches"]}
            if row["error"]:
                yield {**named, "metric": f"failed: {row['error']}"[:160], "value": 1.0}
                continue
            values = {"ms": row["median_ms"], "q25": row["q25_ms"], "q75": row["q75_ms"], "launches": row["launches"]}
            yield from ({**named, "metric": metric, "value": float(value)} for metric, value in values.items())


def fused(settings: Mapping[str, Any], generator: torch.Generator) -> tuple[str, str]:
    """("triton", "") where the kernel with the map inside runs here, else what "auto" picks and why."""
    try:
        contenders(settings, 64, generator, "triton")[LINEAR]()
        torch.cuda.synchronize()
    except Exception as error:
        return "auto", f": {timing.one_line(error)}"
    return "triton", ""


def contenders(
    settings: Mapping[str, Any], length: int, generator: torch.Generator, impl: str = "auto"
) -> dict[str, Callable[[], Any]]:
    """The four of the card, on random bfloat16 numbers laid out (B, N, H, width) for everybody."""
    from torch.nn.functional import scaled_dot_product_attention

    from workbench_kernels.linear_memory import linear_recurrence, prefix_state

    batch, heads, f, d = (settings[name] for name in ("prefill_batch", "prefill_heads", "prefill_f", "prefill_d"))
    device = generator.device

    def draw(tokens: int, width: int) -> Tensor:
        shape = (batch, tokens, heads, width)
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)

    q, k, ke = (draw(2 * length, f) for _ in range(3))
    v, ve = draw(2 * length, d), draw(length, d)
    wide = [draw(length, d) for _ in range(3)]

    def linear(tokens: int, state: Tensor | None = None) -> Tensor:
        given = (part[:, :tokens] for part in (q, k, v))
        words: dict[str, Any] = {"feature_map": "taylor", "normalize": True, "check_values": False, "impl": impl}
        return linear_recurrence(*given, state=state, **words)[0]

    def quadratic() -> Tensor:
        a, b, c = (part.transpose(1, 2) for part in wide)
        return scaled_dot_product_attention(a, b, c, is_causal=True)

    return {
        QUADRATIC: quadratic,
        LINEAR: lambda: linear(length),
        PREFIX_TIME: lambda: linear(length, prefix_state(ke[:, :length], ve, check_values=False)),
        LINEAR_TWICE: lambda: linear(2 * length),
    }
