"""Small language models on the embedded corpus, for the studies of sequence layers: trained, sized, read, asked.

All variants of a study share width, depth, MLP, tied embedding, data (``workbench.training.corpus``), the order of the
data, steps, batch and learning rate; what differs is the mixer, and the loss where a study says so. So equal means
equal training and equal shape around the mixer: neither weights nor states are equal, and both are told (parts "LM
size").

The number of steps is the same for all: a study's own, or what a rule gives that was fixed before any run
(``planned``). A study seed trains one model of each variant, so that the card's steps fit into minutes; several study
seeds (``--seeds``), each with windows, questions and weights of its own, are what intervals are over. Models are not
shipped: their losses, perplexities and answers are the record.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from workbench.studies._trainings import had
from workbench.studies._trainings import learned as means
from workbench.studies.base import Progress

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models.mixer import MixerLM
    from workbench.training.corpus import Windows
    from workbench.training.stream import StreamSpec
    from workbench.training.tiny import Loss, Pool, Recipe

Lines = Iterator[dict[str, Any]]

#: What both studies share. ``train_seconds`` and ``deadline_seconds`` are each study's own.
SETTINGS: dict[str, Any] = {
    "tokens": 512,
    "windows": 16_384,
    "books": True,
    "folder": None,
    "corpus_seed": 0,
    "test_windows": 256,
    "groups": 16,
    "gaps": [0, 64, 128, 256],
    "questions": 384,
    "dim": 256,
    "heads": 4,
    "blocks": 4,
    "batch": 8,
    "eval_batch": 64,
    "lr": 2e-3,
    "warmup": 100,
    "steps": 2_000,
    "least_steps": 1_000,
    "seeds": 1,
    "first_seed": 30_000,
    "timed_steps": 6,
}
#: Upper ends of the positions in a window that perplexity is told for; the first is what a window of 64 can see.
POSITIONS = (64, 128, 256)


class Corpus(NamedTuple):
    """Training windows as a pool, and what is held out: windows by name, questions by gap."""

    pool: Pool
    held_out: dict[str, Windows]
    asked: dict[int, Any]
    vocabulary: int


class Mixers(NamedTuple):
    """The mixers of one turn of the blocks, as they are, and the loss (None: next tokens, ``language_loss``)."""

    turn: Sequence[Mapping[str, Any]]
    loss: Loss | None = None


#: One mixer for all blocks (it gets the settings' number of heads), or a turn of several.
Mixer = Mapping[str, Any] | Mixers
Variants = Mapping[str, Mixer]


class Plan(NamedTuple):
    """Steps of every variant, how many seeds, and whether those are stacked (None: where a layer allows it)."""

    steps: int
    seeds: int
    stack: bool | None = False


# ---- data ---------------------------------------------------------------------------------------------------------


def corpus(settings: Mapping[str, Any], seed: int) -> Corpus:
    """Everything that is read; the test windows and questions of a run's seed are its own."""
    from tokenizers import Tokenizer

    from workbench.training import corpus as data

    made_of = spec(settings, seed)
    made = data.training(made_of, settings["windows"], _workers(settings))
    held_out = {"world": data.world_windows(made_of, settings["test_windows"], made.documents)}
    if settings["books"]:
        held_out["books"] = data.book_windows(made_of, settings["test_windows"])
    asked = {gap: data.asked(made_of, settings["questions"], gap, seed) for gap in settings["gaps"]}
    words = Tokenizer.from_file(str(Path(made_of.tokenizer) / "tokenizer.json")).get_vocab_size()
    return Corpus(data.pool(made), held_out, asked, words)


def spec(settings: Mapping[str, Any], seed: int) -> StreamSpec:
    """The stream that a run's seed reads."""
    from workbench.training import corpus as data

    folder = Path(settings["folder"]) if settings["folder"] else None
    return data.spec(settings["tokens"], settings["corpus_seed"] + seed, books=settings["books"], folder=folder)


