"""The model card's table of an embedded model, measured: what it knows, reads, copies, orders and where it fails.

Every number comes from generated questions with gold answers (seeds that training never used) or from held-out books;
shares carry Wilson 95 % intervals. An answer counts when greedy decoding gives exactly its tokens.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput
from workbench.models.batches import by_length

if TYPE_CHECKING:
    import pandas as pd

SEED = 20_000  # question seeds of the table
WINNERS = ("memory", "context", "other")
GATES = {
    "closed-book": 0.95, "open-book": 0.9, "in-context copying": 0.9, "conflict: memory": 0.15,
    "conflict: context": 0.15, "induction head": 0.8,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: ``value`` with its 95 % interval over ``n`` cases; ``gate`` is the least useful value."""

    metric: str
    group: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    gate: float | None = None


def share(metric: str, group: str, hits: Sequence[bool]) -> Row:
    """A share of hits with its Wilson interval."""
    from workbench.statistics import wilson

    value, low, high, n = wilson(sum(hits), len(hits))
    return Row(metric, group, value, low, high, n, GATES.get(metric))


class Examinee:
    """A model, its tokenizer and the world it is asked about."""

    def __init__(self, folder: str | Path, *, device: str = "cpu"):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from workbench.models import loading, weights
        from workbench_datasets.small_world import world

        self.device = loading.device_of(device)
        weights.check_folder(Path(folder), str(folder))
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).to(self.device).eval()
        self.world = world()

    def ids(self, text: str, *, start: bool = True) -> list[int]:
        return self.tokenizer(text, add_special_tokens=start)["input_ids"]

    def logits(self, rows: Sequence[list[int]]) -> Any:
        """Logits (B, S, V) of rows padded on the right (causal, so padding changes nothing before it)."""
        import torch

        longest = max(map(len, rows))
        padded = torch.tensor([row + [self.tokenizer.eos_token_id] * (longest - len(row)) for row in rows])
        with torch.no_grad():
            return self.model(padded.to(self.device)).logits

    def answers(self, questions: Sequence[Any], *, batch_tokens: int = 4096) -> list[bool]:
        """Whether greedy decoding gives exactly the answer's tokens, question by question."""
        coded = [(self.ids(q.prompt), self.ids(q.answer, start=False)) for q in questions]
        hits = [False] * len(coded)
        for group in by_length([len(p) + len(a) for p, a in coded], batch_tokens):
            best = self.logits([coded[i][0] + coded[i][1] for i in group]).argmax(-1).tolist()
            for row, i in zip(best, group):
                prompt, answer = coded[i]
                hits[i] = row[len(prompt) - 1 : len(prompt) + len(answer) - 1] == answer
        return hits

    def first_tokens(self, questions: Sequence[Any]) -> list[int]:
        """Greedy first token after each prompt."""
        coded = [self.ids(q.prompt) for q in questions]
        found = [0] * len(coded)
        for group in by_length(list(map(len, coded)), 4096):
            best = self.logits([coded[i] for i in group]).argmax(-1)
            for row, i in enumerate(group):
                found[i] = int(best[row, len(coded[i]) - 1])
        return found


# -- parts of the table; each gives rows, ``k`` scales the number of questions ----------------------------------------


def closed_book(model: Examinee, k: float) -> list[Row]:
    rows: list[Row] = []
    step = max(1, round(1 / k))  # every step-th fact: all relations, all popularities
    for split, form in (
        ("train", "question"),
        ("train", "statement"),
        ("heldout", "question"),
        ("heldout", "statement"),
    ):
        questions = model.world.closed_book(split, form=form)[:: step if split == "train" else 2 * step]
        hits = model.answers(questions)
        metric = "closed-book" if split == "train" else "closed-book, held-out frames"
        rows.append(share(metric, f"all facts, {form}", hits))
        if form == "question":
            rows += _by_exposure(metric, questions, hits)
    return rows


def _by_exposure(metric: str, questions: Sequence[Any], hits: Sequence[bool]) -> list[Row]:
    bounds = ((1, 3), (4, 10), (11, 40), (41, 10**6))
    made = []
    for low, high in bounds:
        part = [hit for q, hit in zip(questions, hits) if low <= q.meta["exposures"] <= high]
        if part:
            made.append(share(metric + " by exposure", f"{low}-{high}" if high < 10**6 else f"{low} and more", part))
    return made


