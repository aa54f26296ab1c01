"""The same walls for somebody who is not root: a user namespace, or Landlock and the filter without any namespace."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

UID = 54_321
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user, which takes root"),
    pytest.mark.xdist_group("sandbox-user"),  # one after the other: each looks for processes of that user
]

PROGRAM = """
import json, os, sys
from workbench.sandbox import Limits, run
job = json.load(sys.stdin)
short = Limits(seconds=30, cpu_seconds=1, memory_mb=256, disk_mb=4, file_mb=2, output_kb=64)
for name, code in job["programs"].items():
    code = code.replace("CALLER", str(os.getpid()))
    report = run(code, limits=short, without=job["without"], require=job["require"])
    print(json.dumps([name, report.status, report.stdout, report.stderr[-300:], report.protections]), flush=True)
"""


def _reachable_python() -> str | None:
    """A Python of 3.11 or later that another user can start."""
    check = "import sys, encodings; sys.exit(sys.version_info < (3, 11))"
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            done = subprocess.run(
                [python, "-I", "-c", check], user=UID, group=UID, extra_groups=[], cwd="/", check=False
            )
        except OSError:
            continue
        if done.returncode == 0:
            return python
    return None


@pytest.fixture(scope="module")
def python() -> str:
    if found := _reachable_python():
        return found
    pytest.skip("no Python 3.11 that another user can start")


@pytest.fixture
def home(root: Path) -> Iterator[Path]:
    """A folder of the ordinary user with a secret and a copy of the package."""
    folder = Path(tempfile.mkdtemp(prefix="workbench-user-"))
    shutil.copytree(root / "workbench" / "sandbox", folder / "lib" / "workbench" / "sandbox")
    shutil.copy(root / "workbench" / "errors.py", folder / "lib" / "workbench")
    (folder / "lib" / "workbench" / "__init__.py").touch()
    shutil.copytree(Path(psutil.__file__).parent, folder / "lib" / "psutil")
    (folder / "tmp").mkdir()
    (folder / "secret").write_text("canary")
    for place, folders, names in os.walk(folder):
        for name in [".", *folders, *names]:
            os.chown(os.path.join(place, name), UID, UID)
    yield folder
    assert os.listdir(folder / "tmp") == []
    end = time.monotonic() + 20  # the daemons would sleep for a minute
    while processes_of_the_user() and time.monotonic() < end:
        time.sleep(0.02)
    assert processes_of_the_user() == []
    shutil.rmtree(folder)


def processes_of_the_user() -> list[int]:
    """Living processes of that user; others may end while they are looked at."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.uids().real == UID and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _as_user(python: str, home: Path, programs: dict[str, str], without: list[str], require: list[str]) -> dict:
    job = json.dumps({"programs": programs, "without": without, "require": require})
    path, environment = str(home / "lib"), {"PATH": "/usr/bin:/bin", "TMPDIR": str(home / "tmp"), "SECRET": "canary"}
    done = subprocess.run(
        [python, "-B", "-c", f"import sys; sys.path.insert(0, {path!r})\n{PROGRAM}"],
        input=job,
        capture_output=True,
        text=True,
        user=UID,
        group=UID,
        extra_groups=[],
        env=environment,
        cwd="/",
        timeout=200,
        check=False,
    )
    if "SandboxUnavailable" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("without", [[], ["namespaces"]], ids=["user namespace", "no namespaces"])
def test_attacks_by_an_ordinary_user(python: str, home: Path, without: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        programs = {
            "good": "print(6 * 7)",
            "environment": "import os\nprint('canary' in str(dict(os.environ)))",
            "secret": f"print(open({str(home / 'secret')!r}).read())",
            "overwrite": f"open({str(home / 'secret')!r}, 'w')",
            "mode": f"import os\nos.chmod({str(home / 'secret')!r}, 0)",
            "parent": "print(open('/proc/CALLER/environ').read())",
            "kill": "import os\nos.kill(CALLER, 9)",
            "kill all": "import os\nos.kill(-1, 9)",
            "kill supervisor": "import os\nprint(os.getppid())\nif os.getppid() > 1: os.kill(os.getppid(), 9)",
            "connect": f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)",
            "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
            "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n",
            "disk": "for n in range(100): open(f'f{n}', 'wb').write(bytes(2**20))\nimport time; time.sleep(1)",
            "closed folder": "import os\nos.mkdir('d', 0)\nos.mkdir('e'); open('e/f', 'w').write('x')",
        }
        seen = _as_user(python, home, programs, without, ["network", "reads", "writes", "signals", "processes"])
        with pytest.raises(TimeoutError):
            server.accept()
    assert (home / "secret").read_text() == "canary"
    assert seen["good"][:2] == ["ok", "42\n"]
    assert seen["environment"][1] == "False\n"
    for name in ("secret", "overwrite", "mode", "parent", "kill", "connect"):
        assert seen[name][0] == "error", (name, seen[name])
        assert "canary" not in seen[name][1]
    assert seen["kill all"][0] in ("ok", "error", "killed: SIGKILL")
    assert seen["kill supervisor"][0] in ("ok", "error")
    assert seen["fork bomb"][0] in ("timeout", "killed: cpu", "killed: processes")
    assert seen["daemon"][0] == "ok"
    assert seen["disk"][0] in ("error", "killed: disk")
    assert seen["good"][3]["user"].startswith("the caller's")


def test_somebody_else_is_not_asked_to_be_trusted(python: str, home: Path) -> None:
    """Without any kernel wall the report must say so, and still nothing may be left."""
    programs = {"good": "print(1)", "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)"}
    seen = _as_user(python, home, programs, ["namespaces", "landlock", "seccomp"], [])
    told = seen["good"][3]
    assert told["network"] == told["writes"] == "refused in Python"
    assert told["reads"] == told["signals"] == told["tracing"] == "none"
    assert seen["daemon"][0] == "ok"
