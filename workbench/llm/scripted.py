"""Chat models that are no language models: one that has none, and one that says what it was told to say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from workbench.errors import BadInput
from workbench.llm.base import NO_MODEL, Backend, LlmError, NoModel, Reply, Request, Usage
from workbench.llm.rules import count_words


class Rules(Backend):
    """No language model: ``ask`` uses the caller's rule, and the answer is labelled so."""

    name, label = "rules", NO_MODEL

    def _answer(self, request: Request) -> Reply:
        raise NoModel("no language model is attached; open one with workbench.llm.open_llm or give ask() a fallback")


class Scripted(Backend):
    """Says given answers in turn, or what a function of the request says; for demonstrations and tests.

    Args:
        answers: texts, pydantic objects (said as JSON) or exceptions (raised), used up in order; or a function
            ``(Request) -> text or object``.

    ``requests`` keeps what was asked. Raises LlmError when the script has ended.
    """

    def __init__(self, answers: Sequence[Any] | Callable[[Request], Any], *, name: str = "scripted"):
        if isinstance(answers, str) or not (callable(answers) or isinstance(answers, Sequence)):
            raise BadInput("answers must be a list of texts or objects, or a function of the request")
        self.name, self.label = name, f"{name} (prepared answers, no language model)"
        self._answers = answers
        self._lock = threading.Lock()
        self.requests: list[Request] = []

    def _answer(self, request: Request) -> Reply:
        with self._lock:
            turn = len(self.requests)
            self.requests.append(request)
        if callable(self._answers):
            said = self._answers(request)
        elif turn < len(self._answers):
            said = self._answers[turn]
        else:
            raise LlmError(f"the script has {len(self._answers)} answers and was asked a {turn + 1}th time")
        if isinstance(said, Exception):
            raise said
        text = said.model_dump_json() if isinstance(said, BaseModel) else str(said)
        asked = sum(count_words(message.content) for message in request.messages)
        return Reply(text, usage=Usage(asked, count_words(text), 1))
