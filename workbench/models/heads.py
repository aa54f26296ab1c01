"""The language head without the memory it would need: logits in chunks, surprise and entropy always."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.memory.cache._hooks import cache_word
from workbench.models import encoding

if TYPE_CHECKING:
    from workbench.models.loaded import LoadedModel

#: Logits are kept in a trace up to this size; beyond it only surprise and entropy are.
KEEP_LOGITS_BYTES = 64 << 20
#: Logits of a long input are computed this many bytes at a time; a GPU needs larger pieces to be busy.
CHUNK_BYTES, CUDA_CHUNK_BYTES = 32 << 20, 256 << 20


@dataclass
class Prediction:
    """What the head said: logits (B, S, V) or None, surprise and entropy (B, S) in nats, hidden states."""

    logits: Tensor | None
    surprise: Tensor
    entropy: Tensor
    hidden: tuple[Tensor, ...]
    notes: list[str] = field(default_factory=list)


def predict(loaded: LoadedModel, batch: dict[str, Tensor], *, hidden: bool, cache: Any = None) -> Prediction:
    """One forward pass; ``batch`` as ``LoadedModel.encode`` gives it, ``cache`` a memory whose stream it continues."""
    inputs = arguments(loaded, batch)
    if cache is not None:
        inputs |= {cache_word(loaded.model): cache, "use_cache": True}
    ids, mask = batch["input_ids"], batch["attention_mask"]
    size = ids.numel() * loaded.vocab_size * 4
    trunk = _trunk(loaded.model)
    if cache is not None or size <= KEEP_LOGITS_BYTES or trunk is None or not _takes(loaded.model, "logits_to_keep"):
        output = loaded.model(**inputs, output_hidden_states=hidden)
        logits = getattr(output, "logits", None)
        if logits is None:
            return _headless(ids, output, hidden)
        surprise, entropy = _scores(logits.split(_step(loaded, ids), dim=1), ids, mask, loaded.is_decoder)
        return Prediction(logits, surprise, entropy, _hidden(output, hidden))
    return _in_chunks(loaded, trunk, inputs, mask, hidden)


def _in_chunks(loaded: LoadedModel, trunk: nn.Module, inputs: dict, mask: Tensor, hidden: bool) -> Prediction:
    """The pass with the last logit only, then the model's own head on chunks of the trunk's output."""
    ids = inputs["input_ids"]
    with _outputs(trunk) as seen:
        output = loaded.model(**inputs, output_hidden_states=hidden, logits_to_keep=1)
    chunks = _head_chunks(loaded.model, trunk, seen[0], ids, _step(loaded, ids))
    surprise, entropy = _scores(chunks, ids, mask, loaded.is_decoder)
    gigabytes = ids.numel() * loaded.vocab_size * 4 / 1e9
    note = f"logits are not kept ({gigabytes:.1f} GB); surprise and entropy are computed from all of them"
    return Prediction(None, surprise, entropy, _hidden(output, hidden), [note])


def _step(loaded: LoadedModel, ids: Tensor) -> int:
    """Positions whose logits fit into a chunk."""
    size = CUDA_CHUNK_BYTES if ids.is_cuda else CHUNK_BYTES
    return max(1, size // (4 * len(ids) * loaded.vocab_size))


def _hidden(output: Any, wanted: bool) -> tuple[Tensor, ...]:
    return tuple(output.hidden_states) if wanted and output.hidden_states is not None else ()


def _headless(ids: Tensor, output: Any, hidden: bool) -> Prediction:
    blank = torch.full(ids.shape, float("nan"), device=ids.device)
    return Prediction(None, blank, blank.clone(), _hidden(output, hidden), ["the model has no language head"])


def arguments(loaded: LoadedModel, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Keywords of a pass without a cache: a mask only if there is padding, positions only if it is on the left."""
    mask = batch["attention_mask"]
    given: dict[str, Any] = {"input_ids": batch["input_ids"]}
    if not bool(mask.all()):
        given["attention_mask"] = mask
        positions = encoding.position_ids(mask)
        if positions is not None and _takes(loaded.model, "position_ids"):
            given["position_ids"] = positions
    if loaded.is_decoder:
        given["use_cache"] = False
    return given


def _takes(model: nn.Module, parameter: str) -> bool:
    return parameter in inspect.signature(model.forward).parameters


# -- surprise and entropy ---------------------------------------------------------------------------------------------


def _scores(chunks: Any, ids: Tensor, mask: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """(surprise, entropy) from consecutive pieces of the logits; float32 sums whatever the model's dtype."""
    surprise = torch.full(ids.shape, float("nan"), device=ids.device)
    entropy = surprise.clone()
    start = 0
    for logits in chunks:
        stop = start + logits.shape[1]
        logp = torch.log_softmax(logits.float(), dim=-1)
        entropy[:, start:stop] = -(logp.exp() * logp.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
        targets = ids[:, start + 1 : stop + 1]
        n = targets.shape[1]
        surprise[:, start + 1 : start + 1 + n] = -logp[:, :n].gather(-1, targets[..., None])[..., 0]
        start = stop
    real = mask.bool()
    before = torch.zeros_like(real)
    before[:, 1:] = real[:, :-1]
    keep = real & before if causal else torch.zeros_like(real)  # an encoder has seen the token it would be asked for
    return surprise.masked_fill(~keep, float("nan")), entropy.masked_fill(~real, float("nan"))


# -- the model's own head, fed by hand --------------------------------------------------------------------------------


def _trunk(model: Any) -> nn.Module | None:
    """The module whose last hidden state the head reads, or None for a model without a head."""
    if model.get_output_embeddings() is None:
        return None
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    trunk = decoder if isinstance(decoder, nn.Module) and decoder is not model else model.base_model
    return None if trunk is model else trunk


@contextlib.contextmanager
def _outputs(trunk: nn.Module) -> Iterator[list[Any]]:
    seen: list[Any] = []
    hook = trunk.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


def _head_chunks(model: nn.Module, trunk: nn.Module, output: Any, ids: Tensor, step: int) -> Iterator[Tensor]:
    """Logits of ``step`` positions at a time.

    The trunk answers with its own earlier output, so whatever the model's class does to its logits (soft-capping,
    scaling) is done by the class itself.
    """
    last, kind = output.last_hidden_state, type(output)
    piece: list[Tensor] = []
    trunk.forward = lambda *_, **__: kind(last_hidden_state=piece[0])  # type: ignore[method-assign]
    try:
        for start in range(0, last.shape[1], step):
            piece[:] = [last[:, start : start + step]]
            yield model(input_ids=ids[:, start : start + step], use_cache=False).logits
    finally:
        del trunk.forward
