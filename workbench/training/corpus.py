"""The embedded models' corpus as windows for small language models: what is trained on, and what is held out.

Windows are made by the training stream of the embedded models (``workbench.training.stream``), with its tokenizer, its
books and its small world, one window a row: whole documents one after the other, the last cut where the window ends.
The mixture keeps the kinds of document that ask for reading, with more prose, because a small language model sees a
hundredth of the tokens that the embedded models saw.

Held out are two whole books, documents of the world of another seed without any filler from books, and people whose
names are in no training text. The world's documents are drawn at random and a short one may come twice: in the test
windows a document that training holds word for word is not scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import BadInput
from workbench.storage import cache_dir
from workbench.training.mixture import MIXTURE, Portion
from workbench.training.stream import Batch, StreamSpec, batches

if TYPE_CHECKING:
    from workbench.training.tiny import Pool

__all__ = ["SHARES", "Windows", "asked", "book_windows", "language_loss", "pool", "spec", "training", "world_windows"]

#: Share of the tokens by kind of document; weights of answers are those of the embedded models' mixture.
SHARES = {
    "books": 0.40, "repeat": 0.08, "facts": 0.10, "biography": 0.04, "open-book": 0.24, "episodes": 0.06,
    "memory": 0.04, "passkey": 0.04,
}  # fmt: skip
#: Tokens of less weight cannot be predicted: what begins a document, random words, text that is given.
SCORED = 0.5
_HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True)
class Windows:
    """``ids`` (N, T) int16; ``weights`` (N, T) float16 of each token as a target; ``documents``: a hash of each."""

    ids: np.ndarray
    weights: np.ndarray
    documents: frozenset[bytes] = frozenset()

    def __len__(self) -> int:
        return len(self.ids)


def spec(tokens: int, seed: int = 0, *, books: bool = True, folder: Path | None = None) -> StreamSpec:
    """The stream of windows of ``tokens`` tokens. ``books=False`` leaves prose out (and needs no data).

    Raises:
        BadInput: windows too short for a document. FileNotFoundError: a book is absent; it says where it goes.
    """
    from workbench.training.embedded import prepare_data, shipped_tokenizer

    if tokens < 64:
        raise BadInput(f"tokens={tokens}: expected windows of at least 64 tokens, so that a document fits")
    made = StreamSpec(str(shipped_tokenizer()))
    if books:
        made = prepare_data(folder or cache_dir("training", "corpus"))
    return replace(made, batch_tokens=tokens, context=tokens, batches_per_shard=256, seed=seed, mixture=_mixture(books))


def _mixture(books: bool) -> tuple[Portion, ...]:
    kinds = {portion.kind: portion for portion in MIXTURE}
    return tuple(
        replace(kinds[kind], share=share, noise=0.0) for kind, share in SHARES.items() if books or kind != "books"
    )


def training(made: StreamSpec, count: int, workers: int = 0) -> Windows:
    """The first ``count`` windows of the stream; equal specs give equal windows, whoever writes them."""
    return _windows(made, count, workers, lambda batch: batch.weights)


def world_windows(made: StreamSpec, count: int, seen: frozenset[bytes]) -> Windows:
    """Documents of the world of another seed; ``weights`` are 1 where a token is scored, else 0."""
    kinds = tuple(portion for portion in made.mixture if portion.kind not in ("books", "repeat"))
    other = replace(made, books=None, prose=None, seed=made.seed + _HELD_OUT_SEED, mixture=kinds)
    return _windows(other, count, 0, lambda batch: _scored(batch, seen))


def _windows(made: StreamSpec, count: int, workers: int, weigh: Callable[[Batch], np.ndarray]) -> Windows:
    if count < 1:
        raise BadInput(f"{count} windows: expected at least 1")
    ids, weights = np.empty((count, made.batch_tokens), np.int16), np.empty((count, made.batch_tokens), np.float16)
    held: set[bytes] = set()
    with closing(batches(made, workers=workers)) as stream:  # type: ignore[type-var]
        for place, batch in enumerate(islice(stream, count)):
            ids[place], weights[place] = batch.tokens, weigh(batch)
            held.update(digest for digest, _ in _documents(batch))
    weights[:, 0] = 0
    return Windows(ids, weights, frozenset(held))


def _documents(batch: Batch) -> Iterator[tuple[bytes, slice]]:
    """Hash and place of each document; the frame (begin and end marks) does not count."""
    ends = np.cumsum(batch.lengths)
    for begin, end in zip(ends - batch.lengths, ends):
        words = batch.tokens[begin:end]
        yield hashlib.blake2b(words[words > 1].tobytes(), digest_size=12).digest(), slice(int(begin), int(end))


def _scored(batch: Batch, seen: frozenset[bytes]) -> np.ndarray:
    counted = batch.weights > SCORED
    for digest, place in _documents(batch):
        if digest in seen:
            counted[place] = False
    return counted.astype(np.float32)


def book_windows(made: StreamSpec, count: int) -> Windows:
    """Windows of the two held-out books, evenly spread, each begun by the mark that begins a document."""
    from workbench.training.tokenizer import load_tokenizer
    from workbench_datasets import books

    encode = load_tokenizer(made.tokenizer).backend_tokenizer.encode_batch
    texts = books.load("heldout")
    every: list[list[int]] = []
    for encoded in encode(list(texts.values()), add_special_tokens=False):
        size = made.batch_tokens - 1
        every += [[0, *encoded.ids[at : at + size]] for at in range(0, len(encoded.ids) - size, size)]
    if count > len(every):
        raise BadInput(f"{count} windows asked for: {', '.join(texts)} hold {len(every)} of {made.batch_tokens} tokens")
    ids = np.array([every[i * len(every) // count] for i in range(count)], np.int16)
    weights = np.ones(ids.shape, np.float16)
    weights[:, 0] = 0
    return Windows(ids, weights)


@dataclass(frozen=True)
class Asked:
    """Questions as rows of one length: ``ids`` (N, T), ``answers`` (N, T) bool, True at the tokens of the answer.

    ``chance``: mean of one over the number of possible answers. ``keep`` (N, T) bool, False at padding that a model
    must leave out; None where there is none.
    """

    ids: np.ndarray
    answers: np.ndarray
    chance: float
    keep: np.ndarray | None = None


def _by_lines(text: str, question: str) -> str:
    return f"{text}\n{question}"


def asked(
    made: StreamSpec, count: int, gap: int, seed: int = 0, *, people: int = 3,
    write: Callable[[str, str], str] = _by_lines,
) -> Asked:  # fmt: skip
    """Facts about ``people`` who are in no training text, ``gap`` tokens of other text, one question about one of them.

    ``write`` makes the prompt of a text and a question, by default one after the other. Rows are filled up on the
    right, after the answer: causal models never see that. Raises BadInput for a gap that leaves no room in a window.
    """
    from workbench.training.tokenizer import load_tokenizer
    from workbench_datasets.small_world import world

    settings: dict[str, Any] = {"split": "unseen", "people": people, "distance": gap, "form": "question"}
    questions = world(made.world_seed).questions("open-book", count, 50_000 + seed, **settings)
    encode = load_tokenizer(made.tokenizer).backend_tokenizer.encode_batch
    texts = [write(*question.prompt.split("\n")) for question in questions]
    prompts = [one.ids for one in encode(texts, add_special_tokens=False)]
    wanted = [one.ids for one in encode([question.answer for question in questions], add_special_tokens=False)]
    longest = max(1 + len(prompt) + len(answer) for prompt, answer in zip(prompts, wanted))
    if longest > made.batch_tokens:
        raise BadInput(f"gap={gap}: a question has {longest} tokens, the windows {made.batch_tokens}; ask at less")
    ids, answers = np.ones((count, longest), np.int64), np.zeros((count, longest), bool)
    for row, (prompt, answer) in enumerate(zip(prompts, wanted)):
        ids[row, : 1 + len(prompt) + len(answer)] = [0, *prompt, *answer]
        answers[row, 1 + len(prompt) : 1 + len(prompt) + len(answer)] = True
    return Asked(ids, answers, float(np.mean([1 / len(question.options) for question in questions])))


# ---- for ``workbench.training.tiny`` --------------------------------------------------------------------------------


def pool(windows: Windows) -> Pool:
    """Windows to draw batches from, with the weights of their tokens; for ``language_loss``."""
    from workbench.training.tiny import IGNORE, Pool

    targets = np.full(windows.ids.shape, IGNORE, np.int16)
    return Pool(windows.ids, targets, {"weights": windows.weights})


def language_loss(run: Callable[..., Any], batch: dict[str, Any]) -> tuple[Any, Any]:
    """Next-token cross-entropy (nats) by the tokens' weights, and the share of answer tokens that were the likeliest.

    A loss that the model adds of its own (a router's balance) is added.
    """
    from torch.nn.functional import cross_entropy

    ids, weights = batch["input_ids"], batch["weights"][:, 1:].float()
    out = run(input_ids=ids)
    logits, following = out.logits[:, :-1], ids[:, 1:]
    nats = cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none").view_as(weights)
    total = (nats * weights).sum() / weights.sum().clamp_min(1e-6)
    if getattr(out, "aux_loss", None) is not None:
        total = total + out.aux_loss
    answers = weights > 1
    chosen = logits.gather(-1, following[..., None])[..., 0]
    right = ((chosen >= logits.amax(-1)) & answers).sum() / answers.sum().clamp_min(1)
    return total, right
