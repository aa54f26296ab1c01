"""Programs that want out: other files, other processes, the network. A canary says whether one succeeded."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workbench.sandbox import Report

Attack = Callable[..., Report]
CANARY = f"canary-{uuid.uuid4().hex}"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text(CANARY)
    return path


def test_environment_is_clean(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    report = attack("import os, json\nprint(json.dumps(dict(os.environ)))")
    seen = json.loads(report.stdout)
    assert CANARY not in report.stdout
    assert {key for key in seen if not key.endswith("_NUM_THREADS")} <= {
        "PATH",
        "LANG",
        "HOME",
        "TMPDIR",
        "MALLOC_ARENA_MAX",
        "LC_CTYPE",
    }


@pytest.mark.parametrize("whose", ["os.getppid()", "CALLER", "1", "'self'"])
def test_environment_of_other_processes(attack: Attack, whose: str) -> None:
    code = """
import os
for name in ("environ", "cmdline", "mem", "maps"):
    try:
        with open(f"/proc/{WHOSE}/{name}", "rb") as f:
            if name == "mem":
                f.seek(os.sysconf("SC_PAGESIZE") * 1024)
            print(f.read(100))
    except (OSError, OverflowError) as problem:
        print(type(problem).__name__)
"""
    code = code.replace("WHOSE", whose).replace("CALLER", str(os.getpid()))
    report = attack(code, needs=("reads",))
    assert set(report.stdout.split()) <= {"FileNotFoundError", "PermissionError"}


def test_secret_file_by_its_name(attack: Attack, canary: Path) -> None:
    report = attack(f"print(open({str(canary)!r}).read())", needs=("reads",))
    assert report.status == "error"
    assert CANARY not in report.stdout + report.stderr


def test_secret_file_in_the_home(attack: Attack) -> None:
    path = Path.home() / f".{CANARY}"
    path.write_text(CANARY)
    try:
        report = attack(f"print(open({str(path)!r}).read())", needs=("reads",))
    finally:
        path.unlink()
    assert "PermissionError" in report.stderr or "FileNotFoundError" in report.stderr


def test_file_lists_outside(attack: Attack, canary: Path) -> None:
    code = """
import os
for place in ("/", "/root", "/home", "/etc", "/work", "/proc", "/var", "/tmp", "/sys", "/run", PARENT):
    try:
        print(place, os.listdir(place))
    except OSError:
        pass
"""
    report = attack(code.replace("PARENT", repr(str(canary.parent))), needs=("reads",))
    assert canary.name not in report.stdout
    assert "passwd" not in report.stdout
    assert "meminfo" not in report.stdout


@pytest.mark.parametrize("link", ["os.symlink", "os.link"])
def test_links_to_a_secret(attack: Attack, canary: Path, link: str) -> None:
    code = f"import os\n{link}({str(canary)!r}, 'mine')\nprint(open('mine').read())"
    report = attack(code, needs=("reads",))
    assert report.status == "error"
    assert CANARY not in report.stdout
    assert report.files == {}


def test_returned_links_are_not_followed(attack: Attack, canary: Path) -> None:
    code = f"""
import os
os.symlink({str(canary)!r}, "result.txt")
os.symlink({str(canary.parent)!r}, "folder")
os.mkdir("sub"); os.symlink("../../../../../../../etc/passwd", "sub/p")
"""
    report = attack(code)
    assert report.ok
    assert report.files == {}
    assert set(report.left_out) == {"result.txt", "folder", "sub/p"}
    assert canary.read_text() == CANARY  # removing the folder did not go through the link


@pytest.mark.parametrize(
    "deed",
    [
        "open(P, 'w').write('x')",
        "open(P, 'a').write('x')",
        "os.truncate(P, 0)",
        "os.remove(P)",
        "os.rename(P, 'mine')",
        "os.chmod(P, 0o777)",
        "os.chown(P, 1, 1)",
        "os.setxattr(P, 'user.x', b'1')",
        "os.mkdir(P + '.d')",
        "os.symlink('x', P + '.link')",
        "os.open(os.path.dirname(P), os.O_TMPFILE | os.O_WRONLY)",
        "os.utime(os.path.relpath(P))",
        "open('../../../../../../../../..' + P, 'w').write('x')",
        "os.chroot('.')",
    ],
)
def test_writing_outside(attack: Attack, canary: Path, deed: str) -> None:
    before = os.stat(canary)
    report = attack(f"import os\nP = {str(canary)!r}\n{deed}", needs=("writes",))
    assert report.status == "error", report
    after = os.stat(canary)
    assert canary.read_text() == CANARY
    assert os.listdir(canary.parent) == [canary.name]
    assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns)


def test_writing_into_the_installation(attack: Attack) -> None:
    code = """
import os, sys
for path in (os.__file__, __file__, "/code/x", "/x", "/dev/x", os.path.dirname(sys.executable) + "/x"):
    try:
        open(path, "a")
        print("wrote", path)
    except OSError:
        pass
"""
    assert attack(code, needs=("writes",)).stdout == ""


SIGNALLED = """
import os, signal
for pid in TARGETS:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
            print("sent", pid)
        except OSError as problem:
            print(type(problem).__name__)
