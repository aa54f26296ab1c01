"""What the memories of a mixture hold: the ledger that the state carries, and the table for the inspector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.memory.layers.base import State, effective_rank

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "head", "memory", "tokens", "mean_weight", "mean_decay", "norm", "effective_rank", "last_token",
)  # fmt: skip


def counted(state: State, chosen: Tensor, w: Tensor, decay: Tensor, keep: Tensor | None) -> State:
    """The ledger after these tokens: chosen and w (B, T, G), decay (B, G) summed over a memory's own tokens."""
    length = chosen.shape[1]
    steps = (
        torch.arange(1, length + 1, device=chosen.device).expand(chosen.shape[0], -1)
        if keep is None
        else keep.cumsum(1)
    )
    old = state["ledger"]
    now = (state["time"][:, None] + steps)[..., None].to(old.dtype)
    added = torch.stack([chosen.sum(1).to(old.dtype), w.sum(1).to(old.dtype), decay.to(old.dtype)], -1)
    last = torch.maximum(old[..., 3], (now * chosen).amax(1))
    return {"ledger": torch.cat([old[..., :3] + added, last[..., None]], -1), "time": state["time"] + steps[:, -1]}


def table(state: State, row: int, shared: bool) -> pd.DataFrame:
    """One line a memory and head: see ``COLUMNS``; ``last_token`` counts from 0 and is -1 for an empty memory."""
    import pandas as pd

    memory, ledger = state["memory"][row].detach(), state["ledger"][row].detach().double()
    ranks, norms = effective_rank(memory), memory.double().flatten(2).norm(dim=-1)
    lines: list[dict[str, Any]] = []
    for m, (tokens, weight, decay, last) in enumerate(ledger.tolist()):
        name = "shared" if shared and m == len(ledger) - 1 else str(m)
        whole = {"memory": name, "tokens": int(tokens), "last_token": int(last) - 1}
        whole |= {"mean_weight": weight / max(tokens, 1), "mean_decay": decay / max(tokens, 1)}
        lines += [
            {**whole, "head": h, "norm": float(norms[m, h]), "effective_rank": float(ranks[m, h])}
            for h in range(memory.shape[1])
        ]
    return pd.DataFrame(lines)[list(COLUMNS)]
