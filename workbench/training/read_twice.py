"""The loss of Just read twice: next tokens after the prefix, masked tokens inside it (arXiv 2407.05483, equation 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.checks import is_number, is_whole
from workbench.errors import BadInput
from workbench.training.tiny import Loss

__all__ = ["hidden_places", "read_twice_loss"]

#: What a batch may hold for the loss alone; the model does not get it.
_OWN = ("input_ids", "targets", "weights", "hidden")


def read_twice_loss(prefix: int, mask_id: int, *, weight: float = 0.25, share: float = 0.15) -> Loss:
    """(L_NTP + weight L_MLM) / (1 + weight) for ``workbench.training.tiny.train``.

    Every position of the prefix sees all of it, so a next-token loss there would be a look at the answer: it is taken
    of the tokens from M on alone. In return a ``share`` of the prefix is replaced by ``mask_id`` and has to be named.
    Padding (id 0) is neither masked nor predicted. The second value is the share of next tokens named.

    A pool may bring two extras (N, T). ``weights`` of the tokens as targets take the place of "all but padding" in the
    next-token loss; the second value is then the share of answers (weights above 1) named. ``hidden`` (bool) says which
    tokens of the prefix are masked (``hidden_places``); without it they are drawn at every step.

    Args:
        prefix: M, the same as that of the model's layers.
        mask_id: an id that stands for nothing else.

    Raises BadInput for numbers out of range, and at the first batch that is not longer than the prefix.
    """
    _check(prefix, mask_id, weight, share)

    def loss(run: Callable[..., Any], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        ids = batch["input_ids"]
        if ids.shape[1] <= prefix:
            raise BadInput(
                f"sequences of {ids.shape[1]} tokens end in the prefix of {prefix}: nothing follows to learn"
            )
        drawn = batch["hidden"] if "hidden" in batch else torch.rand(ids.shape, device=ids.device) < share
        hidden = drawn & (torch.arange(ids.shape[1], device=ids.device) < prefix) & (ids > 0)
        extras = {name: value for name, value in batch.items() if name not in _OWN}
        logits = run(input_ids=torch.where(hidden, mask_id, ids), **extras).logits
        following, ahead = ids[:, prefix:], logits[:, prefix - 1 : -1]
        weighed = batch["weights"][:, prefix:].float() if "weights" in batch else (following > 0).float()
        asked = weighed > 1 if "weights" in batch else following > 0
        right = ((ahead.argmax(-1) == following) & asked).sum() / asked.sum().clamp_min(1)
        total = _mean(ahead, following, weighed) + weight * _mean(logits, ids, hidden.float())
        return total / (1 + weight), right

    return loss


def hidden_places(ids: Any, prefix: int, *, share: float = 0.15, seed: int = 0) -> np.ndarray:
    """Which tokens of ids (N, T) are masked, bool: a ``share`` of the prefix, drawn once, so the same on any device.

    Raises BadInput for a prefix below 1 or as long as the sequences, or a share outside (0, 1).
    """
    table = np.asarray(ids)
    if table.ndim != 2 or table.dtype.kind not in "iu" or not is_whole(prefix, 1, table.shape[1] - 1):
        raise BadInput(
            f"ids {table.dtype} {table.shape}, prefix={prefix!r}: expected whole ids (N, T) and a whole 0 < prefix < T"
        )
    if not (is_number(share) and 0 < share < 1):
        raise BadInput(f"share={share!r}: expected a number between 0 and 1")
    drawn = np.zeros(table.shape, bool)
    drawn[:, :prefix] = np.random.default_rng(seed).random((len(table), prefix), np.float32) < share
    return drawn & (table > 0)


def _check(prefix: int, mask_id: int, weight: float, share: float) -> None:
    shares = is_number(share) and 0 < share < 1 and is_number(weight) and weight >= 0
    if not (is_whole(prefix, 1) and is_whole(mask_id, 0) and shares):
        raise BadInput(
            f"prefix={prefix!r}, mask_id={mask_id!r}, share={share!r}, weight={weight!r}: expected prefix >= 1 and "
            "mask_id >= 0, both whole, a share between 0 and 1 and a finite weight of 0 or more"
        )


def _mean(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy (nats) of the positions; 0 where no weight is."""
    nats = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    weighed = weights.flatten()
    return torch.where(weighed > 0, weighed * nats, torch.zeros_like(nats)).sum() / weighed.sum().clamp_min(1e-6)
