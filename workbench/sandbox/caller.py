"""The caller's side of a run: writes the folder, starts the supervisor, reads, watches the clock, reports."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import selectors
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.errors import BadInput
from workbench.sandbox.jail import folders
from workbench.sandbox.limits import Limits, Report, SandboxUnavailable, check_args, check_code, check_files
from workbench.sandbox.watch import Watch

PROMISES: tuple[str, ...] = ("network", "writes", "reads", "signals", "tracing", "system calls", "processes", "memory")
PROMISES += ("cpu", "disk", "file size", "open files", "leftovers")
LAYERS = ("namespaces", "landlock", "seccomp")
JAIL = Path(__file__).parent / "jail"
TICK = 0.04  # seconds between two looks at the tree
START = 30.0  # seconds to build the walls (a few hundredths on an idle machine)
PATIENCE = 3.0  # seconds without a word after which a supervisor that was told to stop is taken for stuck
MEMORY_EXIT = 97  # as in jail/runner.py


class _Unavailable(Exception):
    """This way of building the walls does not work here; the next one is tried."""


def run(
    code: str,
    *,
    files: Mapping[str, str | bytes] | None = None,
    args: Iterable[str] = (),
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    stdin: str = "",
    packages: bool = False,
    require: Iterable[str] = (),
    without: Iterable[str] = (),
) -> Report:
    """Run Python source in a process of its own, inside the walls that this machine can build.

    ``files`` are put into its folder, which is the working directory and the first place that ``import`` looks;
    ``args`` become ``sys.argv[1:]``; ``packages=True`` lets it import what is installed here (numpy and so on), read
    only. ``require`` names promises (``"network"``, ``"writes"``, ...) that the kernel itself must hold: where it
    cannot, nothing is run. ``without`` leaves layers out (``"namespaces"``, ``"landlock"``, ``"seccomp"``), to see what
    the others do; the report says what is left.

    A failing program is not an exception: look at ``Report.status``. Raises ``BadInput`` for arguments that cannot be
    meant and ``SandboxUnavailable`` where the code was not run at all.

    >>> report = run("print(6 * 7)")
    >>> report.status, report.stdout
    ('ok', '42\\n')
    """
    if not isinstance(limits, Limits):
        raise BadInput(f"limits is {type(limits).__name__}; give Limits(seconds=10, ...)")
    if not isinstance(stdin, str):
        raise BadInput(f"stdin is {type(stdin).__name__}; give str")
    if os.name != "posix":
        raise SandboxUnavailable(f"the sandbox needs a POSIX system with process groups and limits, not {os.name!r}")
    given = check_files(files, limits)
    job: dict[str, Any] = {
        "args": check_args(args),
        "require": _names("require", require, PROMISES),
        "without": _names("without", without, LAYERS),
        "packages": _site_packages() if packages else [],
        "limits": asdict(limits),
        "given": {name: hashlib.sha256(data).hexdigest() for name, data in given.items()},
        "returned": int(limits.returned_mb * 2**20),
    }
    source, typed = check_code(code), stdin.encode("utf-8", "surrogatepass")
    problems = []
    for rung in _rungs(job["without"]):
        run_ = _Run(rung, job, limits)
        try:
            return run_.report(source, typed, given)
        except _Unavailable as problem:
            problems.append(str(problem))
    raise SandboxUnavailable("the code was not run: " + "; ".join(problems))


def _names(argument: str, names: Iterable[str], known: tuple[str, ...]) -> list[str]:
    chosen = [names] if isinstance(names, str) else list(names)
    if wrong := [name for name in chosen if name not in known]:
        raise BadInput(f"{argument} names {wrong[0]!r}; known: {', '.join(known)}")
    return chosen


def _rungs(without: list[str]) -> list[str]:
    spaces = sys.platform.startswith("linux") and "namespaces" not in without
    return ["namespaces", "plain"] if spaces else ["plain"]


def interpreter() -> str:
    """The Python underneath any virtual environment: it starts without reading the environment's settings."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _site_packages() -> list[str]:
    """Folders with installed packages; ``.pth`` files in them are not followed."""
    found = [*site.getsitepackages(), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    return [path for path in dict.fromkeys(map(os.path.realpath, found)) if os.path.isdir(path)]


def _readable(packages: list[str]) -> list[str]:
    """What Python needs to start: its installation and the system's shared libraries."""
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"]
    bases = [os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)]
    store = ["/nix/store"] if bases[0].startswith("/nix/store/") else []
    return [*bases, *system, *store, *packages]


