"""The chat-model protocol: messages in; text, a checked object or tool calls out, with token counts.

Nothing heavy is imported here: back ends (HTTP, Hugging Face, embedded) live beside it and are opened by
``workbench.llm.open_llm``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from workbench.checks import number, whole
from workbench.errors import BadInput, WorkbenchError
from workbench.llm.repair import Malformed, read_object

ROLES = ("system", "user", "assistant", "tool")
NO_MODEL = "rules (no language model)"


class LlmError(WorkbenchError):
    """A chat model gave no usable answer: unreachable, too slow, refused, or not fitting the schema.

    ``attempts`` is how many requests were sent; ``status`` and ``told`` are the server's, where there is one.
    """

    def __init__(self, message: str, *, attempts: int = 1, status: int = 0, told: str = ""):
        super().__init__(message)
        self.attempts, self.status, self.told = attempts, status, told


class ContextTooLong(LlmError):
    """The messages and the room for the answer exceed what the model can read; the message gives both numbers."""


class NoModel(LlmError):
    """No language model is attached; ``ask`` then uses the rule that the caller gave as its fallback."""


@dataclass(frozen=True)
class ToolCall:
    """One function that a model wants called. ``problem`` says why ``arguments`` is empty when it could not be read."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call; ``parameters`` is a pydantic model or a JSON schema of an object."""

    name: str
    description: str
    parameters: type[BaseModel] | Mapping[str, Any]

    def json_schema(self) -> dict[str, Any]:
        if isinstance(self.parameters, Mapping):
            return dict(self.parameters)
        return self.parameters.model_json_schema()


@dataclass(frozen=True)
class Message:
    """One turn. ``tool_calls`` goes with an assistant's turn, ``tool_call_id`` with a tool's answer to one of them."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens as the model's own tokenizer counts them, and how many times a model was called; adds up with ``+``.

    ``estimated`` is how many of the calls came without counts from the server; words and marks stand in for tokens.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    estimated: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.calls + other.calls,
            self.estimated + other.estimated,
        )


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: as the model wrote it (empty when a rule answered).
        parsed: the object of the asked schema, or None (no schema, or the text does not fit: see ``problem``).
        tool_calls: functions the model wants called.
        usage: tokens and calls, of all tries together.
        attempts: requests sent, retries of the transport and of ``ask`` included; 0 when no model was asked.
        seconds: wall time of all of it.
        fallback: why a rule answered instead of the model; None when the model did.
        repairs: what had to be mended before the text was JSON, in order ("code fence", "trailing comma", ...).
        problem: why ``parsed`` is None although a schema was given; empty otherwise.
        stopped: why the model ended: "stop", "length", "tool_calls" or "".
        cached: whether it came from a ``Cached`` store without asking the model.
    """

    text: str = ""
    parsed: BaseModel | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    attempts: int = 1
    seconds: float = 0.0
    fallback: str | None = None
    repairs: tuple[str, ...] = ()
    problem: str = ""
    stopped: str = ""
    cached: bool = False


@dataclass(frozen=True)
class Request:
    """One checked request; ``Request.of`` is the only door to it."""

    messages: tuple[Message, ...]
    schema: type[BaseModel] | None = None
    tools: tuple[Tool, ...] = ()
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int | None = 0
    stop: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        messages: Any,
        *,
        schema: type[BaseModel] | None = None,
        tools: Sequence[Tool] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = 0,
        stop: str | Sequence[str] | None = None,
    ) -> Request:
        """Check everything that can be checked before a model is asked. Raises BadInput."""
        if schema is not None and not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            raise BadInput(f"schema must be a pydantic model class, got {schema!r}")
        max_tokens, heat = whole("max_tokens", max_tokens), number("temperature", temperature, 0, more=" (0 is greedy)")
        seed = None if seed is None else whole("seed", seed, None, more=", or None")
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        if not all(isinstance(item, str) and item for item in stops):
            raise BadInput(f"stop must be texts that are not empty, got {stop!r}")
        return cls(as_messages(messages), schema, _tools(tools), heat, max_tokens, seed, stops)


def _tools(tools: Sequence[Tool] | None) -> tuple[Tool, ...]:
    given = tuple(tools or ())
    if not all(isinstance(tool, Tool) for tool in given):
        raise BadInput("tools must be workbench.llm.Tool(name, description, parameters)")
    names = [tool.name for tool in given]
    if len(set(names)) < len(names):
        raise BadInput(f"two tools have the same name: {', '.join(names)}")
    return given


