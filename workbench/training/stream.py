"""The training stream: documents of the mixture, tokenised and packed into flat batches, reproducible shard by shard.

Shard ``i`` depends on (seed, i) alone and holds a fixed number of batches, so a training resumes at any step without
replaying what came before. A batch is one row of tokens with the lengths of its documents: attention never crosses
from one document to another, and positions start at 0 in each.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import BadInput, DataMissing
from workbench.training.mixture import MIXTURE, Portion, world_makers

NO_BOS_SHARE = 0.15  # documents without a leading BOS, so that a stream may be continued without one


@dataclass(frozen=True)
class StreamSpec:
    """What fixes the stream: sizes in tokens, seeds, the mixture, and where tokenizer and book tokens are."""

    tokenizer: str
    books: str | None = None
    prose: str | None = None
    batch_tokens: int = 32768
    context: int = 1024
    batches_per_shard: int = 32
    seed: int = 0
    world_seed: int = 0
    rho: float = 0.1
    mixture: tuple[Portion, ...] = field(default=MIXTURE)


@dataclass
class Batch:
    """``tokens`` (T,) uint16 to predict with ``weights`` (T,) float32; ``inputs`` (T,) are the tokens as they are read
    (some replaced in noisy portions); ``lengths`` of the documents."""

    tokens: np.ndarray
    inputs: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray


Framed = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens, inputs, weights of one document


class Stream:
    """Makes shards; each worker process holds one."""

    def __init__(self, spec: StreamSpec):
        from tokenizers import Tokenizer

        from workbench_datasets.small_world import world

        if spec.batch_tokens < spec.context:
            raise BadInput(f"batch_tokens={spec.batch_tokens}: expected at least the context, {spec.context}")
        self.spec = spec
        self.tokenizer = Tokenizer.from_file(str(Path(spec.tokenizer) / "tokenizer.json"))
        vocabulary = self.tokenizer.get_vocab()
        self.bos, self.eos = vocabulary["<|bos|>"], vocabulary["<|eos|>"]
        self.books = np.load(spec.books, mmap_mode="r") if spec.books else None
        prose = Path(spec.prose).read_text(encoding="utf-8").split("\n") if spec.prose else []
        self.makers = world_makers(world(spec.world_seed, rho=spec.rho, prose=prose, prose_filler=0.15))
        self.portions = [p for p in spec.mixture if p.kind != "books" or self.books is not None]

    def shard(self, index: int) -> list[Batch]:
        """The batches of shard ``index``."""
        rng = random.Random(f"stream:{self.spec.seed}:{index}")
        goal = self.spec.batch_tokens * self.spec.batches_per_shard
        documents: list[Framed] = []
        total = sum(portion.share for portion in self.portions)
        for portion in self.portions:
            documents += self._documents(portion, rng, int(goal * portion.share / total) + self.spec.context)
        rng.shuffle(documents)
        return self._pack(documents)

    def _documents(self, portion: Portion, rng: random.Random, tokens: int) -> list[Framed]:
        made: list[Framed] = []
        while tokens > 0:
            for ids, weights in self._some(portion, rng):
                made.append(self._framed(ids, weights, rng, portion.noise))
                tokens -= len(made[-1][0])
                if tokens <= 0:
                    break
        return made

    def _some(self, portion: Portion, rng: random.Random) -> list[tuple[list[int], list[float]]]:
        if portion.kind == "books":
            return [self._book_window(rng) for _ in range(8)]
        if portion.kind == "repeat":
            return [self._repeat(rng) for _ in range(8)]
        return self._texts([self.makers[portion.kind](rng) for _ in range(64)], portion.answer_weight)

    def _texts(self, documents: Sequence[Any], answer_weight: float) -> list[tuple[list[int], list[float]]]:
        """Tokenise pieces between answers apart, so that the answers' tokens are known."""
        cut = [document.pieces() for document in documents]
        pieces = [text for pieces in cut for text, _ in pieces]
        encoded = iter(self.tokenizer.encode_batch_fast(pieces, add_special_tokens=False))
        made = []
        for pieces_ in cut:
            ids: list[int] = []
            weights: list[float] = []
            for _, role in pieces_:
                new = next(encoded).ids
                ids += new
                weights += [{"answer": answer_weight, "quiet": 0.0}.get(role, 1.0)] * len(new)
            if len(ids) <= self.spec.context - 2 or documents[0].kind in ("grocery", "rock-paper-scissors"):
                made.append((ids, weights))
        return made

    def _book_window(self, rng: random.Random) -> tuple[list[int], list[float]]:
        assert self.books is not None
        size = self.spec.context - 2
        at = rng.randrange(max(1, len(self.books) - size))
        ids = self.books[at : at + size].tolist()
        return ids, [1.0] * len(ids)

    def _repeat(self, rng: random.Random) -> tuple[list[int], list[float]]:
        """A stretch of random tokens (or of a book) repeated; only the repeats can be predicted."""
        size = min(rng.choice((8, 16, 32, 64, 128, 256, 400)), (self.spec.context - 2) // 2)
        if self.books is not None and rng.random() < 0.4:
            at = rng.randrange(max(1, len(self.books) - size))
            once = self.books[at : at + size].tolist()
        else:
            once = [rng.randrange(2, self.tokenizer.get_vocab_size()) for _ in range(size)]
        times = min(rng.randint(2, 4), (self.spec.context - 2) // len(once))
        return once * times, [0.05] * (len(once) + 1) + [1.0] * (len(once) * (times - 1) - 1)

    def _framed(self, ids: list[int], weights: list[float], rng: random.Random, noise: float) -> Framed:
        """BOS (mostly) and EOS around a document, cut to the context; the first token is never predicted."""
        if rng.random() >= NO_BOS_SHARE:
            ids, weights = [self.bos, *ids], [0.0, *weights]
        else:
            weights = [0.0, *weights[1:]]
        tokens = np.array([*ids, self.eos][: self.spec.context], np.uint16)
        return tokens, self._noisy(tokens, noise, rng), np.array([*weights, 1.0][: self.spec.context], np.float32)

    def _noisy(self, tokens: np.ndarray, noise: float, rng: random.Random) -> np.ndarray:
        """A share ``noise`` of the tokens replaced by tokens of the books (unigram noising, Xie et al. 2017)."""
        if not noise or self.books is None:
            return tokens
        generator = np.random.default_rng(rng.getrandbits(64))
        others = self.books[generator.integers(0, len(self.books), len(tokens))]
        replaced = generator.random(len(tokens)) < noise
        replaced[0] = False
        return np.where(replaced, others, tokens)

    def _pack(self, documents: list[Framed]) -> list[Batch]:
        batches, at = [], 0
        for _ in range(self.spec.batches_per_shard):
            left, taken = self.spec.batch_tokens, []
            while left > 0:
                taken.append([part[:left] for part in documents[at % len(documents)]])
                left -= len(taken[-1][0])
                at += 1
            tokens, inputs, weights = (np.concatenate(parts) for parts in zip(*taken))
            batches.append(Batch(tokens, inputs, weights, np.array([len(part[0]) for part in taken], np.int32)))
        return batches


_worker: Stream | None = None


def _start_worker(spec: StreamSpec) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = Stream(spec)


def _work(index: int) -> list[Batch]:
    assert _worker is not None
    return _worker.shard(index)


def batches(spec: StreamSpec, *, start: int = 0, workers: int = 0, shards: Path | None = None) -> Iterator[Batch]:
    """Batches from step ``start`` on, always the same for a spec.

    With ``workers`` processes shards are made ahead; with a folder ``shards`` they are read from there as
    :func:`write_shards` (in another process) finishes them, so that several trainings share the writing.
    """
    shard, skip = divmod(start, spec.batches_per_shard)
    for made in _source(spec, shard, workers, shards):
        yield from made[skip:]
        skip = 0


def _source(spec: StreamSpec, shard: int, workers: int, shards: Path | None) -> Iterator[list[Batch]]:
    if shards is not None:
        return (_read_shard(shards, index) for index in itertools.count(shard))
    return _ahead(spec, shard, workers) if workers else _in_process(spec, shard)


def _in_process(spec: StreamSpec, shard: int) -> Iterator[list[Batch]]:
    stream = Stream(spec)
    return (stream.shard(index) for index in itertools.count(shard))


def _pool(spec: StreamSpec, workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(spec,))


def _ahead(spec: StreamSpec, shard: int, workers: int) -> Iterator[list[Batch]]:
    with _pool(spec, workers) as pool:
        waiting: deque[Future] = deque(pool.submit(_work, shard + i) for i in range(2 * workers))
        try:
            for index in itertools.count(shard + 2 * workers):
                made = waiting.popleft().result()
                waiting.append(pool.submit(_work, index))
                yield made
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:06d}.npz"


def _write_shard(folder: Path, index: int) -> None:
    path = _shard_path(folder, index)
    if path.is_file():
        return
    made = _work(index)
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
    stacked = {name: np.stack([getattr(b, name) for b in made]) for name in ("tokens", "inputs", "weights")}
    stacked["weights"] = stacked["weights"].astype(np.float16)
    lengths = [b.lengths for b in made]
    stacked["lengths"], stacked["counts"] = np.concatenate(lengths), np.array([len(part) for part in lengths])
    np.savez(temporary, allow_pickle=False, **stacked)
    os.replace(temporary, path)


def _read_shard(folder: Path, index: int, *, patience: float = 300.0) -> list[Batch]:
    path, begun = _shard_path(folder, index), time.monotonic()
    while not path.is_file():
        if time.monotonic() - begun > patience:
            raise DataMissing(f"{path} was not written in {patience:.0f} s: is write_shards running on that folder?")
        time.sleep(0.02)
    with np.load(path) as held:
        lengths = np.split(held["lengths"], np.cumsum(held["counts"])[:-1])
        weights = held["weights"].astype(np.float32)
        return [Batch(*row) for row in zip(held["tokens"], held["inputs"], weights, lengths)]


def write_shards(spec: StreamSpec, folder: Path, count: int, *, workers: int) -> None:
    """Write shards 0 to ``count`` - 1 into ``folder``, in order, each whole or not at all; existing ones are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with _pool(spec, workers) as pool:
        for done in [pool.submit(_write_shard, folder, index) for index in range(count)]:
            done.result()
