"""The process between the caller and the code: builds the walls, starts the code, ends everything, hands back files.

caller -> supervisor -> (first process of the PID namespace) -> the code and whatever it starts

It outlives the code and never the caller: it stops when the caller says so, dies, or closes its end of the pipe.
One thread, no import of anything installed. It speaks frames on a pipe: one line of JSON, then ``size`` raw bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from typing import Any, NoReturn

from . import calls, folders, landlock, mounts, walls

GRACE = 2.0  # seconds after the caller's own deadline at which the supervisor ends the run by itself
NO_EXEC, NOT_MET = 72, 71


class Frames:
    """Messages to the caller; a caller that is gone ends the supervisor."""

    def __init__(self, handle: int):
        self.handle = handle

    def send(self, content: bytes = b"", **head: Any) -> None:
        data = memoryview(json.dumps({**head, "size": len(content)}).encode() + b"\n" + content)
        while data:
            data = data[os.write(self.handle, data) :]


class Run:
    """One run from start to end; ``settings`` come from the caller's file."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings
        self.frames = Frames(settings["report"])
        self.control: int = settings["control"]
        for handle in (self.frames.handle, self.control):
            os.set_inheritable(handle, False)
        self.folder: str = settings["folder"]
        above, self.name = os.path.split(self.folder)
        self.above = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.stdin = os.open(f"{self.folder}/stdin", os.O_RDONLY | os.O_CLOEXEC)
        self.pid = os.getpid()
        self.child = 0  # the code itself, or the first process of its namespace
        self.place = walls.Place(f"{self.folder}/box", f"{self.folder}/code", settings["readable"])

    # -- before the code ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        os.umask(0o022)
        signal.signal(signal.SIGTERM, self.caller_died)
        if calls.LINUX:
            calls.die_with_parent(signal.SIGTERM, self.settings["parent"])
            calls.prctl(calls.PR_SET_CHILD_SUBREAPER, 1)
        if self.settings["rung"] == "namespaces":
            self._namespaces()
        else:
            self._plain()
        if calls.LINUX:
            calls.die_with_parent(signal.SIGTERM, self.settings["parent"])  # again: a change of rights may clear it
            calls.prctl(calls.PR_SET_DUMPABLE, 0)  # nobody reads this process's memory

    def _namespaces(self) -> None:
        limits = self.settings["limits"]
        uid = walls.free_uid() if os.geteuid() == 0 else None
        readable = mounts.outermost(self.place.readable)
        # Since 5.14 a user namespace counts its own tasks: this process and the first one of the PID namespace.
        release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
        tasks = 2 if release >= (5, 14) else 2 + walls.user_tasks(os.geteuid())
        kind = mounts.enter_namespaces()
        owner = (uid, uid) if uid is not None else None
        mounts.build_root(self.folder, readable, int(limits["disk_mb"] * 2**20), limits["files"], owner)
        self.place = walls.Place(mounts.BOX, mounts.CODE, readable, kind, uid)
        self._check_user()
        if uid is None:
            self.place.tasks = tasks
        elif self.place.uid is None:
            self.place.tasks = -1
        mounts.enter_pid_namespace()

    def _plain(self) -> None:
        if not calls.LINUX:
            return
        self.place.protected = (os.getpid(), self.settings["parent"])
        self.place.readable = mounts.outermost(self.place.readable)
        if os.geteuid() != 0:
            self.place.tasks = walls.user_tasks(os.geteuid()) + 1
            return
        uid = walls.free_uid()
        os.chmod(self.folder, 0o711)
        mounts.own(self.place.box, (uid, uid))
        self.place.uid = uid
        self._check_user()
        if self.place.uid is None:
            mounts.own(self.place.box, (0, 0))
            self.place.tasks = -1

    def _check_user(self) -> None:
        uid, python = self.place.uid, self.settings["python"]
        if uid is not None and not walls.another_user_can(uid, python, self.place.box):
            self.place.uid = None
            self.place.why_same_user = f" (root: no other user can read {python})"

    # -- the code -------------------------------------------------------------------------------------------------

    def start(self) -> tuple[int, int]:
        """Fork the code, which waits for ``begin``. Returns the pipes on which it says what it built, and on which its
        end is told."""
        built, tell = os.pipe()
        ended, end = os.pipe()
        alive, go = os.pipe()
        waiting, self.begin = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            os.close(go)
            os.close(self.begin)
            if self.place.namespaces:
                self._first_process(tell, end, alive, waiting)
            self._become_code(tell, waiting)
        for handle in (tell, end, alive, waiting):
            os.close(handle)
        self.go = go  # held open: its end of file tells the first process that the supervisor is gone
        if self.place.namespaces:
            os.write(go, b"g")
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        return built, ended

    def _first_process(self, tell: int, end: int, alive: int, waiting: int) -> NoReturn:
        """Process 1 of the namespace: reaps orphans and leaves with the code, which makes the kernel end the rest."""
        calls.die_with_parent(signal.SIGKILL, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not os.read(alive, 1):  # the supervisor died before the line above could notice
            os._exit(70)
        code = os.fork()
        if code == 0:
            self._become_code(tell, waiting)
        os.close(tell)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        while True:
            pid, status = os.wait()
            if pid == code:
                os.write(end, str(status).encode())
                os._exit(0)

    def _become_code(self, tell: int, waiting: int) -> NoReturn:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            if calls.LINUX:
                calls.die_with_parent(signal.SIGKILL, 1 if self.place.namespaces else self.pid)
            os.dup2(self.stdin, 0)
            os.chdir(self.place.box)
            built = walls.raise_walls(self.place, self.settings["limits"], self.settings["without"])
            missing = [name for name in self.settings["require"] if not held_by_kernel(built.get(name, "none"))]
            os.write(tell, json.dumps({"protections": built, "missing": missing}).encode() + b"\n")
            if missing:
                os._exit(NOT_MET)
            if not os.read(waiting, 1):  # nobody is left to tell the caller that the code runs
                os._exit(NO_EXEC)
            python = self.settings["python"]
            os.execve(python, [python, *self._arguments(built)], self._environment())
        except BaseException as problem:
            os.write(tell, json.dumps({"unavailable": f"{type(problem).__name__}: {problem}"}).encode() + b"\n")
        os._exit(NO_EXEC)

    def _arguments(self, built: dict[str, str]) -> list[str]:
        refuse = [name for name, how in built.items() if how == "refused in Python"]
        job = {
            "main": f"{self.place.code}/main.py",
            "box": self.place.box,
            "packages": self.settings["packages"],
            "args": self.settings["args"],
            "refuse": refuse + ([] if calls.LINUX else ["processes"]),
        }
        return ["-I", "-S", "-B", "-X", "utf8", f"{self.place.code}/runner.py", json.dumps(job, ensure_ascii=False)]

    def _environment(self) -> dict[str, str]:
        """All that the code finds in its environment; one thread, so that numerical libraries stay in their limits."""
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
        box = self.place.box
        return {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": box,
            "TMPDIR": box,
            "MALLOC_ARENA_MAX": "2",
            **threads,
        }

    # -- the end --------------------------------------------------------------------------------------------------

    def wait(self, ended: int) -> int | None:
        """Until the code ends (its wait status), or the caller, the clock or nobody is left to wait for (``None``)."""
        deadline = time.monotonic() + self.settings["limits"]["seconds"] + GRACE
        watched = [self.control, ended] if self.place.namespaces else [self.control]
        while time.monotonic() < deadline:
            ready = select.select(watched, [], [], 0.5 if self.place.namespaces else 0.01)[0]
            if self.control in ready:
                if not os.read(self.control, 16):
                    self.caller_died()
                return None
            if ended in ready:
                status = os.read(ended, 32)
                return int(status) if status else None
            if not self.place.namespaces and (status_now := self._reap()) is not None:
                return status_now
        return None

    def _reap(self) -> int | None:
        """Collect whoever ended (orphans come here); the code's own status when it is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == self.child:
                return status
            if pid == 0:
                return None

    def end_everything(self) -> None:
        """Kill the namespace (the kernel waits until it is empty), or the tree, again and again until none is left."""
        if self.place.namespaces:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # done before, and interrupted
                os.kill(self.child, signal.SIGKILL)
                os.waitpid(self.child, 0)
            return
        if not calls.LINUX and self.child:  # no /proc to find the tree by: its group here, the rest by the caller
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child, signal.SIGKILL)
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            self._kill_user()
            for pid in descendants(os.getpid()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._reap()
            if not descendants(os.getpid()):
                return
            time.sleep(0.005)

    def _kill_user(self) -> None:
        """As the code's own user: one call that reaches every process at once, however fast they fork."""
        if self.place.uid is None:
            return
        pid = os.fork()
        if pid == 0:
            try:
                os.setresuid(self.place.uid, self.place.uid, self.place.uid)
                os.kill(-1, signal.SIGKILL)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    def hand_back(self) -> None:
        """The files, once nothing runs that could change them."""
        if not self.place.namespaces and self.place.uid is not None:
            os.chmod(self.place.box, 0o700)
        for name, content, why in folders.collect(self.place.box, self.settings["given"], self.settings["returned"]):
            self.frames.send(content or b"", file=name, left_out=why)

    def caller_died(self, *_: object) -> NoReturn:
        """Nobody is left to tell: end everything, remove the folder, go."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the pipe and the signal both tell; once is enough
        try:
            if self.child or not self.place.namespaces:
                self.end_everything()
            folders.sweep(self.name, self.above)
        finally:
            os._exit(70)


def held_by_kernel(how: str) -> bool:
    """Whether the kernel enforces it without a rest, rather than that it is watched, refused in Python or absent."""
    return not how.startswith(("none", "watched", "refused in Python")) and "remain" not in how


def descendants(root: int) -> list[int]:
    """All living processes below ``root``, by /proc (none where there is no /proc: the caller's watcher does it)."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _said(pipe: int, whole: bool = False) -> dict[str, Any]:
    """What the child says: its first line, or (``whole``) all there is until the pipe closes at the exec."""
    data = b""
    while (whole or b"\n" not in data) and (piece := os.read(pipe, 65536)):
        data += piece
    told: dict[str, Any] = {}
    for line in data.splitlines():
        told.update(json.loads(line))
    return told


def main(path: str) -> None:
    with open(path, "rb") as file:
        run = Run(json.load(file))
    try:
        _supervise(run)
    except BrokenPipeError:
        run.caller_died()


def _supervise(run: Run) -> None:
    try:
        run.prepare()
    except (OSError, StopIteration) as problem:
        run.frames.send(unavailable=f"{run.settings['rung']}: {problem}")
        return
    started = time.monotonic()
    built, ended = run.start()
    told = _said(built) or {"unavailable": "the process ended before it could start Python"}
    run.frames.send(**told, landlock=landlock.version() if calls.LINUX else 0)
    ready = "unavailable" not in told and not told["missing"]
    if ready:  # the caller knows; whatever happens now, it runs once
        with contextlib.suppress(BrokenPipeError):  # it is gone already: its end is told like any other
            os.write(run.begin, b"g")
        if failed := _said(built, whole=True):
            run.frames.send(**failed)
            ready = False
    status = run.wait(ended) if ready else None
    seconds = time.monotonic() - started
    run.end_everything()
    run.frames.send(status=status, seconds=seconds)
    run.hand_back()
    run.frames.send(complete=True)