def as_messages(messages: Any) -> tuple[Message, ...]:
    """Messages from ``Message`` objects, from dicts with role and content, or from one text (the user's turn).

    Raises:
        BadInput: none at all, an unknown role, content that is not text, or nothing but empty content.
    """
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    elif isinstance(messages, Message):
        messages = [messages]
    if not isinstance(messages, Iterable):
        raise BadInput(f"messages must be a list of Message(role, content), got {type(messages).__name__}")
    made = tuple(_message(item) for item in messages)
    if not any(message.content.strip() for message in made):
        raise BadInput("messages are empty; give at least one Message('user', ...) with text")
    return made


def _message(item: Any) -> Message:
    if isinstance(item, Mapping):
        unknown = set(item) - {"role", "content"}
        if unknown or "role" not in item:
            raise BadInput(f"a message as a dict has the keys role and content, got {', '.join(map(str, item))}")
        item = Message(item["role"], item.get("content", ""))
    if not isinstance(item, Message):
        raise BadInput(f"a message must be Message(role, content), got {type(item).__name__}")
    if item.role not in ROLES:
        raise BadInput(f"the role of a message is one of {', '.join(ROLES)}, got {item.role!r}")
    if not isinstance(item.content, str):
        raise BadInput(f"the content of a message is text, got {type(item.content).__name__}")
    return item


@runtime_checkable
class ChatModel(Protocol):
    """What every back end says. ``label`` is shown wherever its output is shown."""

    name: str
    label: str

    def chat(
        self,
        messages: Any,
        *,
        schema: type[BaseModel] | None = None,
        tools: Sequence[Tool] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = 0,
        stop: str | Sequence[str] | None = None,
    ) -> Reply: ...

    def stream(
        self,
        messages: Any,
        *,
        schema: type[BaseModel] | None = None,
        tools: Sequence[Tool] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = 0,
        stop: str | Sequence[str] | None = None,
    ) -> Iterator[str]: ...


@runtime_checkable
class Reader(Protocol):
    """Answers a question from a pasted context."""

    name: str
    label: str

    def answer(self, question: str, context: str) -> Reply: ...


class Backend(ABC):
    """Base of the back ends: checks the request, times it, reads the schema's object out of the text."""

    name: str
    label: str

    @abstractmethod
    def _answer(self, request: Request) -> Reply:
        """The model's reply with text, tool calls and usage; raises LlmError."""

    def _pieces(self, request: Request) -> Iterator[str]:
        """Text as it comes; a back end that cannot stream gives the whole at once."""
        yield self._answer(request).text

    def chat(self, messages: Any, **options: Any) -> Reply:
        """Ask once. Options are those of ``Request.of``; raises BadInput for them and LlmError for the model."""
        request = Request.of(messages, **options)
        begun = time.perf_counter()
        reply = self._answer(request)
        reply = replace(reply, seconds=time.perf_counter() - begun)
        return read_parsed(reply, request.schema)

    def stream(self, messages: Any, **options: Any) -> Iterator[str]:
        """The answer's text in pieces; the same options and errors as ``chat``."""
        return self._pieces(Request.of(messages, **options))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def read_parsed(reply: Reply, schema: type[BaseModel] | None) -> Reply:
    """The reply with ``parsed`` and ``repairs`` filled from its text, or with the ``problem`` that prevents it."""
    if schema is None or isinstance(reply.parsed, schema):
        return reply
    try:
        parsed, repairs = read_object(reply.text, schema)
    except Malformed as error:
        cut = " (it was cut off at max_tokens)" if reply.stopped == "length" else ""
        return replace(reply, parsed=None, problem=f"{error}{cut}")
    return replace(reply, parsed=parsed, repairs=reply.repairs + repairs, problem="")


def schema_instruction(schema: type[BaseModel]) -> str:
    """What a model is told that cannot be bound to a JSON schema by its server."""
    import json

    shape = json.dumps(schema.model_json_schema(), ensure_ascii=False, sort_keys=True)
    return f"Answer with one JSON object that fits this JSON schema, and with nothing else:\n{shape}"


def instructed(request: Request) -> tuple[Message, ...]:
    """The messages with the schema's instruction at the end of the last user turn (or as a turn of its own)."""
    if request.schema is None:
        return request.messages
    told = schema_instruction(request.schema)
    *before, last = request.messages
    if last.role != "user":
        return (*request.messages, Message("user", told))
    return (*before, replace(last, content=f"{last.content}\n\n{told}"))
