"""What a model recalls: accuracy at the asked positions by category and distance, beside the bytes of its state.

Examples come from the recall generators of ``workbench_datasets`` (fact streams, MQAR, set disjointness, needles). An
answer is right when the target is the likeliest of *all* tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import BadInput
from workbench.statistics import t_interval, wilson

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ANSWERS", "RECALL", "across_seeds", "answers", "buckets", "recall", "state_bytes"]

IGNORE = -100
#: Columns of :func:`answers`.
ANSWERS = ("sequence", "position", "category", "distance", "target", "said", "right", "log_p")
#: Columns of :func:`recall` after those that it groups by.
RECALL = ("n", "k", "accuracy", "low", "high", "chance")


@torch.no_grad()
def answers(model: Any, pool: Any, *, batch_tokens: int = 1 << 15) -> pd.DataFrame:
    """One row for everything that is asked: :data:`ANSWERS`; ``log_p`` is the target's log-probability (nats).

    Args:
        model: a causal language model, ``model(input_ids=..)`` to ``logits`` (B, T, V); the answer is read *at* the
            asked position. It is put into eval mode for the pass.
        pool: ``ids`` and ``targets`` (N, T); ``distance``, ``category`` and ``categories`` where it has them; padded
            sequences (``lengths`` below T, or an ``attention_mask`` among its ``extras``) are masked.
        batch_tokens: tokens of one pass.

    Raises:
        BadInput: nothing is asked, or ids are not in the model's vocabulary.
    """
    import pandas as pd

    if not (hasattr(pool, "ids") and hasattr(pool, "targets")):
        raise BadInput(f"a pool has ids and targets (sequences, tokens), got {type(pool).__name__}")
    ids, targets = (np.asarray(value) for value in (pool.ids, pool.targets))
    if ids.shape != targets.shape or ids.ndim != 2:
        raise BadInput(f"ids {ids.shape} and targets {targets.shape} must be one table each, (sequences, tokens)")
    if ids.dtype.kind not in "iu" or targets.dtype.kind not in "iu":
        raise BadInput(f"ids and targets must be whole numbers, got {ids.dtype} and {targets.dtype}")
    rows, positions = np.nonzero(targets != IGNORE)
    if not len(rows):
        raise BadInput("nothing is asked: all targets are -100")
    _check_ids(model, ids, targets)
    table = {"sequence": rows, "position": positions, "category": _categories(pool, rows, positions)}
    table["distance"] = (
        np.asarray(pool.distance)[rows, positions] if hasattr(pool, "distance") else np.full(len(rows), -1)
    )
    table["target"] = targets[rows, positions]
    said, log_p = _said(model, pool, ids, rows, positions, table["target"], max(1, batch_tokens // ids.shape[1]))
    right = said == table["target"]
    return pd.DataFrame({**table, "said": said, "right": right, "log_p": log_p})[list(ANSWERS)]


def _check_ids(model: Any, ids: np.ndarray, targets: np.ndarray) -> None:
    size, most = getattr(getattr(model, "config", None), "vocab_size", None), max(int(ids.max()), int(targets.max()))
    if size is not None and most >= size:
        raise BadInput(f"ids go up to {most} but the model knows {size} tokens: was it trained on this task?")


def _categories(pool: Any, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    if not hasattr(pool, "category"):
        return np.full(len(rows), "")
    return np.asarray(pool.categories)[np.asarray(pool.category)[rows, positions]]


def _said(model: Any, pool: Any, ids: np.ndarray, rows: np.ndarray, positions: np.ndarray, targets: np.ndarray,
          size: int) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The likeliest token and the target's log-probability at every asked position."""
    device, extras, training = next(model.parameters()).device, _extras(pool, ids), model.training
    said, log_p = np.empty(len(rows), np.int64), np.empty(len(rows))
    model.eval()
    try:
        for begin in range(0, len(ids), size):
            chosen = slice(*np.searchsorted(rows, (begin, begin + size)))
            if chosen.start == chosen.stop:
                continue
            given = {name: value[begin : begin + size].to(device) for name, value in extras.items()}
            tokens = torch.as_tensor(ids[begin : begin + size], dtype=torch.int64, device=device)
            logits = model(input_ids=tokens, use_cache=False, **given).logits
            at = torch.as_tensor(rows[chosen] - begin, device=device), torch.as_tensor(positions[chosen], device=device)
            asked = logits[at].float()
            said[chosen] = asked.argmax(-1).cpu().numpy()
            wanted = torch.as_tensor(targets[chosen], dtype=torch.int64, device=device)
            log_p[chosen] = asked.log_softmax(-1).gather(1, wanted[:, None])[:, 0].cpu().numpy()
    finally:
        model.train(training)
    return said, log_p


def _extras(pool: Any, ids: np.ndarray) -> dict[str, Tensor]:
    extras = {name: torch.as_tensor(value) for name, value in getattr(pool, "extras", {}).items()}
    padded = hasattr(pool, "lengths") and int(np.min(pool.lengths)) < ids.shape[1]
    if padded and "attention_mask" not in extras:
        extras["attention_mask"] = torch.as_tensor(ids != 0)  # 0 pads in every alphabet of the generators
    return extras


