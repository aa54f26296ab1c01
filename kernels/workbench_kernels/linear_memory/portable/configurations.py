"""Tile sizes that ship: one line a launch and kind of product, and into how many pieces a row is cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workbench_kernels.linear_memory.portable.arguments import GATES, MAPS, Plan


@dataclass(frozen=True)
class Tiles:
    """Key features, value components, warps, stages of the software pipeline."""

    keys: int
    values: int
    warps: int
    stages: int


#: bfloat16 factors.
LOW = {
    "fused": Tiles(128, 64, 4, 2),
    "running": Tiles(32, 16, 4, 1),
    "states": Tiles(64, 64, 4, 3),
    "reads": Tiles(64, 128, 8, 2),
    "values": Tiles(64, 128, 4, 2),
    "gradients": Tiles(64, 64, 4, 2),
    "prepare": Tiles(64, 64, 4, 1),
    "prepare_gradients": Tiles(64, 32, 4, 2),
}
#: float32 factors.
FULL = {
    "fused": Tiles(128, 32, 8, 1),
    "running": Tiles(32, 16, 4, 1),
    "states": Tiles(32, 32, 4, 2),
    "reads": Tiles(32, 64, 8, 1),
    "values": Tiles(32, 64, 8, 1),
    "gradients": Tiles(32, 32, 8, 1),
    "prepare": Tiles(32, 32, 4, 1),
    "prepare_gradients": Tiles(32, 32, 8, 1),
}
#: Where a rule needs other tiles than the plain one (bytes of a factor, launch, rule): the delta rule's states hold
#: all keys, gates a channel and the Taylor map need room.
OTHER: dict[tuple[int, str, str], Tiles] = {
    (2, "states", "taylor"): Tiles(64, 64, 8, 1),
    (2, "values", "taylor"): Tiles(64, 128, 8, 2),  # by 4 warps an H100 had dv wrong where there is a gate as well
    (2, "gradients", "taylor"): Tiles(64, 64, 8, 2),
    (2, "reads", "vector"): Tiles(32, 128, 8, 1),
    (2, "values", "vector"): Tiles(32, 128, 8, 1),
    (2, "gradients", "vector"): Tiles(32, 64, 8, 1),
    (4, "states", "delta"): Tiles(256, 16, 8, 1),
    (4, "states", "vector"): Tiles(32, 32, 4, 1),
    (4, "reads", "vector"): Tiles(32, 32, 8, 1),
    (4, "values", "vector"): Tiles(32, 32, 8, 1),
}
#: bfloat16 delta rules, from tiles made for D = 128 on: what fits twice into a multiprocessor's registers.
WIDE_HEADS = {"prepare_gradients": Tiles(64, 64, 4, 3)}
#: Their walks by the widest D that tiles are made for: of 32 value components a program where those programs fill a
#: card's multiprocessors (each walks twice as wide in less than twice the time), else of 16.
WALKS = {128: (Tiles(256, 32, 4, 3), Tiles(256, 16, 4, 3)), 256: (Tiles(256, 32, 8, 2), Tiles(256, 16, 8, 2))}
#: (D, Dv) at which the delta rules agree with float64 on a Hopper card, by the dtype of q, narrowest first. Tiles are
#: made for one of these: ptxas 12.8 (Triton 3.6) builds wrong addresses of shared memory in ``prepare_kernel`` where a
#: bfloat16 tile is narrower than 64. Which of today's tiles ran where: kernels/notes/linear-memory.md.
CONFIRMED = {
    torch.bfloat16: ((64, 64), (64, 128), (128, 128), (256, 256)),
    torch.float16: ((64, 64), (128, 128)),
    torch.float32: ((32, 32), (64, 64), (128, 128)),
}
#: Of a card's memory, the share that a call may hold on to for its backward pass without being asked.
KEPT_SHARE = 1 / 16
#: A delta rule's rows whose walk leaves most of the card to others are cut into so many pieces that follow each other,
#: of at least so many chunks: in a graph, and where each call is issued by itself (which costs a CPU 1.8 ms a piece
#: with the backward pass, as long as a card needs for 256 chunks, so pieces pay only where there are more).
IN_TURN, CHUNKS_CAPTURED, CHUNKS_ISSUED = 2, 64, 512
#: Programs that keep a card busy; rows are cut until there are so many, into pieces of at least ``PIECE`` chunks. Of
#: the forward pass in one kernel two fit on a multiprocessor: there a row is not cut into more than run at once.
BUSY, PIECE, MOST_PIECES = 264, 8, 16


def covering(dims: tuple[int, int], dtype: torch.dtype) -> tuple[int, int] | None:
    """The narrowest confirmed (D, Dv) that holds heads of these widths; None = there is none.

    Tiles are those of this pair; heads are filled up to a multiple of 16, which is what code depends on beside them.
    """
    wide_enough = (pair for pair in CONFIRMED[dtype] if pair[0] >= dims[0] and pair[1] >= dims[1])
    return next(wide_enough, None)


def rule_of(plan: Plan) -> str:
    if plan.map == MAPS["taylor"]:
        return "taylor"
    return "delta" if plan.delta else next(name for name, gate in GATES.items() if gate == plan.gate)


def pick(plan: Plan, which: str) -> Tiles:
    """The tiles of a launch: what the caller gave, else the frozen ones."""
    given: Tiles | None = plan.given.get(which)
    if given is not None:
        return given
    if which == "state_gradients":
        return pick(plan, "states")
    table = LOW if plan.wide == torch.bfloat16 else FULL
    if plan.delta and plan.wide == torch.bfloat16:
        if which == "states":
            return walk(plan)
        if which in WIDE_HEADS and plan.tiled[0] >= 128:
            return WIDE_HEADS[which]
    return OTHER.get((plan.wide.itemsize, which, rule_of(plan)), table[which])


def walk(plan: Plan) -> Tiles:
    """By the size of the call and of the card, whatever else runs on it; without a card that of an H200."""
    wide, narrow = _walks(plan)
    programs = plan.count * plan.sizes.heads * -(-plan.sizes.value_dim // wide.values)
    on_card = plan.device.type == "cuda"
    processors = torch.cuda.get_device_properties(plan.device).multi_processor_count if on_card else BUSY // 2
    return wide if programs >= processors * 3 // 4 else narrow


def _walks(plan: Plan) -> tuple[Tiles, Tiles]:
    return next(tiles for widest, tiles in WALKS.items() if plan.tiled[0] <= widest)


def fused(plan: Plan) -> bool:
    """Whether the forward pass is one kernel: half precision, no delta rule, no gate per channel, keys in one tile.

    ``given["fused"]`` decides otherwise: tiles make it one kernel in any precision, None makes it two.
    """
    simple = rule_of(plan) in ("none", "scalar") and plan.sizes.dim <= LOW["fused"].keys
    return simple and bool(plan.given.get("fused", plan.wide == torch.bfloat16))


def keeps(plan: Plan) -> bool:
    """Whether the states stay in memory for the backward pass: what the caller said, else by their size.

    The size of the card decides, not what is free on it: the same call always does the same.
    """
    said = plan.given.get("keep")
    if said is not None:
        return bool(said)
    if not plan.delta or plan.device.type != "cuda":
        return plan.delta
    return kept_bytes(plan) <= KEPT_SHARE * torch.cuda.get_device_properties(plan.device).total_memory


def kept_bytes(plan: Plan) -> int:
    """Of a delta rule's states: h, T; W, new_v and two decays of every token (of whole chunks)."""
    s, wide = plan.sizes, plan.wide.itemsize
    of_token = 4 * plan.chunk + wide * (s.dim + s.value_dim) + 8
    return plan.chunks * s.heads * (wide * s.dim * s.value_dim + plan.chunk * of_token)


