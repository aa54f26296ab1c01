"""What a run may use, what it is given, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath

from workbench.errors import BadInput, WorkbenchError


class SandboxUnavailable(WorkbenchError):
    """This machine cannot run the code as asked (a required protection, or the sandbox as a whole); nothing was run."""


_BOUNDS = {
    "seconds": (0.1, 86_400),
    "cpu_seconds": (0.1, 86_400),
    "memory_mb": (32, 1_048_576),
    "disk_mb": (1, 65_536),
    "file_mb": (0.001, 65_536),
    "processes": (1, 4096),
    "output_kb": (1, 1_048_576),
    "open_files": (16, 65_536),
    "files": (4, 1_000_000),
    "returned_mb": (0, 1024),
}
MOST_CODE = 16 * 2**20  # must fit beside Python into the new root folder (jail/mounts.py)
_WHOLE = ("processes", "open_files", "files")


@dataclass(frozen=True)
class Limits:
    """Bounds of one run. All hold for everything that the code starts, together, unless the line says otherwise.

    seconds      wall clock, from the start of Python to the end [s]
    cpu_seconds  processor time; the kernel rounds it up to whole seconds for one process [s]
    memory_mb    address space of one process and resident memory of all [MiB]
    disk_mb      the folder [MiB]
    file_mb      one file [MiB]
    processes    processes at the same time, threads included
    output_kb    standard output, and standard error as well: what is kept of each; ten times as much ends the run [KiB]
    open_files   descriptors of one process
    files        files and folders in the folder
    returned_mb  files handed back in the report; others are named in ``left_out`` [MiB]
    """

    seconds: float = 10
    cpu_seconds: float = 5
    memory_mb: float = 512
    disk_mb: float = 50
    file_mb: float = 10
    processes: int = 16
    output_kb: float = 256
    open_files: int = 64
    files: int = 1000
    returned_mb: float = 8

    def __post_init__(self) -> None:
        for item in fields(self):
            value, (low, high) = getattr(self, item.name), _BOUNDS[item.name]
            kinds = int if item.name in _WHOLE else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
                kind = "a whole number" if item.name in _WHOLE else "a finite number"
                raise BadInput(f"Limits.{item.name} is {value!r}; give {kind} from {low} to {high}")
            if not low <= value <= high:
                raise BadInput(f"Limits.{item.name} is {value}; give a number from {low} to {high}")


_MEANING = {
    "ok": "the code ran to its end",
    "error": "the code failed; stderr says where",
    "timeout": "the code was still running when its {seconds:g} s were over (an endless loop, or a wait)",
    "killed: cpu": "the code used more than {cpu_seconds:g} s of processor time",
    "killed: memory": "the code needed more than {memory_mb:g} MiB of memory",
    "killed: disk": "the code wrote more than {disk_mb:g} MiB or {files} files",
    "killed: processes": "the code ran more than {processes} processes at once",
    "lost": "the process that watches the code was itself killed from outside; what the code did is not known",
    "killed: output": "the code printed more than ten times {output_kb:g} KiB",
}


@dataclass(frozen=True)
class Report:
    """What one run did.

    status          "ok", "error", "timeout", "killed: cpu | memory | disk | processes | output" (a limit),
                    "killed: SIGSEGV" and the like (the code died of a signal that no limit sent),
                    "lost" (the supervisor was killed from outside, for example by a machine out of memory)
    exit_code       of the code; negative: the signal's number; ``None``: it was ended from outside
    stdout, stderr  decoded as UTF-8, bytes that are not are shown as ``\\xNN``
    truncated       whether output was cut at the limit
    seconds         wall clock of the code [s]
    cpu_seconds     processor time as far as seen [s]
    peak_memory_mb  largest resident memory seen, all processes together (sampled, so a short peak may be missed) [MiB]
    files           name -> content of new and changed files; ``left_out``: name -> why a file is not there
    protections     promise -> how it was kept, in this run, on this machine
    limits          the limits it ran under
    """

    status: str
    exit_code: int | None
    stdout: str
    stderr: str
    truncated: bool
    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    files: dict[str, bytes]
    left_out: dict[str, str]
    protections: dict[str, str]
    limits: Limits = field(repr=False)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def message(self) -> str:
        """One sentence for people (or for the model that wrote the code)."""
        values = {item.name: getattr(self.limits, item.name) for item in fields(self.limits)}
        meaning = _MEANING.get(self.status, "the code's process died of a signal (a crash below Python)")
        last = self.stderr.strip().splitlines()[-1:] if self.status == "error" else []
        return f"{self.status}: {meaning.format(**values)}" + "".join(f": {line[:300]}" for line in last)


def check_code(code: object) -> bytes:
    if not isinstance(code, str):
        raise BadInput(f"code is {type(code).__name__}; give the Python source as str")
    source = _encoded(code, "code")
    if len(source) > MOST_CODE:
        raise BadInput(f"code has {len(source):,} bytes; at most {MOST_CODE:,} are run: give data as files")
    return source


def check_files(files: Mapping[str, str | bytes] | None, limits: Limits) -> dict[str, bytes]:
    """Names and contents that fit into the folder; raises ``BadInput`` before anything is written."""
    checked: dict[str, bytes] = {}
    for name, content in (files or {}).items():
        _check_name(name)
        if not isinstance(content, str | bytes):
            raise BadInput(f"files[{name!r}] is {type(content).__name__}; give str or bytes")
        data = _encoded(content, f"files[{name!r}]") if isinstance(content, str) else content
        if len(data) > limits.file_mb * 2**20:
            raise BadInput(f"files[{name!r}] has {len(data):,} bytes; file_mb={limits.file_mb:g} allows less")
        checked[str(PurePosixPath(name))] = data
    total = sum(-(-len(data) // 4096) * 4096 for data in checked.values())
    if total > limits.disk_mb * 2**20:
        raise BadInput(f"files take {total:,} bytes on disk; disk_mb={limits.disk_mb:g} allows less")
    folders = {str(parent) for name in checked for parent in PurePosixPath(name).parents} - {"."}
    if clash := folders & set(checked):
        raise BadInput(f"files names {sorted(clash)[0]!r} both as a file and as a folder")
    if len(checked) + len(folders) > limits.files:
        raise BadInput(f"{len(checked)} files and {len(folders)} folders; files={limits.files} allows less")
    return checked


def _check_name(name: object) -> None:
    legal = (
        "give a relative path inside the folder, such as 'data/input.csv', each part at most 255 bytes, 1,000 in all"
    )
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadInput(f"file name {name!r}: {legal}")
    parts = PurePosixPath(name).parts
    long = len(_encoded(name, f"file name {name!r}")) > 1000
    if long or (
        not parts
        or name.startswith("/")
        or ".." in parts
        or len(parts) > 16
        or any(len(p.encode()) > 255 for p in parts)
    ):
        raise BadInput(f"file name {name!r} leaves the folder or cannot be a path there: {legal}")


def check_args(args: Iterable[str]) -> list[str]:
    if isinstance(args, str):
        raise BadInput(f"args is the text {args[:40]!r}; give a sequence of texts, such as [{args[:40]!r}]")
    checked = list(args)
    for arg in checked:
        if not isinstance(arg, str) or "\0" in arg:
            raise BadInput(f"args holds {arg!r}; give texts without null characters")
        _encoded(arg, "args")
    if sum(len(arg) for arg in checked) > 16_384:
        raise BadInput("args are longer than 16,384 characters together; give long input as files or stdin")
    return checked


def _encoded(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as problem:
        at = problem.start
        raise BadInput(f"{what} has a character that UTF-8 cannot write (lone surrogate) at position {at}") from None