class _Run:
    """One attempt with one way of building walls."""

    def __init__(self, rung: str, job: dict[str, Any], limits: Limits):
        self.rung, self.job, self.limits = rung, job, limits
        self.kept = {"stdout": bytearray(), "stderr": bytearray()}
        self.printed = {"stdout": 0, "stderr": 0}
        self.frames = bytearray()

    def report(self, source: bytes, stdin: bytes, given: dict[str, bytes]) -> Report:
        """Run it and put the report together; nothing is left on disk or running."""
        folder = tempfile.mkdtemp(prefix="workbench-sandbox-")
        try:
            _fill(Path(folder), source, stdin, given)
            why = self._supervised(folder)
            return self._conclude(why)
        finally:
            folders.sweep(folder)

    def _supervised(self, folder: str) -> str | None:
        """Start the supervisor, read until it is done; returns the limit that was passed, if one was."""
        report_read, report_write = os.pipe()
        control_read, control_write = os.pipe()
        try:
            with self._start(folder, report_write, control_read) as process:
                os.close(report_write)
                os.close(control_read)
                helpers, counted = (1, None) if self.rung == "namespaces" else (0, f"{folder}/box")
                self.watch = Watch(process.pid, self.limits, helpers, counted)
                try:
                    return self._read(process, report_read, control_write) or self.watch.disk()
                finally:
                    self._end(process)
        finally:
            for handle in (report_read, control_write):
                os.close(handle)

    def _start(self, folder: str, report: int, control: int) -> subprocess.Popen[bytes]:
        python = interpreter()
        settings = {
            **self.job,
            "rung": self.rung,
            "folder": folder,
            "report": report,
            "control": control,
            "parent": os.getpid(),
            "python": python,
            "readable": _readable(self.job["packages"]),
        }
        path = Path(folder, "settings.json")
        path.write_text(json.dumps(settings), encoding="utf-8")
        return subprocess.Popen(
            [python, "-I", "-S", "-B", "-X", "utf8", str(JAIL / "launch.py"), str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(report, control),
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )

    def _read(self, process: subprocess.Popen[bytes], report: int, control: int) -> str | None:
        """Drain the three pipes until all are closed; asks the supervisor to stop when a limit is passed."""
        why: str | None = None
        begun = time.monotonic()
        started = stopped = looked = 0.0
        with selectors.DefaultSelector() as pipes:
            assert process.stdout is not None
            assert process.stderr is not None
            for source, name in ((process.stdout.fileno(), "stdout"), (process.stderr.fileno(), "stderr")):
                pipes.register(source, selectors.EVENT_READ, name)
            pipes.register(report, selectors.EVENT_READ, "report")
            while pipes.get_map():
                for key, _ in pipes.select(TICK):
                    piece = os.read(key.fd, 65536)
                    if not piece:
                        pipes.unregister(key.fd)
                    self._take(key.data, piece)
                    if stopped and key.data == "report" and piece:
                        stopped = time.monotonic()
                now = time.monotonic()
                if stopped:
                    if now - stopped > PATIENCE:
                        return why
                    continue
                if now - looked < TICK:
                    continue
                looked = now
                if self.frames and not started:  # the first word: the walls stand and Python starts
                    started = now
                if not started and now - begun > START:
                    return None
                why = self._passed(now - started if started else 0.0)
                if why:
                    stopped = now
                    self._stop(control)
        return why

    def _take(self, name: str, piece: bytes) -> None:
        if name == "report":
            self.frames += piece
            return
        room = int(self.limits.output_kb * 1024) - len(self.kept[name])
        self.kept[name] += piece[: max(room, 0)]
        self.printed[name] += len(piece)

    def _passed(self, elapsed: float) -> str | None:
        if b"\n" in self.frames[:-1] and b'"status"' in self.frames:  # the code is over, its files are on their way
            return None
        if elapsed > self.limits.seconds:
            return "timeout"
        if max(self.printed.values()) > 10 * 1024 * self.limits.output_kb:
            return "killed: output"
        return self.watch.exceeded()

    def _stop(self, control: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(control, b"stop")

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """The supervisor cleans up and goes; one that does not (stopped, broken) is ended with all below it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5 if process.poll() is None and self._complete() else 0)
        self.watch.kill()
        process.kill()
        process.wait()

    def _complete(self) -> bool:
        return b'"complete": true' in self.frames[-64:]

    def _conclude(self, why: str | None) -> Report:
        told: dict[str, Any] = {}
        files, left_out = {}, {}
        for head, content in _parse(self.frames):
            if "file" not in head:
                told.update(head)
            elif head["left_out"]:
                left_out[head["file"]] = head["left_out"]
            else:
                files[head["file"]] = content
        if missing := told.get("missing"):
            held = "; ".join(f"{name} would be: {told['protections'].get(name, 'none')}" for name in missing)
            raise _Unavailable(f"the kernel cannot hold {', '.join(missing)} ({self.rung}: {held})")
        if "protections" not in told or "unavailable" in told:
            fallen = bytes(self.kept["stderr"][-500:]).decode(errors="replace").strip()
            raise _Unavailable(told.get("unavailable") or f"{self.rung}: the supervisor did not start: {fallen}")
        status, exit_code = _status(why, told)
        limit = int(self.limits.output_kb * 1024)
        return Report(
            status=status,
            exit_code=exit_code,
            stdout=_text(self.kept["stdout"]),
            stderr=_text(self.kept["stderr"]),
            truncated=max(self.printed.values()) > limit,
            seconds=told.get("seconds", self.limits.seconds),
            cpu_seconds=self.watch.cpu,
            peak_memory_mb=self.watch.peak,
            files=files,
            left_out=left_out,
            protections=told["protections"],
            limits=self.limits,
        )


def _fill(folder: Path, source: bytes, stdin: bytes, given: dict[str, bytes]) -> None:
    for name in ("box", "code"):
        (folder / name).mkdir()
    shutil.copyfile(JAIL / "runner.py", folder / "code" / "runner.py")
    (folder / "code" / "main.py").write_bytes(source)
    (folder / "stdin").write_bytes(stdin)
    for name, data in given.items():
        path = folder / "box" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _parse(frames: bytearray) -> Iterable[tuple[dict[str, Any], bytes]]:
    """The supervisor's messages; a last one that was cut off is dropped."""
    at = 0
    while (line := frames.find(b"\n", at)) >= 0:
        head = json.loads(bytes(frames[at:line]))
        end = line + 1 + head.pop("size")
        if end > len(frames):
            return
        yield head, bytes(frames[line + 1 : end])
        at = end


def _status(why: str | None, told: dict[str, Any]) -> tuple[str, int | None]:
    """A passed limit says more than the exit code that it caused."""
    wait_status = told.get("status")
    code = None if wait_status is None else os.waitstatus_to_exitcode(wait_status)
    if why:
        return why, code
    if code is None:  # with a word from the supervisor: its own clock, as the caller was held up
        return ("timeout" if "status" in told else "lost"), None
    if code == 0:
        return "ok", 0
    if code == MEMORY_EXIT:
        return "killed: memory", code
    if code == -signal.SIGXCPU:
        return "killed: cpu", code
    if code < 0:
        return f"killed: {signal.Signals(-code).name if -code in set(signal.Signals) else -code}", code
    return "error", code


def _text(data: bytearray) -> str:
    return bytes(data).decode("utf-8", "backslashreplace")
