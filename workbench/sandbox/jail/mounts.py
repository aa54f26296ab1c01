"""Namespaces and a root folder of its own: the code sees Python read-only, ``/box``, four devices and nothing else."""

from __future__ import annotations

import os
import shutil

from . import calls

BOX, CODE = "/box", "/code"
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_LOCKED = {2: calls.MS_NOSUID, 4: calls.MS_NODEV, 8: calls.MS_NOEXEC}  # ST_* of Linux, which os has on Linux only
_KINDS = calls.CLONE_NEWNS | calls.CLONE_NEWNET | calls.CLONE_NEWIPC | calls.CLONE_NEWUTS


def enter_namespaces() -> str:
    """Own mounts, network, IPC and host name; ordinary users get them inside a user namespace.

    The network namespace has only a loopback interface that is down. Returns "privileged" or "user namespace".
    """
    if os.geteuid() == 0:
        calls.unshare(_KINDS)
        return "privileged"
    uid, gid = os.geteuid(), os.getegid()
    calls.unshare(calls.CLONE_NEWUSER | _KINDS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return "user namespace"


def enter_pid_namespace() -> None:
    """The next child is process 1 of a namespace, and there is no second one: fork nothing else afterwards."""
    calls.unshare(calls.CLONE_NEWPID)


def build_root(folder: str, readable: list[str], disk_bytes: int, files: int, owner: tuple[int, int] | None) -> None:
    """Build a root at ``folder``/root, fill ``/box`` and ``/code`` from ``folder``, and make it this process's own.

    ``/box`` is a tmpfs of ``disk_bytes`` and ``files`` inodes, so that the kernel holds the disk limit.
    """
    calls.mount("none", "/", None, calls.MS_REC | calls.MS_PRIVATE)
    root, flags = f"{folder}/root", calls.MS_NOSUID | calls.MS_NODEV
    os.mkdir(root)
    calls.mount("tmpfs", root, "tmpfs", flags, "mode=755,size=64m")
    for path in readable:
        _show(root, path)
    _devices(root)
    shutil.copytree(f"{folder}/code", root + CODE)
    os.mkdir(root + BOX)
    calls.mount("tmpfs", root + BOX, "tmpfs", flags, f"mode=700,size={disk_bytes},nr_inodes={files + 1}")
    shutil.copytree(f"{folder}/box", root + BOX, dirs_exist_ok=True)
    os.symlink(BOX, f"{root}/tmp")
    os.symlink(BOX, f"{root}/dev/shm")
    if owner:
        own(root + BOX, owner)
    os.mkdir(f"{root}/old")
    calls.pivot_root(root, f"{root}/old")
    os.chdir("/")
    calls.umount("/old")
    calls.mount("none", "/", None, calls.MS_REMOUNT | calls.MS_BIND | calls.MS_RDONLY | flags)


def own(folder: str, owner: tuple[int, int]) -> None:
    """Give a folder and all in it to ``owner``."""
    os.chmod(folder, 0o700)
    for place, folders, names in os.walk(folder):
        for name in [".", *folders, *names]:
            os.lchown(os.path.join(place, name), *owner)


def outermost(paths: list[str]) -> list[str]:
    """Existing paths, without those inside another one; symbolic links are kept as they are."""
    kept: list[str] = []
    for path in sorted({os.path.normpath(p) for p in paths if os.path.lexists(p) and p != "/"}):
        if not any(path.startswith(f"{other}/") for other in kept if not os.path.islink(other)):
            kept.append(path)
    return kept


def _show(root: str, path: str) -> None:
    """Bind ``path`` read-only at the same place in the new root."""
    target = root + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    _bind(path, target)
    kept = 0
    locked = os.statvfs(target).f_flag
    for shown, flag in _LOCKED.items():
        kept |= flag if locked & shown else 0
    base = calls.MS_REMOUNT | calls.MS_BIND | calls.MS_RDONLY | calls.MS_NOSUID
    calls.mount("none", target, None, base | kept)


def _bind(path: str, target: str) -> None:
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        open(target, "x").close()
    try:
        calls.mount(path, target, None, calls.MS_BIND)
    except OSError:  # other mounts inside it are locked to it in a user namespace: they must come along
        calls.mount(path, target, None, calls.MS_BIND | calls.MS_REC)


def _devices(root: str) -> None:
    os.mkdir(f"{root}/dev")
    for path in DEVICES:
        _bind(path, root + path)