def open_book(model: Examinee, k: float) -> list[Row]:
    rows = []
    for split in ("context", "unseen"):
        for distance in (64, 256, 900):
            questions = model.world.questions("open-book", _n(96, k), SEED, split=split, distance=distance)
            rows.append(share("open-book", f"{split} people, {distance} tokens", model.answers(questions)))
    questions = model.world.questions("open-book", _n(200, k), SEED, distance=0)
    return [*rows, share("in-context copying", "context-only people", model.answers(questions))]


def two_hop(model: Examinee, k: float) -> list[Row]:
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "closed book, compositions of training": ("two-hop", {"size": 1}),
        "closed book, held-out compositions": ("two-hop", {"size": 1, "split": "heldout"}),
        "both facts in the text, unseen people": ("two-hop-context", {"split": "unseen", "pairs": 3}),
    }
    return [share("two-hop", name, model.answers(model.world.questions(kind, _n(200, k), SEED, **settings)))
            for name, (kind, settings) in cases.items()]  # fmt: skip


def conflict(model: Examinee, k: float) -> list[Row]:
    """Who wins when a known person gets one false statement: memory, context or something else (first token)."""
    questions = model.world.questions(
        "conflict", _n(400, k), SEED, false=1, consistent=0.0, layout="sentence", distance=0
    )
    winners = [_winner(model, q, token) for q, token in zip(questions, model.first_tokens(questions))]
    rows = [share(f"conflict: {name}", "one false statement", [w == name for w in winners]) for name in WINNERS]
    groups: dict[str, list[str]] = defaultdict(list)
    for question, winner in zip(questions, winners):
        groups[f"{question.meta['tercile']} popularity"].append(winner)
        groups[f"asked by {question.meta['form']}"].append(winner)
    for name, won in sorted(groups.items()):
        rows.append(share("conflict: memory wins, by group", name, [w == "memory" for w in won]))
    return rows


def _winner(model: Examinee, question: Any, token: int) -> str:
    for name in ("memory", "context"):
        if token == model.ids(f" {question.meta[name]}", start=False)[0]:
            return name
    return "other"


def induction(model: Examinee, k: float) -> list[Row]:
    """Attention of the best head from the second copy of random tokens to what followed in the first; and accuracy."""
    import torch

    size, generator = 64, torch.Generator().manual_seed(SEED)
    once = torch.randint(2, model.model.config.vocab_size, (_n(32, k), size), generator=generator).tolist()
    rows = [[model.tokenizer.bos_token_id, *row, *row] for row in once]
    best = model.logits(rows).argmax(-1)
    hits = [int(best[i, size + j]) == rows[i][size + j + 1] for i in range(len(rows)) for j in range(8, size)]
    score = induction_scores(model, rows[:8], size)
    layer, head = divmod(int(score.argmax()), score.shape[1])
    top = float(score.max())
    return [Row("induction head", f"best head: layer {layer}, head {head}", top, n=8 * (size - 8),
                gate=GATES["induction head"]),
            share("induction accuracy", "second copy of random tokens", hits)]  # fmt: skip


def induction_scores(model: Examinee, rows: list[list[int]], size: int) -> Any:
    """Mean attention (layers, heads) from positions of the second copy to the token after their first occurrence."""
    import torch

    before = model.model.config._attn_implementation
    model.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = model.model(torch.tensor(rows, device=model.device), output_attentions=True).attentions
    finally:
        model.model.set_attn_implementation(before)
    # The first eight tokens of a copy cannot know that it is one.
    at = torch.arange(size + 8, 2 * size, device=model.device)
    return torch.stack([layer[:, :, at, at - size + 1].mean((0, 2)) for layer in maps])


