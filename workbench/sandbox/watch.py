"""The caller's eye on everything the code started: counts what the kernel does not add up over processes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from workbench.sandbox.jail import folders
from workbench.sandbox.limits import Limits

MIB = 2**20


@dataclass
class Watch:
    """Samples the tree below the supervisor.

    ``helpers`` processes at the top are ours (the first process of a PID namespace); ``folder`` is counted where no
    tmpfs holds the disk limit.
    """

    supervisor: int
    limits: Limits
    helpers: int = 0
    folder: str | None = None
    peak: float = 0.0
    cpu: float = 0.0

    def __post_init__(self) -> None:
        self.seen: dict[int, psutil.Process] = {}

    def exceeded(self) -> str | None:
        """The limit that is passed now, as a status, or ``None``."""
        tree = self.tree()
        memory, cpu, tasks = 0.0, 0.0, 0
        for process in tree:
            try:
                held, threads = footprint(process)
                times = process.cpu_times()
                cpu += times.user + times.system + times.children_user + times.children_system
                memory += held / MIB
                tasks += threads
            except psutil.Error:
                continue
        self.peak, self.cpu = max(self.peak, memory), max(self.cpu, cpu)
        limits = self.limits
        if tasks - self.helpers > limits.processes:
            return "killed: processes"
        if memory > limits.memory_mb:
            return "killed: memory"
        if cpu > limits.cpu_seconds:
            return "killed: cpu"
        return self.disk()

    def disk(self) -> str | None:
        """The disk limit alone; looked at once more after the end, since a short run may pass between two looks."""
        if self.folder is None:
            return None
        most, count = self.limits.disk_mb * MIB, self.limits.files
        size, entries = folders.usage(self.folder, int(most), count)
        return "killed: disk" if size > most or entries > count else None

    def tree(self) -> list[psutil.Process]:
        """Everything below the supervisor, and what was seen there before and lives on under another parent."""
        try:
            now = psutil.Process(self.supervisor).children(recursive=True)
        except psutil.Error:
            now = []
        self.seen.update({process.pid: process for process in now})
        known = {process.pid for process in now}
        lost = [process for pid, process in list(self.seen.items()) if pid not in known]
        for process in lost:
            if process.is_running():  # compares start times, so a reused number is not taken for it
                now.append(process)
            else:
                del self.seen[process.pid]
        return now

    def kill(self) -> None:
        """Last resort, where the supervisor does not answer: everything ever seen, then the supervisor."""
        for process in self.tree():
            try:
                process.kill()
            except psutil.Error:
                continue


def footprint(process: psutil.Process) -> tuple[float, int]:
    """Bytes (without mapped files: what it alone keeps, and shared memory it made) and threads of one process."""
    if not sys.platform.startswith("linux"):
        return float(process.memory_info().rss), process.num_threads()
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    held = sum(1024.0 * int(told[name].split()[0]) for name in ("RssAnon", "RssShmem") if name in told)
    return held, 0 if told.get("State", "").strip().startswith("Z") else int(told.get("Threads", 1))
