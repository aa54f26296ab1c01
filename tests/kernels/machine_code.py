"""What a Hopper kernel's machine code hands to its matrix instructions: the descriptors of tiles in shared memory.

ptxas 12.8 builds some of them from the wrong register (kernels/notes/linear-memory.md). PTX does not show it, nor does
the interpreter; so uniform registers are followed through the machine code, from top to bottom, as far as they are
made of constants.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

WORD = 0xFFFFFFFF
LINE = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
#: Where shared memory begins for kernels; the first KiB is the driver's.
SHARED_START = 0x400


def listing(cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), "-c", file.name], capture_output=True, text=True, check=True).stdout


def wrong_descriptors(kernel: Any) -> list[str]:
    """Instructions of a compiled Triton kernel whose operand lies outside shared memory or has strides of nobody."""
    highs = {int(x) >> 32 & WORD for x in re.findall(r"-?\d{17,20}", kernel.asm["ptx"])}
    return wrong(listing(kernel.asm["cubin"]), highs, kernel.metadata.shared)


def wrong(code: str, highs: set[int], shared: int) -> list[str]:
    """``highs``: the upper words (strides, swizzle) that the PTX gives to descriptors."""
    found = []
    for instruction, high, low in descriptors(code):
        if high is not None and low is not None:
            inside = (low & 0x3FFF) << 4 < SHARED_START + shared
            if high not in highs or not inside:
                found.append(f"{instruction}: {high:#x} {low:#x}")
    return found


def descriptors(code: str) -> list[tuple[str, int | None, int | None]]:
    """(instruction, upper word, lower word) of the operands that lie in shared memory; None = not known."""
    registers, found = Registers(), []
    for line in code.splitlines():
        if parsed := LINE.match(line):
            predicate, name, rest = parsed.groups()
            if name.startswith("HGMMA"):
                first = int(re.findall(r"gdesc\[UR(\d+)\]", rest)[0])
                in_registers = re.match(r"R\d+, R\d+", rest)  # the left factor
                for at in (first, first + 2)[bool(in_registers) :]:
                    found.append((f"{name} {rest}", registers.of(at + 1), registers.of(at)))
            elif re.match(r"UR\d", rest):
                registers.run(name if not predicate else "unknown", [x.strip() for x in rest.split(",")])
    return found


class Registers:
    """Values of the uniform registers, where they are known."""

    def __init__(self) -> None:
        self.values: dict[int, int | None] = {}
        self.carries: dict[str, int | None] = {}

    def of(self, register: int) -> int | None:
        return self.values.get(register)

    def value(self, word: str) -> int | None:
        if word == "URZ":
            return 0
        if register := re.fullmatch(r"(~|-)?UR(\d+)", word):
            x = self.of(int(register[2]))
            return x if x is None or not register[1] else (~x if register[1] == "~" else -x) & WORD
        return int(word, 16) & WORD if re.fullmatch(r"-?0x[0-9a-f]+", word) else None

    def pair(self, word: str) -> int | None:
        """64 bits: a register and the one after it, or a constant with its sign."""
        if register := re.fullmatch(r"UR(\d+)", word):
            low, high = self.of(int(register[1])), self.of(int(register[1]) + 1)
            return None if low is None or high is None else high << 32 | low
        return 0 if word == "URZ" else int(word, 16) % (1 << 64) if re.fullmatch(r"-?0x[0-9a-f]+", word) else None

    def run(self, name: str, words: list[str]) -> None:
        at = int(words[0][2:])
        if name == "UIADD3.64":
            total = _sum([self.pair(x) for x in words[1:4]])
            self.values[at] = None if total is None else total & WORD
            self.values[at + 1] = None if total is None else total >> 32 & WORD
            return
        self.values[at] = self.add(name, words[1:]) if name.startswith("UIADD3") else self.other(name, words[1:])
        if "64" in name or "WIDE" in name:
            self.values[at + 1] = None

    def add(self, name: str, words: list[str]) -> int | None:
        carries = [x for x in words[:2] if re.fullmatch(r"UP\d", x)]
        words = words[len(carries) :]
        total = _sum([self.value(x) for x in words[:3]])
        if name == "UIADD3.X":
            total = _sum([total, 0 if words[3] == "!UPT" else self.carries.get(words[3])])
        for carry in carries:
            self.carries[carry] = None if total is None else total >> 32
        return None if total is None else total & WORD

    def other(self, name: str, words: list[str]) -> int | None:
        if name == "S2UR":
            return 0 if "SR_CgaCtaId" in words else None
        x = [self.value(word) for word in words[:3]]
        if name == "UMOV" or None in x:
            return x[0] if name == "UMOV" else None
        a, b, c = (*(y or 0 for y in x), 0, 0)[:3]
        made = {
            "USHF.R.U32.HI": c >> min(b, 32),
            "USGXT.U32": a & ((1 << min(b, 32)) - 1),
            "ULEA": (a << min(c, 32)) + b,
        }
        return made[name] & WORD if name in made else None


def _sum(parts: list[int | None]) -> int | None:
    known = [x for x in parts if x is not None]
    return sum(known) if len(known) == len(parts) else None
