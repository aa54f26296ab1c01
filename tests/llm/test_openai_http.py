"""The HTTP back end against a real local server, which answers well, badly, late or not at all."""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from typing import Any

import chat_server as server
import pytest
from pydantic import BaseModel

from workbench.errors import BadInput
from workbench.llm import ContextTooLong, Ledger, LlmError, Message, Tool, ToolCall, Usage, ask, open_llm
from workbench.llm.openai_http import OpenAiChat

LONG = 30.0  # seconds: half of what the bad servers keep a client waiting, and far above any pause of a busy machine
KEY = "sk-very-secret-0123456789"


class Note(BaseModel):
    title: str
    words: list[str]


class City(BaseModel):
    city: str


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


def opened(chat: server.ChatServer, **options: Any) -> OpenAiChat:
    return OpenAiChat("tiny", base_url=chat.url, **{"timeout": 30.0, "retries": 0, **options})


def test_a_text_answer_with_its_token_counts_and_the_request_as_sent() -> None:
    with server.ChatServer(server.says("Hello there.")) as chat:
        llm = open_llm(f"openai:tiny@{chat.url}", timeout=30)
        reply = llm.chat(
            [Message("system", "Be brief."), Message("user", "Hi")], temperature=0.5, max_tokens=9, seed=3, stop="END"
        )
    assert (reply.text, reply.usage, reply.attempts, reply.stopped) == ("Hello there.", Usage(11, 7, 1), 1, "stop")
    assert reply.seconds > 0
    assert chat.seen[0]["path"] == "/v1/chat/completions"
    assert chat.seen[0]["body"] == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "temperature": 0.5,
        "max_tokens": 9,
        "seed": 3,
        "stop": ["END"],
    }
    assert llm.name == f"openai:tiny@{chat.url}"
    assert llm.label.startswith("tiny at 127.0.0.1:")


def test_missing_token_counts_are_estimated_and_marked() -> None:
    with server.ChatServer(server.says("one two three", usage=False)) as chat:
        usage = opened(chat).chat("four words are here").usage
    assert usage == Usage(4, 3, 1, estimated=1)


def test_streaming_gives_the_text_in_pieces_as_they_come() -> None:
    text = "Streams häppen: 日本語 too."
    with server.ChatServer(server.says(text)) as chat:
        pieces = list(opened(chat).stream("Hi"))
    assert len(pieces) > 3
    assert "".join(pieces) == text
    assert chat.seen[0]["body"]["stream"] is True


def test_tool_calls_come_back_with_their_arguments() -> None:
    tool = Tool("weather", "The weather of a city.", City)
    turns = [server.calls_tool("weather", '{"city": "Leeds"}'), server.says("Rain.")]
    with server.ChatServer(*turns) as chat:
        llm = opened(chat)
        asked = [Message("user", "Weather in Leeds?")]
        first = llm.chat(asked, tools=[tool])
        assert first.tool_calls == (ToolCall("weather", {"city": "Leeds"}, "call_1"),)
        assert (first.text, first.stopped) == ("", "tool_calls")
        last = llm.chat(
            [*asked, Message("assistant", "", first.tool_calls), Message("tool", "rain", tool_call_id="call_1")],
            tools=[tool],
        )
    assert last.text == "Rain."
    assert chat.seen[0]["body"]["tools"][0]["function"]["parameters"]["required"] == ["city"]
    sent = chat.seen[1]["body"]["messages"]
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Leeds"}
    assert sent[2] == {"role": "tool", "content": "rain", "tool_call_id": "call_1"}


@pytest.mark.parametrize(
    ("arguments", "read", "problem"),
    [("{'city': 'Leeds',}", {"city": "Leeds"}, ""), ("city=Leeds", {}, "not JSON"), ("[1]", {}, "no JSON object")],
)
def test_malformed_tool_arguments_are_mended_or_told(arguments: str, read: dict, problem: str) -> None:
    with server.ChatServer(server.calls_tool("weather", arguments)) as chat:
        call = opened(chat).chat("Hi", tools=[Tool("weather", "", {"type": "object"})]).tool_calls[0]
    assert call.arguments == read
    assert problem in call.problem
    assert bool(call.problem) == bool(problem)


# -- schemas ----------------------------------------------------------------------------------------------------------


def test_a_schema_goes_as_response_format_and_comes_back_as_an_object() -> None:
    with server.ChatServer(server.says('{"title": "a", "words": ["b"]}')) as chat:
        reply = opened(chat).chat("Note this", schema=Note)
    assert reply.parsed == Note(title="a", words=["b"])
    shape = chat.seen[0]["body"]["response_format"]["json_schema"]
    assert shape["schema"]["required"] == ["title", "words"]
    assert len(chat.seen[0]["body"]["messages"][0]["content"]) == len("Note this")


