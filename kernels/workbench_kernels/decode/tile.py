"""Pieces that the decode and the prefill kernel share: where a tile of keys lies, one step of the online softmax."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
#: How the row of a token is found: the sequence's own row, the row a slot names, or the row a block table names.
CONTIGUOUS, SLOTS, BLOCKS = 0, 1, 2


@triton.jit
def first_row(where, sequence, ADDRESS: tl.constexpr):
    """Row of the cache that holds a whole sequence (0 where a block table finds it token by token)."""
    if ADDRESS == 0:
        row = sequence.to(tl.int64)
    elif ADDRESS == 1:
        row = tl.load(where + sequence).to(tl.int64)
    else:
        row = sequence.to(tl.int64) * 0
    return row


@triton.jit
def block_of(table, start, n, end, ADDRESS: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The table's entries for the tile at ``start``: one where a block holds the whole tile, else (BLOCK_N,).

    Loops load them a tile ahead, so that the loads of keys never wait for them.
    """
    if ADDRESS != 2:
        block = 0
    elif PAGE >= BLOCK_N:  # tiles are aligned
        block = tl.load(table + start // PAGE, mask=start < end, other=0)
    else:
        block = tl.load(table + (start + n) // PAGE, mask=start + n < end, other=0)
    return block


@triton.jit
def offsets(block, start, n, stride_row, stride_n, ADDRESS: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Offsets (BLOCK_N,) of the tokens ``start + n`` from the sequence's first row; 64-bit.

    :func:`tile_at` + :func:`tokens_at` say the same in fewer instructions and more registers: the prefill counts
    instructions, decode has none to spare of the other.
    """
    if ADDRESS != 2:
        at = (start + n).to(tl.int64) * stride_n
    elif PAGE >= BLOCK_N:
        at = block.to(tl.int64) * stride_row + (start % PAGE + n).to(tl.int64) * stride_n
    else:
        at = block.to(tl.int64) * stride_row + ((start + n) % PAGE).to(tl.int64) * stride_n
    return at


@triton.jit
def tile_at(block, start, stride_row, stride_n, ADDRESS: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """64-bit offset of a tile's first token from the sequence's first row, as far as one number can say it."""
    if ADDRESS != 2:
        at = tl.cast(start, tl.int64) * stride_n
    elif PAGE >= BLOCK_N:
        at = tl.cast(block, tl.int64) * stride_row + tl.cast(start % PAGE, tl.int64) * stride_n
    else:
        at = tl.cast(0, tl.int64)
    return at


@triton.jit
def tokens_at(block, n, stride_row, stride_n, ADDRESS: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Offsets (BLOCK_N,) of a tile's tokens beyond :func:`tile_at`; the same for every tile unless blocks are smaller.

    ``start`` is a multiple of BLOCK_N, and of PAGE where that is smaller.
    """
    if ADDRESS != 2 or PAGE >= BLOCK_N:
        at = n.to(tl.int64) * stride_n
    else:
        at = block.to(tl.int64) * stride_row + (n % PAGE).to(tl.int64) * stride_n
    return at


@triton.jit
def scaled(scores, factor, cap, CAPPED: tl.constexpr):
    """Scores in units of log 2; ``factor`` is scale * log2(e), or scale / cap before a soft cap's tanh."""
    scores = scores * factor
    if CAPPED:
        scores = cap * LOG2_E * (1.0 - 2.0 / (tl.exp(2.0 * scores) + 1.0))
    return scores


@triton.jit
def online(scores, unit, v, top, total, acc):
    """Let one tile of scores (M, N) and values (N, D) join a running maximum, sum and output.

    ``scores`` x ``unit`` (> 0) are in units of log 2: multiplying and subtracting the maximum is one instruction.
    """
    new_top = tl.maximum(top, tl.max(scores, 1) * unit)
    shift = tl.where(new_top == -float("inf"), 0.0, new_top)
    weights = tl.exp2(scores * unit - shift[:, None])
    shrink = tl.exp2(top - shift)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None]
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
    return new_top, total, acc


@triton.jit
def join_sinks(sink, top, total, acc):
    """Logits without values join the denominator; in units of log 2."""
    new_top = tl.maximum(top, sink)
    shift = tl.where(new_top == -float("inf"), 0.0, new_top)
    shrink = tl.exp2(top - shift)
    return new_top, total * shrink + tl.exp2(sink - shift), acc * shrink[:, None]


@triton.jit
def normalised(top, total, acc):
    """(output, natural log-sum-exp); rows that saw nothing give 0 and -inf."""
    empty = total == 0.0
    safe = tl.where(empty, 1.0, total)
    lse = tl.where(empty, -float("inf"), (top + tl.log2(safe)) * LN_2)
    return acc / safe[:, None], lse
