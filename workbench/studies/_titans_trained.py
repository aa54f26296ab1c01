"""Titans with its outer loop: small language models on FactStream, trained or loaded, asked for facts of long ago."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from workbench.studies._titans_claims import (
    DELTA,
    GDN,
    HEBBIAN,
    LINEAR,
    LMM,
    MAC,
    MAG,
    MAL,
    NO_DECAY,
    NO_MOMENTUM,
    TTT,
    WINDOW,
)
from workbench.studies._trainings import learned

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models.mixer import MixerLM
    from workbench.training.tiny import Pool, Recipe

Lines = Iterator[dict[str, Any]]

#: Tokens of a window or segment, an eighth of the trained length.
WIDTH = 32
#: Two blocks of one of these; the memory of each head is 32 -> 128 -> 32, or one 32 x 32 matrix. In the order in which
#: a full run takes them: what the claims need most comes first.
VARIANTS: dict[str, dict[str, Any]] = {
    LMM: {"mixer": "titans"},
    LINEAR: {"mixer": "titans", "depth": 1},
    WINDOW: {"mixer": "sliding-window-attention", "window": WIDTH},
    MAG: {"mixer": "titans-mag", "window": WIDTH, "gate": "sum"},
    MAC: {"mixer": "titans-mac", "segment": WIDTH, "gate": "sum"},
    MAL: {"mixer": "titans-mal", "window": WIDTH},
    DELTA: {"mixer": "delta-net", "gate": True},
    NO_MOMENTUM: {"mixer": "titans", "momentum": False},
    NO_DECAY: {"mixer": "titans", "decay": False},
    HEBBIAN: {"mixer": "titans", "depth": 1, "momentum": False, "objective": "inner product"},
    TTT: {"mixer": "titans", "depth": 1, "momentum": False, "decay": False},
}
#: The language models (``_corpus_lm``), in the order of training; 64 tokens of window, as the card asks.
LANGUAGE: dict[str, dict[str, Any]] = {
    WINDOW: {"mixer": "sliding-window-attention", "window": 64},
    MAG: {"mixer": "titans-mag", "window": 64, "gate": "sum"},
    LMM: {"mixer": "titans"},
    GDN: {"mixer": "gated-delta-net"},
    MAL: {"mixer": "titans-mal", "window": 64},
}
DIM, HEADS, BLOCKS, QUERIES = 64, 2, 2, 4
#: Longest error that a neural memory's step is taken for: without it a training may end in numbers that are not finite.
CLIP = 2.0


def build(variant: str, blocks: int = BLOCKS) -> MixerLM:
    """A fresh model, its weights drawn by torch's generator."""
    from workbench.models.mixer import MixerConfig, MixerLM
    from workbench_datasets.fact_stream import VOCABULARY

    mixer = {**VARIANTS[variant], "heads": HEADS}
    return MixerLM(MixerConfig(VOCABULARY, DIM, [_clipped(mixer)] * blocks))


def _clipped(mixer: Mapping[str, Any]) -> dict[str, Any]:
    own = {"clip": CLIP} if str(mixer["mixer"]).startswith("titans") else {}
    return {**mixer, **own}


