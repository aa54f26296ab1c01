"""``knowledge-conflict-heads``: memory heads, context heads, and pruning by path patching (PH3).

Jin et al. 2024, arXiv 2402.18154. When a prompt contradicts what a model knows, memory heads bring the stored answer
a_m and context heads the stated answer a_c to the last position. Path patching scores every head by its direct effect
on both answers; silencing a few heads of one kind makes the other side win, without any training.

The score here is the change of the logits' difference l(a_m) - l(a_c) (``effect="logit_diff"``), which is stable where
a probability is near 0; relative changes of probability, the reading of the paper's text, are ``effect="prob_rel"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from workbench.errors import BadInput
from workbench.probes.attribution import logit_attribution
from workbench.probes.heads import Head, mean, sites, zero
from workbench.probes.patching import Effects, check_prompts, path_patching

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

KINDS = ("memory", "context")
#: Numbers of heads among which a validation set chooses.
SIZES = (1, 2, 3, 5, 7)
#: Largest share of a model's heads that may be pruned before it is damage and not control.
MOST_PRUNED = 0.25


class Asked(Protocol):
    """A conflict prompt (``workbench.tasks.conflicts.Conflict`` is one)."""

    @property
    def ids(self) -> Any: ...

    @property
    def corrupted(self) -> Any: ...

    @property
    def answers(self) -> Any: ...

    @property
    def context_at(self) -> Any: ...


@dataclass(frozen=True)
class ConflictHeads:
    """Scores of all heads on conflict prompts.

    ``effects`` are per prompt; ``memory`` S_m and ``context`` S_c (layers, heads) their means under ``effect``.
    """

    effects: Effects
    effect: str
    n_prompts: int

    @property
    def memory(self) -> np.ndarray:
        return self.effects.scores(self.effect)[0]

    @property
    def context(self) -> np.ndarray:
        return self.effects.scores(self.effect)[1]

    def balance(self) -> np.ndarray:
        """How far the corrupted output of a head moves the prediction from a_m (negative) or from a_c (positive)."""
        return self.memory - self.context

    def ranked(self, kind: str, k: int | None = None, *, upper: bool = True) -> list[Head]:
        """The k heads that matter most for one kind of answer, best first.

        ``upper`` leaves out the lowest third of the layers: early heads feed everything after them, which a direct
        effect cannot see, and silencing them damages the model. Heads that work for the other side never count.
        """
        if kind not in KINDS:
            raise BadInput(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        importance = -self.balance() if kind == "memory" else self.balance()
        layers, heads = importance.shape
        most = max(1, int(MOST_PRUNED * layers * heads))
        if k is not None and not (isinstance(k, (int, np.integer)) and 1 <= k <= most):
            raise BadInput(f"k must lie in 1 .. {most} (a quarter of the {layers * heads} heads), got {k}")
        lowest = layers // 3 if upper else 0
        order = sorted(
            ((layer, head) for layer in range(lowest, layers) for head in range(heads) if importance[layer, head] > 0),
            key=lambda at: -importance[at],
        )
        return order[: most if k is None else k]

    def kind(self, head: Head) -> str:
        """ "memory" or "context" for the heads whose balance stands out (beyond twice the spread of all), else ""."""
        balance = self.balance()
        if abs(balance[head]) <= 2 * balance.std():
            return ""
        return "memory" if balance[head] < 0 else "context"

    def named(self) -> list[Head]:
        """The heads that stand out, of either kind."""
        layers, heads = self.memory.shape
        return [(layer, head) for layer in range(layers) for head in range(heads) if self.kind((layer, head))]

    def frame(self) -> pd.DataFrame:
        """One row a head: layer, head, s_memory, s_context, balance, type."""
        import pandas as pd

        layer, head = (index.ravel() for index in np.indices(self.memory.shape))
        types = [self.kind((int(a), int(b))) for a, b in zip(layer, head)]
        columns = {"layer": layer, "head": head, "s_memory": self.memory.ravel(), "s_context": self.context.ravel()}
        return pd.DataFrame({**columns, "balance": self.balance().ravel(), "type": types})


def find_heads(
    model: Any, asked: Sequence[Asked], *, effect: str = "logit_diff", progress: Callable[[float], Any] | None = None
) -> ConflictHeads:
    """Path patching of every head on conflict prompts; ``asked`` come from ``workbench.tasks.conflicts.conflicts``."""
    effects = path_patching(
        model,
        [list(c.ids) for c in asked],
        [[list(ids) for ids in c.corrupted] for c in asked],
        [c.answers for c in asked],
        progress=progress or (lambda fraction: None),
    )
    effects.scores(effect)  # an unknown effect is refused here
    return ConflictHeads(effects, effect, len(asked))


def prune(model: Any, heads: Sequence[Head], means: dict[int, Tensor] | None = None) -> AbstractContextManager[None]:
    """Silence heads at all positions of every pass: to zero, or to their mean outputs (``heads.mean_outputs``)."""
    return zero(model, heads) if means is None else mean(model, heads, means)


def choose_size(kind: str, heads: ConflictHeads, rate: Callable[[Sequence[Head]], float], *, upper: bool = True) -> int:
    """The number of heads from ``SIZES`` with the best rate on a validation set, the smaller one on a tie.

    ``rate(heads)`` is the share of validation prompts that the wanted answer wins with these heads pruned.
    """
    most = len(heads.ranked(kind, upper=upper))
    sizes = [k for k in SIZES if k <= most]
    if not sizes:
        raise BadInput(f"no head moves the prediction away from the {kind} answer; is there a conflict in this model?")
    found = [rate(heads.ranked(kind, k, upper=upper)) for k in sizes]
    return sizes[int(np.argmax(found))]


def random_heads(
    model: Any, k: int, draws: int, *, seed: int = 0, upper: bool = True, without: Sequence[Head] = ()
) -> list[list[Head]]:
    """``draws`` sets of k heads each, from the same layers that ``ranked`` chooses from, none of ``without``."""
    known = sites(model)
    lowest = len(known) // 3 if upper else 0
    pool = [(site.layer, head) for site in known[lowest:] for head in range(site.n_heads)]
    pool = [head for head in pool if head not in set(without)]
    if not 1 <= k <= len(pool):
        raise BadInput(f"k must lie in 1 .. {len(pool)}, got {k}")
    if draws < 1 or seed < 0:
        raise BadInput(f"draws must be at least 1 and seed at least 0, got draws={draws}, seed={seed}")
    rng = np.random.default_rng(seed)
    return [[pool[i] for i in rng.choice(len(pool), k, replace=False)] for _ in range(draws)]


def head_table(
    loaded: Any, asked: Sequence[Asked], heads: ConflictHeads, *, pruned: Sequence[Head] = ()
) -> pd.DataFrame:
    """The inspector's table: scores, attention from the last position to a_c, tokens that the head promotes, pruned?

    Attention and promoted tokens are means over ``asked`` (a few dozen prompts are enough).
    """
    import torch

    check_prompts([c.ids for c in asked])
    frame, gone = heads.frame(), set(pruned)
    looks = np.mean([_attention_to(loaded, c) for c in asked], axis=0)
    said = logit_attribution(loaded, [list(c.ids) for c in asked]).mean(2)
    best = torch.topk(said, 5, dim=-1).indices
    frame["attention_on_context"] = looks.ravel()
    frame["promotes"] = [
        " ".join(text.strip() for text in loaded.tokens(best[layer, head].tolist()))
        for layer, head in zip(frame["layer"], frame["head"])
    ]
    frame["pruned"] = [(layer, head) in gone for layer, head in zip(frame["layer"], frame["head"])]
    return frame


def _attention_to(loaded: Any, conflict: Asked) -> np.ndarray:
    """Attention (layers, heads) from the last token to the stated answer."""
    trace = loaded.trace(list(conflict.ids))
    last, at = len(conflict.ids) - 1, conflict.context_at
    layers = range(loaded.n_layers)
    cells = [trace.region(layer, None, rows=slice(last, last + 1), cols=slice(at, at + 1)) for layer in layers]
    return np.stack([np.asarray(cell).reshape(-1) for cell in cells])
