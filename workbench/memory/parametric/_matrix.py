"""Base of the editors that change the matrix itself: one change, served to every prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.errors import BadInput
from workbench.memory.parametric._rows import Rows
from workbench.memory.parametric._wise_checks import check_numbers
from workbench.memory.parametric.base import Edit, Learned, ParametricMemory, Served


class MatrixEditor(ParametricMemory):
    """W = W_v + ``change``; subclasses say how an edit moves the change."""

    units: str = "absolute"
    _change: Tensor

    def _empty(self) -> None:
        self._change = torch.zeros(self.place.weight.shape, dtype=torch.float32, device=self.place.weight.device)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"change": self._change}, {}

    def _restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._change = tensors["change"]

    @property
    def change(self) -> Tensor:
        """What all edits changed, (d_out, d_in)."""
        _ = self.model
        return self._change

    def _serve(self, inputs: Tensor, main: Tensor, span: Tensor, route: Tensor | None) -> Served:
        output = self._output(inputs, self._change)
        apart = ((output - main).float().norm(dim=-1) * span).sum(-1) / span.sum(-1).clamp(min=1)
        side = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
        if route is not None:  # forced to main
            side = route
            output = torch.where((route < 0)[:, None, None], main, output)
        return Served(output, side, apart)

    def _output(self, inputs: Tensor, change: Tensor) -> Tensor:
        return self.place.output(inputs, self.place.weight.to(change.dtype) + change)

    def _unit(self) -> float:
        """What lengths in weight space are counted in."""
        return 1.0 if self.units == "absolute" else float(self.place.weight.float().std())

    def _loss(self, rows: Rows, change: Tensor) -> Tensor:
        """-log P(target | prompt), mean over target tokens."""
        logits = rows.prefix.logits(self._output(rows.prefix.inputs, change))
        return functional.cross_entropy(logits.float(), rows.gold)

    def _where(self, number: int) -> str:
        return "matrix"


class FineTuned(MatrixEditor):
    """Adam on the matrix, clamped to a small box around where it stood before the edit."""

    lr: float
    steps: int
    clamp: float

    def _learn(self, edit: Edit) -> Learned:
        rows, before = self.prepare([edit.prompt], [edit.target]), self._change
        change, box = before.clone().requires_grad_(), self.clamp * self._unit()
        optimiser, losses = torch.optim.Adam([change], lr=self.lr * self._unit()), list[float]()
        for _ in range(self.steps):
            loss = self._loss(rows, change)
            total = loss + self._penalty(change)
            (change.grad,) = torch.autograd.grad(total, change)
            optimiser.step()
            with torch.no_grad():
                change.copy_(torch.minimum(torch.maximum(change, before - box), before + box))
            losses.append(float(loss.detach()))
        self._change = change.detach()
        self._learned_from(rows)
        return Learned(len(losses), tuple(losses), norm=float((self._change - before).norm()), where="matrix")

    def _penalty(self, change: Tensor) -> Tensor:
        """What is added to the loss."""
        return change.new_zeros(())

    def _learned_from(self, rows: Rows) -> None:
        """What is remembered of an edit beside the matrix."""


def check_positive(**given: float) -> None:
    """Raise BadInput for the first that is not a number above 0."""
    check_numbers(given)
    for name, value in given.items():
        if not value > 0:
            raise BadInput(f"{name} must be above 0, got {value!r}")


def check_units(units: str) -> str:
    if units not in ("absolute", "model"):
        raise BadInput(f"units must be 'absolute' or 'model' (standard deviations of W_v), got {units!r}")
    return units
