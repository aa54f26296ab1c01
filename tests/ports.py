"""A port for a server that a test starts as another process and must tell where to listen."""

from __future__ import annotations

import contextlib
import secrets
import socket


def free_port() -> int:
    """Below those which the system hands out to anybody who asks for some port, other tests among them: until the
    server is up, seconds later, nobody gets this one by chance."""
    for _ in range(100):
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("a hundred ports from 20,000 to 32,000 are taken")