def _workers(settings: Mapping[str, Any]) -> int:
    """Processes that write windows; where no GPU waits for them, none.

    At most 12: each imports what it needs for seconds, and several studies may run beside each other.
    """
    return max(1, min(12, (os.cpu_count() or 2) - 2)) if str(settings["device"]).startswith("cuda") else 0


# ---- models and their training ------------------------------------------------------------------------------------


def build(mixer: Mixer, settings: Mapping[str, Any], vocabulary: int, seed: int = 0) -> MixerLM:
    """A fresh model of ``blocks`` turns; the caller has seeded torch."""
    from workbench.models.mixer import MixerConfig, MixerLM

    turn = mixer.turn if isinstance(mixer, Mixers) else [{"heads": settings["heads"], **mixer}]
    layers = [dict(one) for one in turn] * settings["blocks"]
    return MixerLM(MixerConfig(vocabulary, settings["dim"], layers, max_length=4 * settings["tokens"]))


def _loss(mixer: Mixer) -> Loss:
    from workbench.training.corpus import language_loss

    return mixer.loss if isinstance(mixer, Mixers) and mixer.loss else language_loss


def recipe(settings: Mapping[str, Any], steps: int) -> Recipe:
    from workbench.training.tiny import Recipe

    warmup = min(settings["warmup"], steps // 10)
    return Recipe(steps=steps, batch=settings["batch"], lr=settings["lr"], warmup=warmup,
                  data_seed=settings["corpus_seed"])  # fmt: skip


def seeds_of(settings: Mapping[str, Any], seed: int, count: int) -> list[int]:
    return [settings["first_seed"] + 1_000 * seed + i for i in range(count)]


def planned(variants: Variants, settings: Mapping[str, Any], data: Corpus, seed: int) -> Plan:
    """As many steps as ``train_seconds`` hold, in hundreds, at most ``steps``: the rule, fixed before any run.

    A step of ``dearest`` is timed with the seeds stacked and in turn, and the better way is taken for all; then a step
    of every variant. If fewer than ``least_steps`` fit with all ``seeds``, it is tried with one seed less, for which
    ``dearest`` alone is timed again and the others are taken to save as much. If one seed does not fit either,
    ``least_steps`` are taken, and the deadline leaves the last variants out. Where ``steps`` and ``least_steps`` are
    one number and there is one seed, nothing is left to time.
    """
    if settings["seeds"] == 1 and settings["steps"] == settings["least_steps"]:
        return Plan(settings["steps"], 1)
    dearest = variants[settings["dearest"]]
    stack, top = _better_way(dearest, settings, data, seeds_of(settings, seed, settings["seeds"]))
    whole = [_seconds(settings, data, seeds_of(settings, seed, settings["seeds"]), mixer, stack)
             for mixer in variants.values() if mixer is not dearest]  # fmt: skip
    share = (sum(whole) + top) / top
    for count in range(settings["seeds"], 0, -1):
        if count < settings["seeds"]:
            stack, top = _better_way(dearest, settings, data, seeds_of(settings, seed, count))
        steps = min(settings["steps"], int(settings["train_seconds"] / (share * top)))
        steps = steps // 100 * 100 if steps >= 100 else steps
        if steps >= settings["least_steps"]:
            return Plan(steps, count, stack)
    return Plan(settings["least_steps"], 1, stack)


def _better_way(
    mixer: Mixer, settings: Mapping[str, Any], data: Corpus, seeds: Sequence[int]
) -> tuple[bool | None, float]:
    """(whether to stack the seeds, seconds a step)."""
    tried: tuple[bool | None, ...] = (None, False) if len(seeds) > 1 else (False,)
    ways = {way: _seconds(settings, data, seeds, mixer, way) for way in tried}
    best = min(ways, key=lambda way: ways[way])
    return best, ways[best]


def _seconds(
    settings: Mapping[str, Any], data: Corpus, seeds: Sequence[int], mixer: Mixer, stack: bool | None
) -> float:
    from workbench.training.tiny import seconds_a_step

    make = partial(build, mixer, settings, data.vocabulary)
    how: dict[str, Any] = {"device": settings["device"], "steps": settings["timed_steps"], "stack": stack}
    return seconds_a_step(make, data.pool, recipe(settings, settings["steps"]), seeds, loss=_loss(mixer), **how)


def trained(mixer: Mixer, settings: Mapping[str, Any], data: Corpus, plan: Plan, seed: int, **options: Any) -> Any:
    """``workbench.training.tiny.Trained``: one model a seed."""
    from workbench.training.tiny import train

    make, seeds = partial(build, mixer, settings, data.vocabulary), seeds_of(settings, seed, plan.seeds)
    return train(make, data.pool, recipe(settings, plan.steps), seeds, device=settings["device"],
                 stack=plan.stack, loss=_loss(mixer), **options)  # fmt: skip


# ---- what is measured ---------------------------------------------------------------------------------------------


def line(
    part: str, variant: str, x: float, metric: str, value: float, model: Any = "", unit: Any = 0
) -> dict[str, Any]:
    named = {"part": part, "variant": variant, "x": float(x), "model": str(model), "unit": str(unit)}
    return {**named, "metric": metric, "value": float(value)}


@torch.no_grad()
def nats(model: MixerLM, ids: Any, batch: int) -> torch.Tensor:
    """Surprise of every token after the first (N, T - 1), nats, on the CPU."""
    rows = []
    for part in torch.as_tensor(ids).split(batch):
        part = part.long().to(model.device)
        logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
        told = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        rows.append(told.view(len(part), -1).cpu())
    return torch.cat(rows)


@torch.no_grad()
def answered(model: MixerLM, asked: Any, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) bool: every token of the answer is the likeliest one; and (N,) its surprise, nats, over all its tokens."""
    right, surprise = [], []
    for ids, answers, keep in parts_of(asked, batch, model.device):
        here = answers[:, 1:]
        logits = model(input_ids=ids, attention_mask=keep, use_cache=False).logits[:, :-1].float()
        told = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        right.append(((logits.argmax(-1) == ids[:, 1:]) | ~here).all(1).cpu())
        surprise.append((told * here).sum(1).cpu())
    return torch.cat(right), torch.cat(surprise)


def parts_of(asked: Any, batch: int, device: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """``batch`` questions at a time: ids, where the answers are, and what is no padding (None: all of it)."""
    for begin in range(0, len(asked.ids), batch):
        rows = slice(begin, begin + batch)
        keep = None if asked.keep is None else torch.as_tensor(asked.keep[rows], device=device)
        yield torch.as_tensor(asked.ids[rows], device=device), torch.as_tensor(asked.answers[rows], device=device), keep


def read(variant: str, models: Sequence[MixerLM], settings: Mapping[str, Any], data: Corpus) -> Lines:
    """Surprise of held-out text and answers by gap."""
    yield from texts(variant, models, settings, data)
    for number, model in enumerate(models):
        for gap, asked in data.asked.items():
            found = dict(zip(("exact", "nats"), answered(model, asked, settings["eval_batch"])))
            yield from answers(variant, gap, found, settings, number)


def texts(
    variant: str, models: Sequence[MixerLM], settings: Mapping[str, Any], data: Corpus, first: int = 1,
    positions: Sequence[int] = POSITIONS,
) -> Lines:  # fmt: skip
    """Mean surprise of the tokens from ``first`` on, all (x = 0) and by position in the window (x = upper end).

    One line a model and group of neighbouring windows.
    """
    for number, model in enumerate(models):
        for name, windows in data.held_out.items():
            table = nats(model, windows.ids, settings["eval_batch"])
            counted = torch.as_tensor(windows.weights[:, 1:]) > 0
            for group, rows in enumerate(_groups(len(windows), settings["groups"])):
                made = _surprise(variant, f"LM {name}", number, group, table[rows], counted[rows], first, positions)
                yield from made


def answers(
    variant: str, x: float, found: Mapping[str, torch.Tensor], settings: Mapping[str, Any], model: int
) -> Lines:
    """Means of every metric's numbers (one a question), one line a group of questions."""
    for group, rows in enumerate(_groups(settings["questions"], settings["groups"])):
        for metric, values in found.items():
            yield line("LM recall", variant, x, metric, values[rows].double().mean(), model, group)


def _groups(count: int, groups: int) -> list[torch.Tensor]:
    return list(torch.arange(count).chunk(min(groups, count)))


def _surprise(
    variant: str, part: str, model: int, group: int, table: torch.Tensor, counted: torch.Tensor, first: int = 1,
    positions: Sequence[int] = POSITIONS,
) -> Lines:  # fmt: skip
    last = table.shape[1] + 1
    ends = (first, *(place for place in positions if first < place < last), last)
    spans = [(0, first, last), *((end, begin, end) for begin, end in pairwise(ends))]
    for x, begin, end in spans:
        chosen = counted[:, begin - 1 : end - 1]
        if bool(chosen.any()):
            mean = table[:, begin - 1 : end - 1][chosen].double().mean()
            yield line(part, variant, x, "nats", mean, model, group)


def sizes(variant: str, model: MixerLM, settings: Mapping[str, Any]) -> Lines:
    """Weights, those of the embedding, and the bytes of one stream's state after a window."""
    count = sum(p.numel() for p in model.parameters())
    yield line("LM size", variant, 0, "parameters", count)
    yield line("LM size", variant, 0, "embedding parameters", model.get_input_embeddings().weight.numel())
    held = sum(block.mixer.state_bytes(1, settings["tokens"]) for block in model.blocks)
    yield line("LM size", variant, settings["tokens"], "state bytes", held)


def learned(variant: str, losses: Any, every: int = 50) -> Lines:
    """Loss (nats, weighted as the corpus weighs) and share of answer tokens right, means of ``every`` steps."""
    for x, number, metric, value in means(losses, every):
        yield line("LM training", variant, x, metric, value, number)


# ---- the part of a study ------------------------------------------------------------------------------------------


def lines(
    variants: Variants, settings: Mapping[str, Any], seed: int, progress: Progress,
    data_of: Callable[..., Corpus] = corpus, look: Callable[..., Lines] = read,
) -> Lines:  # fmt: skip
    """The whole part: data, plan, then every variant in turn until ``deadline_seconds``; what is left out is said.

    A study may bring its own data and its own way to read and ask (arguments as those of ``corpus`` and ``read``).
    """
    begun = time.monotonic()
    data = data_of(settings, seed)
    yield from _told(data)
    plan = planned(variants, settings, data, seed)
    yield line("LM training", "all", 0, "steps", plan.steps)
    yield line("LM training", "all", 0, "seeds", plan.seeds)
    for variant in progress(list(variants), "language models"):
        left = settings["deadline_seconds"] - (time.monotonic() - begun)
        options = {"budget_seconds": left, "diverged": "keep"}
        made = had(variant, partial(trained, variants[variant], settings, data, plan, seed, **options), left, progress)
        if made is not None:
            yield line("LM training", variant, plan.steps, "seconds", made.record["seconds"])
            yield from sizes(variant, made.models[0], settings)
            yield from learned(variant, made.losses)
            yield from look(variant, made.models, settings, data)
            progress.say(f"{variant}: {made.record['seconds']:.0f} s, {made.how}")


def _told(data: Corpus) -> Lines:
    yield line("LM corpus", "training", 0, "tokens", data.pool.ids.numel())
    for name, windows in data.held_out.items():
        yield line("LM corpus", f"held out: {name}", 0, "tokens scored", (windows.weights > 0).sum())
    for gap, asked in data.asked.items():
        yield line("LM recall", "chance", gap, "chance", asked.chance)


def shown(
    slug: str, live: pd.DataFrame | None, recorded: pd.DataFrame | None, part: str = "part"
) -> pd.DataFrame | None:
    """Rows of this part for a study's figure: of the live run, else of what is given as recorded, else its record.

    ``part``: the column that tells the part. None where there are none, and where no recorded run is to be shown.
    """
    from workbench_datasets import recorded as record

    for frame in (live, recorded):
        if frame is not None and len(frame) and (frame[part] == "LM books").any():
            return frame
    kept = record.load(slug, "lm") if recorded is not None else None
    return kept if kept is not None and len(kept) else None
