"""Chat models behind an OpenAI-compatible HTTP server (Ollama, vLLM, llama.cpp, hosted ones), by the ``openai`` client.

The key is handed to the client and kept nowhere else: not in names, messages, errors or caches.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from workbench.checks import number, whole
from workbench.errors import BadInput
from workbench.llm._openai_format import reply_of, request_body, told_error
from workbench.llm.base import Backend, ContextTooLong, LlmError, Reply, Request, read_parsed

URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
OPENAI = "https://api.openai.com/v1"
MAX_BYTES = 16_000_000
CONNECT = 10.0  # seconds; a server that does not even accept is not loading a model
START = "start it (`ollama serve`, `vllm serve MODEL`, `llama-server -m FILE`) or correct the address"
_TOO_LONG = ("context length", "context_length", "maximum context", "context size", "context window", "too many tokens")
_RETRIED = frozenset({408, 409, 429})


class OpenAiChat(Backend):
    """One model of one server.

    Args:
        model: the server's name of the model.
        base_url: with the version, ``http://localhost:11434/v1``; default the environment's OPENAI_BASE_URL, else
            OpenAI's own address when there is a key.
        api_key: default the environment's OPENAI_API_KEY; local servers need none.
        timeout: seconds that one request may take in all; for a stream, seconds of silence.
        retries: how often the client repeats a request that was refused for load (429), failed in the server (5xx)
            or did not get through, after growing pauses or those that the server asks for.
        schema_by: "response_format" binds the server's decoding to the JSON schema, "instruction" asks for it in
            words, "auto" tries the first and changes to the second when the server refuses or ignores it.

    Nothing is sent before the first question. Raises BadInput for impossible settings and when no server is named;
    the first question raises LlmError when the ``openai`` package is missing.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 2,
        schema_by: str = "auto",
    ):
        if not model or not model.strip():
            raise BadInput("no model is named; write openai:MODEL@http://host:port/v1")
        timeout, retries = number("timeout", timeout, above=0, more=" (seconds)"), whole("retries", retries, 0)
        if schema_by not in ("auto", "response_format", "instruction"):
            raise BadInput(f"schema_by must be 'auto', 'response_format' or 'instruction', got {schema_by!r}")
        key = api_key if api_key is not None else os.environ.get(KEY, "")
        self.url = _checked_url(base_url or os.environ.get(URL, "") or (OPENAI if key else ""))
        self.model, self.timeout, self.retries = model.strip(), timeout, retries
        self.name, self.label = f"openai:{self.model}@{self.url}", f"{self.model} at {urlsplit(self.url).netloc}"
        self._by_format = schema_by != "instruction"
        self._may_change = schema_by == "auto"
        self._limit_name = "max_tokens"
        self._make = lambda: _client(self.url, key, self.timeout, retries)
        self._hide = key
        self._client: Any = None
        self._lock = threading.Lock()

    # -- one answer ---------------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Reply:
        sent = 0
        for _ in range(3):  # at most two things about a server are learnt on the way
            by_format = self._by_format and request.schema is not None
            try:
                reply = self._once(request, by_format)
            except LlmError as error:
                sent += error.attempts
                if not self._learn(error, by_format):
                    error.attempts = sent
                    raise
                continue
            self._notice(reply, request, by_format)
            return _with_attempts(reply, sent)
        raise LlmError(f"{self.url} refuses every form of this request")

    def _learn(self, error: LlmError, by_format: bool) -> bool:
        """Whether the refused request is worth repeating in another form."""
        status, told = error.status, error.told
        if status == 400 and "max_completion_tokens" in told and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"
            return True
        if by_format and self._may_change and status in (400, 404, 415, 422, 500, 501) and "format" in told.lower():
            self._by_format = False
            return True
        return False

    def _notice(self, reply: Reply, request: Request, by_format: bool) -> None:
        """A server that ignores the schema is asked in words from the next question on."""
        if by_format and self._may_change and reply.stopped != "length" and not reply.tool_calls:
            parsed = read_parsed(reply, request.schema)
            if parsed.parsed is None and "{" not in reply.text:
                self._by_format = False

    def _once(self, request: Request, by_format: bool) -> Reply:
        client = self._open()
        body = request_body(self.model, request, by_format=by_format, limit_name=self._limit_name)
        try:
            with client.chat.completions.with_streaming_response.create(**body) as response:
                data = self._read(response)
                kind, retried = response.headers.get("content-type", "nothing"), response.retries_taken
        except LlmError:
            raise
        except Exception as error:
            raise self._error(error) from None
        return _with_attempts(reply_of(self._json(data, kind), request, self.url), retried)

    def _read(self, response: Any) -> bytes:
        """The body, within the time and size that one answer may have (a server may drip for ever)."""
        begun, size, parts = time.monotonic(), 0, []
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if time.monotonic() - begun > self.timeout:
                raise LlmError(f"{self.url} was still sending its answer after {self.timeout:g} s; raise timeout=")
            if size > MAX_BYTES:
                raise LlmError(f"{self.url} sent more than {MAX_BYTES / 1e6:g} MB for one answer; lower max_tokens")
        return b"".join(parts)

    def _json(self, data: bytes, kind: str) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            start = " ".join(data[:60].decode("utf-8", "replace").split())
            raise LlmError(
                f"{self.url} answered with {kind.partition(';')[0]} that is no JSON ({self._clean(start)!r}...); does "
                "the address end in /v1, and does a chat server listen there?"
            ) from None

    # -- a stream -----------------------------------------------------------------------------------------------------

    def _pieces(self, request: Request) -> Iterator[str]:
        body = request_body(self.model, request, by_format=False, limit_name=self._limit_name)
        started = ended = False
        try:
            with self._open().chat.completions.create(stream=True, **body) as events:
                for event in events:
                    for choice in event.choices or ():
                        ended = ended or choice.finish_reason is not None
                        if choice.delta is not None and choice.delta.content:
                            started = True
                            yield choice.delta.content
        except LlmError:
            raise
        except Exception as error:
            raise self._error(error, tries=1 if started else None) from None
        if not ended:
            raise LlmError(f"the stream of {self.url} ended without an end mark; the answer is not complete")

    # -- the client and its errors ------------------------------------------------------------------------------------

    def _open(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._make()
            return self._client

    def _clean(self, text: str) -> str:
        return text.replace(self._hide, "***") if self._hide else text

    def _error(self, error: Exception, tries: int | None = None) -> LlmError:
        """What happened, in our words: which server, what it said, what to do."""
        import openai

        tries = tries or 1 + self.retries
        if isinstance(error, openai.APITimeoutError):
            made = LlmError(
                f"{self.url} gave no answer within {self.timeout:g} s ({_times(tries)}); is the model loaded? Raise "
                "timeout=, lower max_tokens, or ask a smaller model"
            )
        elif isinstance(error, openai.APIStatusError):
            made, tries = self._refused(error)
        elif isinstance(error, openai.APIConnectionError):
            made = LlmError(f"{self.url} cannot be reached ({self._why(error)}; {_times(tries)}); {START}")
        elif isinstance(error, ValueError):
            made, tries = LlmError(f"{self.url} sent something that is no JSON; is it a chat server?"), 1
        else:
            made, tries = LlmError(f"the answer of {self.url} broke off ({self._why(error)})"), 1
        made.attempts = tries
        return made

    def _why(self, error: BaseException) -> str:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return self._clean(f"{type(cause).__name__}: {cause}"[:160])

    def _refused(self, error: Any) -> tuple[LlmError, int]:
        status, told = int(error.status_code), self._clean(told_error(error.body) or "no reason given")
        said = f"{self.url} answered {status}: {told[:300]}"
        if status in (401, 403):
            made = LlmError(f"{self.url} refused the key ({status}); set {KEY} or give api_key=")
        elif status == 404:
            made = LlmError(f"{said}; does the server have a model {self.model!r}, and does the address end in /v1?")
        elif any(mark in told.lower() for mark in _TOO_LONG):
            made = ContextTooLong(f"{said}; shorten the messages or lower max_tokens")
        elif status == 429:
            made = LlmError(f"{said}; it is too busy or a quota is used up: wait, or raise retries=")
        else:
            made = LlmError(said)
        made.status, made.told = status, told
        return made, 1 + self.retries if status in _RETRIED or status >= 500 else 1


def _times(tries: int) -> str:
    return f"{tries} tries" if tries > 1 else "1 try"


def _with_attempts(reply: Reply, more: int) -> Reply:
    return replace(reply, attempts=reply.attempts + more) if more else reply


def _checked_url(url: str) -> str:
    if not url:
        raise BadInput(
            f"no server is named; write openai:MODEL@http://host:port/v1, give base_url=, or set {URL} "
            f"(with {KEY} alone, {OPENAI} is asked)"
        )
    try:
        parts = urlsplit(url.strip())
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fits = False
    if not fits:
        raise BadInput("the address of a chat server looks like http://host:port/v1; the one given does not")
    if parts.username or parts.password or parts.query or parts.fragment:  # HTTP clients log addresses in full
        raise BadInput(f"the address of a chat server must hold no user, password or query; give the key in {KEY}")
    return url.strip().rstrip("/")


def _client(url: str, key: str, timeout: float, retries: int) -> Any:
    try:
        import openai
    except ImportError:
        raise LlmError(
            "chat models over HTTP need the openai package: pip install memory-workbench[llm] (the server may be any)"
        ) from None
    # The client insists on a key; servers without one ignore it.
    patience = openai.Timeout(timeout, connect=min(timeout, CONNECT))
    return openai.OpenAI(base_url=url, api_key=key or "none", timeout=patience, max_retries=retries)
