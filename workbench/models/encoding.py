"""Text to padded ids and ids to readable tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import BadInput, ModelError

if TYPE_CHECKING:
    from workbench.models.loaded import LoadedModel


def encode(loaded: LoadedModel, text: Any, *, side: str = "right", special: bool = True) -> dict[str, Tensor]:
    """See ``LoadedModel.encode``; ``special`` adds the tokenizer's special tokens (a BOS, BERT's [CLS] and [SEP])."""
    if side not in ("left", "right"):
        raise BadInput(f"side must be 'left' or 'right', got {side!r}")
    if isinstance(text, dict):
        return _given(loaded, text)
    rows = [_row(loaded, item, special) for item in _items(text)]
    longest = max(map(len, rows))
    pad = _pad_id(loaded)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return {"input_ids": ids.to(loaded.device), "attention_mask": mask.to(loaded.device)}


def _items(text: Any) -> list[Any]:
    """The batch as a list: of texts, or of id lists."""
    if isinstance(text, str):
        return [text]
    if isinstance(text, Tensor):
        text = text.tolist()
    if not isinstance(text, Sequence):
        raise BadInput(f"give a text, a list of texts, or ids; got {type(text).__name__}")
    items = list(text)
    if not items:
        raise BadInput("the input is empty: give at least one text, or at least one id")
    if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return [items]
    if all(isinstance(item, str) for item in items) or all(isinstance(item, Sequence | Tensor) for item in items):
        return items
    raise BadInput("give a text, a list of texts, a list of ids, or a list of lists of ids; got a mixture")


def _row(loaded: LoadedModel, item: Any, special: bool) -> list[int]:
    if isinstance(item, str):
        return _text_row(loaded, item, special)
    row = [int(value) for value in item]
    if not row:
        raise BadInput("the input is empty: a list of ids has no ids in it")
    _check_ids(loaded, min(row), max(row))
    return row


def _text_row(loaded: LoadedModel, text: str, special: bool) -> list[int]:
    if loaded.tokenizer is None:
        raise ModelError(f"{loaded.name} has no tokenizer beside its weights; give ids instead of text")
    if not text:
        raise BadInput("the text is empty: there is nothing to run; give at least one character")
    row = list(loaded.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    if not row:
        raise BadInput(f"the text {text!r} has no tokens after tokenization; give a longer text")
    _check_ids(loaded, min(row), max(row))
    return row


def _check_ids(loaded: LoadedModel, low: int, high: int) -> None:
    if low < 0 or high >= loaded.vocab_size:
        raise BadInput(
            f"ids must lie in 0 .. {loaded.vocab_size - 1} (the vocabulary of {loaded.name}), got {low} .. {high}"
        )


def _given(loaded: LoadedModel, given: dict) -> dict[str, Tensor]:
    """Ids that come with their own mask."""
    if "input_ids" not in given:
        raise BadInput(f"a dict must have 'input_ids' (and may have 'attention_mask'), got {sorted(given)}")
    ids = torch.as_tensor(given["input_ids"], dtype=torch.long)
    if ids.ndim != 2 or ids.numel() == 0:
        raise BadInput(f"input_ids must be (batch, sequence) and not empty, got shape {tuple(ids.shape)}")
    mask = torch.as_tensor(given.get("attention_mask", torch.ones_like(ids)), dtype=torch.long)
    if mask.shape != ids.shape:
        raise BadInput(f"attention_mask {tuple(mask.shape)} must have the shape of input_ids {tuple(ids.shape)}")
    if not bool(mask.any(1).all()):
        raise BadInput("a row of attention_mask is all zero: that row has no token")
    _check_ids(loaded, int(ids.min()), int(ids.max()))
    return {"input_ids": ids.to(loaded.device), "attention_mask": mask.to(loaded.device)}


def _pad_id(loaded: LoadedModel) -> int:
    """Any id does where the mask is zero; a model with a padding embedding gets that one."""
    for holder in (loaded.tokenizer, loaded.config):
        value = getattr(holder, "pad_token_id", None)
        if isinstance(value, int) and 0 <= value < loaded.vocab_size:
            return value
    return 0


def tokens(loaded: LoadedModel, ids: Iterable[int]) -> list[str]:
    """The text of each id on its own; ids stand as numbers where there is no tokenizer."""
    rows = [int(value) for value in ids]
    if loaded.tokenizer is None:
        return [str(value) for value in rows]
    return [_one_token(loaded.tokenizer, value) for value in rows]


def _one_token(tokenizer: Any, value: int) -> str:
    """Decoders strip a leading space from a lone token; its piece says whether it had one, or, where words are pieces,
    two of them side by side."""
    piece = tokenizer.convert_ids_to_tokens(value)
    text = tokenizer.decode([value])
    spaced = isinstance(piece, str) and piece[:1] in ("Ġ", "▁") and not text.startswith(" ")
    return f" {text}" if spaced or tokenizer.decode([value, value]) == f"{text} {text}" else text


def position_ids(mask: Tensor) -> Tensor | None:
    """Positions that count real tokens only, needed when the padding is on the left; None where arange is right."""
    if bool(mask[:, 0].all()):
        return None
    return (mask.cumsum(1) - 1).clamp(min=0)