def test_a_server_that_refuses_response_format_is_asked_in_words_ever_after() -> None:
    good = server.says('{"title": "a", "words": []}')
    with server.ChatServer(server.fails(400, "response_format is not supported"), good) as chat:
        llm = opened(chat)
        first, second = llm.chat("Note this", schema=Note), llm.chat("And this", schema=Note)
    assert first.parsed == second.parsed == Note(title="a", words=[])
    assert (first.attempts, second.attempts) == (2, 1)
    assert ["response_format" in one["body"] for one in chat.seen] == [True, False, False]
    assert '"title"' in chat.seen[1]["body"]["messages"][-1]["content"]


def test_a_server_that_ignores_response_format_is_asked_in_words_at_the_next_try() -> None:
    turns = [server.says("Sure, I noted it."), server.says('{"title": "a", "words": []}')]
    ledger = Ledger()
    with server.ChatServer(*turns) as chat:
        reply = ask(opened(chat), "Note this", Note, ledger=ledger)
    assert reply.parsed == Note(title="a", words=[])
    assert (reply.attempts, reply.usage.calls, ledger.retries, ledger.usage.calls) == (2, 2, 1, 2)
    assert "response_format" not in chat.seen[1]["body"]
    assert "no JSON object" in chat.seen[1]["body"]["messages"][-1]["content"]


def test_a_schema_by_instruction_alone() -> None:
    with server.ChatServer(server.says('```json\n{"title": "a", "words": [],}\n```')) as chat:
        reply = opened(chat, schema_by="instruction").chat("Note this", schema=Note)
    assert reply.parsed == Note(title="a", words=[])
    assert reply.repairs == ("code fence", "trailing comma")
    assert "response_format" not in chat.seen[0]["body"]


def test_a_server_that_wants_max_completion_tokens_gets_them() -> None:
    refusal = server.fails(400, "Unsupported parameter: use 'max_completion_tokens' instead of 'max_tokens'")
    with server.ChatServer(refusal, server.says("ok")) as chat:
        assert opened(chat).chat("Hi", max_tokens=5).text == "ok"
    assert chat.seen[1]["body"]["max_completion_tokens"] == 5


def test_an_answer_that_was_cut_off_is_said_to_be() -> None:
    with server.ChatServer(server.says('{"title": "a", "wor', finish="length")) as chat:
        reply = opened(chat).chat("Note this", schema=Note)
    assert reply.parsed is None
    assert "cut off at max_tokens" in reply.problem


# -- a server in trouble ----------------------------------------------------------------------------------------------


def test_too_many_requests_then_ok_is_repeated_with_a_pause_and_counted() -> None:
    ledger = Ledger()
    with server.ChatServer(server.fails(429, "slow down"), server.says('{"title": "a", "words": []}')) as chat:
        begun = time.monotonic()
        reply = ask(opened(chat, retries=2), "Note this", Note, ledger=ledger)
        waited = time.monotonic() - begun
    assert (reply.attempts, ledger.retries, len(chat.seen)) == (2, 1, 2)
    assert waited > 0.3


@pytest.mark.parametrize(
    ("turn", "kind", "told"),
    [
        (server.fails(500, "out of memory"), LlmError, "answered 500: out of memory"),
        (server.fails(429, "quota"), LlmError, "raise retries="),
        (server.fails(404, "model 'tiny' not found"), LlmError, "does the server have a model 'tiny'"),
        (server.fails(401, f"Incorrect API key provided: {KEY}"), LlmError, "OPENAI_API_KEY"),
        (server.fails(400, "This model's maximum context length is 8 tokens"), ContextTooLong, "shorten the messages"),
        (server.raw(b"{not json"), LlmError, "no JSON"),
        (server.raw(b""), LlmError, "no JSON"),
        (server.raw(b"[" * 200_000), LlmError, "no JSON"),
        (server.raw(b'{"choices": []}'), LlmError, "no chat completion"),
        (server.raw(b'{"error": "model is loading"}'), LlmError, "model is loading"),
        (server.raw(b'[1, "two"]'), LlmError, "no chat completion"),
        (server.raw(b"<html>Log in</html>", "text/html"), LlmError, "text/html"),
        (server.raw(b"\xff\xfe\x00", "application/octet-stream"), LlmError, "no JSON"),
        (server.breaks(), LlmError, "cannot be reached|broke off"),
    ],
)
def test_rubbish_and_refusals_are_clear_errors(turn: server.Turn, kind: type[LlmError], told: str) -> None:
    with server.ChatServer(turn) as chat:
        llm = opened(chat, api_key=KEY)
        with pytest.raises(kind, match=told) as caught:
            llm.chat("Hi")
    assert type(caught.value) is kind
    assert chat.url in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.attempts == 1


def test_a_server_that_hangs_is_left_after_the_time_out() -> None:
    with server.ChatServer(server.hangs()) as chat:
        begun = time.monotonic()
        with pytest.raises(LlmError, match=r"no answer within 0\.3 s"):
            opened(chat, timeout=0.3).chat("Hi")
        assert time.monotonic() - begun < LONG


def test_a_server_that_drips_for_ever_is_left_too() -> None:
    with server.ChatServer(server.drips(60.0)) as chat:
        begun = time.monotonic()
        with pytest.raises(LlmError, match="still sending"):
            opened(chat, timeout=1.5).chat("Hi")
        assert time.monotonic() - begun < LONG


