"""Compiles a Triton kernel for Hopper on a machine without a GPU, and says what it needs of the card."""

from __future__ import annotations

import re
import subprocess
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
