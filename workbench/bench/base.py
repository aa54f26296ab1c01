"""What a bench table is: cases (one point each: inputs, work, contenders, a check), raced one after the other.

A table is one file, ``workbench/bench/<name>.py``::

    class Decode(Bench):
        name, title = "decode", "One query over a long cache"

        def cases(self, device, quick):
            for batch in (1, 8):
                q, k, v = draw(batch, device)
                yield Case({"batch": batch}, {"ours": Contender(lambda: ours(q, k, v), ours=True), ...},
                           work=bytes_moved, unit="TB/s", check=lambda out: relative_error(out, exact))

    BENCHES.register("decode")(Decode())
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

#: unit of a rate -> the entry of ``workbench.systems.timing.ceilings`` that bounds it.
CEILINGS = {"TFLOP/s": "matmul_tflops", "TB/s": "copy_tb_s"}


@dataclass(frozen=True)
class Contender:
    """One call that does a case's work.

    ``ours`` tells our kernels from peers. ``version`` names the library a peer comes from ("cuDNN 9.19"). A contender
    that cannot do the case may raise: its row then holds the reason instead of numbers. ``plain`` is the same call
    without a CUDA graph (whose memory is set aside before it runs): the row's ``extra_gb`` is measured on it.
    """

    run: Callable[[], Any]
    ours: bool = False
    version: str = ""
    plain: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Case:
    """One point of a table.

    Attributes:
        place: column -> value, what names the point ("pass", "head_dim", "length"). Of ``tokens`` the rows also have
            ``tokens_per_s``.
        contenders: name -> contender; built on the same inputs.
        work: floating-point operations (unit "TFLOP/s") or bytes that must move (unit "TB/s") of one launch, the same
            for all contenders whatever they really do.
        unit: a key of ``CEILINGS``.
        check: error of what a contender's call returned against float32 or float64 (see ``relative_error``).
        budget_s: seconds for the whole case after compilation.
        launches: most timed launches of a contender.
    """

    place: Mapping[str, Any]
    contenders: Mapping[str, Contender]
    work: float
    unit: str
    check: Callable[[Any], float] | None = None
    budget_s: float = 2.0
    launches: int = 30


class Bench(ABC):
    """One table. Instances hold no state.

    ``limit_s``: on a GPU no case is begun after so many seconds of a run; the most telling cases come first.
    """

    name: str
    title: str
    limit_s: float = math.inf

    @abstractmethod
    def cases(self, device: str, quick: bool) -> Iterator[Case]:
        """The points, made one at a time so that only one case's tensors are alive.

        ``device`` is "cpu" or "cuda" (with an index). ``quick`` asks for few points: about 20 s on a GPU.
        """


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of ``exact``: one wrong tile of a hundred shows as .1."""
    import torch

    exact = exact.to(torch.float64)
    scale = exact.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found.to(exact) - exact).square().mean().sqrt() / scale)


BENCHES: Registry[Bench] = Registry("bench table", ("workbench.bench",), "memory_workbench.benches")