def skills(model: Examinee, k: float) -> list[Row]:
    ask: Callable[..., list[Any]] = model.world.questions
    cases: list[tuple[str, str, str, dict[str, Any]]] = [
        *(("passkey", f"{d} tokens", "passkey", {"distance": d}) for d in (64, 256, 900)),
        *(("list recall", f"{n} things", "list-recall", {"size": n}) for n in (6, 12, 20)),
        *(("remaining thing", f"{n} things", "remaining", {"size": n, "ask": "item"}) for n in (4, 6, 8)),
        *(("colour of the remaining thing", f"{n} things", "remaining", {"size": n, "ask": "colour"})
          for n in (2, 4, 6, 8)),
        *(("order of events", f"{n} events", "order", {"size": n}) for n in (2, 4, 6, 12, 20)),
        *(("repeated name (IOI)", order, "ioi", {"order": order, "size": 1}) for order in ("ABB", "BAB", "single")),
        *(("classification in context", f"by {by}, up to 20 shots", "classification", {"by": by, "shots": 20})
          for by in ("word", "region")),
        *(("episodes", kind, "episodes", {"ask": kind, "size": 6, "questions": 1, "split": "unseen"})
          for kind in ("number", "place", "item", "next")),
        ("pasted notes", "10 notes, unseen people", "memory", {"notes": 10, "split": "unseen"}),
        ("question with passage", "supporting passage", "passage", {"evidence": "memory"}),
        ("question with passage", "contradicting passage (follows it)", "passage", {"evidence": "counter"}),
    ]  # fmt: skip
    return [
        share(metric, group, model.answers(ask(kind, _n(96, k), SEED, **settings)))
        for metric, group, kind, settings in cases
    ]


def dialogues(model: Examinee, k: float) -> list[Row]:
    """Grocery recall and rock-paper-scissors with the whole dialogue in context; reply choice by log-probability."""
    from workbench_datasets import dialogues as d
    from workbench_datasets.small_world import Question

    def last(dialogue: Any) -> Question:
        *before, turn = dialogue.rounds
        return Question("".join(r.render() for r in before) + turn.prompt, f" {turn.answer}")

    rows = []
    for distractors in (4, 12, 20):
        orders = d.dialogues("grocery", _n(96, k), SEED, distractors=distractors)
        rows.append(share("grocery recall", f"{distractors} distractors", model.answers(list(map(last, orders)))))
    for rounds in (5, 20, 40):
        games = d.dialogues("rock-paper-scissors", _n(96, k), SEED, rounds=rounds)
        rows.append(share("rock-paper-scissors, best reply", f"round {rounds}", model.answers(list(map(last, games)))))
    return rows


def order_on_prose(model: Examinee, k: float) -> list[Row]:
    """Order questions on held-out books, and on generated sentences when the books are absent."""
    from workbench_datasets.small_world import world

    prose = _heldout_paragraphs()
    asked = world(prose=prose) if prose else model.world
    questions = asked.questions("order-prose", _n(160, k), SEED, words_total=120, segment=12)
    return [share("order on prose", "held-out books" if prose else "generated sentences", model.answers(questions))]


def _heldout_paragraphs() -> list[str]:
    from workbench_datasets import books

    try:
        return books.paragraphs(books.load("heldout"))
    except FileNotFoundError:
        return []


def language(model: Examinee, k: float) -> list[Row]:
    """Loss on held-out books against an interpolated Kneser-Ney 5-gram trained on the training books, same tokens."""
    import numpy as np

    from workbench.models.ngram import KneserNey
    from workbench_datasets import books

    try:
        held = [model.ids(text, start=False) for text in books.load("heldout").values()]
    except FileNotFoundError:
        return []
    size, take = 1023, _n(48, k)
    windows = [ids[i : i + size] for ids in held for i in np.linspace(0, len(ids) - size, take // 2, dtype=int)]
    losses = np.concatenate([_token_losses(model, [model.tokenizer.bos_token_id, *w])[4:] for w in windows])
    rows = [_loss_row("held-out books, loss (nats a token)", "this model", losses),
            Row("held-out books, perplexity", "this model", float(np.exp(losses.mean())), n=len(losses))]  # fmt: skip
    if k < 1:
        return rows
    train = np.concatenate([model.ids(text, start=False) for text in books.load("train").values()])
    ngram = KneserNey(train, vocabulary=model.model.config.vocab_size)
    base = -np.concatenate([ngram.logprob(np.array(w)) for w in windows])
    return [*rows, _loss_row("held-out books, loss (nats a token)", "5-gram", base),
            Row("held-out books, perplexity", "5-gram", float(np.exp(base.mean())), n=len(base))]  # fmt: skip


def _token_losses(model: Examinee, ids: list[int]) -> Any:
    import torch

    logits = model.logits([ids])[0, :-1].float()
    return (
        torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:], device=model.device), reduction="none")
        .cpu()
        .numpy()
    )