def pieces_of(plan: Plan) -> int:
    """Pieces of every row that follow each other, the walk of one beside the other launches of the next.

    Of bfloat16 delta rules where rows and heads are too few for walks of 32 components: what a card has timed.
    """
    if not plan.delta or plan.rows.offsets is not None:
        return 1
    chunks = -(-plan.rows.length // plan.chunk)
    if "pieces" in plan.given:
        return max(1, min(int(plan.given["pieces"]), chunks))
    alone = plan.wide == torch.bfloat16 and walk(plan) is _walks(plan)[1]
    least = CHUNKS_CAPTURED if _captured(plan) else CHUNKS_ISSUED
    return max(1, min(IN_TURN, chunks // least)) if alone else 1


def _captured(plan: Plan) -> bool:
    return plan.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def segments_of(plan: Plan, which: str = "states") -> int:
    """Pieces of a row that run beside each other."""
    if "segments" in plan.given:
        return int(plan.given["segments"])
    if plan.delta:
        return 1
    s, tiles = plan.sizes, pick(plan, which)
    programs = plan.count * s.heads * -(-s.dim // tiles.keys) * -(-s.value_dim // tiles.values)
    longest = -(-plan.rows.length // plan.chunk)
    enough = BUSY if which == "states" else BUSY // 2 + 1
    pieces = 1
    while pieces < MOST_PIECES and programs * pieces < enough and longest // (2 * pieces) >= PIECE:
        pieces *= 2
    return pieces
