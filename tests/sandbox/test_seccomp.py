"""The filter's program, run by a small interpreter of BPF: also for the machine that this one is not."""

from __future__ import annotations

import errno
import platform
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.sandbox.jail import seccomp

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def decide(program: bytes, arch: int, number: int, first: int = 0, second: int = 0) -> int:
    """What the kernel does with one call (first, second: its arguments)."""
    data = struct.pack("=IIQ6Q", number, arch, 0, first, second, 0, 0, 0, 0)
    ops = list(struct.iter_unpack("=HBBI", program))
    at, value = 0, 0
    while True:
        code, yes, no, k = ops[at]
        at += 1
        if code == 0x20:
            value = struct.unpack_from("=I", data, k)[0]
        elif code == 0x06:
            return k
        else:
            true = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code]
            at += yes if true else no


@pytest.fixture(params=ARCH)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    return request.param


def column(machine: str) -> int:
    return list(ARCH).index(machine)


def test_every_named_call_is_refused(machine: str) -> None:
    program = seccomp.program()
    for name, numbers in seccomp.REFUSED.items():
        if (number := numbers[column(machine)]) >= 0:
            reason = errno.EACCES if name == "socket" else errno.EPERM
            assert decide(program, ARCH[machine], number) == ERRNO | reason, name


def test_a_foreign_numbering_is_deadly(machine: str) -> None:
    other = next(arch for name, arch in ARCH.items() if name != machine)
    assert decide(seccomp.program(), other, 1) == KILL
    if machine == "x86_64":
        assert decide(seccomp.program(), ARCH[machine], 0x40000000 | 41) == ERRNO | errno.EPERM


def test_clone_makes_processes_and_threads_but_no_namespaces(machine: str) -> None:
    clone = (56, 220)[column(machine)]
    thread, process, user_namespace = 0x3D0F00, 17, 0x10000000 | 17
    whole, few = seccomp.program(), seccomp.program(forks=False)
    assert [decide(whole, ARCH[machine], clone, f) for f in (thread, process)] == [ALLOW, ALLOW]
    assert decide(whole, ARCH[machine], clone, user_namespace) == ERRNO | errno.EPERM
    assert decide(few, ARCH[machine], clone, thread) == ALLOW
    assert decide(few, ARCH[machine], clone, process) == ERRNO | errno.EAGAIN
    assert decide(whole, ARCH[machine], 435) == ERRNO | errno.ENOSYS


def test_shielded_processes_groups_and_everybody(machine: str) -> None:
    kill = (62, 129)[column(machine)]
    program = seccomp.program(protected=(1234, 99))
    refused, others = (1234, 99, 2**64 - 1, 2**64 - 1234), (0, 1, 1235, 4_000_000)
    assert {decide(program, ARCH[machine], kill, pid) for pid in refused} == {ERRNO | errno.EPERM}
    assert {decide(program, ARCH[machine], kill, pid) for pid in others} == {ALLOW}


def test_limits_and_priorities_only_of_oneself(machine: str) -> None:
    program, arch, no = seccomp.program(), ARCH[machine], ERRNO | errno.EPERM
    for numbers in seccomp._ONESELF.values():
        assert [decide(program, arch, numbers[column(machine)], pid) for pid in (0, 1, 777)] == [ALLOW, no, no]
    for which, who, decision in ((0, 0, ALLOW), (0, 7, no), (2, 0, no), (1, 0, no)):
        assert decide(program, arch, seccomp._SETPRIORITY[column(machine)], which, who) == decision
    fcntl, ioctl = seccomp._FCNTL[column(machine)], seccomp._IOCTL[column(machine)]
    assert [decide(program, arch, fcntl, 1, command) for command in (1, 2, 4, 8, 10, 15)] == [ALLOW] * 3 + [no] * 3
    assert [decide(program, arch, ioctl, 1, command) for command in (0x5401, 0x8901, 0x8902)] == [ALLOW, no, no]


@settings(max_examples=300)
@given(number=st.integers(0, 600), first=st.integers(0, 2**64 - 1))
def test_everything_else_is_allowed(number: int, first: int) -> None:
    if platform.machine() not in ARCH:
        pytest.skip("no filter for this machine")
    here = column(platform.machine())
    argued = [*seccomp._ONESELF.values(), seccomp._SETPRIORITY, seccomp._FCNTL, seccomp._IOCTL]
    special = (
        {numbers[here] for numbers in argued}
        | {numbers[here] for numbers in seccomp.REFUSED.values()}
        | {seccomp._CLONE[here], seccomp._CLONE3}
    )
    decision = decide(seccomp.program(), ARCH[platform.machine()], number, first)
    assert (decision == ALLOW) or number in special


def test_jumps_stay_inside_the_program(machine: str) -> None:
    program = seccomp.program(protected=(1, 2), forks=False, attributes=False)
    ops = list(struct.iter_unpack("=HBBI", program))
    assert len(ops) < 4096
    for at, (code, yes, no, _) in enumerate(ops):
        if code in (0x15, 0x35, 0x45):
            assert at + 1 + max(yes, no) < len(ops)
    assert ops[-1][0] == 0x06
