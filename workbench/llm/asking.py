"""``ask``: one checked object from a chat model, or from the caller's rule, and every detour counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.llm.base import NO_MODEL, ChatModel, LlmError, Message, NoModel, Reply, Request, Usage, read_parsed
from workbench.llm.ledger import Ledger

SHOWN = 2_000  # characters of a malformed answer that are shown to the model again


def ask(
    llm: ChatModel | None,
    messages: Any,
    schema: type[BaseModel],
    *,
    tries: int = 3,
    fallback: Callable[[], BaseModel] | None = None,
    ledger: Ledger | None = None,
    **options: Any,
) -> Reply:
    """Ask for an object of ``schema``; ``Reply.parsed`` is never None.

    A malformed answer is mended (see ``workbench.llm.repair``); if that fails, the model is told what was wrong and
    asked again. After ``tries`` answers, or at once when the model cannot be reached, ``fallback()`` answers and
    ``Reply.fallback`` says why; usage and attempts of the model's tries are kept in that reply.

    Args:
        llm: a chat model; None stands for none, so that ``fallback`` answers at once.
        tries: how many answers the model may give, at least 1.
        fallback: a rule that gives an object of ``schema``.
        ledger: where the answer is counted.
        options: tools, temperature, max_tokens, seed, stop.

    Raises:
        BadInput: empty messages, ``tries`` < 1, impossible options, a fallback that gives something else.
        LlmError: no usable answer and no fallback; the cause is in the message.
    """
    tries = whole("tries", tries)
    if llm is not None and not hasattr(llm, "chat"):
        raise BadInput(f"ask takes a chat model or None, got {llm!r:.60}; open_llm opens one by its name")
    name, label = (llm.name, llm.label) if llm is not None else ("rules", NO_MODEL)
    begun = time.perf_counter()
    asked = Request.of(messages, schema=schema, **options).messages
    reply, problem = _tries(llm, asked, schema, tries, options)
    reply = replace(reply, seconds=time.perf_counter() - begun)
    if problem and fallback is not None:
        reply = replace(reply, parsed=_by_rule(fallback, schema), fallback=problem, problem="", text="", repairs=())
    failed = problem if problem and fallback is None else ""
    if ledger is not None:
        ledger.note(name, label, reply, failed=failed)
    if failed:
        raise LlmError(f"{label} gave no {schema.__name__} after {_times(reply.attempts)}: {failed}")
    return reply


def _times(attempts: int) -> str:
    return f"{attempts} request{'' if attempts == 1 else 's'}"


def _tries(
    llm: ChatModel | None, messages: tuple[Message, ...], schema: type[BaseModel], tries: int, options: dict[str, Any]
) -> tuple[Reply, str]:
    """The last reply with the usage of all, and why it cannot be used (empty when it can)."""
    if llm is None:
        return Reply(attempts=0), NO_MODEL
    usage, attempts, asked = Usage(), 0, messages
    reply = Reply(attempts=0)
    for _ in range(tries):
        try:
            reply = read_parsed(llm.chat(asked, schema=schema, **options), schema)
        except NoModel:
            return Reply(attempts=attempts, usage=usage), NO_MODEL
        except LlmError as error:  # the transport has had its own retries
            return replace(reply, usage=usage, attempts=attempts + error.attempts), str(error)
        usage, attempts = usage + reply.usage, attempts + reply.attempts
        if reply.parsed is not None:
            break
        asked = (*messages, Message("assistant", reply.text[:SHOWN] or "(nothing)"), _correction(reply.problem))
    return replace(reply, usage=usage, attempts=attempts), reply.problem


def _correction(problem: str) -> Message:
    return Message("user", f"That answer cannot be used: {problem}. Answer again, with the corrected JSON object only.")


def _by_rule(fallback: Callable[[], BaseModel], schema: type[BaseModel]) -> BaseModel:
    made = fallback()
    if not isinstance(made, schema):
        raise BadInput(f"fallback must return a {schema.__name__}, it returned {type(made).__name__}")
    return made
