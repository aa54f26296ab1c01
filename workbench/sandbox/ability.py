"""What this machine can enforce, found by building the walls and looking, not by reading version numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.sandbox.caller import LAYERS, run
from workbench.sandbox.jail.supervisor import held_by_kernel
from workbench.sandbox.limits import Limits, SandboxUnavailable

if TYPE_CHECKING:
    import pandas as pd

_MEANING = {
    "network": "no connection to anything, this machine included",
    "writes": "nothing is written outside the folder",
    "reads": "nothing is read but Python, the system's libraries and the folder",
    "signals": "no process outside is signalled",
    "tracing": "no process outside is looked into",
    "system calls": "calls that lead around the other walls are refused",
    "user": "whose rights the code has",
    "processes": "number of processes",
    "memory": "memory of all processes",
    "cpu": "processor time of all processes",
    "disk": "size of the folder, number of files",
    "file size": "size of one file",
    "open files": "descriptors of one process",
    "leftovers": "nothing goes on running afterwards",
    "environment": "no variable of the caller is seen",
    "descriptors": "no open file of the caller is seen",
}


def protections() -> pd.DataFrame:
    """One row per promise: promise, means, how (as in ``Report.protections``), by (kernel, kernel in part, watcher,
    python, nobody), and how it is kept when layers are missing: without_namespaces, without_kernel_walls.

    Each column is a real run of an empty program. Raises ``SandboxUnavailable`` where nothing can be run.
    """
    import pandas as pd

    best = _probe(())
    plain, bare = _probe(("namespaces",)), _probe(LAYERS)
    rows = [
        {
            "promise": name,
            "means": _MEANING.get(name, ""),
            "how": how,
            "by": _by(how),
            "without_namespaces": plain.get(name, "none"),
            "without_kernel_walls": bare.get(name, "none"),
        }
        for name, how in best.items()
    ]
    return pd.DataFrame(rows)


def _probe(without: tuple[str, ...]) -> dict[str, str]:
    report = run("", without=without, limits=Limits(seconds=20))
    if not report.ok:
        raise SandboxUnavailable(f"an empty program does not run here: {report.message}")
    return report.protections


def _by(how: str) -> str:
    if held_by_kernel(how) and not how.startswith("the caller's"):
        return "kernel"
    for start, who in (("watched", "watcher"), ("refused", "python"), ("none", "nobody")):
        if how.startswith(start):
            return who
    return "kernel in part"  # something remains, or the code has the caller's own rights
