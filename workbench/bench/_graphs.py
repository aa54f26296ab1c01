"""A call recorded as a CUDA graph, so that its time is the card's and not that of launching its kernels one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]

#: Calls before the recorded one: kernels are compiled, tuned and loaded in them.
BEFORE = 3
GRAPH, LAUNCHED = "as a CUDA graph", "launched one by one"


def recorded(run: Call) -> Call:
    """``run`` as one launch; it returns the same tensors every time, with new contents.

    Raises what ``run`` raises, and ``RuntimeError`` where it cannot be recorded (it waits for the card, for example).
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(BEFORE):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run()

    def replay() -> Any:
        graph.replay()
        return made

    return replay


def later(run: Call) -> Call:
    """As :func:`recorded`, at the first call."""
    held: list[Call] = []

    def replay() -> Any:
        if not held:
            held.append(recorded(run))
        return held[0]()

    return replay


def fairly(run: Call, device: str) -> tuple[Call, str]:
    """(the call to time, how it is launched): as a graph where that can be had; a call that fails is left as it is."""
    if device == "cpu":
        return run, ""
    try:
        return recorded(run), GRAPH
    except Exception:  # whatever it is, the race meets it again and writes it down
        torch.cuda.synchronize(device)
        return run, LAUNCHED
