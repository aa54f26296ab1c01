"""Whoever dies first, nothing goes on running: the caller, the supervisor, a thread of the caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.sandbox.conftest import gone, marked
from workbench.sandbox import Limits, Report, run

CALLER = """
import sys
from workbench.sandbox import Limits, run
code = '''
import os, time, ctypes
ctypes.CDLL(None).prctl(1, 0)  # no death signal, please
try:
    os.fork(); os.fork()
except OSError:
    pass
print("up", flush=True)
time.sleep(60)
'''
run(code, args=[sys.argv[1]], limits=Limits(seconds=60), without=sys.argv[2:])
"""


def wait_for(token: str, least: int = 1) -> list[psutil.Process]:
    end = time.monotonic() + 60
    while len(found := [p for p in marked(token) if "runner.py" in " ".join(p.cmdline())]) < least:
        assert time.monotonic() < end, "the sandbox did not start"
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_caller_is_killed(place: Path, token: str, without: tuple[str, ...], root: Path, number: int) -> None:
    environment = {**os.environ, "TMPDIR": str(place)}
    for delay in (0.0, 0.02, 0.1):
        caller = subprocess.Popen([sys.executable, "-c", CALLER, token, *without], cwd=root, env=environment)
        wait_for(token)
        time.sleep(delay)
        os.kill(caller.pid, number)
        caller.wait()
        assert gone(token)
        end = time.monotonic() + 20
        while os.listdir(place) and time.monotonic() < end:  # the supervisor removes the folder, as nobody else can
            time.sleep(0.02)
        assert os.listdir(place) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_supervisor_dies_or_hangs(place: Path, token: str, without: tuple[str, ...], number: int) -> None:
    done: list[Report | Exception] = []
    # only the caller's clock ends a run whose supervisor hangs; one that dies is noticed long before
    limits = Limits(seconds=2.5 if number == signal.SIGSTOP else 60)

    def call() -> None:
        try:
            done.append(run("import time\ntime.sleep(60)", args=[token], limits=limits, without=without))
        except Exception as problem:
            done.append(problem)

    thread = threading.Thread(target=call)
    thread.start()
    wait_for(token)
    supervisor = next(child for child in psutil.Process().children() if "launch.py" in " ".join(child.cmdline()))
    supervisor.send_signal(number)
    thread.join(45)
    assert not thread.is_alive()
    assert isinstance(done[0], Report)
    assert done[0].status == ("lost" if number == signal.SIGKILL else "timeout")
    assert gone(token)


def test_caller_is_interrupted(place: Path, token: str, without: tuple[str, ...], root: Path) -> None:
    program = CALLER.replace("run(code", "try:\n    run(code") + "except KeyboardInterrupt:\n    print('interrupted')"
    caller = subprocess.Popen(
        [sys.executable, "-c", program, token, *without],
        cwd=root,
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(token)
    caller.send_signal(signal.SIGINT)
    assert caller.communicate(timeout=45)[0] == "interrupted\n"
    assert gone(token)
    assert os.listdir(place) == []
