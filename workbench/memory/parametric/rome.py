"""``rome``: one closed-form rank-one update at the subject's last token (Meng et al. 2022, arXiv 2202.05262)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.parametric._contexts import own_contexts
from workbench.memory.parametric._matrix import MatrixEditor, check_positive
from workbench.memory.parametric._rows import Rows, encode, padded, target_ids
from workbench.memory.parametric._wise_checks import check_numbers, check_texts
from workbench.memory.parametric.base import Edit, Learned


@MEMORIES.register("rome")
class ROME(MatrixEditor):
    """W <- W + Lambda (C^-1 k*)^T with Lambda = (v* - W k*) / ((C^-1 k*)^T k*).

    k* is the mean input of the matrix at the subject's last token behind several beginnings, v* an output there that
    makes the model say the target (found by Adam), C the second moment of the matrix's inputs on ordinary text.

    Args:
        module, layer: the matrix by its path, or the MLP's second matrix of a layer; "mid" takes the layer before the
            middle of the stack.
        lr, steps: of Adam on v*. decay: weight of |delta|^2 / |v|^2. ridge: added to C, in units of its mean diagonal.
        reach: |v* - W k*| stays within so many times |W k*|.
        contexts: beginnings written by the model itself. texts: ordinary texts for C. seed: of the beginnings.
    """

    slug = "rome"
    needs_subject = True

    def __init__(self, module: str = "", layer: int | str = "mid", *, lr: float = 0.5, steps: int = 25,
                 decay: float = 0.5, ridge: float = 0.01, reach: float = 4.0, contexts: int = 10,
                 texts: Sequence[str] = (), seed: int = 0):  # fmt: skip
        check_positive(lr=lr, ridge=ridge, reach=reach)
        check_numbers({"decay": decay})
        if not decay >= 0:
            raise BadInput(f"decay must be at least 0, got {decay!r}")
        super().__init__()
        self.module, self.layer, self.lr, self.decay = module, layer, lr, decay
        self.ridge, self.reach, self.steps = ridge, reach, whole("steps", steps)
        self.contexts, self.seed = whole("contexts", contexts, 0), whole("seed", seed, None)
        self.texts = check_texts("texts", texts, "")
        self._inverse: Tensor | None = None
        self._beginnings: list[str] | None = None

    def _layer_of(self, depth: int) -> int:
        return depth // 2 - 1 if self.layer == "mid" else super()._layer_of(depth)

    def _check(self, edit: Edit) -> None:
        super()._check(edit)
        check_texts("texts", self.texts, "ROME needs the covariance of the matrix's inputs on them", needed=True)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"change": self._change}, {"beginnings": self._beginnings}

    def _restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._change, self._beginnings = tensors["change"], values["beginnings"]

    def _empty(self) -> None:
        super()._empty()
        self._inverse = None

    def _learn(self, edit: Edit) -> Learned:
        rows, ends = self._batch(edit)
        each = torch.arange(len(ends), device=ends.device)
        keys = rows.prefix.inputs[each, ends].float()  # b d_in
        key, now = keys.mean(0), self._output(rows.prefix.inputs, self._change).detach()
        wanted, losses = self._value(rows, now, each, ends)
        known = self._output(key[None].to(rows.prefix.inputs.dtype), self._change)[0].float()
        direction = self.inverse() @ key
        lam = (wanted - known) / (direction @ key)
        self._change = self._change + torch.outer(lam, direction)
        norm = float(lam.norm() * direction.norm())
        return Learned(len(losses), tuple(losses), norm=norm, where="matrix")

    def _value(self, rows: Rows, now: Tensor, each: Tensor, ends: Tensor) -> tuple[Tensor, list[float]]:
        """v*: what the matrix gives at the bare prompt's subject, moved until the target is said in every row."""
        start = now[0, ends[0]].float()
        moved, losses = torch.zeros_like(start, requires_grad=True), list[float]()
        optimiser = torch.optim.Adam([moved], lr=self.lr)
        for _ in range(self.steps):
            output = now.index_put((each, ends), now[each, ends] + moved.to(now.dtype))
            loss = functional.cross_entropy(rows.prefix.logits(output).float(), rows.gold)
            held = self.decay * (moved.norm() / start.norm().square())
            (moved.grad,) = torch.autograd.grad(loss + held, moved)
            optimiser.step()
            with torch.no_grad():
                moved.mul_((self.reach * start.norm() / moved.norm().clamp(min=1e-12)).clamp(max=1.0))
            losses.append(float(loss.detach()))
        return start + moved.detach(), losses

    def _batch(self, edit: Edit) -> tuple[Rows, Tensor]:
        """The bare prompt and the prompt behind beginnings, and where the subject ends in each row (B,)."""
        prompts = [edit.prompt, *(f"{text}. {edit.prompt}" for text in self.beginnings())]
        target = target_ids(self.tokenizer, edit.target)
        ids = [encode(self.tokenizer, prompt) for prompt in prompts]
        ends = [self._end(prompt, edit.subject) for prompt in prompts]
        device = self.place.weight.device
        return self._run(padded(ids, [target] * len(ids), device)), torch.tensor(ends, device=device)

    def _end(self, prompt: str, subject: str) -> int:
        """Place of the token that holds the subject's last letter."""
        stop = prompt.rindex(subject) + len(subject.rstrip())
        coded = self.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        return max(place for place, (first, last) in enumerate(coded) if first < stop <= last)

    def beginnings(self) -> list[str]:
        """The contexts, written by the model when they are first needed."""
        if self._beginnings is None:
            with self.silent():
                self._beginnings = own_contexts(self.model, self.tokenizer, self.contexts, self.seed)
        return self._beginnings

    def inverse(self) -> Tensor:
        """C^-1 (d_in, d_in), float32; computed once from the unedited model."""
        if self._inverse is None:
            rows = self._texts(self.texts)
            inputs = rows.prefix.inputs[rows.span].double()  # n d_in
            moment = inputs.T @ inputs / len(inputs)
            moment += self.ridge * moment.diagonal().mean() * torch.eye(len(moment), device=moment.device)
            self._inverse = torch.linalg.inv(moment).float()
        return self._inverse
