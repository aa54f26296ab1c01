"""Tables of an allocator's state: the memory inspector's columns, and the address-space map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.systems.kv_geometry import KVGeometry
from workbench.systems.kv_log import CONTENTS

if TYPE_CHECKING:
    import pandas as pd

    from workbench.systems._kv_buffers import Slot


def contents(
    geometry: KVGeometry, slots: Sequence[Slot], base: int, shares: Mapping[int, int], buffer: int
) -> pd.DataFrame:
    """One row a slot that holds pages or a request; columns ``CONTENTS``."""
    import pandas as pd

    rows = [
        _row(geometry, slots, index, base, shares, buffer)
        for index, slot in enumerate(slots)
        if slot.active or slot.blocks
    ]
    return pd.DataFrame(rows, columns=list(CONTENTS)).astype({"request id": "Int64"})


def _row(
    g: KVGeometry, slots: Sequence[Slot], index: int, base: int, shares: Mapping[int, int], buffer: int
) -> tuple[Any, ...]:
    slot, start = slots[index], base + index * g.slot_bytes
    waste = len(slot.blocks) * g.block_bytes - slot.length * g.kv_token_bytes
    state = "running" if slot.active else "cached for reuse"
    steps = sorted({block.step for block in slot.blocks})
    return (
        *(index, slot.request if slot.active else None, state, slot.length, len(slot.blocks)),
        *(g.need(slot.length), waste, f"{start:#x}..{start + g.slot_bytes:#x}"),
        " ".join(str(block.groups[buffer]) for block in slot.blocks),
        " ".join(map(str, _sharers(slots, index, shares, buffer))),
        f"{steps[0]}..{steps[-1]}" if steps else "",
        " ".join(dict.fromkeys(block.source for block in slot.blocks)),
    )


def _sharers(slots: Sequence[Slot], index: int, shares: Mapping[int, int], buffer: int) -> list[int]:
    mine = {block.groups[buffer] for block in slots[index].blocks} & set(shares)
    others = ((i, slot) for i, slot in enumerate(slots) if i != index)
    return [i for i, slot in others if mine & {block.groups[buffer] for block in slot.blocks}] if mine else []


def address_map(geometry: KVGeometry, slots: Sequence[Slot], step: int, buffer: int) -> pd.DataFrame:
    """One row a page group of address space; state "used", "cached" (mapped beyond the need) or "unmapped"."""
    import pandas as pd

    rows = []
    for index, slot in enumerate(slots):
        need = geometry.need(slot.length)
        for place in range(geometry.slot_blocks):
            there = slot.blocks[place] if place < len(slot.blocks) else None
            state = "unmapped" if there is None else "used" if place < need else "cached"
            page = there.groups[buffer] if there else -1
            rows.append((step, buffer, index, place, page, state, there.source if there else ""))
    return pd.DataFrame(rows, columns=["step", "buffer", "slot", "block", "page", "state", "source"])
