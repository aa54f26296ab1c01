"""Any chat model of Hugging Face, by its own chat template and our ``workbench.models.load``."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput, WorkbenchError
from workbench.llm._openai_format import tool_body, tool_call
from workbench.llm.base import Backend, ContextTooLong, LlmError, Message, Reply, Request, ToolCall, Usage, instructed
from workbench.llm.repair import objects_in

if TYPE_CHECKING:
    from workbench.models.loaded import LoadedModel


class HfChat(Backend):
    """A model of the hub, of a folder, or already loaded; schemas and (where its template has none) tools are asked
    for in words.

    Args:
        model: hub id, folder, or a ``LoadedModel``. It is loaded at the first question.
        template: a chat template (Jinja) for a tokenizer that has none.
        device, dtype, revision: as ``workbench.models.load`` takes them.

    A loaded model's memory and stream are set aside while it answers and put back after; use
    ``LoadedModel.use(memory=...)`` and ``generate`` to read through a memory. One question runs at a time.
    """

    def __init__(self, model: Any, *, template: str | None = None, device: Any = None, dtype: Any = None,
                 revision: str | None = None):  # fmt: skip
        self._loaded: LoadedModel | None = None if isinstance(model, str) else model
        id_ = model if isinstance(model, str) else getattr(model, "name", "")
        if not isinstance(id_, str) or not id_.strip():
            raise BadInput("a Hugging Face chat model is a hub id, a folder or a LoadedModel")
        pinned = f"@{revision}" if revision else ""
        self.name, self.label = f"hf:{id_}{pinned}", f"{id_.rstrip('/').rpartition('/')[2]} (local)"
        self._id, self.template = id_, template
        self._settings = {"device": device, "dtype": dtype, "revision": revision}
        self._lock = threading.RLock()

    @property
    def loaded(self) -> LoadedModel:
        """The model itself; loaded now if it was not. Raises LlmError when it cannot be, or cannot chat."""
        with self._lock:
            if self._loaded is None:
                self._loaded = _load(self._id, self._settings)
            loaded = self._loaded
        if not loaded.is_decoder or loaded.tokenizer is None:
            raise LlmError(
                f"{self.name} cannot chat: it {'has no tokenizer' if loaded.is_decoder else 'is an encoder'}"
            )
        if not (self.template or getattr(loaded.tokenizer, "chat_template", None)):
            raise LlmError(
                f"{self.name} has no chat template, so it is probably a base model; use its chat or instruct version, "
                "or give template="
            )
        return loaded

    # -- prompts ------------------------------------------------------------------------------------------------------

    def prompt(self, request: Request) -> str:
        """The text that the model reads for a request, by its template."""
        loaded, messages = self.loaded, instructed(request)
        tools = [tool_body(tool) for tool in request.tools] or None
        try:
            text = self._render(loaded, messages, tools)
            if tools and text == self._render(loaded, messages, None):  # the template knows no tools
                text = self._render(loaded, _with_tools(messages, tools), None)
        except Exception as first:
            try:  # some templates refuse a system turn
                text = self._render(loaded, _without_system(messages), tools)
            except Exception:
                told = " ".join(str(first).split())[:200]
                raise LlmError(f"the chat template of {self.name} refuses these messages: {told}") from None
        return text

    def _render(self, loaded: LoadedModel, messages: tuple[Message, ...], tools: Any) -> str:
        turns = [_turn(message) for message in messages]
        return str(
            loaded.tokenizer.apply_chat_template(
                turns, tools=tools, chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        )

    # -- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Reply:
        return self._run(request, None)

    def _run(self, request: Request, on_piece: Callable[[str], None] | None) -> Reply:
        with self._lock:
            loaded = self.loaded
            made, read = _generate(loaded, self.prompt(request), request, self.name, on_piece)
        text = made.new_text
        calls = calls_in(text, request) if request.tools else ()
        stopped = "tool_calls" if calls else {"eos": "stop"}.get(made.stopped, made.stopped)
        return Reply(text, tool_calls=calls, usage=Usage(read, len(made.new_ids), 1), stopped=stopped)

    def _pieces(self, request: Request) -> Iterator[str]:
        yield from pieces(lambda put: self._run(request, put))


def _load(name: str, settings: dict[str, Any]) -> LoadedModel:
    from workbench.models import load

    try:
        return load(name, **settings)
    except BadInput:
        raise
    except WorkbenchError as error:
        raise LlmError(f"the chat model cannot be opened: {error}") from error


def _generate(
    loaded: LoadedModel, prompt: str, request: Request, name: str, on_piece: Callable[[str], None] | None
) -> tuple[Any, int]:
    """The generation and how many tokens were read; the answer is cut to the room that the model has left."""
    ids = list(loaded.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
    most = check_room(len(ids), request.max_tokens, loaded.max_positions, name)
    with loaded.use(memory=None):
        session, loaded.session = loaded.session, None
        try:
            made = loaded.generate(
                ids,
                max_new_tokens=most,
                temperature=request.temperature,
                seed=request.seed,
                stop=request.stop or None,
                on_token=(lambda piece, _: on_piece(piece)) if on_piece else None,
            )
        finally:
            loaded.session = session
    return made, len(ids)


def check_room(read: int, wanted: int, positions: int | None, name: str) -> int:
    """How many tokens may be written after ``read`` ones. Raises ContextTooLong when there is no room for any."""
    if positions is None:
        return wanted
    if read >= positions:
        raise ContextTooLong(
            f"the messages have {read} tokens and {name} reads at most {positions}, with its answer; shorten them or "
            "lower the memory's budget"
        )
    return min(wanted, positions - read)


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return turn


def _without_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """System turns put in front of the first user turn."""
    told = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    for at, message in enumerate(rest):
        if told and message.role == "user":
            rest[at] = replace(message, content=f"{told}\n\n{message.content}")
            break
    return tuple(rest)


def _with_tools(messages: tuple[Message, ...], tools: list[dict[str, Any]]) -> tuple[Message, ...]:
    shown = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    told = (
        "You may call one of these functions by answering with nothing but a JSON object with its name and arguments, "
        f'such as {{"name": ..., "arguments": {{...}}}}:\n{shown}'
    )
    return _without_system((Message("system", told), *messages))


def calls_in(text: str, request: Request) -> tuple[ToolCall, ...]:
    """The calls in a model's text: objects with the name of a given tool and its arguments (or parameters)."""
    known = {tool.name for tool in request.tools}
    found = []
    for value in objects_in(text):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and str(item.get("name")) in known:
                found.append(tool_call(item["name"], item.get("arguments", item.get("parameters", {}))))
    return tuple(replace(call, id=f"call_{at}") for at, call in enumerate(found))


def pieces(run: Callable[[Callable[[str], None]], Any]) -> Iterator[str]:
    """What ``run`` puts, as an iterator: it works in a thread of its own and its error is raised here.

    Leaving the iterator early stops the work at its next piece.
    """
    import queue

    waiting: queue.Queue[Any] = queue.Queue()
    left = threading.Event()

    def put(piece: str) -> None:
        if left.is_set():
            raise _Left
        if piece:
            waiting.put(piece)

    def work() -> None:
        try:
            run(put)
            waiting.put(None)
        except _Left:
            pass
        except BaseException as error:
            waiting.put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (piece := waiting.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        left.set()
        worker.join()


class _Left(Exception):
    """Nobody reads the pieces any more."""
