"""Streams: feeding rounds of text through a memory, and generating from what it holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.checks import whole
from workbench.errors import BadInput, ModelError
from workbench.models import encoding, through_store
from workbench.models.stream import Stream
from workbench.models.through_store import Pasted

if TYPE_CHECKING:
    from workbench.models.loaded import LoadedModel


@dataclass(frozen=True)
class Generation:
    """What was generated. ``ids`` are prompt and new ids; ``text`` the prompt and ``new_text`` as they read.

    Under a memory of items the prompt is what it pasted and then the prompt given; ``pasted`` tells them apart.

    ``seconds`` is the wall time of prompt and generation, ``tokens_per_second`` counts new tokens only (of all rows of
    a batch). ``stopped`` says why it ended: "length", "eos" or "stop".
    """

    text: str
    new_text: str
    ids: list[int]
    seconds: float
    tokens_per_second: float
    new_ids: list[int]
    stopped: str = "length"
    pasted: Pasted | None = None


@dataclass(frozen=True)
class Fed:
    """One round (or several) streamed through a memory: ids, texts, surprise (n,) in nats (NaN for the very first).

    A memory of items is written to and no token goes through the model: these three are empty then, ``items`` are the
    ids that the memory gave and ``texts`` what was written under them.
    """

    ids: list[int]
    tokens: list[str]
    surprise: Tensor
    items: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()


@torch.no_grad()
def generate(
    loaded: LoadedModel,
    prompt: Any,
    *,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    on_token: Callable[[str, int], Any] | None = None,
) -> Any:
    """Continue ``prompt`` through the current memory; a ``Generation``, or a list of them for a list of prompts.

    With a token cache in use, or after ``feed``, the prompt continues that stream and the new tokens stay in it. A
    memory of items is asked about each prompt, what it finds stands before it, and nothing is kept.

    Args:
        temperature: 0 is greedy; otherwise tokens are drawn from softmax(logits / temperature) with ``seed``.
        stop: text or texts that end the generation; the text is cut before it.
        on_token: called as ``on_token(piece, token_id)`` for every new token of a single prompt.

    Raises:
        BadInput: empty prompt, settings out of range. ModelError: an encoder, or more tokens than the model has
            positions for (under the full cache).
    """
    _check(loaded, max_new_tokens, temperature)
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if stops and loaded.tokenizer is None:
        raise BadInput(f"stop needs a tokenizer and {loaded.name} has none")
    pasted = _pasted(loaded, prompt, max_new_tokens) if through_store.is_store(loaded.memory) else None
    stream = loaded.session or Stream(loaded)
    given = prompt if pasted is None else [part.prompt for part in pasted]
    batch = encoding.encode(loaded, given, side="left", special=not stream.length)
    if on_token is not None and len(batch["input_ids"]) > 1:
        raise BadInput("on_token streams one prompt; give a single prompt, or leave on_token out")
    stream.check(batch["input_ids"].shape[1] + max_new_tokens)
    start = time.perf_counter()
    writers = [_Writer(loaded, stops, on_token) for _ in batch["input_ids"]]
    logits = stream.read(batch["input_ids"], batch["attention_mask"])
    _loop(stream, logits, writers, _Picker(loaded, temperature, seed), max_new_tokens)
    seconds = time.perf_counter() - start
    if stream.kept:
        loaded.session = stream
    made = _results(loaded, batch, writers, seconds)
    if pasted is not None:
        made = [replace(one, pasted=part) for one, part in zip(made, pasted)]
    return made if _is_batch(prompt) else made[0]


def _pasted(loaded: LoadedModel, prompt: Any, new_tokens: int) -> list[Pasted]:
    """What the memory of items puts before each prompt."""
    several = isinstance(prompt, list | tuple) and all(isinstance(part, str) for part in prompt)
    return [through_store.recall(loaded, part, new_tokens) for part in (prompt if several else [prompt])]


def _check(loaded: LoadedModel, max_new_tokens: int, temperature: float) -> None:
    if not loaded.is_decoder:
        raise ModelError(f"{loaded.name} is an encoder ({type(loaded.model).__name__}); it cannot generate text")
    whole("max_new_tokens", max_new_tokens)
    if not temperature >= 0:
        raise BadInput(f"temperature must be >= 0 (0 is greedy), got {temperature!r}")


def _is_batch(prompt: Any) -> bool:
    """Whether the prompt came as several: a list of texts or of id lists, or more than one row of ids."""
    if isinstance(prompt, dict):
        return len(prompt["input_ids"]) > 1
    if isinstance(prompt, Tensor):
        return prompt.ndim == 2 and len(prompt) > 1
    return not isinstance(prompt, str) and not isinstance(prompt[0], int)


def _loop(stream: Stream, logits: Tensor, writers: list[_Writer], picker: _Picker, most: int) -> None:
    """Pick, write, read back; a row that has ended goes on unread until all have."""
    for step in range(most):
        chosen = picker(logits)
        for writer, value in zip(writers, chosen.tolist()):
            writer.write(value, picker.ends)
        last = step == most - 1 or all(writer.done for writer in writers)
        if not last or stream.kept:
            logits = stream.read(chosen[:, None], torch.ones_like(chosen[:, None]))
        if last:
            return


class _Picker:
    """Greedy or sampled next tokens (B,) from logits (B, V)."""

    def __init__(self, loaded: LoadedModel, temperature: float, seed: int | None):
        self.temperature = temperature
        self.generator = torch.Generator(device=loaded.device)
        self.generator.manual_seed(seed) if seed is not None else self.generator.seed()
        found = getattr(loaded.model.generation_config, "eos_token_id", None)
        if found is None:
            found = getattr(loaded.tokenizer, "eos_token_id", None)
        self.ends = {found} if isinstance(found, int) else set(found or ())

    def __call__(self, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        probs = torch.softmax(logits.float() / self.temperature, dim=-1)
        return torch.multinomial(probs, 1, generator=self.generator)[:, 0]


class _Writer:
    """The new ids of one row, its text so far, and whether it has ended."""

    def __init__(self, loaded: LoadedModel, stops: list[str], on_token: Callable[[str, int], Any] | None):
        self.loaded, self.stops, self.on_token = loaded, stops, on_token
        self.ids: list[int] = []
        self.shown = 0
        self.why = ""

    @property
    def done(self) -> bool:
        return bool(self.why)

    @property
    def text(self) -> str:
        if self.loaded.tokenizer is None:
            return " ".join(map(str, self.ids))
        text = self.loaded.tokenizer.decode(self.ids, skip_special_tokens=True)
        cuts = [text.index(stop) for stop in self.stops if stop in text]
        return text[: min(cuts)] if cuts else text

    def write(self, value: int, ends: set[int]) -> None:
        if self.done:
            return
        self.ids.append(value)
        if value in ends:
            self.why = "eos"
        elif self.stops and any(stop in self.loaded.decode(self.ids) for stop in self.stops):
            self.why = "stop"
        if self.on_token is not None:
            self.on_token(self._piece(), value)

    def _piece(self) -> str:
        """Text that is new and whole: a character whose bytes are still to come is held back."""
        text = self.text
        if text.endswith("�") and not self.done:
            return ""
        piece, self.shown = text[self.shown :], len(text)
        return piece


def _results(loaded: LoadedModel, batch: dict, writers: list[_Writer], seconds: float) -> list[Generation]:
    rate = sum(len(writer.ids) for writer in writers) / max(seconds, 1e-9)
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), writers)
    made = []
    for ids, mask, writer in rows:
        prompt = [value for value, real in zip(ids, mask) if real]
        text = loaded.decode(prompt) if loaded.tokenizer is not None else " ".join(map(str, prompt))
        made.append(
            Generation(text, writer.text, prompt + writer.ids, seconds, rate, writer.ids, writer.why or "length")
        )
    return made


# -- rounds -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def feed(loaded: LoadedModel, text: Any, *, on_round: Callable[[Fed], Any] | None = None) -> Fed:
    """Stream one round (a text or ids), or several (a list of texts), through the current memory and keep them.

    A memory of items writes each line of a text, or each text of a list; a round is then one of these.

    ``on_round`` is called with the ``Fed`` of every round. The next ``feed`` or ``generate`` continues the stream;
    ``LoadedModel.reset()`` forgets it. Surprise is what the model, with its memory as it was, made of each token.
    """
    if not loaded.is_decoder:
        raise ModelError(f"{loaded.name} is an encoder ({type(loaded.model).__name__}); it cannot read a stream")
    if through_store.is_store(loaded.memory):
        return _written(loaded, text, on_round)
    rounds = []
    for item in _rounds(text):
        rounds.append(_one_round(loaded, item))
        if on_round is not None:
            on_round(rounds[-1])
    if len(rounds) == 1:
        return rounds[0]
    return Fed(
        [value for fed in rounds for value in fed.ids],
        [value for fed in rounds for value in fed.tokens],
        torch.cat([fed.surprise for fed in rounds]),
    )


def _written(loaded: LoadedModel, text: Any, on_round: Callable[[Fed], Any] | None) -> Fed:
    def tell(item: int, piece: str) -> None:
        if on_round is not None:
            on_round(Fed([], [], torch.zeros(0), (item,), (piece,)))

    written = through_store.write(loaded.memory, text, tell)
    return Fed([], [], torch.zeros(0), tuple(item for item, _ in written), tuple(piece for _, piece in written))


def _rounds(text: Any) -> Iterator[Any]:
    if isinstance(text, list | tuple) and text and all(isinstance(item, str) for item in text):
        yield from text
    else:
        yield text


def _one_round(loaded: LoadedModel, item: Any) -> Fed:
    stream = loaded.session or Stream(loaded)
    batch = encoding.encode(loaded, item, special=not stream.length)
    if len(batch["input_ids"]) != 1:
        raise BadInput("feed streams one sequence; give one text, one list of ids, or a list of texts as rounds")
    stream.check(batch["input_ids"].shape[1])
    surprise = stream.read_round(batch["input_ids"])
    loaded.session = stream
    ids = batch["input_ids"][0].tolist()
    return Fed(ids, loaded.tokens(ids), surprise)
