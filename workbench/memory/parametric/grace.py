"""``grace``: a codebook of activations; a known key replaces the layer's output (Hartvigsen et al. 2023).

arXiv 2211.11031. The key is the matrix's input at the prompt's last token. A prompt within a key's ball gets that
key's value in place of the matrix's output, from that token on. A prompt that is edited again gets a new value in its
own key: two keys at one place would share a ball of radius 0, and the first of them would go on answering.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.parametric._matrix import check_positive
from workbench.memory.parametric._rows import Rows
from workbench.memory.parametric.base import Edit, Learned, ParametricMemory, Served, main_only

#: Keys closer than this share of their norm are one key: the same prompt, computed in rows of another length.
_SAME = 1e-5


@MEMORIES.register("grace")
class GRACE(ParametricMemory):
    """Keys, values and radii of one layer.

    Args:
        module, layer: the matrix by its path, or the MLP's second matrix of a layer.
        eps: radius of a new key's ball. lr, steps: of Adam on a value.
        units: "absolute", or "model": ``eps`` in norms of the first key and ``lr`` in root mean squares of the
            matrix's output at that key.
    """

    slug = "grace"

    def __init__(self, module: str = "", layer: int = -2, *, eps: float = 1.0, lr: float = 1.0, steps: int = 100,
                 units: str = "absolute"):  # fmt: skip
        check_positive(eps=eps, lr=lr)
        if units not in ("absolute", "model"):
            raise BadInput(f"units must be 'absolute' or 'model' (norms of the first key), got {units!r}")
        super().__init__()
        self.module, self.layer, self.eps, self.lr, self.units = module, layer, eps, lr, units
        self.steps = whole("steps", steps)

    def _empty(self) -> None:
        device, (d_out, d_in) = self.place.weight.device, self.place.weight.shape
        self._keys = torch.zeros(0, d_in, device=device)
        self._values = torch.zeros(0, d_out, device=device)
        self._radii = torch.zeros(0, device=device)
        self._labels: list[list[int]] = []
        self._entries: list[int] = []  # edit -> key
        self._scale: list[float] = []

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"keys": self._keys, "values": self._values, "radii": self._radii}
        return tensors, {"labels": self._labels, "entries": self._entries, "scale": self._scale}

    def _restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._keys, self._values, self._radii = tensors["keys"], tensors["values"], tensors["radii"]
        self._labels = [list(label) for label in values["labels"]]
        self._entries, self._scale = list(values["entries"]), list(values["scale"])

    def _where(self, number: int) -> str:
        return f"key {self._entries[number]}" if number < len(self._entries) else ""

    def _eps_of(self, where: str) -> float:
        return float(self._radii[int(where.split()[1])]) if where else float("nan")

    def _sides(self) -> int:
        return len(self._keys)

    # -- serving ------------------------------------------------------------------------------------------------------

    def _serve(self, inputs: Tensor, main: Tensor, span: Tensor, route: Tensor | None) -> Served:
        if not len(self._keys):
            return main_only(main)
        places = torch.arange(span.shape[1], device=span.device)
        last = (places * span).amax(1)  # b: a mask may have its padding on either side
        each = torch.arange(len(inputs), device=inputs.device)
        distance, nearest = torch.cdist(inputs[each, last].float(), self._keys).min(1)
        side = torch.where(distance <= self._radii[nearest], nearest, torch.full_like(nearest, -1))
        going_on = route is not None and inputs.shape[1] == 1
        if route is not None:
            side = route.clamp(max=len(self._keys) - 1)
        from_here = places[None] >= (0 if going_on else last[:, None])  # b s
        value = self._values[side.clamp(min=0)].to(main.dtype)[:, None]
        output = torch.where((from_here & (side >= 0)[:, None])[..., None], value, main)
        return Served(output, side, distance)

    # -- learning -----------------------------------------------------------------------------------------------------

    def _learn(self, edit: Edit) -> Learned:
        rows = self.prepare([edit.prompt], [edit.target])
        last = int(rows.span[0].sum()) - 1
        key, label = rows.prefix.inputs[0, last].float().detach(), rows.targets[0]
        if not self._scale:
            start = rows.prefix.main[0, last].float()
            self._scale = (
                [float(key.norm()), float(start.square().mean().sqrt())] if self.units == "model" else [1.0, 1.0]
            )
        entry, distance = self._entry(key, label, self.eps * self._scale[0])
        self._entries = [*self._entries, entry]
        if self._labels[entry : entry + 1] == [label]:  # the nearest key says this already: its ball has grown
            return Learned(0, (), distance, 0.0, f"key {entry}")
        value, losses = self._value(rows, last)
        self._values = torch.cat([self._values[:entry], value[None], self._values[entry + 1 :]])
        self._labels = [*self._labels[:entry], list(label), *self._labels[entry + 1 :]]
        norm = float((value - rows.prefix.main[0, last].float()).norm())
        return Learned(len(losses), tuple(losses), 0.0, norm, f"key {entry}")

    def _entry(self, key: Tensor, label: list[int], eps: float) -> tuple[int, float]:
        """The key of an edit, new or old, with the balls around it adjusted; and its distance to the nearest key."""
        new = len(self._keys)
        if not new:
            return self._add(key, eps), float("inf")
        gaps = (self._keys - key).norm(dim=1)
        nearest, distance = int(gaps.argmin()), float(gaps.min())
        if distance > eps + float(self._radii[nearest]):
            return self._add(key, eps), distance
        if self._labels[nearest] == label:
            self._radii = self._radii.clone()
            self._radii[nearest] = max(distance, float(self._radii[nearest]))
            return nearest, distance
        if distance <= _SAME * float(key.norm()):
            return nearest, distance
        self._radii = self._radii.clone()
        self._radii[nearest] = min(float(self._radii[nearest]), distance / 2 - 1e-6 * distance)
        return self._add(key, min(eps, distance / 2)), distance

    def _add(self, key: Tensor, eps: float) -> int:
        self._keys = torch.cat([self._keys, key[None]])
        self._radii = torch.cat([self._radii, torch.tensor([eps], device=key.device)])
        return len(self._keys) - 1

    def _value(self, rows: Rows, last: int) -> tuple[Tensor, list[float]]:
        """The output at the last token and behind it that makes the model say the target."""
        main = rows.prefix.main
        value = main[0, last].float().clone().requires_grad_()
        optimiser, losses = torch.optim.Adam([value], lr=self.lr * self._scale[1]), list[float]()
        behind = (torch.arange(main.shape[1], device=main.device) >= last)[None, :, None]
        for _ in range(self.steps):
            output = torch.where(behind, value.to(main.dtype), main)
            loss = functional.cross_entropy(rows.prefix.logits(output).float(), rows.gold)
            (value.grad,) = torch.autograd.grad(loss, value)
            optimiser.step()
            losses.append(float(loss.detach()))
        return value.detach(), losses
