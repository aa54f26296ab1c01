"""The pair stream: one memory, no tricks around it. Pairs are written one a token, then every key is asked once.

A token holds a key and a value together (the sum of their embeddings), so nothing has to be bound over distance by a
convolution or by a second layer: what is left is how many pairs the state of one layer keeps apart. Keys of a stream
are distinct; they are asked in random order, each by a token that holds the key alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.models.mixer import MixerConfig, MixerLM
from workbench.tasks.recall import IGNORE

__all__ = ["KEYS", "PAIRS", "VALUES", "PairConfig", "PairModel", "PairPool", "pair_loss", "pair_stream"]

#: Pairs of a stream, and how many keys and values there are to draw from.
PAIRS, KEYS, VALUES = 16, 32, 32


@dataclass(frozen=True)
class PairPool:
    """Streams: ``ids`` and ``targets`` (N, T), the answer at its question and -100 elsewhere; ``chance`` of a guess."""

    ids: Tensor
    targets: Tensor
    chance: float


class PairConfig(MixerConfig):
    """A ``MixerConfig`` whose token ids stand for a key and a value: ``key * (values + 1) + (value + 1)``, or without
    ``+ value + 1`` for a question. The outputs are 0 (never right) and then the values."""

    model_type = "workbench-pair-probe"

    def __init__(self, keys: int = KEYS, values: int = VALUES, dim: int = 16, mixers: Any = ("linear-attention",),
                 **rest: Any):  # fmt: skip
        self.keys, self.values = whole("keys", keys, 2), whole("values", values, 2)
        fixed = {"vocab_size": keys * (values + 1), "mlp_ratio": 0, "tie": False}
        super().__init__(dim=dim, mixers=mixers, **{**rest, **fixed})


class PairModel(MixerLM):
    """Embeddings of keys and values, memories with their residual path, one matrix to the values: no MLP."""

    config_class = PairConfig  # type: ignore[assignment]
    _tied_weights_keys = {}

    def __init__(self, config: PairConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.keys + config.values + 1, config.dim)
        self.lm_head = nn.Linear(config.dim, config.values + 1, bias=False)

    def _embedded(self, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        if ids is None or ids.dim() != 2:
            raise BadInput("the pair probe reads input_ids (streams, tokens)")
        shared = self.config.values + 1
        return self.embed(ids // shared + shared) + self.embed(ids % shared)


def pair_stream(streams: int, *, pairs: int = PAIRS, keys: int = KEYS, values: int = VALUES, seed: int = 0) -> PairPool:
    """``streams`` of ``pairs`` pairs and then as many questions: ids and targets (streams, 2 pairs).

    Raises:
        BadInput: more pairs than there are keys, or numbers below 1.

    >>> pool = pair_stream(1, pairs=2, keys=2, values=3, seed=1)
    >>> pool.ids.shape, pool.targets[0, :2].tolist()
    (torch.Size([1, 4]), [-100, -100])
    """
    whole("streams", streams), whole("pairs", pairs), whole("values", values)
    if pairs > whole("keys", keys):
        raise BadInput(f"pairs={pairs} are more than the {keys} keys there are; a key is told once a stream")
    draw = np.random.default_rng([seed, 0x9A125])
    told = draw.random((streams, keys)).argsort(1)[:, :pairs]
    said = draw.integers(values, size=(streams, pairs))
    order = draw.random((streams, pairs)).argsort(1)
    ask, answer = np.take_along_axis(told, order, 1), np.take_along_axis(said, order, 1)
    ids = np.concatenate([told * (values + 1) + said + 1, ask * (values + 1)], 1)
    targets = np.concatenate([np.full_like(answer, IGNORE), answer + 1], 1)
    return PairPool(torch.from_numpy(ids), torch.from_numpy(targets), 1 / values)


def pair_loss(run: Callable[..., Any], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) of the answers and the layers' own losses, and the share of right answers."""
    out, wanted = run(input_ids=batch["input_ids"]), batch["targets"]
    logits, questions = out.logits, wanted.shape[1] // 2
    logits, wanted = logits[:, questions:].flatten(0, 1), wanted[:, questions:].flatten()
    loss = cross_entropy(logits, wanted)
    return loss if out.aux_loss is None else loss + out.aux_loss, (logits.argmax(-1) == wanted).float().mean()


AutoConfig.register(PairConfig.model_type, PairConfig, exist_ok=True)
AutoModelForCausalLM.register(PairConfig, PairModel, exist_ok=True)