def _loss_row(metric: str, group: str, losses: Any) -> Row:
    half = 1.96 * float(losses.std()) / math.sqrt(len(losses))
    mean = float(losses.mean())
    return Row(metric, group, mean, mean - half, mean + half, len(losses))


def _count_zeros(act: Any, zeros: list[list[float]]) -> Any:
    kept: list[float] = []
    zeros.append(kept)
    return act.register_forward_hook(lambda _module, _inputs, out: kept.append(float((out == 0).float().mean())))


def sparsity(model: Examinee, k: float) -> list[Row]:
    """Share of exact zeros after the ReLU, by layer and on average (rows only for ReLU models)."""
    import torch

    if getattr(model.model.config, "hidden_act", "") != "relu":
        return []
    zeros: list[list[float]] = []
    hooks = [_count_zeros(m, zeros) for name, m in model.model.named_modules() if name.endswith("mlp.act")]
    text = " ".join(_heldout_paragraphs()[200:230]) or model.world.document("episodes", _rng(), n=14).text
    try:
        ids = model.ids(text)[:1024]
        with torch.no_grad():
            model.model(torch.tensor([ids], device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    means = [sum(layer) / len(layer) for layer in zeros]
    rows = [Row("ReLU zeros", f"layer {i}", value, n=len(ids)) for i, value in enumerate(means)]
    return [Row("ReLU zeros", "all layers", sum(means) / len(means), n=len(ids)), *rows]


def _rng() -> Any:
    import random

    return random.Random(SEED)


def _n(full: int, k: float) -> int:
    return max(16, round(full * k))


PARTS: dict[str, Callable[[Examinee, float], list[Row]]] = {
    "closed book": closed_book, "open book": open_book, "conflict": conflict, "induction": induction,
    "two hops": two_hop, "skills": skills, "dialogues": dialogues, "order on prose": order_on_prose,
    "language": language, "sparsity": sparsity,
}  # fmt: skip


def evaluate_embedded(name_or_path: str | Path = "embedded", quick: bool = False, *, device: str = "cpu",
                      parts: Sequence[str] | None = None, progress: bool = True) -> pd.DataFrame:  # fmt: skip
    """Measure the model card's table.

    Args:
        name_or_path: ``embedded``, ``embedded-relu`` or the folder of a model trained by the same recipe.
        quick: about an eighth of the questions (under 40 s on 2 cores), without the 5-gram baseline.
        device: where to run.
        parts: only these parts (keys of ``PARTS``).

    Returns:
        A tidy frame with a row a measure (metric, group, value, low, high, n, gate); ``attrs`` hold model, quick,
        seconds and gates. The same call gives the same rows.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    from workbench.models.hub import locate

    unknown = [part for part in parts or () if part not in PARTS]
    if unknown:
        raise BadInput(f"parts={unknown}: expected some of {', '.join(PARTS)}")
    begun = time.monotonic()
    model = Examinee(locate(str(name_or_path)), device=device)
    rows: list[Row] = []
    bar = tqdm(list(parts or PARTS), desc="evaluate", unit="part", disable=not progress, leave=False)
    for part in bar:
        bar.set_postfix_str(part)
        rows += PARTS[part](model, 0.125 if quick else 1.0)
    frame = pd.DataFrame([asdict(row) for row in rows])
    frame.attrs = {
        "model": str(name_or_path),
        "quick": quick,
        "seconds": round(time.monotonic() - begun, 1),
        "gates": gates(rows),
    }
    return frame


def gates(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """The worst row of every gated metric against its gate."""
    worst: dict[str, Row] = {}
    for row in rows:
        if row.gate is not None and (row.metric not in worst or row.value < worst[row.metric].value):
            worst[row.metric] = row
    return {
        name: {"value": row.value, "gate": row.gate, "reached": row.value >= (row.gate or 0)}
        for name, row in worst.items()
    }
