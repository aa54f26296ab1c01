"""Prompts with their answers as rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.errors import BadInput
from workbench.memory.parametric._place import Prefix


@dataclass
class Rows:
    """Padded rows (causal: padding at the right changes nothing before it).

    Attributes:
        ids: (B, S). span: (B, S) the prompt's tokens. at: index tensors of the positions whose logits foretell the
            target tokens, row after row. targets: the target ids of each row. prefix: the pass up to the matrix.
    """

    ids: Tensor
    span: Tensor
    at: tuple[Tensor, Tensor]
    targets: list[list[int]]
    prefix: Prefix = field(init=False, repr=False)

    @property
    def gold(self) -> Tensor:
        """All target ids, in the order of ``at``."""
        return torch.tensor([token for row in self.targets for token in row], device=self.ids.device)


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def target_ids(tokenizer: Any, target: str) -> list[int]:
    """Ids of an answer that continues a prompt: with the blank before it."""
    return list(tokenizer(f" {target.strip()}", add_special_tokens=False)["input_ids"])


def rows_of(tokenizer: Any, prompts: Sequence[str], targets: Sequence[str], device: torch.device) -> Rows:
    """Rows of prompt and target; an empty target is allowed for none (BadInput)."""
    if isinstance(prompts, str) or isinstance(targets, str):
        raise BadInput("prompts and targets are lists of texts; put a single text into a list")
    if not prompts or len(prompts) != len(targets):
        raise BadInput(f"give as many prompts as targets, and at least one; got {len(prompts)} and {len(targets)}")
    for text in (*prompts, *targets):
        if not isinstance(text, str) or not text.strip():
            raise BadInput(f"a prompt or target is empty or no text: {text!r}")
    return padded(
        [encode(tokenizer, prompt) for prompt in prompts],
        [target_ids(tokenizer, target) for target in targets],
        device,
    )


def padded(prompts: Sequence[list[int]], targets: Sequence[list[int]], device: torch.device) -> Rows:
    """Rows from ids; a target may be empty here (a text that is only read)."""
    whole = [list(a) + list(b) for a, b in zip(prompts, targets)]
    longest = max(map(len, whole))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in whole], device=device)
    places = torch.arange(longest, device=device)[None]
    span = places < torch.tensor([len(row) for row in prompts], device=device)[:, None]
    at = [
        (i, len(prompt) - 1 + j) for i, (prompt, target) in enumerate(zip(prompts, targets)) for j in range(len(target))
    ]
    rows, columns = zip(*at) if at else ((), ())
    index = (
        torch.tensor(rows, dtype=torch.long, device=device),
        torch.tensor(columns, dtype=torch.long, device=device),
    )
    return Rows(ids, span, index, [list(target) for target in targets])