def test_a_slow_server_is_waited_for() -> None:
    with server.ChatServer(server.slow(0.4, "late")) as chat:
        assert opened(chat).chat("Hi").text == "late"


def test_no_server_at_all() -> None:
    ledger = Ledger()
    with socket.socket() as held:  # bound, so that nobody else gets the port, and nobody listens
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        llm = open_llm(f"openai:tiny@http://127.0.0.1:{port}/v1", retries=1, timeout=2)
        with pytest.raises(LlmError, match=f"127.0.0.1:{port}/v1 cannot be reached.*2 tries.*ollama serve") as caught:
            llm.chat("Hi")
        assert caught.value.attempts == 2
        reply = ask(llm, "Hi", Note, fallback=lambda: Note(title="rule", words=[]), ledger=ledger)
    assert reply.parsed == Note(title="rule", words=[])
    assert "cannot be reached" in str(reply.fallback)
    assert (reply.attempts, ledger.fallbacks, ledger.usage.calls) == (2, 1, 0)


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        (server.streams("half an ans"), "not complete"),
        (server.streams("a", end="data: {broken\n\n"), "no JSON"),
        (server.streams("a", end='data: {"error": {"message": "worker died"}}\n\n'), "worker died|broke off"),
        (server.raw(b'{"choices": []}'), "not complete"),
        (server.fails(503, "loading"), "answered 503: loading"),
    ],
)
def test_streams_that_break_off_are_errors_after_what_came(turn: server.Turn, told: str) -> None:
    with server.ChatServer(turn) as chat, pytest.raises(LlmError, match=told):
        list(opened(chat).stream("Hi"))


def test_a_stream_that_falls_silent_is_left() -> None:
    with server.ChatServer(server.streams("so ", "far", silent=60.0)) as chat:
        begun = time.monotonic()
        with pytest.raises(LlmError, match=r"no answer within 1\.5 s \(1 try\)"):
            list(opened(chat, timeout=1.5, retries=2).stream("Hi"))
        assert len(chat.seen) == 1
        assert time.monotonic() - begun < LONG


# -- settings and secrets ---------------------------------------------------------------------------------------------


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with server.ChatServer(server.says("ok")) as chat:
        monkeypatch.setenv("OPENAI_BASE_URL", chat.url + "/")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert open_llm("openai:org/tiny:latest").chat("Hi").text == "ok"
    assert chat.seen[0]["headers"]["authorization"] == f"Bearer {KEY}"
    assert chat.seen[0]["body"]["model"] == "org/tiny:latest"


def test_the_key_is_shown_nowhere(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    with server.ChatServer(server.fails(400, f"bad header Bearer {KEY}")) as chat:
        llm = opened(chat, api_key=KEY)
        with pytest.raises(LlmError) as caught:
            llm.chat("Hi")
    printed = "".join(capfd.readouterr())
    told = [str(caught.value), repr(caught.value), repr(llm), llm.name, llm.label, llm.url, printed]
    assert not [text for text in [*told, caplog.text] if KEY in text]
    assert "bad header Bearer ***" in str(caught.value)


@pytest.mark.parametrize("secret", ["user:pass-9@localhost:1/v1", "localhost:1/v1?token=pass-9", "localhost:1/#pass-9"])
def test_an_address_that_holds_a_secret_is_refused_without_repeating_it(secret: str) -> None:
    with pytest.raises(BadInput, match="no user, password or query") as caught:
        open_llm(f"openai:tiny@http://{secret}")
    assert "pass-9" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("openai:tiny", {}, "OPENAI_BASE_URL"),
        ("openai:tiny@localhost:8000", {}, "http://"),
        ("openai:tiny@http://", {}, "http://host:port/v1"),
        ("openai:@http://localhost:1/v1", {}, "no model is named"),
        ("openai:tiny@http://localhost:99999/v1", {}, "http://host:port/v1"),
        ("openai:tiny@http://localhost:1/v1", {"timeout": 0}, "timeout"),
        ("openai:tiny@http://localhost:1/v1", {"timeout": float("nan")}, "timeout"),
        ("openai:tiny@http://localhost:1/v1", {"retries": -1}, "retries"),
        ("openai:tiny@http://localhost:1/v1", {"schema_by": "magic"}, "schema_by"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_sent(name: str, options: dict, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        open_llm(name, **options)


def test_without_the_client_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    llm = open_llm("openai:tiny@http://localhost:1/v1")
    with pytest.raises(LlmError, match=r"pip install memory-workbench\[llm\]"):
        llm.chat("Hi")
    with pytest.raises(LlmError, match=r"pip install memory-workbench\[llm\]"):
        next(iter(llm.stream("Hi")))


def test_one_model_serves_many_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    ledger = Ledger()
    with server.ChatServer(server.says('{"title": "a", "words": []}')) as chat, ThreadPoolExecutor(8) as pool:
        llm = opened(chat)
        list(pool.map(lambda i: ask(llm, f"Note {i}", Note, ledger=ledger), range(32)))
    assert (ledger.answers, ledger.usage, len(chat.seen)) == (32, Usage(11 * 32, 7 * 32, 32), 32)
