"""The proof panel: every kernel against eager float32, on the user's own text."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import KernelUnsupported
from workbench.models import heads
from workbench.models.attention import KERNELS
from workbench.models.meter import peak_bytes
from workbench.models.stream import Stream

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models.loaded import LoadedModel

COLUMNS = (
    "kernel",
    "max_abs_dlogits",
    "max_abs_dlogits_padded",
    "max_abs_dlogits_cached",
    "same_tokens",
    "tokens_per_second",
    "generated_per_second",
    "peak_mb",
    "note",
)


@torch.no_grad()
def proof(loaded: LoadedModel, text: Any, *, kernels: Sequence[str] | None = None, new_tokens: int = 8) -> pd.DataFrame:
    """One row per kernel, compared with the model's eager attention in float32 on the first text.

    Columns:
        max_abs_dlogits: over all tokens. ..._padded: the same text in a batch with its first half, padded on the left,
            real tokens only. ..._cached: reading the reference's continuation one token at a time from a full cache.
        same_tokens: its own greedy continuation equals the reference's (encoder: the best token at every position).
        tokens_per_second: of the whole pass. generated_per_second: of decoding, prompt included.
        peak_mb: most bytes of results alive at one time in the pass, above weights and input (see ``meter``; it is not
            the size of the process).
        note: why a kernel cannot serve the model.
    The memory in use is set aside for the comparison.
    """
    import pandas as pd

    row = loaded.encode(text)
    ids = row["input_ids"][:1, : int(row["attention_mask"][0].sum())]
    _check_positions(loaded, ids, new_tokens)
    names = list(kernels) if kernels is not None else KERNELS.names()
    for name in names:
        KERNELS.get(name)  # a misspelt name is an error here, not a row
    with _float32(loaded) as reference, reference.use(attention="eager", memory=None):
        truth = _Run.of(reference, ids, new_tokens, None)
    with loaded.use(memory=None):
        rows = [_row(loaded, name, ids, new_tokens, truth) for name in names]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _check_positions(loaded: LoadedModel, ids: Tensor, new_tokens: int) -> None:
    from workbench.models.tracing import check_positions

    check_positions(loaded, ids.shape[1] + (new_tokens if loaded.is_decoder else 0), allowed=False)


@contextlib.contextmanager
def _float32(loaded: LoadedModel) -> Iterator[LoadedModel]:
    """The model itself when it is float32, else a float32 copy of it that lives as long as the comparison."""
    from workbench.models.loaded import LoadedModel as Loaded

    if loaded.dtype == torch.float32:
        yield loaded
        return
    yield Loaded(loaded.name, copy.deepcopy(loaded.model).float(), loaded.tokenizer)


class _Run:
    """Logits of the plain, the padded and the cached pass, and the greedy tokens, of one kernel."""

    def __init__(self, plain: Tensor, padded: Tensor, cached: Tensor | None, tokens: list[int]):
        self.plain, self.padded, self.cached, self.tokens = plain, padded, cached, tokens

    @classmethod
    def of(cls, loaded: LoadedModel, ids: Tensor, new_tokens: int, follow: list[int] | None) -> _Run:
        plain = _logits(loaded, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        padded = _padded_logits(loaded, ids)
        if not loaded.is_decoder:
            return cls(plain, padded, None, plain.argmax(-1)[0].tolist())
        tokens = _greedy(loaded, ids, new_tokens)
        return cls(plain, padded, _decode(loaded, ids, follow or tokens), tokens)


def _logits(loaded: LoadedModel, batch: dict[str, Tensor]) -> Tensor:
    """Logits, or the last hidden state of a model without a language head."""
    output = loaded.model(**heads.arguments(loaded, batch))
    return (output.logits if hasattr(output, "logits") else output[0]).float()


def _padded_logits(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """(2 n', V): real positions of a batch of the text and its first half, padded on the left."""
    length = ids.shape[1]
    half = max(1, length // 2)
    both = torch.zeros(2, length, dtype=torch.long, device=ids.device)
    both[0], both[1, length - half :] = ids[0], ids[0, :half]
    mask = torch.ones_like(both)
    mask[1, : length - half] = 0
    return _logits(loaded, {"input_ids": both, "attention_mask": mask})[mask.bool()]


def _greedy(loaded: LoadedModel, ids: Tensor, count: int) -> list[int]:
    stream = Stream(loaded)
    logits = stream.read(ids, torch.ones_like(ids))
    tokens = [int(logits.argmax())]
    while len(tokens) < count:
        step = ids.new_tensor([[tokens[-1]]])
        tokens.append(int(stream.read(step, torch.ones_like(step)).argmax()))
    return tokens


def _decode(loaded: LoadedModel, ids: Tensor, follow: list[int]) -> Tensor:
    """(n, V): logits while the tokens ``follow`` are read one at a time after ``ids`` from a full cache."""
    stream = Stream(loaded)
    rows = [stream.read(ids, torch.ones_like(ids))]
    for token in follow[:-1]:
        step = ids.new_tensor([[token]])
        rows.append(stream.read(step, torch.ones_like(step)))
    return torch.cat(rows).float()


def _row(loaded: LoadedModel, name: str, ids: Tensor, new_tokens: int, truth: _Run) -> dict[str, Any]:
    try:
        with loaded.use(attention=name):
            run = _Run.of(loaded, ids, new_tokens, truth.tokens)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            seconds = _seconds(lambda: _logits(loaded, batch))
            peak = peak_bytes(lambda: _logits(loaded, batch), loaded.device)
            rate = new_tokens / _seconds(lambda: _greedy(loaded, ids, new_tokens), 1) if loaded.is_decoder else None
    except KernelUnsupported as error:
        return {"kernel": name, "same_tokens": None, "note": str(error)}
    return {
        "kernel": name,
        "max_abs_dlogits": _difference(run.plain, truth.plain),
        "max_abs_dlogits_padded": _difference(run.padded, truth.padded),
        "max_abs_dlogits_cached": _difference(run.cached, truth.cached),
        "same_tokens": run.tokens == truth.tokens,
        "tokens_per_second": ids.shape[1] / seconds,
        "generated_per_second": rate,
        "peak_mb": peak / 1e6,
        "note": "",
    }


def _difference(one: Tensor | None, other: Tensor | None) -> float | None:
    return None if one is None or other is None else float((one - other).abs().max())


def _seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """The fastest of a few runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
