"""A model and data small enough to be trained in a blink, and the kill test's other process."""

from __future__ import annotations

import signal
import sys
from types import SimpleNamespace

import torch
from torch import nn

from workbench.memory.layers.base import build_layer
from workbench.training.tiny import Pool, Recipe, train
from workbench_datasets.mqar import mqar

VOCABULARY = 32
RECIPE = Recipe(steps=24, batch=8, lr=3e-3, warmup=4, checkpoint_every=6, log_every=6, next_token=0.1)


class Tiny(nn.Module):
    """Embedding, one linear attention, a head: (B, T) ids to an output with logits."""

    def __init__(self, dim: int = 8, dropout: float = 0.0):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, dim)
        self.mixer = build_layer("linear-attention", dim, heads=2, conv=2)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, VOCABULARY)

    def forward(self, input_ids, scale=None):
        x = self.embed(input_ids)
        x = x + self.dropout(self.mixer(x)[0])
        x = x if scale is None else x * scale[:, None, None]
        return SimpleNamespace(logits=self.head(self.norm(x)))


def build(seed: int) -> Tiny:
    return Tiny()


def build_double(seed: int) -> Tiny:
    return Tiny().double()


def build_with_dropout(seed: int) -> Tiny:
    return Tiny(dropout=0.2)


def pool(n: int = 64, seed: int = 0) -> Pool:
    made = mqar(n, pairs=2, length=16, vocabulary=VOCABULARY, seed=seed)
    return Pool(made.ids, made.targets)


if __name__ == "__main__":  # a training that announces each step and waits at step 15 to be killed
    torch.set_num_threads(1)

    def announced(steps, label):
        for step in steps:
            print(step, flush=True)  # noqa: T201
            if step == 15:  # a step takes a millisecond: the next checkpoint could come before the blow
                signal.pause()
            yield step

    train(build_with_dropout, pool(), RECIPE, (0, 1), device="cpu", checkpoint=sys.argv[1], progress=announced)
