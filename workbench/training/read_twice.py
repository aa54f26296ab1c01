"""The loss of Just read twice: next tokens after the prefix, masked tokens inside it (arXiv 2407.05483, equation 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import BadInput
from workbench.training.tiny import Loss

__all__ = ["read_twice_loss"]


def read_twice_loss(prefix: int, mask_id: int, *, weight: float = 0.25, share: float = 0.15) -> Loss:
    """(L_NTP + weight L_MLM) / (1 + weight) for ``workbench.training.tiny.train``.

    Every position of the prefix sees all of it, so a next-token loss there would be a look at the answer: it is taken
    of the tokens from M on alone. In return a ``share`` of the prefix is replaced by ``mask_id`` and has to be named.
    Padding (id 0) is neither masked nor predicted. The second value is the share of next tokens named.

    Args:
        prefix: M, the same as that of the model's layers.
        mask_id: an id that stands for nothing else.

    Raises BadInput for numbers out of range, and at the first batch that is not longer than the prefix.
    """
    if prefix < 1 or mask_id < 0 or not 0 < share < 1 or weight < 0:
        raise BadInput(
            f"prefix={prefix}, mask_id={mask_id}, share={share}, weight={weight}: expected prefix >= 1, mask_id >= 0, "
            "a share between 0 and 1 and a weight of 0 or more"
        )

    def loss(run: Callable[..., Any], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        ids = batch["input_ids"]
        if ids.shape[1] <= prefix:
            raise BadInput(
                f"sequences of {ids.shape[1]} tokens end in the prefix of {prefix}: nothing follows to learn"
            )
        places = torch.arange(ids.shape[1], device=ids.device)
        hidden = (torch.rand(ids.shape, device=ids.device) < share) & (places < prefix) & (ids > 0)
        extras = {name: value for name, value in batch.items() if name not in ("input_ids", "targets")}
        logits = run(input_ids=torch.where(hidden, mask_id, ids), **extras).logits
        following, seen = ids[:, prefix:], ids[:, prefix:] > 0
        ahead = logits[:, prefix - 1 : -1]
        right = ((ahead.argmax(-1) == following) & seen).sum() / seen.sum().clamp_min(1)
        total = _mean(ahead, following, seen) + weight * _mean(logits, ids, hidden)
        return total / (1 + weight), right

    return loss


def _mean(logits: Tensor, targets: Tensor, where: Tensor) -> Tensor:
    """Mean cross-entropy (nats) of the chosen positions; 0 where there are none."""
    nats = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    chosen = where.flatten()
    return torch.where(chosen, nats, torch.zeros_like(nats)).sum() / chosen.sum().clamp_min(1)
