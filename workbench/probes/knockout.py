"""Attention knockout: some positions may no longer look at others, in chosen layers, while the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import BadInput
from workbench.probes.heads import _network, sites


@contextmanager
def knockout(
    model: Any, layers: Iterable[int], queries: Sequence[Sequence[int]], keys: Sequence[Sequence[int]]
) -> Iterator[None]:
    """In ``layers``, row r of the batch: the tokens ``queries[r]`` cannot attend to the tokens ``keys[r]``.

    The model computes attention eagerly inside the block, since the mask is edited there; on leaving everything is as
    before. A query that is left with no key at all would have no meaning: that raises BadInput. Negative positions
    count from the end of the padded batch.
    """
    chosen = sorted(set(layers))
    found = {site.layer: site for site in sites(model)}
    outside = [layer for layer in chosen if layer not in found]
    if outside:
        raise BadInput(f"layer {outside[0]} is outside this model, which has layers 0 to {len(found) - 1}")
    if len(queries) != len(keys):
        raise BadInput(f"queries and keys must be given for the same rows, got {len(queries)} and {len(keys)}")
    network = _network(model)
    modules = dict(network.named_modules())
    handles = []
    eager = model.use(attention="eager") if hasattr(model, "use") else nullcontext()
    try:
        with eager:
            for layer in chosen:
                attention = modules[found[layer].name]
                handles.append(attention.register_forward_pre_hook(_blocker(queries, keys), with_kwargs=True))
            yield
    finally:
        for handle in handles:
            handle.remove()


def _blocker(queries: Sequence[Sequence[int]], keys: Sequence[Sequence[int]]) -> Any:
    def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0] if args else kwargs["hidden_states"]
        rows, length = hidden.shape[:2]
        if rows != len(queries):
            raise BadInput(f"the batch has {rows} rows, but positions were given for {len(queries)}")
        mask = kwargs.get("attention_mask")
        if mask is None:
            causal = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
            mask = torch.zeros(length, length, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill(~causal, torch.finfo(hidden.dtype).min)[None, None]
        return args, {**kwargs, "attention_mask": _without(mask, queries, keys, rows)}

    return before


def _without(mask: Tensor, queries: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], rows: int) -> Tensor:
    for name, given, length in (("queries", queries, mask.shape[-2]), ("keys", keys, mask.shape[-1])):
        if outside := [position for row in given for position in row if not -length <= position < length]:
            raise BadInput(f"{name} name position {outside[0]}, which is outside this pass of {length} tokens")
    mask = mask.expand(rows, *mask.shape[1:]).clone()
    blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    for row, (looking, seen) in enumerate(zip(queries, keys)):
        for query in looking:
            mask[row, :, query, list(seen)] = blocked
            allowed = mask[row, 0, query]
            if not (allowed if mask.dtype == torch.bool else allowed > torch.finfo(mask.dtype).min / 2).any():
                raise BadInput(f"token {query} of row {row} would be left with nothing to attend to")
    return mask