"""


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this user."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_killing_caller_watcher_and_bystander(attack: Attack, bystander: subprocess.Popen[bytes]) -> None:
    targets = f"({os.getpid()}, os.getppid(), {bystander.pid})"
    report = attack(SIGNALLED.replace("TARGETS", targets), needs=("signals",))
    assert "sent" not in report.stdout.replace("sent 1\n", "")  # process 1 of a namespace ignores what it is sent
    assert report.ok
    assert bystander.poll() is None


def test_killing_everybody(attack: Attack, bystander: subprocess.Popen[bytes]) -> None:
    report = attack("import os\nos.kill(-1, 9)\nprint('alive')", needs=("signals",))
    assert report.status in ("ok", "error")
    assert bystander.poll() is None


def test_tracing_the_caller(attack: Attack, bystander: subprocess.Popen[bytes]) -> None:
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for pid in ({os.getpid()}, os.getppid(), {bystander.pid}):
    print(libc.ptrace(16, pid, 0, 0))
print(libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0))
"""
    report = attack(code, needs=("tracing",))
    assert report.stdout.split() == ["-1"] * 4


def test_limits_priorities_and_kernel_signals_on_the_caller(attack: Attack) -> None:
    code = """
import fcntl, os, resource, signal
deeds = [
    lambda: resource.prlimit(CALLER, resource.RLIMIT_CPU, (1, 1)),
    lambda: os.setpriority(os.PRIO_PROCESS, CALLER, 19),
    lambda: os.setpriority(os.PRIO_USER, 0, 19),
    lambda: os.sched_setaffinity(CALLER, {0}),
    lambda: fcntl.fcntl(1, fcntl.F_SETOWN, CALLER),
    lambda: fcntl.fcntl(1, fcntl.F_SETSIG, signal.SIGKILL),
]
for deed in deeds:
    try:
        deed()
        print("done")
    except OSError as problem:
        print(type(problem).__name__)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.nice(1)
"""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    report = attack(code.replace("CALLER", str(os.getpid())), needs=("system calls",))
    assert report.stdout.split() == ["PermissionError"] * 6
    assert report.ok  # on itself it may
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"])
def test_no_socket_of_any_kind(attack: Attack, family: str) -> None:
    report = attack(f"import socket\nsocket.socket(socket.{family}, socket.SOCK_RAW * 0 + 1)", needs=("network",))
    assert "PermissionError" in report.stderr


@pytest.mark.parametrize("layers", [(), ("seccomp",), ("seccomp", "landlock"), ("namespaces", "landlock")])
def test_listening_server_hears_nothing(place: Path, layers: tuple[str, ...]) -> None:
    from workbench.sandbox import SandboxUnavailable, run

    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)

        def listen() -> None:
            try:
                heard.append(server.accept())
            except TimeoutError:
                return

        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        try:
            report = run(code, without=layers, require=["network"])
        except SandboxUnavailable as problem:
            pytest.skip(str(problem))
        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
    assert report.status == "error"
    assert heard == []


def test_names_are_not_resolved(attack: Attack) -> None:
    report = attack("import socket\nprint(socket.getaddrinfo('example.org', 80))", needs=("network",))
    assert report.status == "error"


@pytest.mark.parametrize("abstract", [True, False])
@pytest.mark.parametrize("layers", [(), ("seccomp",), ("namespaces",)])
def test_unix_socket_of_another_process(place: Path, abstract: bool, layers: tuple[str, ...]) -> None:
    from workbench.sandbox import run

    with socket.socket(socket.AF_UNIX) as server:
        name = f"\0{CANARY}" if abstract else str(place / "server")
        server.bind(name)
        server.listen()
        server.settimeout(0.1)
        report = run(f"import socket\nsocket.socket(socket.AF_UNIX).connect({name!r})", without=layers)
        with pytest.raises(TimeoutError):
            server.accept()
    if not abstract:
        os.unlink(name)
    assert report.status == "error"


def test_inherited_descriptors(attack: Attack, canary: Path) -> None:
    with open(canary) as file:
        os.set_inheritable(file.fileno(), True)
        code = """
import os
found = []
for n in range(3, 64):
    try:
        os.fstat(n); found.append(n)
    except OSError: pass
print(found)
"""
        report = attack(code)
    assert report.stdout == "[]\n"


def test_new_namespaces_are_refused(attack: Attack) -> None:
    code = """
import ctypes
libc = ctypes.CDLL(None)
print(libc.unshare(0x10000000), libc.unshare(0x00020000), libc.mount(b"tmpfs", b"/box", b"tmpfs", 0, 0))
print(libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0), libc.syscall(425, 8, 0))
"""
    report = attack(code, needs=("system calls",))
    assert report.stdout.split() == ["-1"] * 5


def test_no_rights_to_gain(attack: Attack) -> None:
    code = """
import os
for deed in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try: deed()
    except OSError as problem: print(type(problem).__name__)
print(os.getuid(), os.getgroups())
"""
    report = attack(code)
    if report.protections["user"].startswith("uid"):
        assert report.stdout.split()[:3] == ["PermissionError"] * 3
        assert report.stdout.split()[-2:] != ["0", "[]"]


def test_runs_cannot_leave_anything_for_the_next(attack: Attack) -> None:
    attack("open('left', 'w').write('x')\nopen('/dev/shm/left', 'w').write('x')")
    assert attack("import os\nprint(os.listdir('.'))").stdout == "[]\n"
    assert not os.path.exists("/dev/shm/left")
