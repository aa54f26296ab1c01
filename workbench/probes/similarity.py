"""Similarity of activations: cosine and dot maps between any two sets, token picking, image patches."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.errors import BadInput


def vectors(argument: str, values: Any) -> np.ndarray:
    """(N, d) float64 from a tensor or array of shape (N, d) or (1, N, d); NaN and infinity are refused."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if array.ndim != 2 or 0 in array.shape:
        raise BadInput(f"{argument} must be (vectors, dimensions), got shape {np.shape(values)}")
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise BadInput(f"{argument} holds a number that is not finite in vector {row}")
    return array


def _pair(a: Any, b: Any, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    left = vectors("a", a)
    right = left if b is None else vectors("b", b)
    if left.shape[1] != right.shape[1]:
        raise BadInput(f"a has {left.shape[1]} dimensions and b {right.shape[1]}; they must be equal")
    return (left - left.mean(axis=0), right - right.mean(axis=0)) if centred else (left, right)


def dot_map(a: Any, b: Any = None, *, centred: bool = False) -> np.ndarray:
    """(N, M) dot products of every vector of ``a`` (N, d) with every one of ``b`` (M, d; default ``a`` itself).

    ``centred`` subtracts each set's mean vector first: hidden states share a large common direction that would
    otherwise make everything look alike.
    """
    left, right = _pair(a, b, centred)
    return left @ right.T


def cosine_map(a: Any, b: Any = None, *, centred: bool = False) -> np.ndarray:
    """(N, M) cosines in [-1, 1]; a zero vector has no direction, so its row or column is NaN (drawn grey)."""
    left, right = _pair(a, b, centred)
    lengths = [np.linalg.norm(side, axis=1) for side in (left, right)]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (left @ right.T) / np.outer(*lengths)
    return np.clip(np.where(np.outer(*lengths) > 0, cosines, np.nan), -1.0, 1.0)


def pick_tokens(tokens: Sequence[str], what: int | str | re.Pattern[str] | Callable[[str], bool]) -> list[int]:
    """Positions of the tokens that ``what`` names: a position (negative from the end), a text (white space around
    tokens is ignored), a compiled pattern (searched), or a predicate. Nothing found raises BadInput."""
    if isinstance(what, (int, np.integer)):
        if not -len(tokens) <= what < len(tokens):
            raise BadInput(f"token {what} is outside this text of {len(tokens)} tokens")
        return [int(what) % len(tokens)]
    if isinstance(what, str):
        matches = [token.strip() == what.strip() for token in tokens]
    elif isinstance(what, re.Pattern):
        matches = [what.search(token) is not None for token in tokens]
    else:
        matches = [bool(what(token)) for token in tokens]
    found = [position for position, match in enumerate(matches) if match]
    if not found:
        raise BadInput(f"no token matches {getattr(what, 'pattern', what)!r}; the text starts with {list(tokens[:8])}")
    return found


def token_similarity(
    states: Sequence[Any], position: int, *, kind: str = "cosine", centred: bool = False
) -> np.ndarray:
    """(layers, S): how similar the token at ``position`` is to every token, in each layer (S, d) of ``states``."""
    if kind not in ("cosine", "dot"):
        raise BadInput(f"kind={kind!r} is not one of 'cosine', 'dot'")
    if not len(states):
        raise BadInput("states must hold at least one layer; trace with hidden=True")
    similar = cosine_map if kind == "cosine" else dot_map
    length = vectors("states[0]", states[0]).shape[0]
    at = pick_tokens([""] * length, int(position))[0]
    return np.stack([similar(layer, centred=centred)[at] for layer in states])


def patch_grid(values: Any, shape: tuple[int, int] | None = None) -> np.ndarray:
    """One number per image patch, in reading order, as (rows, columns); without ``shape`` the image is square."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    if shape is None:
        side = round(flat.size**0.5)
        shape = (side, side)
    if flat.size == 0 or shape[0] * shape[1] != flat.size:
        raise BadInput(f"{flat.size} patches do not fill a grid of {shape}; give shape (rows, columns)")
    return flat.reshape(shape)


def min_max(values: Any) -> np.ndarray:
    """Values stretched to [0, 1]; a constant map becomes all zeros instead of a division by zero."""
    array = np.asarray(values, dtype=np.float64)
    low, high = np.nanmin(array), np.nanmax(array)
    return (array - low) / (high - low) if high > low else np.zeros_like(array)
