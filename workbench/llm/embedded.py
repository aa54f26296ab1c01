"""The small model that ships, as a reader of a pasted context and, within that, as a chat model.

It was trained on texts in which ``QUESTION: ... ANSWER:`` follows plain sentences about the small world's people, and
on dated notes under ``MEMORY:``; it follows no instructions. So it answers short factual questions whose answer stands
in the context, about in the words of its world, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.llm.base import Backend, LlmError, Reply, Request, Usage
from workbench.llm.hf import check_room, pieces

if TYPE_CHECKING:
    from workbench.models.loaded import LoadedModel

LABEL = "embedded model (8 layers, small world)"
ANSWER_TOKENS = 24
STOPS = [".", "\n"]
_models: dict[str, Any] = {}
_lock = threading.RLock()


def _model(name: str) -> LoadedModel:
    """One copy a process, shared by all readers."""
    with _lock:
        if name not in _models:
            from workbench.models import load

            _models[name] = load(name)
        return _models[name]


def reader_prompt(question: str, context: str) -> str:
    """The question after its context, in the form of the training texts.

    Lines that all begin with a date ("[8 May]", "[2023-05-08]", "2023-05-08:") are dated notes and get the heading
    MEMORY; other lines are joined to one paragraph, as statements stood in training. A question without a mark gets
    one.
    """
    from workbench.models.pasting import ANSWER, ASK, context_form

    asked = " ".join(question.split())
    asked = asked if asked.endswith("?") else f"{asked}?"
    return f"{context_form(context.splitlines())}{ASK}{asked}{ANSWER}"


class EmbeddedReader:
    """Answers from a pasted context with the embedded model; "unknown" is one of its answers.

    On 100 generated open-book questions about people it never saw in training (``small_world``, seeds 31,337 and
    778,899) it gave the exact answer to every one, with the facts alone and with 256 tokens of other text before the
    question; from ten dated notes to 81 and 74 of 100 (``tests/llm/test_readers.py`` holds lower bounds).

    Args:
        model: "embedded" or "embedded-relu".
        overflow: what is done with a context longer than the model reads (1,024 tokens with question and answer):
            "error", or "drop-last": lines are left out from the end, where a memory puts what it ranks lowest, and
            ``Reply.problem`` says how many.
    """

    label = LABEL

    def __init__(self, model: str = "embedded", *, overflow: str = "error"):
        from workbench.models.embedded import NAMES

        if model not in NAMES:
            raise BadInput(f"model must be one of {', '.join(NAMES)}, got {model!r}")
        if overflow not in ("error", "drop-last"):
            raise BadInput(f"overflow must be 'error' or 'drop-last', got {overflow!r}")
        self.name, self.overflow = model, overflow

    def answer(self, question: str, context: str) -> Reply:
        """Greedy answer up to its full stop. Raises BadInput for an empty question, ContextTooLong."""
        begun = time.perf_counter()
        prompt, told = self._fit(question, context)
        return replace(self._read(prompt), problem=told, seconds=time.perf_counter() - begun)

    def _fit(self, question: str, context: str) -> tuple[str, str]:
        """The prompt, and what had to be left out of it."""
        check_question(question, context)
        lines = context.splitlines() or [""]
        kept = len(lines)
        if self.overflow == "drop-last" and self._tokens(question, context) > self._most():
            fits, kept = 1, len(lines) - 1  # the largest number of lines that fits, by halving
            while fits < kept:
                middle = (fits + kept + 1) // 2
                inside = self._tokens(question, "\n".join(lines[:middle])) <= self._most()
                fits, kept = (middle, kept) if inside else (fits, middle - 1)
        dropped = len(lines) - kept
        told = f"{dropped} lines of the context did not fit and were left out" if dropped else ""
        return reader_prompt(question, "\n".join(lines[:kept])), told

    def answer_many(self, pairs: Sequence[tuple[str, str]], *, batch: int = 16) -> list[Reply]:
        """The replies to (question, context) pairs, in order, as ``answer`` gives them but several in one pass.

        ``seconds`` of a reply is its share of its batch. Raises what ``answer`` raises, before anything is read.
        """
        batch = whole("batch", batch)
        fitted = [self._fit(question, context) for question, context in pairs]
        sizes = [len(_model(self.name).tokenizer(prompt, verbose=False)["input_ids"]) for prompt, _ in fitted]
        order = sorted(range(len(fitted)), key=sizes.__getitem__)
        made: dict[int, Reply] = {}
        for at in range(0, len(order), batch):
            part = order[at : at + batch]
            replies = self._read_all([fitted[i][0] for i in part], sizes[part[-1]])
            made |= {i: replace(reply, problem=fitted[i][1]) for i, reply in zip(part, replies)}
        return [made[i] for i in range(len(fitted))]

    def _read_all(self, prompts: list[str], longest: int) -> list[Reply]:
        with _lock:
            loaded, begun = _model(self.name), time.perf_counter()
            most = check_room(longest, ANSWER_TOKENS, loaded.max_positions, f"the {self.name} model")
            made: Any = loaded.generate(prompts, max_new_tokens=most, stop=STOPS)
        share = (time.perf_counter() - begun) / len(prompts)
        return [replace(_reply_of(one), seconds=share) for one in made]

    def _most(self) -> int:
        return (_model(self.name).max_positions or 1024) - ANSWER_TOKENS

    def _tokens(self, question: str, context: str) -> int:
        return len(_model(self.name).tokenizer(reader_prompt(question, context), verbose=False)["input_ids"])

    def _read(self, prompt: str, on_piece: Any = None, max_tokens: int = ANSWER_TOKENS) -> Reply:
        with _lock:
            loaded = _model(self.name)
            ids = loaded.tokenizer(prompt, verbose=False)["input_ids"]
            most = check_room(len(ids), max_tokens, loaded.max_positions, f"the {self.name} model")
            return _reply_of(loaded.generate(ids, max_new_tokens=most, stop=STOPS, on_token=on_piece))

    def __repr__(self) -> str:
        return f"EmbeddedReader({self.name!r})"


def _reply_of(made: Any) -> Reply:
    """A ``Generation`` as a reply."""
    new = len(made.new_ids)
    stopped = "stop" if made.stopped in ("stop", "eos") else "length"
    return Reply(made.new_text.strip(), usage=Usage(len(made.ids) - new, new, 1), stopped=stopped)


def check_question(question: object, context: object) -> None:
    """Raises BadInput unless the question is a text with content and the context a text."""
    if not isinstance(question, str) or not isinstance(context, str):
        raise BadInput(f"question and context are text, got {type(question).__name__} and {type(context).__name__}")
    if not question.strip():
        raise BadInput("the question is empty; ask with at least one word")


class EmbeddedChat(Backend):
    """The embedded reader behind the chat protocol: the last line of the last user turn is the question, all before it
    is the context.

    A schema with a single text field is filled with the answer; any other schema, and tools, raise LlmError at once,
    so that ``ask`` goes to its rule (counted). Decoding is greedy; temperature and seed change nothing.
    """

    label = LABEL

    def __init__(self, model: str = "embedded"):
        self._reader = EmbeddedReader(model)
        self.name = model

    def _answer(self, request: Request) -> Reply:
        return self._shaped(self._run(request, None), request.schema)

    def _run(self, request: Request, on_piece: Any) -> Reply:
        if request.tools or (request.schema is not None and _text_field(request.schema) is None):
            raise LlmError(
                "the embedded model only answers questions from a pasted context; it fills no schema of several "
                "fields and calls no tools: open another chat model, or give ask() a fallback",
                attempts=0,
            )
        *before, last = request.messages
        context, _, question = last.content.strip().rpartition("\n")
        if not question.strip():
            raise BadInput("the last message is empty; its last line is the question")
        pasted = "\n".join([*(message.content for message in before if message.role != "system"), context])
        return self._reader._read(reader_prompt(question, pasted), on_piece, min(request.max_tokens, ANSWER_TOKENS))

    def _shaped(self, reply: Reply, schema: type[BaseModel] | None) -> Reply:
        field = _text_field(schema) if schema is not None else None
        if schema is None or field is None:
            return reply
        return replace(reply, parsed=schema.model_validate({field: reply.text}))

    def _pieces(self, request: Request) -> Iterator[str]:
        yield from pieces(lambda put: self._run(request, lambda piece, _: put(piece)))


def _text_field(schema: type[BaseModel]) -> str | None:
    """The name of a schema's only field, if that is a plain text."""
    fields = list(schema.model_fields.items())
    return fields[0][0] if len(fields) == 1 and fields[0][1].annotation is str else None
