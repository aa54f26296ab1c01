"""What the child puts on before it becomes the code: limits, another user, no capabilities, Landlock, the filter.

``raise_walls`` returns, in plain words, how each promise is kept; nothing is claimed that was not done.
"""

from __future__ import annotations

import math
import os
import resource
import signal
from dataclasses import dataclass
from typing import Any

from . import calls, landlock, seccomp

DYNAMIC_USERS = range(61184, 65520)  # systemd's range for users that exist for one service only


@dataclass
class Place:
    """Where the code will run and what was built around it so far."""

    box: str
    code: str
    readable: list[str]
    namespaces: str = ""  # "", "privileged" or "user namespace"
    uid: int | None = None  # another user to become, if any
    why_same_user: str = ""
    protected: tuple[int, ...] = ()  # processes the filter shields where there is no process id namespace
    tasks: int = 0  # of this user already running, where they count against the limit; -1: the limit binds nobody


def free_uid() -> int:
    """A user id that no process has now, another one for each sandbox."""
    taken = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                taken.add(os.stat(f"/proc/{name}").st_uid)
            except OSError:
                continue
    start = os.getpid() % len(DYNAMIC_USERS)
    order = [*DYNAMIC_USERS[start:], *DYNAMIC_USERS[:start]]
    return next(uid for uid in order if uid not in taken)


def user_tasks(uid: int) -> int:
    """Threads of all processes of ``uid``: what RLIMIT_NPROC counts outside a user namespace."""
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                total += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return total


def another_user_can(uid: int, python: str, box: str) -> bool:
    """Whether ``uid`` may run the interpreter and write the box (tried in a child, which ends)."""
    pid = os.fork()
    if pid == 0:
        try:
            become_user(uid)
            library = os.path.dirname(os.__file__)
            fine = os.access(python, os.X_OK) and os.access(f"{library}/os.py", os.R_OK) and os.access(box, os.W_OK)
            os._exit(0 if fine else 1)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def become_user(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def raise_walls(place: Place, limits: dict[str, Any], without: list[str]) -> dict[str, str]:
    """Everything that a process does to itself, in the only order that works; returns how each promise is kept."""
    done = {"landlock": 0, "seccomp": 0, "privileges": 0}
    refused = _set_limits(place, limits)
    if calls.LINUX:
        calls.prctl(calls.PR_SET_NO_NEW_PRIVS, 1)
        if place.uid is not None:
            become_user(place.uid)
        calls.drop_capabilities()
        done["privileges"] = 1
        calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user cleared it
        done["landlock"] = 0 if "landlock" in without else _landlock(place)
        done["seccomp"] = 0 if "seccomp" in without else _seccomp(place)
    return describe(place, done, refused)


def _set_limits(place: Place, limits: dict[str, Any]) -> list[str]:
    wanted = {
        "CPU": math.ceil(limits["cpu_seconds"]),
        "AS": int(limits["memory_mb"] * 2**20),
        "FSIZE": int(limits["file_mb"] * 2**20),
        "NOFILE": limits["open_files"],
        "CORE": 0,
        "MSGQUEUE": 0,
    }
    if place.tasks >= 0:
        wanted["NPROC"] = limits["processes"] + place.tasks
    refused = []
    for name, value in wanted.items():
        try:
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value + 1 if name == "CPU" and value != hard else value))
        except (AttributeError, ValueError, OSError):
            refused.append(name)
    return refused


def _landlock(place: Place) -> int:
    abi = landlock.version()
    if abi:
        write = [place.box, "/dev/null"]
        landlock.restrict([*place.readable, place.code, "/dev/zero", "/dev/random", "/dev/urandom"], write, abi)
    return abi


def _seccomp(place: Place) -> int:
    if not seccomp.supported():
        return 0
    try:
        own_files = not place.namespaces and place.uid is None  # the code has the rights of these files' owner
        seccomp.install(place.protected, forks=place.tasks >= 0, attributes=not own_files)
        return 1
    except OSError:
        return 0


def describe(place: Place, done: dict[str, int], refused: list[str]) -> dict[str, str]:
    """Promise -> how it is kept on this run. "none", "watched" and "refused in Python" are not held by the kernel."""
    abi, filtered, spaces = done["landlock"], bool(done["seccomp"]), bool(place.namespaces)
    other = place.uid is not None

    def ways(*pairs: tuple[object, str], otherwise: str) -> str:
        return " + ".join(text for condition, text in pairs if condition) or otherwise

    signals = ways(
        (spaces, "pid namespace"),
        (abi >= 6, "landlock"),
        (other, "another user"),
        otherwise="seccomp (processes but caller and supervisor remain)" if filtered else "none",
    )
    reaper = "subreaper" if signals != "none" else "watched (by a subreaper, which the code can kill)"
    processes = "rlimit + watched" if "NPROC" not in refused else "watched"
    if place.tasks < 0:  # root: the kernel lets it start any number
        processes = "seccomp (it can start none) + watched" if filtered else "refused in Python"
    alone = "landlock" if filtered or spaces or other else "landlock (modes and times of the user's files remain)"
    if abi in (1, 2) and not spaces and not other:
        alone = "landlock of before 6.2 (emptying files that can be read remains)"
    inside = [(spaces, "mount namespace"), (abi, alone), (other, "another user")]
    open_places = "another user (places open to everybody remain)" if other else "refused in Python"
    return {
        "network": ways((spaces, "namespace"), (filtered, "seccomp"), otherwise="refused in Python"),
        "writes": ways(*inside, otherwise="") if spaces or abi else open_places,
        "reads": ways(
            (spaces, "mount namespace"),
            (abi, "landlock"),
            otherwise="another user's rights (what is open to everybody remains)" if other else "none",
        ),
        "signals": signals,
        "tracing": ways((spaces, "pid namespace"), (filtered, "seccomp"), (other, "another user"), otherwise="none"),
        "system calls": "seccomp" if filtered else "none",
        "user": f"uid {place.uid}, no capabilities"
        if other
        else f"the caller's{place.why_same_user}{', no capabilities' if done['privileges'] else ''}",
        "processes": processes,
        "memory": "watched" if "AS" in refused else "rlimit of each process (their sum remains watched)",
        "cpu": "watched" if "CPU" in refused else "rlimit of each process (their sum remains watched)",
        "disk": "tmpfs of that size" if spaces else "watched",
        "file size": "none" if "FSIZE" in refused else "rlimit",
        "open files": "none" if "NOFILE" in refused else "rlimit",
        "leftovers": "pid namespace" if spaces else reaper if calls.LINUX else "watched",
        "environment": "allow-list",
        "descriptors": "closed at exec",
    }