def recall(
    model: Any,
    pool: Any,
    *,
    by: Sequence[str] = ("category",),
    edges: Sequence[int] | None = None,
    confidence: float = 0.95,
    batch_tokens: int = 1 << 15,
) -> pd.DataFrame:
    """Accuracy of one model with Wilson's interval: the columns of ``by``, then :data:`RECALL`.

    Args:
        by: of "category" and "distance" (in buckets, see :func:`buckets`); () is one row over all.
        edges: where buckets of distance begin; default powers of two.

    The answers of one sequence are counted as if they were independent; over seeds use :func:`across_seeds`.

    Raises:
        BadInput: as :func:`answers`, or another name in ``by``.
    """
    import pandas as pd

    if isinstance(by, str):
        raise BadInput(f"by={by!r}: expected a list of names, ({by!r},) say")
    unknown = set(by) - {"category", "distance"}
    if unknown:
        raise BadInput(f"by={list(by)}: {', '.join(sorted(unknown))} is not one of category, distance")
    table = answers(model, pool, batch_tokens=batch_tokens)
    if "distance" in by:
        table["distance"] = buckets(table["distance"], edges)
    groups = table.groupby(list(by), sort=True, observed=True)["right"] if by else [((), table["right"])]
    chance, lines = float(getattr(pool, "chance", np.nan)), []
    for names, right in groups:
        interval = wilson(int(right.sum()), len(right), confidence)
        lines.append((*names, len(right), int(right.sum()), interval.effect, interval.low, interval.high, chance))
    return pd.DataFrame(lines, columns=[*by, *RECALL])


def buckets(distance: Iterable[int], edges: Sequence[int] | None = None) -> pd.Categorical[str]:
    """Distances in tokens as ordered buckets, named "64-127"; the last one is open.

    >>> list(buckets([3, 70, 130], (0, 64, 128)))
    ['0-63', '64-127', '128+']

    Raises:
        BadInput: edges that do not rise, or a distance before the first of them.
    """
    import pandas as pd

    values = np.asarray(list(distance))
    if edges is None:
        most = max(1, int(values.max(initial=1)))
        edges = [0, *(2**power for power in range(3, most.bit_length()))]
    counts = all(isinstance(edge, int | np.integer) for edge in edges)
    if not len(edges) or not counts or list(edges) != sorted(set(edges)):
        raise BadInput(f"edges={list(edges)}: expected rising whole numbers, where each bucket begins")
    if len(values) and values.min() < edges[0]:
        raise BadInput(f"a distance of {values.min()} lies before the first bucket, which begins at {edges[0]}")
    names = [f"{low}-{high - 1}" for low, high in itertools.pairwise(edges)] + [f"{edges[-1]}+"]
    codes = np.searchsorted(np.asarray(edges), values, side="right") - 1
    return pd.Categorical.from_codes(codes, pd.Index(names), ordered=True)


def across_seeds(by_seed: Mapping[int, pd.DataFrame], *, confidence: float = 0.95) -> pd.DataFrame:
    """Mean accuracy over seeds with Student's t interval: one row a group of the seeds' :func:`recall` frames.

    Columns: the groups, seeds, accuracy, low, high (not cut to 0..1), chance. One seed has no interval: NaN.

    Raises:
        BadInput: no frames, or frames with other groups than the first one's.
    """
    import pandas as pd

    if not isinstance(by_seed, Mapping) or not by_seed:
        raise BadInput(f"by_seed must be {{seed: recall(...)}} of one seed or more, got {type(by_seed).__name__}")
    first = next(iter(by_seed.values()))
    groups = [name for name in first.columns if name not in RECALL]
    for seed, frame in by_seed.items():
        if not frame[groups].astype(str).equals(first[groups].astype(str)):
            raise BadInput(f"seed {seed} was scored on other groups than the first: use one pool and the same edges")
    table = np.stack([frame["accuracy"].to_numpy(float) for frame in by_seed.values()])
    lines = []
    for column in table.T:
        found = t_interval(column, confidence=confidence) if len(column) > 1 else (float(column[0]), np.nan, np.nan)
        lines.append((len(column), *found[:3]))
    made = pd.DataFrame(lines, columns=["seeds", "accuracy", "low", "high"])
    return pd.concat([first[groups].reset_index(drop=True), made.assign(chance=first["chance"].to_numpy())], axis=1)


def state_bytes(model: Any, tokens: int = 0) -> int:
    """Bytes that a model of sequence memories carries from token to token, for one stream: all its layers' states.

    ``tokens`` read so far matter only where a state grows with the stream (full attention). Weights are not counted.

    Raises:
        BadInput: a model without sequence memories.
    """
    from workbench.memory.layers.base import MemoryLayer

    layers = _outermost(model, MemoryLayer)
    if not layers:
        raise BadInput(f"{type(model).__name__} has no sequence memories (MemoryLayer): give a MixerLM")
    return sum(layer.state_bytes(1, tokens) for layer in layers)


def _outermost(module: Any, kind: type) -> list[Any]:
    """Modules of a kind that are in no other of that kind: a layer accounts for what it is made of."""
    if isinstance(module, kind):
        return [module]
    return [found for child in module.children() for found in _outermost(child, kind)]
