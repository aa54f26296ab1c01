"""Triton kernels on a machine without a GPU: compiled, with what they need of a card, or run by the interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Bytes of shared memory that one program can have on Hopper; two programs share 228 KiB minus 1 KiB each.
SHARED_MOST = 227 << 10


@dataclass(frozen=True)
class Needs:
    """Shared bytes, registers and bytes of spilled stack of a thread, and the PTX."""

    shared: int
    registers: int
    stack: int
    ptx: str


def compile_for_hopper(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], odd: Iterable[str] = (), **options: int
) -> Needs:
    """``types``: argument -> "*bf16", "i32", "fp32"; pointers and integers are multiples of 16 unless in ``odd``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name not in constants and name not in odd and types[name] != "fp32"
    }
    numbers = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature=signature, constexprs=numbers, attrs=aligned)
    target = GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})
    registers, stack = usage(made.asm["cubin"])
    return Needs(made.metadata.shared, registers, stack, made.asm["ptx"])


class NoCard:
    """What Triton asks of a driver before it compiles; nothing can be launched."""

    def __init__(self, capability: int = 90) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def run_in_the_interpreter(file: str, part: str) -> None:
    """The tests of ``file`` (beside this one) that ``part`` selects, in a process whose kernels are interpreted."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", str(here / file), "-q", "-k", part]
    command += ["-p", "no:cacheprovider", "--durations=0"]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=here.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def usage(cubin: bytes) -> tuple[int, int]:
    """(registers of a thread, bytes of its stack: what was spilled)."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found, told
    return int(found[1]), int(found[2])
