"""``check``: what a chat model can do, tried out: answers, schema, tools, streaming, repeatability, speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from workbench.errors import WorkbenchError
from workbench.llm.asking import ask
from workbench.llm.base import ChatModel, Message, Tool
from workbench.llm.opening import open_llm

if TYPE_CHECKING:
    import pandas as pd

_QUESTION = [Message("user", "Ada lives in Leeds.\nWhere does Ada live?")]
_LIST = [Message("user", "Ada, a baker, lives in Leeds with Ben. Note the names of the people and of the town.")]
_TOOL = [Message("user", "What is the weather in Leeds? Use the function.")]

Outcome = tuple[bool, str]


class _Noted(BaseModel):
    """What a note says."""

    people: list[str] = Field(min_length=1)
    town: str


class _Where(BaseModel):
    town: str


def check(llm: ChatModel | str, **options: Any) -> pd.DataFrame:
    """Try a chat model out with a few short questions.

    Args:
        llm: a chat model, or its name as ``open_llm`` takes it (``options`` are its options then).

    Returns:
        One row per ability: check ("answers", "schema", "tools", "streams", "repeats", "speed"), ok, detail, seconds.
        A failure is a row with its reason, never an error; when the first question fails, the rest are not asked.

    Raises:
        BadInput: a name that ``open_llm`` does not know.
    """
    import pandas as pd

    model = open_llm(llm, **options)
    rows = []
    for name, trial in _TRIALS.items():
        begun = time.perf_counter()
        try:
            ok, detail = trial(model)
        except WorkbenchError as error:
            ok, detail = False, str(error)
        rows.append((name, ok, detail, time.perf_counter() - begun))
        if name == "answers" and not ok:
            break
    frame = pd.DataFrame(rows, columns=["check", "ok", "detail", "seconds"])
    frame.attrs = {"model": model.name, "label": model.label}
    return frame


def _answers(llm: ChatModel) -> Outcome:
    reply = llm.chat(_QUESTION, max_tokens=64)
    return bool(reply.text.strip()), f"{reply.text.strip()[:80]!r}, {reply.usage.prompt_tokens} tokens read"


def _schema(llm: ChatModel) -> Outcome:
    reply = ask(llm, _LIST, _Noted, max_tokens=200)
    mended = f", mended: {', '.join(reply.repairs)}" if reply.repairs else ""
    return True, f"{reply.parsed!r} at request {reply.attempts}{mended}"


def _tools(llm: ChatModel) -> Outcome:
    reply = llm.chat(_TOOL, tools=[Tool("weather", "The weather of a town now.", _Where)], max_tokens=200)
    if not reply.tool_calls:
        return False, f"no call, but {reply.text.strip()[:60]!r}"
    call = reply.tool_calls[0]
    return call.name == "weather" and not call.problem, call.problem or f"{call.name}({call.arguments})"


def _streams(llm: ChatModel) -> Outcome:
    pieces = list(llm.stream(_QUESTION, max_tokens=64))
    return bool("".join(pieces).strip()), f"{len(pieces)} pieces"


def _repeats(llm: ChatModel) -> Outcome:
    first, second = (llm.chat(_QUESTION, max_tokens=64, seed=1).text for _ in range(2))
    return first == second, "the same twice" if first == second else "two answers to one request"


def _speed(llm: ChatModel) -> Outcome:
    begun = time.perf_counter()
    reply = llm.chat([Message("user", "Count from one to thirty in words.")], max_tokens=64, seed=2)
    seconds = time.perf_counter() - begun
    counted = "words" if reply.usage.estimated else "tokens"
    return reply.usage.completion_tokens > 0, f"{reply.usage.completion_tokens / seconds:.1f} {counted}/s"


_TRIALS: dict[str, Callable[[ChatModel], Outcome]] = {
    "answers": _answers, "schema": _schema, "tools": _tools, "streams": _streams, "repeats": _repeats, "speed": _speed,
}  # fmt: skip
