"""Induction heads on repeated random tokens: where a head looks, and whether it copies what it sees.

A text of random tokens said twice has no meaning, so a head that, at the second ``A``, looks at the token after the
first ``A`` does so by matching the prefix (Olsson et al. 2022, "In-context learning and induction heads").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import BadInput, ModelError
from workbench.probes import heads as head_room

if TYPE_CHECKING:
    import pandas as pd


def repeated_tokens(vocabulary: int, length: int = 32, *, repeats: int = 2, batch: int = 1, seed: int = 0,
                    first: int | None = None, avoid: tuple[int, ...] = ()) -> Tensor:  # fmt: skip
    """(batch, [1 +] length * repeats) ids: distinct random tokens, the same ``length`` of them said ``repeats`` times.

    ``first`` is put in front (a begin-of-text token); ``avoid`` are ids never drawn (special tokens).
    """
    if length < 2 or repeats < 2 or batch < 1:
        raise BadInput(f"length and repeats must be at least 2 and batch 1, got {length}, {repeats}, {batch}")
    allowed = np.setdiff1d(np.arange(vocabulary), np.asarray(avoid, dtype=int))
    if len(allowed) < length:
        raise BadInput(f"length must be at most the {len(allowed)} tokens one may draw, got {length}")
    rng = np.random.default_rng(seed)
    once = np.stack([rng.choice(allowed, length, replace=False) for _ in range(batch)])
    ids = np.tile(once, (1, repeats))
    if first is not None:
        ids = np.concatenate([np.full((batch, 1), first), ids], axis=1)
    return torch.from_numpy(ids.astype(np.int64))


def attention_kinds(trace: Any, length: int, *, start: int = 0) -> pd.DataFrame:
    """layer, head and the mean probability in the repeated part of looking at: the token after the previous occurrence
    (``prefix_matching``), the token before (``previous_token``), the previous occurrence itself (``duplicate_token``),
    and the very first token (``sink``).

    ``trace`` is of ``repeated_tokens(length=length)``, the repetition starting at ``start`` (1 behind a first token).
    Only regions of ``length`` rows are ever computed.
    """
    import pandas as pd

    total = len(trace.tokens[0])
    if length < 2 or start < 0 or total < start + 2 * length:
        raise BadInput(f"a trace of {total} tokens has no second repeat of length {length} from position {start}")
    kinds = {"prefix_matching": length - 1, "previous_token": 1, "duplicate_token": length}
    rows = []
    for layer in trace.layers:
        looks = [
            _looks(trace, layer.index, range(start + length, total), kinds, row) for row in range(len(trace.tokens))
        ]
        means = np.mean(looks, axis=0)  # heads, kinds + sink
        rows += [{"layer": layer.index, "head": head, **dict(zip([*kinds, "sink"], scores))}
                 for head, scores in enumerate(means.tolist())]  # fmt: skip
    return pd.DataFrame(rows)


def _looks(trace: Any, layer: int, queries: range, kinds: dict[str, int], row: int) -> np.ndarray:
    """(heads, kinds + 1) mean probabilities of looking back by each distance, and at position 0."""
    parts = []
    for begin in range(queries.start, queries.stop, 128):
        part = range(begin, min(begin + 128, queries.stop))
        lowest = max(0, part.start - max(kinds.values()))
        region = trace.region(layer, None, slice(part.start, part.stop), slice(lowest, part.stop), batch=row)
        region = region.float().cpu().numpy()
        at = np.arange(len(part))
        back = [region[:, at, at + part.start - distance - lowest].sum(axis=1) for distance in kinds.values()]
        first = trace.region(layer, None, slice(part.start, part.stop), slice(0, 1), batch=row).float().cpu().numpy()
        parts.append(np.stack([*back, first[:, :, 0].sum(axis=1)], axis=1))
    return np.sum(parts, axis=0) / len(queries)


def copying(model: Any, ids: Tensor, length: int, *, start: int = 0) -> pd.DataFrame:
    """layer, head, ``copying`` (logits) and ``copy_hits``: what the head itself adds to the prediction of the repeat.

    The direct effect of a head at a position is logits(final state) - logits(final state - z_h W_O): its own output
    taken away before the last norm. ``copying`` is the effect on the right next token minus the mean effect on the
    other tokens of the text; ``copy_hits`` the share of positions where the right token gains most among them (our
    definitions). Raises ModelError where a norm stands between W_O and the residual stream, so that z_h W_O is not
    what is added.
    """
    import pandas as pd

    network = head_room._network(model)
    sites = head_room.sites(model)
    _require_direct(network)
    final, unembed = _final_norm(network), network.get_output_embeddings()  # type: ignore[operator]
    seen: list[Tensor] = []
    handle = final.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    try:
        with torch.no_grad(), head_room.capture(model) as outputs:
            network(input_ids=ids)
    finally:
        handle.remove()
    if ids.shape[1] < start + 2 * length:
        raise BadInput(f"ids of {ids.shape[1]} tokens have no second repeat of length {length} from position {start}")
    places = slice(start + length, ids.shape[1] - 1)
    state, candidates, target = seen[0][:, places], ids[:, start : start + length], ids[:, places.start + 1 :]
    rows = []
    with torch.no_grad():
        whole = unembed(final(state))
        for site in sites:
            for head in range(site.n_heads):
                added = outputs[site.layer][:, places, head] @ site.weight(head)
                scores = _copy_scores(whole - unembed(final(state - added)), candidates, target)
                rows.append({"layer": site.layer, "head": head, **scores})
    return pd.DataFrame(rows)


def _copy_scores(effect: Tensor, candidates: Tensor, target: Tensor) -> dict[str, float]:
    """effect (B, P, V), candidates (B, L), target (B, P)."""
    right = effect.gather(2, target[..., None])[..., 0]  # B P
    among = effect.gather(2, candidates[:, None].expand(-1, effect.shape[1], -1))  # B P L
    others = (among.sum(dim=2) - right) / (candidates.shape[1] - 1)
    hits = right >= among.max(dim=2).values
    return {"copying": float((right - others).mean()), "copy_hits": float(hits.float().mean())}


def _require_direct(network: nn.Module) -> None:
    names = {name.rsplit(".", 1)[-1] for name, _ in network.named_modules()}
    if "post_feedforward_layernorm" in names:
        raise ModelError(f"{type(network).__name__} normalises the attention output before adding it, so a head has no "
                         "direct effect of its own; use attention_kinds")  # fmt: skip


def _final_norm(network: nn.Module) -> nn.Module:
    base = getattr(network, getattr(network, "base_model_prefix", ""), network)
    base = getattr(base, "decoder", base)
    for name in ("norm", "ln_f", "final_layer_norm", "final_norm", "final_layernorm"):
        norm = getattr(base, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise ModelError(f"{type(network).__name__} has no final norm that we know, so direct effects cannot be computed")


def induction_scores(model: Any, *, length: int = 32, batch: int = 4, seed: int = 0, copy: bool = True) -> pd.DataFrame:
    """All heads of a LoadedModel on fresh repeated tokens: the columns of ``attention_kinds``, and of ``copying``."""
    tokenizer = model.tokenizer
    special = tuple(getattr(tokenizer, "all_special_ids", ()) or ())
    first = getattr(tokenizer, "bos_token_id", None)
    vocabulary = int(model.model.get_input_embeddings().weight.shape[0])
    ids = repeated_tokens(vocabulary, length, batch=batch, seed=seed, first=first, avoid=special)
    start = 0 if first is None else 1
    frame = attention_kinds(model.trace(ids, hidden=False), length, start=start)
    if not copy:
        return frame
    return frame.merge(copying(model, ids.to(model.device), length, start=start), on=["layer", "head"])
