"""``ft-ewc``: FT-L held back where earlier knowledge lies (elastic weight consolidation, Kirkpatrick et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.parametric._matrix import FineTuned, check_positive, check_units
from workbench.memory.parametric._rows import Rows, encode, padded
from workbench.memory.parametric._wise_checks import check_texts


@MEMORIES.register("ft-ewc")
class FTEWC(FineTuned):
    """Adds strength / 2 x mean F (W - W_before)^2, with F scaled to a mean of 1 and W in standard deviations of W_v;
    F, the diagonal Fisher information, is that of ordinary texts and of every edit so far.

    Args:
        module, layer: the matrix by its path, or the MLP's second matrix of a layer.
        lr, steps: of Adam. clamp: largest change of an entry by one edit (L-infinity).
        strength: weight of the penalty (lambda).
        texts: ordinary texts whose likelihood the penalty protects.
        units: "absolute", or "model": ``lr`` and ``clamp`` in standard deviations of W_v.
    """

    slug = "ft-ewc"
    small = {"lr": 2e-3, "clamp": 2e-2}

    def __init__(self, module: str = "", layer: int = -2, *, lr: float = 5e-4, steps: int = 25, clamp: float = 5e-3,
                 strength: float = 1.0, texts: Sequence[str] = (), units: str = "absolute"):  # fmt: skip
        check_positive(lr=lr, clamp=clamp, strength=strength)
        super().__init__()
        self.module, self.layer, self.lr, self.clamp = module, layer, lr, clamp
        self.steps = whole("steps", steps)
        self.strength, self.units = strength, check_units(units)
        self.texts = check_texts("texts", texts, "")

    def _empty(self) -> None:
        super()._empty()
        self._fisher = torch.zeros_like(self._change)
        self._seen = 0

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"change": self._change, "fisher": self._fisher}, {"seen": self._seen}

    def _restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._change, self._fisher, self._seen = tensors["change"], tensors["fisher"], int(values["seen"])

    def _check(self, edit: Any) -> None:
        super()._check(edit)
        check_texts("texts", self.texts, "elastic weight consolidation protects what they say", needed=True)

    def _learn(self, edit: Any) -> Any:
        if not self._seen:
            for text in self.texts:
                self._count(self._gradient(self._read(text)))
        self._before = self._change
        return super()._learn(edit)

    def _penalty(self, change: Tensor) -> Tensor:
        importance = self._fisher / self._fisher.mean().clamp(min=1e-30)
        scaled = (change - self._before) / float(self.place.weight.float().std())
        return self.strength / 2 * (importance * scaled.square()).mean()

    def _learned_from(self, rows: Rows) -> None:
        self._count(self._gradient(rows))

    def _read(self, text: str) -> Rows:
        """A text whose every next token counts as a target."""
        ids = encode(self.tokenizer, text)
        if len(ids) < 2:
            raise BadInput(f"texts: {text!r} is a single token and foretells none; give longer ordinary texts")
        return self._run(padded([ids[:1]], [ids[1:]], self.place.weight.device))

    def _gradient(self, rows: Rows) -> Tensor:
        leaf = self._change.detach().clone().requires_grad_()
        logits = rows.prefix.logits(self._output(rows.prefix.inputs, leaf))
        loss = functional.cross_entropy(logits.float(), rows.gold)
        return torch.autograd.grad(loss, leaf)[0]

    def _count(self, gradient: Tensor) -> None:
        self._fisher = (self._fisher * self._seen + gradient.square()) / (self._seen + 1)
        self._seen += 1