def language_models(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The mixers of the language models; ``chunk`` and ``theta_max`` are those of the neural memories."""
    own, step = {name: _clipped(mixer) for name, mixer in LANGUAGE.items()}, ("chunk", "theta_max")
    said = {name: settings[name] for name in step}
    return {name: {**mixer, **said} if "clip" in mixer else mixer for name, mixer in own.items()}


def stream(n: int, length: int, facts: int, seed: int, split: str) -> Any:
    from workbench_datasets.fact_stream import fact_stream

    return fact_stream(n, length=length, facts=facts, queries=min(QUERIES, facts), seed=seed, split=split)


# -- training ---------------------------------------------------------------------------------------------------------


def curriculum(stages: Sequence[Sequence[float]], steps: int, sequences: int, seed: int) -> Callable[[int], Pool]:
    """Pools by step: (share of the steps, length, facts) a stage, short streams of few facts first."""
    from workbench.training.tiny import stage_of_step

    stage = stage_of_step([share for share, _, _ in stages], steps)

    def pool(step: int) -> Pool:
        _, length, facts = stages[stage(step)]
        return _pool(sequences, int(length), int(facts), seed)

    return pool


@lru_cache(maxsize=8)
def _pool(sequences: int, length: int, facts: int, seed: int) -> Pool:
    """Made once for all variants."""
    from workbench.training.tiny import as_pool

    return as_pool(stream(sequences, length, facts, seed, "train"))


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    from workbench.training.tiny import Recipe

    return Recipe(**settings["recipe"])


def affordable(settings: Mapping[str, Any], seeds: Sequence[int]) -> tuple[Recipe, bool]:
    """The recipe with as many steps as the run's budget holds, the same for every variant, and whether to stack seeds.

    A step of the LMM is timed in every stage, in the longest one stacked and in turn; all variants together are taken
    to cost ``relative_cost`` times the LMM.
    """
    from workbench.training.tiny import faster_way, fitted, seconds_a_step

    recipe, mean, stack = recipe_of(settings), 0.0, None
    how: dict[str, Any] = {"device": settings["device"], "steps": settings["timed_steps"]}
    for share, length, facts in sorted(settings["stages"], key=lambda stage: -stage[1]):
        pool = stream(512, int(length), int(facts), 0, "train")
        if stack is None:
            stack, seconds = faster_way(lambda _: build(LMM), pool, recipe, seeds, **how)
        else:
            seconds = seconds_a_step(lambda _: build(LMM), pool, recipe, seeds, stack=stack, **how)
        mean += share * seconds
    return fitted(recipe, mean * settings["relative_cost"], settings["train_seconds"]), bool(stack)


def trained(
    variant: str, settings: Mapping[str, Any], recipe: Recipe, seed: int, progress: Any = None, stack: bool = False
) -> Any:
    """Models of ``settings["seeds"]`` seeds, trained on streams that no test contains."""
    from workbench.training.tiny import train

    seeds = [1_000 * (seed + 1) + i for i in range(settings["seeds"])]
    pools = curriculum(settings["stages"], recipe.steps, settings["sequences"], seed)
    return train(
        lambda _: build(variant), pools, recipe, seeds, device=settings["device"], progress=progress,
        label=variant, diverged="keep", stack=None if stack else False,
    )  # fmt: skip


def training_lines(variant: str, losses: Any, every: int = 50) -> Lines:
    """The loss and the share of right answers, means of ``every`` steps."""
    for x, number, metric, value in learned(losses, every):
        yield _line("training", variant, x, number, metric, value)


def _line(part: str, variant: str, x: float, model: Any, metric: str, value: float, unit: Any = 0) -> dict[str, Any]:
    named = {"part": part, "variant": variant, "x": float(x), "model": str(model), "unit": str(unit)}
    return {**named, "metric": metric, "value": float(value)}


# -- asking -----------------------------------------------------------------------------------------------------------


def asked_lines(variant: str, models: Sequence[MixerLM], settings: Mapping[str, Any], seed: int) -> Lines:
    """Recall by length of the stream, by number of facts, and by distance.

    One line a trained model and group of sequences (``groups`` of them: what is left to vary when there is one model).
    """
    from workbench.tasks.recall import answers

    n, groups = settings["test_sequences"], settings["groups"]
    for part, x, length, facts in _tests(settings):
        streams = stream(n, length, facts, 10_000 + seed, "test")
        for i, model in enumerate(models):
            table = answers(model, streams, batch_tokens=settings["batch_tokens"])
            for unit, right in table["right"].groupby(table["sequence"] * groups // n):
                yield _line(part, variant, x, i, "recall", right.mean(), unit)
            if part == "length" and length == settings["distance_length"]:
                yield from _by_distance(variant, i, table.assign(unit=table["sequence"] * groups // n))


def _tests(settings: Mapping[str, Any]) -> list[tuple[str, int, int, int]]:
    lengths = [("length", length, length, settings["test_facts"]) for length in settings["lengths"]]
    return [*lengths, *(("facts", facts, settings["facts_length"], facts) for facts in settings["facts"])]


#: Upper ends of the distance buckets (tokens). Two layers of window 32 reach 62 tokens back, and the convolution 3 in
#: each of them.
BUCKETS = (WIDTH, 69, 10_000)


def _by_distance(variant: str, model: int, table: pd.DataFrame) -> Lines:
    for low, high in pairwise((0, *BUCKETS)):
        inside = table[(table["distance"] >= low) & (table["distance"] < high)]
        for unit, right in inside.groupby("unit")["right"]:
            yield _line("distance", variant, high, model, "recall", right.mean(), unit)


# -- the shipped models, a live training, the cost --------------------------------------------------------------------


def shipped() -> dict[str, MixerLM]:
    """The trained models that ship, one a variant; empty when there are none."""
    from workbench.training import tiny

    return tiny.shipped("titans", VARIANTS)


def live_lines(settings: Mapping[str, Any], seed: int) -> Lines:
    """A few training steps of one small LMM: does the loss fall?"""
    from workbench.training.tiny import Recipe, train

    live = settings["live"]
    recipe = Recipe(**live["recipe"])
    pool = stream(live["sequences"], live["length"], live["facts"], seed, "train")
    losses = train(lambda _: build(LMM, blocks=1), pool, recipe, (seed,), device=settings["device"]).losses
    for step, loss in zip(losses["step"], losses["loss"]):
        yield _line("live training", LMM, step, 0, "loss", loss)


@torch.no_grad()
def cost_lines(settings: Mapping[str, Any], seed: int) -> Lines:
    """Seconds of an LMM layer's forward pass and bytes of its state by length, beside the bytes of full attention."""
    from workbench.memory.layers.base import build_layer, nbytes
    from workbench.systems.timing import seconds_of

    torch.manual_seed(seed)
    layer = build_layer("titans", DIM, heads=HEADS).to(settings["device"])
    full = build_layer("sliding-window-attention", DIM, heads=HEADS, window=None)
    for length in settings["cost_lengths"]:
        x = torch.randn(1, length, DIM, device=settings["device"])
        took = [seconds_of(partial(layer, x), x.device) for _ in range(settings["cost_repeats"] + 1)][1:]
        for unit, seconds in enumerate(took):
            yield _line("cost", LMM, length, 0, "seconds", seconds, unit)
        yield _line("cost", LMM, length, 0, "state bytes", nbytes(layer(x)[1]))
        yield _line("cost", "full attention", length, 0, "state bytes", full.state_bytes(1, length))
