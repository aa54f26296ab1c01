"""Requests and answers of the chat completions protocol, as plain dictionaries."""

from __future__ import annotations

import json
from typing import Any

from workbench.llm.base import LlmError, Message, Reply, Request, Tool, ToolCall, Usage, instructed
from workbench.llm.repair import Malformed, read_json
from workbench.llm.rules import count_words


def request_body(model: str, request: Request, *, by_format: bool, limit_name: str = "max_tokens") -> dict[str, Any]:
    """The arguments of one request; ``by_format`` binds the answer to the schema, else words ask for it."""
    messages = request.messages if by_format else instructed(request)
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in messages],
        "temperature": request.temperature,
        limit_name: request.max_tokens,
    }
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if request.tools:
        body["tools"] = [tool_body(tool) for tool in request.tools]
    if by_format and request.schema is not None:
        shape = {"name": request.schema.__name__, "schema": request.schema.model_json_schema()}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    return body


def tool_body(tool: Tool) -> dict[str, Any]:
    """A tool as servers and chat templates read it."""
    made = {"name": tool.name, "description": tool.description, "parameters": tool.json_schema()}
    return {"type": "function", "function": made}


def _message(message: Message) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    return made


def reply_of(data: Any, request: Request, url: str) -> Reply:
    """The reply in a server's JSON. Raises LlmError when it is no chat completion."""
    try:
        choice = data["choices"][0]
        message = choice["message"]
        text = _text(message.get("content")) or _text(message.get("refusal"))
        calls = tuple(_call(item) for item in message.get("tool_calls") or ())
    except (KeyError, IndexError, TypeError, AttributeError):
        told = told_error(data) if isinstance(data, dict) else ""
        why = f"reported an error: {told[:300]}" if told else "sent JSON that is no chat completion (no choices)"
        raise LlmError(f"{url} {why}; does a chat server listen there?") from None
    return Reply(
        text,
        tool_calls=calls,
        usage=_usage(data.get("usage"), request, text),
        stopped=str(choice.get("finish_reason") or ""),
    )


def _text(content: Any) -> str:
    """Content as text; some servers send it in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _call(item: dict[str, Any]) -> ToolCall:
    function = item["function"]
    return tool_call(str(function["name"]), function.get("arguments") or "{}", str(item.get("id") or ""))


def tool_call(name: str, arguments: Any, id: str = "") -> ToolCall:
    """A call whose arguments come as JSON text (mended if need be) or as an object."""
    problem = ""
    if isinstance(arguments, str):
        try:
            arguments, _ = read_json(arguments)
        except Malformed as error:
            arguments, problem = None, str(error)
    if not isinstance(arguments, dict):
        return ToolCall(name, {}, id, problem or "the arguments are no JSON object")
    return ToolCall(name, arguments, id)


def _usage(told: Any, request: Request, text: str) -> Usage:
    """The server's own counts; where it gives none, words and marks, and the call is marked estimated."""
    try:
        return Usage(max(int(told["prompt_tokens"]), 0), max(int(told.get("completion_tokens") or 0), 0), 1)
    except (KeyError, TypeError, ValueError, AttributeError):
        return Usage(sum(count_words(message.content) for message in request.messages), count_words(text), 1, 1)


def told_error(body: Any) -> str:
    """The message of an error body, whatever its form."""
    for _ in range(3):
        if isinstance(body, dict):
            body = body.get("error") or body.get("message") or body.get("detail") or ""
    return " ".join(str(body).split()) if body else ""
