"""FlashAttention inside a language model (E5): perplexity under each kernel, and under block-sparse masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.studies.base import Progress
from workbench.systems import block_patterns

if TYPE_CHECKING:
    from workbench.models import LoadedModel

WINDOW, BLOCK = 1024, 64


def perplexities(settings: Mapping[str, Any], progress: Progress) -> Iterator[dict[str, Any]]:
    """Mean surprise (nats a token) of held-out text; nothing when the model or the text is not there."""
    model, ids = _model_and_text(settings, progress)
    if model is None or ids is None:
        return
    for name in ("eager", "flash-attention"):
        with model.use(attention=name):
            yield from _rows(name, 1.0, _surprise(model, ids))
    patterns = _patterns(-(-ids.shape[1] // BLOCK))
    for name, live in progress(patterns.items(), "E5 block-sparse"):
        causal = block_patterns.causal(BLOCK, BLOCK, *live.shape)
        share = float((live & causal).sum() / causal.sum())
        with model.use(attention="flash-attention"):
            _plug(model, name, live)
            yield from _rows(name, share, _surprise(model, ids))
    yield from _same_generations(settings, model, ids)


def _model_and_text(settings: Mapping[str, Any], progress: Progress) -> tuple[LoadedModel | None, Tensor | None]:
    from workbench.models import load

    try:
        model = load(settings["model"])
    except (WorkbenchError, OSError) as error:
        progress.say(f"E5 left out, no model {settings['model']!r}: {error}")
        return None, None
    window = min(WINDOW, model.max_positions or WINDOW)
    ids = model.encode(_held_out_text())["input_ids"][0]
    count = min(settings["tokens"], len(ids)) // window
    return model, ids[: count * window].view(count, window)


def _held_out_text() -> str:
    """A held-out book when the books are here, else documents of a small world that no model was trained on."""
    from workbench_datasets import books

    try:
        return books.read(books.HELD_OUT[0])[20_000:60_000]
    except OSError:
        import random

        from workbench_datasets.small_world import KINDS, world

        fresh, rng = world(seed=987), random.Random(0)
        return "\n\n".join(fresh.document(kind, rng).text for _ in range(12) for kind in KINDS)


@torch.no_grad()
def _surprise(model: LoadedModel, ids: Tensor) -> Tensor:
    """(windows, window - 1) nats of every token given those before it in its window."""
    rows = []
    for window in ids:
        logits = model.model(input_ids=window[None].to(model.device)).logits[0, :-1].float()
        rows.append(torch.nn.functional.cross_entropy(logits, window[1:].to(logits.device), reduction="none").cpu())
    return torch.stack(rows)


def _rows(item: str, share: float, surprise: Tensor) -> Iterator[dict[str, Any]]:
    for window, values in enumerate(surprise):
        place = {"experiment": "E5", "item": item, "s": share, "n": surprise.shape[1] + 1, "repeat": window}
        yield {**place, "metric": "surprise", "unit": "nats a token", "value": float(values.double().mean())}


@torch.no_grad()
def _same_generations(settings: Mapping[str, Any], model: LoadedModel, ids: Tensor) -> Iterator[dict[str, Any]]:
    """Greedy continuations of 20 prompts under eager and our kernel: 1 = the same tokens."""
    flat = ids.flatten()
    starts = torch.linspace(0, len(flat) - 33, settings["prompts"]).long()
    prompts = torch.stack([flat[start : start + 32] for start in starts]).to(model.device)
    words = {"max_new_tokens": 16, "do_sample": False, "attention_mask": torch.ones_like(prompts)}
    tokens = []
    for name in ("eager", "flash-attention"):
        with model.use(attention=name):
            tokens.append(model.model.generate(prompts, **words))
    for number, same in enumerate((tokens[0] == tokens[1]).all(1)):
        place = {"experiment": "E5", "item": "flash-attention", "repeat": number, "metric": "same generation"}
        yield {**place, "unit": "yes or no", "value": float(same)}


def _patterns(tiles: int) -> dict[str, Tensor]:
    bands = {f"band {w}": block_patterns.band(tiles, w) for w in (1, 4)}
    if tiles & (tiles - 1):
        return bands
    return bands | {
        "butterfly": block_patterns.butterfly(tiles),
        "butterfly and stripe": block_patterns.butterfly(tiles, stripe=True),
    }


def _plug(model: LoadedModel, name: str, live: Tensor) -> None:
    """Put our kernel with this block mask into the model; the caller's ``use`` block takes it out again."""
    from workbench.models.attention import tensor_kernel
    from workbench_kernels import attention

    def sparse(q: Tensor, k: Tensor, v: Tensor, **words: Any) -> Any:
        rows, cols = -(-q.shape[1] // BLOCK), -(-k.shape[1] // BLOCK)
        return attention(q, k, v, block_mask=live[:rows, :cols], block_size=BLOCK, impl="tiled", **words)

    kernel = tensor_kernel("sparse-" + name.replace(" ", "-"), sparse)
    model.model.set_attn_implementation(kernel.plug())
