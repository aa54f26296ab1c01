"""Landlock: the kernel refuses files outside a list, TCP, and signals and abstract sockets to the outside.

Any process may restrict itself, no right is needed; see the kernel's ``userspace-api/landlock``. The version of the
interface (ABI) says what can be asked: 1 files (5.13), 3 truncate, 4 TCP (6.7), 5 device ioctl, 6 signals (6.12).
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

from . import calls

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
READ = EXECUTE | READ_FILE | READ_DIR
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
TCP = 3  # bind and connect
SCOPE = 3  # abstract unix sockets and signals
FILE_ONLY = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """The ABI of this kernel; 0: no Landlock."""
    if not calls.LINUX:
        return 0
    try:
        return calls.call(calls.LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def handled(abi: int) -> int:
    """Every file right that this ABI knows."""
    return (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1


def restrict(read: Iterable[str], write: Iterable[str], abi: int) -> None:
    """From here on only ``read`` (with execute) and ``write`` (everything) can be opened; needs ``no_new_privs``."""
    rights = handled(abi)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = _Ruleset(rights, TCP if abi >= 4 else 0, SCOPE if abi >= 6 else 0)
    ruleset = calls.call(calls.LANDLOCK_CREATE, ctypes.byref(attributes), size, 0, name="landlock_create_ruleset")
    try:
        for paths, allowed in ((read, READ), (write, rights & ~IOCTL_DEV)):
            for path in paths:
                _allow(ruleset, path, allowed)
        calls.call(calls.LANDLOCK_RESTRICT, ruleset, 0, name="landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, allowed: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # what is not there needs no permission
        return
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            allowed &= FILE_ONLY
        rule = _Beneath(allowed, handle)
        calls.call(calls.LANDLOCK_ADD, ruleset, 1, ctypes.byref(rule), 0, name="landlock_add_rule")
    finally:
        os.close(handle)
