"""Lengths of requests to a language model server: prompt and answer tokens, from published traces or drawn to match.

The four files of vAttention's artefact (Prabhu et al. 2024, MIT) are used where they lie. Where they are absent, and
for ``four-thousand``, lengths are drawn with a seed: the published range or mean, and nothing else of the real trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from workbench_datasets import registry

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TRACES", "Trace", "draw", "load"]


@dataclass(frozen=True)
class Trace:
    """A trace: its file (None: only drawn), and the ranges and mean that stand in for it.

    ``prompt`` and ``answer`` are (least, most) tokens; with ``mean`` prompts are log-normal about it, else even.
    """

    file: str | None
    prompt: tuple[int, int]
    answer: tuple[int, int]
    mean: float | None = None


TRACES = {
    "sync-vs-async": Trace("sync_vs_async_trace.csv", (1600, 2000), (500, 1000)),
    "arxiv-sample": Trace("arxiv_sample.csv", (4000, 33000), (100, 850), 10_041),
    "arxiv-long-online": Trace("arxiv_long_online.csv", (22_912, 45_819), (100, 630), 29_567),
    "arxiv-long-offline": Trace("arxiv_long_offline.csv", (63_862, 192_786), (200, 660), 87_426),
    #: About 3.9k tokens a request in the middle of its answer, where the paper's batch sizes lie. Prompts spread evenly
    #: over 2,048 tokens (a 2 MB group of Yi-6B), so that the last group of a request is half full on average.
    "four-thousand": Trace(None, (2576, 4623), (400, 800)),
}


def load(name: str, *, download: bool = False) -> pd.DataFrame:
    """The real trace: ``prompt`` and ``answer`` tokens, one row a request.

    Raises:
        ValueError: no such trace, or one that has no file. DataMissing: the file is nowhere; the message says where
            it goes.
    """
    import pandas as pd

    file = _trace(name).file
    if file is None:
        raise ValueError(f"trace {name!r} is drawn, it has no file; use draw({name!r}, ...)")
    table = pd.read_csv(registry.path("vattention", file, download=download))
    columns = {"num_prefill_tokens": "prompt", "num_decode_tokens": "answer"}
    return table.rename(columns=columns)[["prompt", "answer"]].round().astype(np.int64)


def draw(name: str, count: int, seed: int, *, rate: float | None = None) -> pd.DataFrame:
    """``count`` requests: ``arrival`` (s; Poisson at ``rate`` a second, all at 0 without one), ``prompt``, ``answer``.

    Rows of the real file, drawn with replacement, where it is on this machine; ``frame.attrs["source"]`` says
    "real" or "drawn".
    """
    import pandas as pd

    trace = _trace(name)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if rate is not None and not rate > 0:
        raise ValueError(f"rate must be positive requests a second, or None for all at once, got {rate}")
    rng = np.random.default_rng(seed)
    table, source = _lengths(name, trace, count, rng)
    gaps = rng.exponential(1 / rate, count) if rate else np.zeros(count)
    made = pd.DataFrame({"arrival": np.cumsum(gaps), **table})
    made.attrs["source"] = source
    return made


def _lengths(name: str, trace: Trace, count: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], str]:
    if trace.file and registry.where("vattention")[trace.file] is not None:
        real = load(name)
        rows = real.iloc[rng.integers(0, len(real), count)]
        return {"prompt": rows["prompt"].to_numpy(), "answer": rows["answer"].to_numpy()}, "real"
    answer = rng.integers(trace.answer[0], trace.answer[1] + 1, count)
    if trace.mean is None:
        return {"prompt": rng.integers(trace.prompt[0], trace.prompt[1] + 1, count), "answer": answer}, "drawn"
    spread = 0.4
    prompt = np.exp(rng.normal(np.log(trace.mean) - spread**2 / 2, spread, count))
    return {"prompt": np.clip(prompt, *trace.prompt).astype(np.int64), "answer": answer}, "drawn"


def _trace(name: str) -> Trace:
    if name not in TRACES:
        near = get_close_matches(str(name), TRACES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(TRACES)}"
        raise ValueError(f"there is no request trace {name!r}; {hint}")
    return TRACES[name]
