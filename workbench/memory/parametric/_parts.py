"""What a memory of edits is made of: an edit, what writing it came to, what is served, what is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.memory.parametric._rows import Rows


@dataclass(frozen=True)
class Edit:
    """One fact to be written: after ``prompt`` comes ``target``.

    ``subject`` is the part of the prompt that the fact is about (ROME writes at its last token), ``paraphrase`` another
    prompt for the same fact (never learned from; ``contents`` scores it), ``negative`` an unrelated text.
    """

    prompt: str
    target: str
    subject: str = ""
    paraphrase: str = ""
    negative: str = ""


@dataclass(frozen=True)
class Learned:
    """What writing one edit came to: ``steps`` used, ``loss`` of each, ``delta`` (Delta of the prompt; NaN without a
    route), ``norm`` of the change, ``where`` the part of the memory that holds it."""

    steps: int
    loss: tuple[float, ...] = ()
    delta: float = float("nan")
    norm: float = float("nan")
    where: str = ""
    old: str = ""


@dataclass(frozen=True)
class Served:
    """What the matrix gives with the memory: ``output`` (B, S, d_out), ``side`` (B,) which memory answered (-1: main),
    ``delta`` (B,) how far that memory's output lies from the main one's."""

    output: Tensor
    side: Tensor
    delta: Tensor


@dataclass(frozen=True)
class Answers:
    """Teacher-forced answers: per row the greedy ids, which were right, the route and its Delta."""

    ids: list[list[int]]
    right: list[list[bool]]
    side: list[int]
    delta: list[float]

    def accuracy(self) -> list[float]:
        """Share of right target tokens, row by row."""
        return [sum(row) / len(row) for row in self.right]


def main_only(main: Tensor) -> Served:
    """Every row answered by the model alone."""
    rows = main.shape[0]
    return Served(
        main, torch.full((rows,), -1, device=main.device), torch.zeros(rows, dtype=torch.float32, device=main.device)
    )


def answers_of(rows: Rows, best: Tensor, served: Served) -> Answers:
    said, start = best.tolist(), 0
    ids, right = [], []
    for target in rows.targets:
        row = said[start : start + len(target)]
        start += len(target)
        ids.append(row)
        right.append([a == b for a, b in zip(row, target)])
    return Answers(ids, right, served.side.tolist(), served.delta.tolist())


def edit_of(told: Mapping[str, Any]) -> tuple[Edit, Learned]:
    edit = {name: told[name] for name in Edit.__dataclass_fields__}
    if not all(isinstance(text, str) for text in edit.values()):
        raise TypeError(f"an edit is made of texts, not {edit}")
    learned = {name: told[name] for name in Learned.__dataclass_fields__}
    return Edit(**edit), Learned(**{**learned, "loss": tuple(learned["loss"])})


def copied(values: Any) -> Any:
    """A deep copy of JSON values."""
    if isinstance(values, Mapping):
        return {key: copied(value) for key, value in values.items()}
    return [copied(value) for value in values] if isinstance(values, list | tuple) else values
