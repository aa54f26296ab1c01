"""A small HTTP server that speaks the chat completions protocol, well or badly, as a test tells it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Turn = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(
            {"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}, "body": body}
        )
        self.server.turn(self, body)

    def send(self, body: bytes, *, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_chunk(self, piece: bytes) -> None:
        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.flush()

    def begin_chunks(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()


class ChatServer(ThreadingHTTPServer):
    """Plays ``turns`` in order, the last one for ever; ``seen`` keeps every request."""

    daemon_threads = True

    def __init__(self, *turns: Turn):
        super().__init__(("127.0.0.1", 0), Handler)
        self.turns, self.seen = list(turns), []  # type: list[Turn], list[dict[str, Any]]
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def turn(self, handler: Handler, body: dict[str, Any]) -> None:
        with self._lock:
            turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        try:
            turn(handler, body)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True  # the client has given up waiting

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


def completion(text: str | None, *, usage: bool = True, calls: list[Any] | None = None, finish: str = "stop") -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = calls
    data: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if usage:
        data["usage"] = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return json.dumps(data).encode()


def says(text: str, **settings: Any) -> Turn:
    """A good answer; to a request for a stream, the same in pieces of three characters."""

    def turn(handler: Handler, body: dict[str, Any]) -> None:
        if not body.get("stream"):
            return handler.send(completion(text, **settings))
        handler.begin_chunks("text/event-stream")
        for at in range(0, len(text), 3):
            handler.send_chunk(_event({"content": text[at : at + 3]}, None))
        handler.send_chunk(_event({}, "stop"))
        handler.send_chunk(b"data: [DONE]\n\n")
        handler.send_chunk(b"")

    return turn


def _event(delta: dict[str, Any], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    data = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def streams(*pieces: str, end: str = "", silent: float = 0.0) -> Turn:
    """A stream that, after ``pieces`` and some silence, breaks off without an end mark or ends with the raw ``end``."""

    def turn(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin_chunks("text/event-stream")
        for piece in pieces:
            handler.send_chunk(_event({"content": piece}, None))
        handler.server.closing.wait(silent)
        if end:
            handler.send_chunk(end.encode())
        handler.send_chunk(b"")

    return turn


def calls_tool(name: str, arguments: str) -> Turn:
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return lambda handler, body: handler.send(completion(None, calls=[call], finish="tool_calls"))


def fails(status: int, message: str = "no", **headers: str) -> Turn:
    told = json.dumps({"error": {"message": message, "type": "some", "code": None}}).encode()
    return lambda handler, body: handler.send(told, status=status, **headers)


def raw(data: bytes, kind: str = "application/json") -> Turn:
    return lambda handler, body: handler.send(data, kind=kind)


def hangs(seconds: float = 60.0) -> Turn:
    def turn(handler: Handler, body: dict[str, Any]) -> None:
        handler.server.closing.wait(seconds)

    return turn


def slow(seconds: float, text: str) -> Turn:
    def turn(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        handler.send(completion(text))

    return turn


def drips(seconds: float) -> Turn:
    """Sends a blank again and again: every read succeeds and the answer never ends."""

    def turn(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin_chunks("application/json")
        end = time.monotonic() + seconds
        while time.monotonic() < end and not handler.server.closing.wait(0.02):
            handler.send_chunk(b" ")

    return turn


def breaks() -> Turn:
    """Promises more than it sends and closes the connection."""

    def turn(handler: Handler, body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')
        handler.close_connection = True

    return turn
