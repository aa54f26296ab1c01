"""A system call filter: no sockets, no way into other processes, no namespaces, mounts or kernel interfaces.

A blocklist, because Python with numpy uses some 150 calls that differ by C library: it closes the doors that the other
walls leave (io_uring makes sockets without ``socket``; memfd and System V memory escape the memory count).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Iterable

from . import calls

_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
#: name: (x86_64, aarch64); -1 where a machine has no such call.
REFUSED = {
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "io_uring_setup": (425, 425),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "acct": (163, 89),
    "syslog": (103, 116),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "mknod": (133, -1),
    "mknodat": (259, 33),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
#: Mode, owner, times and attributes change without a right to write: Landlock lets a file's owner do it anywhere.
ATTRIBUTES = {
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
_CLONE, _CLONE3 = (56, 220), 435
_SIGNALLING = {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138)} | {
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
}
_FORK, _VFORK, _CLONE_THREAD = 57, 58, 0x10000  # x86_64 only, x86_64 only, flag of clone
#: Reach other processes of the same user: allowed on oneself, whom these calls name 0.
_ONESELF = {
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
}
_SETPRIORITY, _FCNTL, _IOCTL = (141, 140), (72, 25), (16, 29)
_OWNERS = {"fcntl": (8, 10, 15), "ioctl": (0x8901, 0x8902)}  # have the kernel signal another process
_NEW_NAMESPACE = 0x7E020000  # every CLONE_NEW* flag that clone takes

_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000


def supported() -> bool:
    """Whether a filter can be written for this machine (whether the kernel takes it shows when it is installed)."""
    return calls.LINUX and platform.machine() in _ARCH


def _refuse(number: int) -> int:
    return 0x00050000 | number


def program(protected: Iterable[int] = (), forks: bool = True, attributes: bool = True) -> bytes:
    """The filter as BPF. ``protected``: process ids that may not be signalled (nor groups, nor everybody).

    ``forks=False``: threads may be started, processes not (where the kernel's own count does not bind this user).
    ``attributes=False``: no change of a file's mode, owner, times or extended attributes, inside the folder as well.
    """
    machine = platform.machine()
    column = _COLUMN[machine]
    ops: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, 4), (_JEQ, 1, 0, _ARCH[machine]), (_RETURN, 0, 0, _KILL)]
    ops += [(_LOAD, 0, 0, 0)]
    if machine == "x86_64":  # the x32 numbering would walk around every line below
        ops += [(_JGE, 0, 1, 0x40000000), (_RETURN, 0, 0, _refuse(errno.EPERM))]
    for name, numbers in (REFUSED if attributes else REFUSED | ATTRIBUTES).items():
        if numbers[column] >= 0:
            reason = errno.EACCES if name == "socket" else errno.EPERM
            ops += [(_JEQ, 0, 1, numbers[column]), (_RETURN, 0, 0, _refuse(reason))]
    # clone3 hides its flags in memory; C libraries fall back to clone when it is absent
    ops += [(_JEQ, 0, 1, _CLONE3), (_RETURN, 0, 0, _refuse(errno.ENOSYS))]
    clone = [(_LOAD, 0, 0, 16), (_JSET, 0, 1, _NEW_NAMESPACE), (_RETURN, 0, 0, _refuse(errno.EPERM))]
    if not forks:
        clone += [(_JSET, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _refuse(errno.EAGAIN))]
        if machine == "x86_64":
            for number in (_FORK, _VFORK):
                ops += [(_JEQ, 0, 1, number), (_RETURN, 0, 0, _refuse(errno.EAGAIN))]
    clone += [(_RETURN, 0, 0, _ALLOW)]
    ops += [(_JEQ, 0, len(clone), _CLONE[column]), *clone]
    ops += _on_others(column)
    targets = list(protected)
    if targets:
        for numbers in _SIGNALLING.values():
            checks = [(_LOAD, 0, 0, 16), (_JGE, 0, 1, 0x80000000), (_RETURN, 0, 0, _refuse(errno.EPERM))]
            for pid in targets:
                checks += [(_JEQ, 0, 1, pid), (_RETURN, 0, 0, _refuse(errno.EPERM))]
            checks += [(_RETURN, 0, 0, _ALLOW)]
            ops += [(_JEQ, 0, len(checks), numbers[column]), *checks]
    ops += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *op) for op in ops)


def _on_others(column: int) -> list[tuple[int, int, int, int]]:
    """Limits, priorities and signals that the kernel would set on, or send to, somebody else."""
    no, yes = (_RETURN, 0, 0, _refuse(errno.EPERM)), (_RETURN, 0, 0, _ALLOW)
    ops = []
    for numbers in _ONESELF.values():
        ops += [(_JEQ, 0, 4, numbers[column]), (_LOAD, 0, 0, 16), (_JEQ, 1, 0, 0), no, yes]
    both = [(_LOAD, 0, 0, 16), (_JEQ, 1, 0, 0), no, (_LOAD, 0, 0, 24), (_JEQ, 1, 0, 0), no, yes]
    ops += [(_JEQ, 0, len(both), _SETPRIORITY[column]), *both]
    for numbers, commands in ((_FCNTL, _OWNERS["fcntl"]), (_IOCTL, _OWNERS["ioctl"])):
        checks = [(_LOAD, 0, 0, 24)]
        for command in commands:
            checks += [(_JEQ, 0, 1, command), no]
        ops += [(_JEQ, 0, len(checks) + 1, numbers[column]), *checks, yes]
    return ops


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(protected: Iterable[int] = (), forks: bool = True, attributes: bool = True) -> None:
    """Filter this process and all it starts; needs ``no_new_privs``."""
    code = program(protected, forks, attributes)
    block = ctypes.create_string_buffer(code, len(code))
    calls.prctl(calls.PR_SET_SECCOMP, 2, ctypes.byref(_Program(len(code) // 8, ctypes.addressof(block))))
