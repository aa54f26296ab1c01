"""Leading dialogues through a memory, many at once, and watching what of them it still holds.

A memory that is empty reads the text's first tokens as every stream begins (with the tokenizer's BOS where it has one).
One dialogue is one row; rounds are put to all rows together, padded, and each row keeps its own list of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.cache.base import TokenCache
from workbench.tasks.choice import Picked, ask

if TYPE_CHECKING:
    from workbench.models import LoadedModel
    from workbench_datasets.dialogues import Dialogue, Round


@dataclass(frozen=True)
class Asked:
    """One round of one dialogue: what was asked, what was picked, and where tracked words lie in the stream.

    ``tracked``: stream positions of the round's tracked words; ``surprise``: their mean surprise (nats) as they were
    read; ``seen``: tokens of the stream before the round. When the question had been read, the memory held ``cached``
    tokens, among them those at the positions ``held`` of all words tracked so far. ``trial``: asked without a trace.
    """

    dialogue: int
    index: int
    turn: Round
    picked: Picked
    seen: int
    tracked: tuple[int, ...]
    surprise: float
    cached: int
    held: tuple[int, ...]
    trial: bool = False

    @property
    def reply(self) -> str:
        return self.turn.options[self.picked.option]

    @property
    def correct(self) -> bool:
        return self.reply == self.turn.answer


@dataclass
class Speaker:
    """Turns rounds into token ids with the model's tokenizer and finds words in them again."""

    tokenizer: Any
    _known: dict[str, list[int]] = field(default_factory=dict)

    def ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._known[text]

    def question(self, turn: Round, first: bool) -> list[int]:
        """The prompt that asks for the reply; a stream begins with BOS where the tokenizer has one."""
        start = self.tokenizer.bos_token_id if first else None
        return [*([] if start is None else [start]), *self.ids(turn.prompt)]

    def option(self, reply: str) -> list[int]:
        return self.ids(f" {reply}")

    def place(self, ids: Sequence[int], text: str) -> range:
        """Where the words of ``text`` stand in ``ids`` (their last occurrence); BadInput when they do not."""
        words = self.option(text)
        for start in reversed(range(len(ids) - len(words) + 1)):
            if list(ids[start : start + len(words)]) == words:
                return range(start, start + len(words))
        raise BadInput(f"the tokenizer writes {text!r} differently inside its sentence, so it cannot be tracked there")


def lead(
    loaded: LoadedModel,
    memory: TokenCache,
    dialogues: Sequence[Dialogue],
    *,
    track: Callable[[Round], str | None] = lambda turn: None,
    trial: str = "",
    after: Collection[int] = (),
    numbers: Sequence[int] | None = None,
    progress: Callable[..., Any] | None = None,
) -> list[Asked]:
    """Lead ``dialogues`` through ``memory`` (emptied first), one row each; every round is answered.

    Args:
        track: the words of a round's user text to follow (the ordered item, the user's move), or None.
        trial: kind of a round that every dialogue is asked already ``after`` the rounds of these indices; the memory is
            put back as it was each time.
        numbers: names of the dialogues (``Asked.dialogue``, and the memory's rows); default 0, 1, ...
        progress: wraps the iterable of rounds, like tqdm.
    """
    if not dialogues:
        raise BadInput("dialogues is empty: there is nothing to lead")
    names = list(range(len(dialogues))) if numbers is None else list(numbers)
    memory.bind(loaded.model).reset()
    memory.name_rows(names)
    leader = _Leader(memory, Speaker(loaded.tokenizer), names, track)
    rounds = range(max(len(dialogue.rounds) for dialogue in dialogues))
    asked: list[Asked] = []
    for index in rounds if progress is None else progress(rounds):
        asked += leader.put(index, [d.rounds[index] if index < len(d.rounds) else None for d in dialogues])
        if index in after:
            asked += leader.put(index, [_first(d, trial) for d in dialogues], trial=True)
    return asked


def check_batches(dialogues: Sequence[Dialogue], kind: str, batch: int) -> None:
    """Raises BadInput for a dialogue of another kind than a task asks about, and for batches of nothing."""
    whole("batch", batch, 1)
    other = {dialogue.kind for dialogue in dialogues} - {kind}
    if other:
        raise BadInput(f"dialogues of kind {', '.join(sorted(other))} were given; this task asks about kind {kind}")


def _first(dialogue: Dialogue, kind: str) -> Round:
    for turn in dialogue.rounds:
        if turn.kind == kind:
            return turn
    raise BadInput(f"trial={kind!r}: a {dialogue.kind} dialogue has no round of this kind")


class _Leader:
    """Puts rounds to all rows of a memory and keeps the positions of tracked words."""

    def __init__(self, memory: TokenCache, speaker: Speaker, names: list[int], track: Callable[[Round], str | None]):
        self.memory, self.speaker, self.names, self.track = memory, speaker, names, track
        self.positions: list[list[int]] = [[] for _ in names]
        self.held: list[tuple[int, ...]] = []
        self.cached: list[int] = []

    def _look(self, memory: TokenCache) -> None:
        there = [row.items["position"] for row in memory.rows]
        self.cached = [len(positions) for positions in there]
        self.held = [tuple(np.intersect1d(*both).tolist()) for both in zip(there, self.positions)]

    def put(self, index: int, turns: list[Round | None], *, trial: bool = False) -> list[Asked]:
        """One round to every row (None sits out); as a trial nothing of it stays."""
        if not trial:
            return self._put(index, turns, tracking=True)
        moment = self.memory.snapshot()
        try:
            return [replace(one, trial=True) for one in self._put(index, turns, tracking=False)]
        finally:
            self.memory.restore(moment)

    def _put(self, index: int, turns: list[Round | None], tracking: bool) -> list[Asked]:
        first, seen = not self.memory.fed, [row.seen for row in self.memory.rows]
        questions = [[] if turn is None else self.speaker.question(turn, first) for turn in turns]
        options = [[] if turn is None else [self.speaker.option(o) for o in turn.options] for turn in turns]
        places = [self._places(turn, ids) if tracking else () for turn, ids in zip(turns, questions)]
        tracked = [tuple(start + at for at in place) for start, place in zip(seen, places)]
        for row, positions in enumerate(tracked):
            self.positions[row] += positions
        picked = ask(self.memory, questions, options, ending=self.speaker.ids("\n"), look=self._look)
        surprise = [_mean(one.surprise, place) for one, place in zip(picked, places)]
        everything = zip(self.names, turns, picked, seen, tracked, surprise, self.cached, self.held)
        return [Asked(name, index, turn, *rest) for name, turn, *rest in everything if turn is not None]

    def _places(self, turn: Round | None, ids: list[int]) -> Sequence[int]:
        words = None if turn is None else self.track(turn)
        return () if words is None else self.speaker.place(ids, words)


def _mean(surprise: np.ndarray, places: Sequence[int]) -> float:
    return float(np.mean(surprise[list(places)])) if len(places) else float("nan")
