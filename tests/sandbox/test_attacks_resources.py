"""Programs that use more than they may, each on both kinds of walls; afterwards nothing of them runs or lies around."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tests.sandbox.conftest import SHORT
from workbench.sandbox import Report

Attack = Callable[..., Report]


def test_fork_bomb(attack: Attack) -> None:
    code = """
import os
told = False
while True:
    try:
        if os.fork() == 0:
            told = False
    except OSError as problem:
        if not told:
            print("refused", problem.errno, flush=True)
        told = True
"""
    report = attack(code, needs=("processes",), limits=dataclasses.replace(SHORT, cpu_seconds=1))
    assert "refused 11" in report.stdout  # EAGAIN: the kernel's count, whatever the watcher sees
    assert report.status in ("timeout", "killed: processes", "killed: cpu")


def test_thread_bomb(attack: Attack) -> None:
    code = """
import threading, time
while True:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""
    report = attack(code)
    assert report.status in ("error", "killed: processes", "killed: memory"), report
    assert report.seconds < 20


def test_daemon_that_wants_to_outlive(attack: Attack) -> None:
    code = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for handle in range(3):
            os.close(handle)
        time.sleep(60)
    os._exit(0)
time.sleep(0.2)
print("parent leaves")
"""
    report = attack(code)
    if report.protections["processes"].startswith("seccomp"):
        assert "BlockingIOError" in report.stderr
    else:
        assert (report.status, report.stdout) == ("ok", "parent leaves\n")
    assert report.seconds < 20


def test_one_large_file(attack: Attack) -> None:
    report = attack("with open('big', 'wb') as f:\n    for _ in range(1000): f.write(bytes(2**20))")
    assert report.status == "error"
    assert "File too large" in report.stderr
    assert sum(map(len, report.files.values())) <= SHORT.file_mb * 2**20


def test_filling_the_disk_with_files(attack: Attack) -> None:
    code = """
import itertools
for n in itertools.count():
    with open(f"f{n}", "wb") as f:
        f.write(bytes(2**20))
"""
    report = attack(code)
    assert report.status == ("error" if report.protections["disk"].startswith("tmpfs") else "killed: disk")
    assert report.status == "killed: disk" or "No space left" in report.stderr
    if report.protections["disk"].startswith("tmpfs"):  # a watcher samples, so it is late by a few milliseconds
        assert sum(map(len, report.files.values())) <= SHORT.disk_mb * 2**20


def test_very_many_small_files(attack: Attack) -> None:
    code = """
import os, itertools
for n in itertools.count():
    os.close(os.open(f"f{n}", os.O_CREAT | os.O_WRONLY))
"""
    limits = dataclasses.replace(SHORT, files=200)
    report = attack(code, limits=limits)
    assert report.status == "killed: disk" or "No space left" in report.stderr
    if report.protections["disk"].startswith("tmpfs"):
        assert len(report.files) <= 200


def test_deep_folders_are_removed(attack: Attack) -> None:
    code = """
import os
for n in range(900):
    os.mkdir("d" * 100)
    os.chdir("d" * 100)
"""
    report = attack(code)
    assert report.status == ("ok" if report.protections["disk"].startswith("tmpfs") else "killed: disk"), report
    assert list(report.left_out.values()) == ["deeper than 16 folders"]


def test_data_below_the_longest_path_is_not_free(attack: Attack) -> None:
    code = """
import os
for n in range(60):
    os.mkdir("d" * 100)
    os.chdir("d" * 100)
for n in range(100):
    with open(f"f{n}", "wb") as f:
        f.write(bytes(2**20))
"""
    report = attack(code)
    assert report.status == "killed: disk" or "No space left" in report.stderr


@pytest.mark.parametrize(
    "code",
    [
        "held = bytearray(10**10)",
        "held = []\nwhile True: held.append(bytearray(2**20))",
        "import mmap\nheld = []\nwhile True:\n    m = mmap.mmap(-1, 2**22); m.write(bytes(2**22)); held.append(m)",
    ],
    ids=["at once", "piece by piece", "shared"],
)
def test_memory_balloon(attack: Attack, code: str) -> None:
    report = attack(code)
    assert report.status == "killed: memory" or "OSError: [Errno 12]" in report.stderr
    assert report.peak_memory_mb < 2 * SHORT.memory_mb


def test_memory_shared_out_over_processes(attack: Attack) -> None:
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        held = bytearray(b"x") * (60 * 2**20)
        time.sleep(60)
time.sleep(60)
"""
    report = attack(code)
    if not report.protections["processes"].startswith("seccomp"):
        assert report.status == "killed: memory"


def test_memory_in_files_without_a_name(attack: Attack) -> None:
    report = attack("import os\nos.memfd_create('m')", needs=("system calls",))
    assert "PermissionError" in report.stderr


def test_processor_time(attack: Attack) -> None:
    report = attack("while True: pass", limits=dataclasses.replace(SHORT, cpu_seconds=1))
    assert report.status == "killed: cpu"


def test_processor_time_shared_out_over_processes(attack: Attack) -> None:
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    report = attack(code, limits=dataclasses.replace(SHORT, cpu_seconds=1))
    if not report.protections["processes"].startswith("seccomp"):
        assert report.status == "killed: cpu"


def test_sleeping_for_ever(attack: Attack) -> None:
    report = attack("import time\ntime.sleep(10**6)", limits=dataclasses.replace(SHORT, seconds=0.5))
    assert report.status == "timeout"
    assert "0.5 s" in report.message


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU"])
def test_deaf_to_signals(attack: Attack, number: str) -> None:
    code = f"import signal, time\nsignal.signal(signal.{number}, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    assert attack(code, limits=dataclasses.replace(SHORT, seconds=0.5)).status == "timeout"


def test_stopping_itself(attack: Attack) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"
    assert attack(code, limits=dataclasses.replace(SHORT, seconds=0.5)).status == "timeout"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_without_end(attack: Attack, stream: str) -> None:
    report = attack(f"import sys\nwhile True: sys.{stream}.write('x' * 4096)")
    assert report.status == "killed: output"
    assert report.truncated
    assert len(getattr(report, stream)) == SHORT.output_kb * 1024


def test_a_little_too_much_output_is_cut(attack: Attack) -> None:
    report = attack("print('x' * 100_000)")
    assert report.ok
    assert report.truncated
    assert report.stdout == "x" * 65536


def test_huge_file_to_return(attack: Attack) -> None:
    limits = dataclasses.replace(SHORT, returned_mb=0.5)
    report = attack("open('a.bin', 'wb').write(bytes(10**6)); open('b.txt', 'w').write('small')", limits=limits)
    assert report.files == {"b.txt": b"small"}
    assert "1,000,000 bytes" in report.left_out["a.bin"]


def test_open_files(attack: Attack) -> None:
    report = attack("held = [open('x', 'w') for _ in range(200)]")
    assert "Too many open files" in report.stderr


def test_deep_recursion(attack: Attack) -> None:
    report = attack("def f(): f()\nf()")
    assert report.status == "error"
    assert "RecursionError" in report.stderr


def test_deep_recursion_below_python(attack: Attack) -> None:
    report = attack("import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f.__call__()\nf()")
    assert report.status in ("killed: SIGSEGV", "killed: memory", "error")
    assert not report.ok
