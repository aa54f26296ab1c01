"""Linux system calls that Python has no function for, by ctypes; a failure is an ``OSError`` that names the call."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys

LINUX = sys.platform.startswith("linux")

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWCGROUP = 0x20000000, 0x40000000, 0x2000000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4

#: Numbers that differ between machines; the ones added since 2019 (Landlock, mount_setattr) are the same on all.
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(platform.machine(), -1)
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def call(number: int, *args: object, name: str = "system call") -> int:
    """A raw system call; integers are passed as 64 bit."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide), name)


def prctl(option: int, *args: object) -> int:
    wide = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in args]
    return _checked(_libc.prctl(ctypes.c_int(option), *wide, *[ctypes.c_ulong(0)] * (4 - len(wide))), "prctl")


def unshare(flags: int) -> None:
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    done = _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    _checked(done, f"mount {target}")


def pivot_root(new: str, old: str) -> None:
    call(PIVOT_ROOT, os.fsencode(new), os.fsencode(old), name="pivot_root")


def umount(target: str) -> None:
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), f"umount {target}")


def die_with_parent(signal_number: int, parent: int) -> None:
    """Ask for a signal when the parent dies; ends at once where it is dead already. Lost by a change of user."""
    prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() not in (parent, 0):
        os._exit(70)


def drop_capabilities() -> None:
    """No capability now and none at the next exec (with ``no_new_privs`` that holds for uid 0 as well)."""
    for number in range(64):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError:  # past the last capability, or no right to drop: the sets below are emptied anyway
            break
    with contextlib.suppress(OSError):
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
