"""How far a side memory's output lies from the main one's (Delta), and the margins that edits are written with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from workbench.errors import BadInput

#: Prompts longer than this are judged by their farthest token, not by the mean (released code).
LONG = 100
_ACTIVATIONS = ("act_fn", "act", "activation_fn", "activation")


def delta(side: Tensor, main: Tensor, span: Tensor, act: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Delta (B,): norm of side - main (B, S, d) per token, its mean over the tokens of ``span`` (B, S).

    With ``act`` both go through the model's nonlinearity first. Rows of more than 100 tokens give their maximum. A
    row without tokens gives 0.
    """
    apart = side - main if act is None else act(side) - act(main)
    # The gradient of a norm at 0 is not defined, and every edit begins there.
    norms = (apart.float().square().sum(-1) + 1e-12).sqrt() - 1e-6  # b s
    count = span.sum(-1)
    mean = (norms * span).sum(-1) / count.clamp(min=1)
    return torch.where(count > LONG, (norms * span).amax(-1), mean)


def margin_loss(edit: Tensor, other: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """L_a, the mean over edit prompts (n,) of max(0, Delta_i - alpha) + max(0, beta - Delta_e) + max(0, gamma -
    (Delta_e - Delta_i)), with the mean over unrelated prompts (m,) of what holds for them alone."""
    near = (other - alpha).clamp(min=0).mean()
    far = (beta - edit).clamp(min=0).mean()
    apart = (gamma - (edit[:, None] - other[None])).clamp(min=0).mean()
    return near + far + apart


def nonlinearity(model: nn.Module, path: str) -> Callable[[Tensor], Tensor]:
    """The activation function of the MLP that the matrix at ``path`` belongs to."""
    holder = model.get_submodule(path.rpartition(".")[0])
    for name in _ACTIVATIONS:
        found = getattr(holder, name, None)
        if callable(found):
            return found
    raise BadInput(
        f"routing='activated' needs the MLP's nonlinearity and {path.rpartition('.')[0]} has none of "
        f"{', '.join(_ACTIVATIONS)}; use routing='linear'"
    )
